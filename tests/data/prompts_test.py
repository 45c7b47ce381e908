from __future__ import annotations

import copy
import dataclasses
import hashlib
import re

import numpy as np
import pytest
import tokenizers
import transformers

from rapo_jax import data, rewards, tools
from rapo_jax.data import prompts
from rapo_jax.trajectory import TokenKind

SEARCH, OPEN, PYTHON = tools.SearchTool, tools.OpenTool, tools.PythonTool
APPEND_ONLY = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTENT = "m['content']"
# As some published templates do: thoughts begin in the generation prompt.
OPENS_THOUGHT = APPEND_ONLY.replace(
  "assistant\n{% endif", "assistant\nTHINK{% endif"
)
# Earlier turns change once a reply follows.
REWRITES = "{% if messages[-1]['role'] == 'assistant' %}again {% endif %}"


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  model.train_from_iterator(
    ["user assistant system"],
    tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["<|im_start|>", "<|im_end|>"],
      show_progress=False,
    ),
  )
  made = transformers.PreTrainedTokenizerFast(tokenizer_object=model)
  made.chat_template = APPEND_ONLY
  return made


@pytest.fixture
def query() -> data.Query:
  message = {"role": "user", "content": "How high?"}
  return data.Query("q-7", "How high?", ("9 m",), (message,), "test")


def test_prompt_hash_changes_with_template_and_messages(tokenizer, query):
  first = data.prompt_hash(tokenizer, query)
  assert re.fullmatch("[0-9a-f]{16}", first)
  assert data.prompt_hash(tokenizer, query) == first
  message = {"role": "user", "content": "How wide?"}
  other = dataclasses.replace(query, messages=(message,))
  assert data.prompt_hash(tokenizer, other) != first
  changed = copy.deepcopy(tokenizer)
  changed.chat_template = REWRITES + APPEND_ONLY
  assert data.prompt_hash(changed, query) != first


def test_prompt_names_the_given_tools_only():
  for some in ((), (SEARCH,), (PYTHON,), (SEARCH, OPEN, PYTHON)):
    text = prompts.system_prompt(some)
    every = tools.TagSet(("search", "open", "python"))
    named = {tag.name for tag in every.find_tags(text)}
    names = {tool.name for tool in some}
    expected = {"think", "answer", "retrieve", *names}
    assert named == (expected | {"result"} if names else expected)
    assert r"\boxed{}" in text
  with pytest.raises(ValueError, match="two tools"):
    prompts.system_prompt((SEARCH, SEARCH))


def test_the_prompt_of_the_recipe_s_tools_stays_as_it_is():
  text = prompts.system_prompt((SEARCH, PYTHON))
  digest = hashlib.sha256(text.encode()).hexdigest()
  assert digest[:16] == "88090d09a62de790"


def test_tools_that_come_along_may_be_named():
  assert prompts.system_prompt(("python",)) == prompts.system_prompt(
    (tools.PythonTool,)
  )
  with pytest.raises(ValueError, match="one of search, open, python, got 'x'"):
    prompts.system_prompt(("x",))


def test_the_example_of_the_prompt_has_a_whole_format():
  text = prompts.system_prompt((SEARCH, OPEN, PYTHON)).split("\n")[-1]
  pieces = re.split("(<result>.*?</result>)", text)
  segments = [
    (TokenKind.OBSERVATION if p.startswith("<result>") else TokenKind.POLICY, p)
    for p in pieces
  ]
  result = rewards.score(segments, "43")
  assert (result.value, result.status) == (1.1, rewards.ScoreStatus.OK)


def test_encode_prompt(tokenizer, query):
  ids = data.encode_prompt(tokenizer, query, 64)
  assert ids.dtype == np.int32
  assert tokenizer.decode(ids.tolist()) == (
    "<|im_start|>user\nHow high?<|im_end|>\n<|im_start|>assistant\n"
  )


def test_a_prompt_over_the_limit_is_refused_and_named(tokenizer, query):
  num_tokens = len(data.encode_prompt(tokenizer, query, 64))
  data.encode_prompt(tokenizer, query, num_tokens)
  with pytest.raises(ValueError, match=f"q-7 has {num_tokens} tokens"):
    data.encode_prompt(tokenizer, query, num_tokens - 1)


def test_append_only_templates_pass(tokenizer, query):
  data.check_prefix_preservation(tokenizer, query)


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (OPENS_THOUGHT, "is '<' in place of 'T'"),
    (REWRITES + APPEND_ONLY, r"token 0 .* is 'a' in place of '<\|im_start"),
    ("{{ messages[0]['content'] if add_generation_prompt }}", "the end"),
    (
      APPEND_ONLY.partition("{% if add_generation_prompt")[0],
      "must begin the agent's turn .*assistant",
    ),
    (
      APPEND_ONLY.partition("{% if add_generation_prompt")[0].replace(
        CONTENT, f"{CONTENT}.split('</think>')[-1]"
      ),
      "must begin the agent's turn .*assistant",
    ),
  ],
)
def test_other_templates_are_refused(
  tokenizer, query, monkeypatch, template, message
):
  monkeypatch.setattr(tokenizer, "chat_template", template)
  with pytest.raises(ValueError, match=message):
    data.check_prefix_preservation(tokenizer, query)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (
      "in messages %}",
      "in messages if m['role'] != 'system' %}",
      "must write the system turn as it is",
    ),
    (
      CONTENT,
      f"{CONTENT}.replace('/think', '')",
      r"system turn as it is.* from '/think>",
    ),
    (CONTENT, f"{CONTENT} | e", """system turn .* from "'s question"""),
    (CONTENT, f"{CONTENT} | striptags", "system turn .* from '<think>"),
    (CONTENT, f"{CONTENT}[:100]", "system turn as it is"),
  ],
)
def test_a_template_that_changes_a_turn_is_refused(
  tokenizer, query, monkeypatch, old, new, message
):
  messages = data.chat_messages("What?", ["search"])
  told = dataclasses.replace(query, messages=messages)
  data.check_prefix_preservation(tokenizer, told)
  assert old in APPEND_ONLY
  changed = APPEND_ONLY.replace(old, new)
  monkeypatch.setattr(tokenizer, "chat_template", changed)
  with pytest.raises(ValueError, match=message):
    data.check_prefix_preservation(tokenizer, told)


def test_a_template_that_draws_is_refused(tokenizer, query, monkeypatch):
  drawing = "{{ ['a', 'b'] | random }}" + APPEND_ONLY
  monkeypatch.setattr(tokenizer, "chat_template", drawing)
  with pytest.raises(ValueError, match="same prompt every time"):
    data.check_prefix_preservation(tokenizer, query)


def test_a_query_needs_an_answer_and_messages():
  message = {"role": "user", "content": "x"}
  with pytest.raises(ValueError, match="q: ground_truth"):
    data.Query("q", "x", (" ",), (message,), "test")
  with pytest.raises(ValueError, match="q: messages"):
    data.Query("q", "x", ("y",), (), "test")
  with pytest.raises(ValueError, match="q: a message"):
    data.Query("q", "x", ("y",), ({"role": "user"},), "test")
