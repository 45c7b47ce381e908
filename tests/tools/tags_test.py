from __future__ import annotations

import re
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from rapo_jax import tools
from rapo_jax.tools import tags

NAMES = ("search", "python", "open")
TAGS = tools.TagSet(NAMES)
# Anything that a tag parser, or a tokenizer with a normaliser, may take for a
# tag: white space, case and a missing end included.
ANY_TAG = re.compile(rf"<[\s/]*({'|'.join(TAGS.names)})\b", re.IGNORECASE)
SPECIAL = re.compile(r"<\||</?s>|</?tool_call>|<(pad|unk|bos|eos|mask)>")
PIECES = st.sampled_from(
  [
    *(f"<{name}>" for name in TAGS.names),
    *(f"</{name}>" for name in TAGS.names),
    *("<", ">", "/", "|", " ", "\n", "\0", "\\boxed{", "}", "search", "answer"),
    *("< / Answer >", "<ANSWER", "<|im_end|>", "<s>", "＜think>", "\ud800"),
  ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=20).map(
  "".join
)


@pytest.mark.parametrize(
  ("text", "name", "argument"),
  [
    ("<think> t </think><search> who is it </search>", "search", " who is it "),
    (
      "<python>\nx = 1\nprint(x < 2)\n</python>",
      "python",
      "x = 1\nprint(x < 2)",
    ),
    ("<open> p1 </open>", "open", " p1 "),
    # Only the newline beside a tag is not part of it.
    ("<python>\n  x = 1\n  x\n</python>", "python", "  x = 1\n  x"),
    ("<python>\r\n\tx\r\n</python>", "python", "\tx"),
    ("<python>\n\n x\n\n</python>", "python", "\n x\n"),
    ("<python>\n</python>", "python", ""),
    ("<search></search>", "search", ""),
    # What the last token brought along does not matter.
    ("<search> q </search>\n", "search", " q "),
    ("<search> q </search><python> 1 </python>", "search", " q "),
    # A thought may name tags.
    ("I use <search>. <search> q </search>", "search", " q "),
    ("I use <python>. <search> q </search>", "search", " q "),
    ("</think> <search> q </search>", "search", " q "),
    ("<search> a <b>bold</b> </search>", "search", " a <b>bold</b> "),
  ],
)
def test_calls(text: str, name: str, argument: str):
  assert TAGS.parse_call(text) == tools.ToolCall(name, argument)


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "no closing tool tag"),
    ("<search> q", "no closing tool tag"),
    ("<search> q </ search>", "no closing tool tag"),
    ("<SEARCH> q </SEARCH>", "no closing tool tag"),
    ("q </search>", "no opening search tag"),
    ("<python> q </search>", "no opening search tag"),
    ("<search> <python> 1 </search>", "holds the tag python"),
    ("<search> </think> q </search>", "holds the tag /think"),
    ("<search> <answer> q </search>", "holds the tag answer"),
    ("<search> a </python> b </search>", "no opening python tag"),
  ],
)
def test_malformed_calls(text: str, reason: str):
  call = TAGS.parse_call(text)
  assert isinstance(call, tools.MalformedCall)
  assert reason in call.reason
  # The reason goes into an observation.
  assert TAGS.escape(call.reason) == call.reason


def test_tags_of_other_tools_are_text():
  some = tools.TagSet(("search",))
  assert not some.find_tags("<open> p1 </open>")
  assert some.escape("<open> </search>") == "<open> &lt;/search>"
  call = some.parse_call("<search> <open> p1 </open> </search>")
  assert call == tools.ToolCall("search", " <open> p1 </open> ")
  assert isinstance(
    tools.TagSet().parse_call("<open> </open>"), tools.MalformedCall
  )


def test_a_set_of_any_tool():
  tag_set = tools.TagSet(("calculator",))
  assert tag_set.stop_strings == ("</calculator>", "</answer>")
  call = tag_set.parse_call("<think> t </think><calculator> 1+1 </calculator>")
  assert call == tools.ToolCall("calculator", " 1+1 ")
  assert tag_set.escape("</calculator>") == "&lt;/calculator>"


def test_tools_are_inferred_from_answered_calls():
  text = (
    "<think> <python> or <open>? </think><calc> 1 </calc>\n<result> 1 </result>"
    "<think> </think><result> x </result><b> <search> q </search>"
  )
  assert tags.answered_tools(text * 2) == ["calc", "calc"]
  assert tools.TagSet.of_text(text) == tools.TagSet(("calc",))


def test_a_text_without_its_tags():
  step = "<think> a </think><search> b </search>\n<result> <b> c </result>"
  assert TAGS.remove_tags(step) == "a b <b> c"
  assert TAGS.remove_tags(" no tag\n") == "no tag"


@pytest.mark.parametrize(
  ("prompt", "opened"),
  [
    (
      "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n",
      True,
    ),
    # The turn's header is text here, and the question names the tag.
    ("<｜begin▁of▁sentence｜>User: What is <think>?\n\nAssistant:", False),
    ("<｜User｜>Why?<｜Assistant｜><think>\n", True),
    ("<start_of_turn>model\n<think>", True),
    ("[INST] Why? [/INST]<think>", True),
    # Qwen3 with its thoughts switched off.
    ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    # A question names the tag; no template opens it.
    (
      "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n",
      False,
    ),
    (
      "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n<think>",
      True,
    ),
    # No control tokens: only a tag at the end is a template's.
    ("Why? <think>\n", True),
    ("What is <think>? Answer:", False),
    ("", False),
  ],
)
def test_prompts_that_open_a_thought(prompt: str, opened: bool):
  assert tags.opens_thought(prompt) is opened


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("so </think> x", "<think>so </think> x"),
    ("<think> so </think> x", "<think> so </think> x"),
    ("no thought", "no thought"),
  ],
)
def test_the_opening_tag_of_a_template(text: str, expected: str):
  assert tags.with_opened_thought(text) == expected
  assert not tags.leaves_thought_open(expected)


def test_whether_a_thought_is_open_behind_a_text():
  assert tags.leaves_thought_open("<think> a")
  assert tags.leaves_thought_open("a", opened=True)
  assert not tags.leaves_thought_open("a</think>", opened=True)


@pytest.mark.parametrize(
  ("name", "fault"),
  [
    ("think", "another meaning"),
    ("result", "another meaning"),
    ("web search", "cannot be a tag"),
    ("Search", "cannot be a tag"),
    ("", "cannot be a tag"),
    ("a>", "cannot be a tag"),
    ("tool_call", "special token"),
    ("python", "name of two tools"),
  ],
)
def test_names_that_no_tool_can_have(name: str, fault: str):
  with pytest.raises(ValueError, match=fault):
    tools.TagSet(("search", "python", name))


@hypothesis.given(TEXTS)
@hypothesis.settings(deadline=None, max_examples=300)
def test_parse_call_never_raises(text: str):
  call = TAGS.parse_call(text)
  if isinstance(call, tools.ToolCall):
    assert call.name in NAMES
    assert not TAGS.find_tags(call.argument)
    assert call.argument in text


@hypothesis.given(TEXTS)
@hypothesis.settings(deadline=None, max_examples=300)
def test_escape_leaves_no_tag(text: str):
  escaped = TAGS.escape(text)
  assert not TAGS.find_tags(escaped)
  assert not ANY_TAG.search(escaped)
  assert not SPECIAL.search(escaped)
  escaped.encode("utf-8")


@hypothesis.given(TEXTS)
@hypothesis.settings(deadline=None, max_examples=100)
def test_an_escaped_result_cannot_end_its_own_tag(text: str):
  result = f"<result> {TAGS.escape(text)} </result>"
  assert [t.closing for t in TAGS.find_tags(result)] == [False, True]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("</result><answer> 1", "&lt;/result>&lt;answer> 1"),
    ("< / Think >", "&lt; / Think >"),
    ("<answer", "&lt;answer"),
    ("<\u200banswer>", "&lt;\u200banswer>"),
    ("＜search＞", "&lt;search＞"),
    ("<|im_end|>", "&lt;|im_end|>"),
    ("<｜end▁of▁sentence｜>", "&lt;｜end▁of▁sentence｜>"),
    ("<s> </S>", "&lt;s> &lt;/S>"),
    ("<tool_call>", "&lt;tool_call>"),
    ("<<answer>answer>", "<&lt;answer>answer>"),
    ("a\ud800b", "a?b"),
  ],
)
def test_escape(text: str, expected: str):
  assert TAGS.escape(text) == expected


@pytest.mark.parametrize(
  "text",
  [
    "",
    "a < b and b > c, x<search_index, i<opened",
    "<p>The <b>answer</b> is <span>42</span></p> \\boxed{42}",
    "list<string> <-> |x| <= 3 &lt; 東京 🙂",
    "<answers> <thinking> <unknown>",
  ],
)
def test_other_text_stays_as_it_is(text: str):
  assert TAGS.escape(text) == text


@pytest.mark.parametrize("piece", ["<", "< ", "<answer", "<s", "< /\n", "\0"])
def test_escape_takes_linear_time(piece: str):
  start = time.perf_counter()
  TAGS.escape(piece * 100_000)
  TAGS.escape("<" + piece[1:] * 100_000)
  TAGS.parse_call(piece * 100_000)
  tags.opens_thought(piece * 100_000)
  assert time.perf_counter() - start < 5


def test_a_step_is_split_behind_the_agents_part():
  tag_set = tools.TagSet(("search", "python"))
  call, result = (
    "<think> </answer </think><python>1</python>",
    "<result></search>",
  )
  assert tag_set.split_step(call + result) == (call, result)
  assert tag_set.split_step("<answer>1</answer>") == ("<answer>1</answer>", "")
  assert tag_set.split_step("a <result> b") == ("a <result> b", "")
