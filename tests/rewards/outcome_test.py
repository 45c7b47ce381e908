from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from rapo_jax import rewards
from rapo_jax.rewards import outcome
from rapo_jax.trajectory import TokenKind

PROMPT, POLICY, OBSERVATION, RETRIEVED = TokenKind
Status = rewards.ScoreStatus
GOLD = "Paris"
QUESTION = (PROMPT, "Which town?")
RIGHT = (POLICY, r"<think> I know. </think><answer> \boxed{Paris} </answer>")
WRONG = (POLICY, r"<think> I guess. </think><answer> \boxed{Rome} </answer>")
SEARCH = (POLICY, "<think> Look. </think><search> capital </search>")
PYTHON = (POLICY, "<think> Count. </think><python> 1 + 1 </python>")
RESULT = (OBSERVATION, "<result> Paris </result>")
TRACE = (
  RETRIEVED,
  "<retrieve><think> x </think><search> y </search>"
  "<result> z </result></retrieve>",
)


def policy_answer(box: str) -> tuple[TokenKind, str]:
  return (POLICY, f"<think> t </think><answer> {box} </answer>")


@pytest.mark.parametrize(
  ("segments", "value"),
  [
    ([QUESTION, RIGHT], 1.0),
    ([QUESTION, WRONG], 0.0),
    ([QUESTION, SEARCH, RESULT, RIGHT], 1.0),
    ([QUESTION, SEARCH, RESULT, PYTHON, RESULT, RIGHT], 1.1),
    ([QUESTION, SEARCH, RESULT, PYTHON, RESULT, WRONG], 0.0),
    ([QUESTION, SEARCH, RESULT, TRACE, RIGHT], 1.0),
    # Adjacent policy segments are one text, wherever they are cut.
    ([(POLICY, RIGHT[1][:40]), (POLICY, RIGHT[1][40:])], 1.0),
    # A thought may go on after a result, as in the authors' prompt.
    (
      [
        (POLICY, "<think> Look. <search> q </search>"),
        RESULT,
        (POLICY, r"So. </think><answer> \boxed{Paris} </answer>"),
      ],
      1.0,
    ),
    # What stop detection brings along, and the end of a turn, do no harm.
    ([SEARCH, RESULT, (POLICY, RIGHT[1] + "\n<|im_end|>")], 1.0),
    ([(POLICY, SEARCH[1] + "\n"), RESULT, RIGHT], 1.0),
    # A thought may name a tag of the call that follows.
    (
      [
        (POLICY, "<think> I use <search> </think><search> q </search>"),
        RESULT,
        RIGHT,
      ],
      1.0,
    ),
    # A malformed call was answered with an error; the agent recovered.
    ([(POLICY, "<think> t </think> q </search>"), RESULT, RIGHT], 1.0),
    # A thought only names a tool: no call, and no answer is lost.
    (
      [
        (
          POLICY,
          "<think> I could <search>, or <python>. </think>"
          r"<answer> \boxed{Paris} </answer>",
        )
      ],
      1.0,
    ),
    (
      [
        (POLICY, "<think> Not <python>. </think><search> q </search>"),
        RESULT,
        RIGHT,
      ],
      1.0,
    ),
    # Nor does it answer by naming the tag.
    (
      [
        (
          POLICY,
          "<think> In <answer> I put it. </think>"
          r"<answer> \boxed{Paris} </answer>",
        )
      ],
      1.0,
    ),
    # What a refused call prints is neither an answer nor a thought.
    (
      [
        (POLICY, "<think> t </think><python> '<answer>' </python>"),
        RESULT,
        RIGHT,
      ],
      1.0,
    ),
    (
      [
        (POLICY, "<think> t </think><python> '<think>' </python>"),
        RESULT,
        RIGHT,
      ],
      1.0,
    ),
    ([(POLICY, "<think> t </think> <answer> </python>"), RESULT, RIGHT], 1.0),
  ],
)
def test_whole_format(segments, value: float):
  result = rewards.score(segments, GOLD)
  assert result.status is Status.OK
  assert result.value == pytest.approx(value)
  assert result.f1 == pytest.approx(min(value, 1.0))


@pytest.mark.parametrize(
  ("text", "status"),
  [
    ("", Status.ANSWER_MISSING),
    ("Paris", Status.ANSWER_MISSING),
    (r"\boxed{Paris}", Status.ANSWER_MISSING),
    (r"<answer> \boxed{Paris}", Status.ANSWER_MISSING),
    (r"</answer> \boxed{Paris} <answer>", Status.ANSWER_MISSING),
    (r"<think> a <answer> \boxed{Paris} </answer>", Status.THINK_UNPAIRED),
    (r"</think><answer> \boxed{Paris} </answer>", Status.THINK_UNPAIRED),
    (
      r"</think> a <think><answer> \boxed{Paris} </answer>",
      Status.THINK_UNPAIRED,
    ),
    (
      r"<think><think></think></think><answer>\boxed{Paris}</answer>",
      Status.THINK_UNPAIRED,
    ),
    (
      r"<answer>\boxed{Rome}</answer><answer>\boxed{Paris}</answer>",
      Status.ANSWER_REPEATED,
    ),
    (r"<answer><answer>\boxed{Paris}</answer>", Status.ANSWER_REPEATED),
    (r"<answer> Paris </answer>", Status.BOX_MISSING),
    (r"\boxed{Paris}<answer> Paris </answer>", Status.BOX_MISSING),
    (r"<answer> Paris </answer>\boxed{Paris}", Status.BOX_MISSING),
    (r"<answer> \boxed{Paris </answer>", Status.BOX_MISSING),
    (r"<answer> \boxed Paris </answer>", Status.BOX_MISSING),
    ("<answer> \boxed{Paris} </answer>", Status.BOX_MISSING),  # a backspace
  ],
)
def test_broken_format(text: str, status: Status):
  result = rewards.score([QUESTION, (POLICY, text)], GOLD)
  assert result == rewards.OutcomeScore(
    -1.0, status, None, whole=False, parts={"f1": 0.0}
  )


OPENED = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
  ("texts", "status"),
  [
    ([r"I know. </think><answer> \boxed{Paris} </answer>"], Status.OK),
    # The thought goes on behind the result.
    (
      [
        "Look. <search> q </search>",
        r"So. </think><answer>\boxed{Paris}</answer>",
      ],
      Status.OK,
    ),
    (
      [
        "Look. </think><search> q </search>",
        r"<think> So. </think><answer>\boxed{Paris}</answer>",
      ],
      Status.OK,
    ),
    # Never closed, or opened once more.
    ([r"I know. <answer> \boxed{Paris} </answer>"], Status.THINK_UNPAIRED),
    ([RIGHT[1]], Status.THINK_UNPAIRED),
    # Only named, inside the thought that the prompt opened.
    ([r"Not <search>. </think><answer>\boxed{Paris}</answer>"], Status.OK),
  ],
)
def test_a_thought_that_the_prompt_opens(texts, status: Status):
  segments = [(PROMPT, OPENED)]
  for text in texts:
    segments += [(POLICY, text), RESULT]
  result = rewards.score(segments[:-1], GOLD)
  assert result.status is status
  assert result.value == (1.0 if status is Status.OK else -1.0)


@pytest.mark.parametrize(
  ("segments", "status"),
  [
    # A call at the end, or with anything but an observation behind it.
    ([SEARCH], Status.TOOL_WITHOUT_RESULT),
    ([RIGHT, SEARCH], Status.TOOL_WITHOUT_RESULT),
    ([SEARCH, RIGHT], Status.TOOL_WITHOUT_RESULT),
    ([SEARCH, TRACE, RIGHT], Status.TOOL_WITHOUT_RESULT),
    ([SEARCH, (PROMPT, RESULT[1]), RIGHT], Status.TOOL_WITHOUT_RESULT),
    # Two calls, one result.
    (
      [(POLICY, SEARCH[1] + PYTHON[1]), RESULT, RIGHT],
      Status.TOOL_WITHOUT_RESULT,
    ),
    # A call in a call.
    (
      [(POLICY, "<search> a <python> b </python>"), RESULT, RIGHT],
      Status.TOOL_WITHOUT_RESULT,
    ),
    # An opened call that is never closed.
    ([(POLICY, "<python> 1 " + RIGHT[1])], Status.TOOL_WITHOUT_RESULT),
    # Its closing tag in another segment.
    (
      [(POLICY, "<search> q"), (OBSERVATION, "</search>"), RIGHT],
      Status.TOOL_WITHOUT_RESULT,
    ),
  ],
)
def test_calls_need_results(segments, status: Status):
  result = rewards.score([QUESTION, *segments], GOLD)
  assert (result.value, result.status) == (-1.0, status)


ANSWER_TEXT = r"<answer> \boxed{Paris} </answer>"
CHEATS = {
  "answer only in a tool result": (
    [SEARCH, (OBSERVATION, ANSWER_TEXT)],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "answer only in a retrieved step": (
    [SEARCH, RESULT, (RETRIEVED, ANSWER_TEXT)],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "answer only in the prompt": (
    [(PROMPT, ANSWER_TEXT), (POLICY, "<think> done </think>")],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "box in the result, answer block by the policy": (
    [SEARCH, (OBSERVATION, r"\boxed{Paris}"), policy_answer("see above")],
    (-1.0, Status.BOX_MISSING),
  ),
  "answer block around an observation": (
    [
      (POLICY, "<answer>"),
      (OBSERVATION, r"\boxed{Paris}"),
      (POLICY, "</answer>"),
    ],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "tag put together across a result": (
    [
      (POLICY, r"<answer>\boxed{Paris}</ans"),
      (OBSERVATION, ""),
      (POLICY, "wer>"),
    ],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "opening tag finished by a retrieved step": (
    [(POLICY, "<ans"), (RETRIEVED, r"wer>\boxed{Paris}"), RIGHT],
    (1.0, Status.OK),  # the policy's own answer stands; the rest is nothing
  ),
  "think closed by a tool result": (
    [
      (POLICY, "<think> a <search> q </search>"),
      (OBSERVATION, "</think>"),
      (POLICY, ANSWER_TEXT),
    ],
    (-1.0, Status.THINK_UNPAIRED),
  ),
  "result written by the policy itself": (
    [(POLICY, SEARCH[1] + "<result> Paris </result>" + RIGHT[1])],
    (-1.0, Status.ENGINE_TAG),
  ),
  "result tag written by the policy, a real result behind it": (
    [(POLICY, "<result>" + SEARCH[1]), RESULT, RIGHT],
    (-1.0, Status.ENGINE_TAG),
  ),
  "retrieve written by the policy itself": (
    [(POLICY, "<retrieve>" + SEARCH[1] + "</retrieve>" + RIGHT[1])],
    (-1.0, Status.ENGINE_TAG),
  ),
  "many answers in many boxes": (
    [policy_answer(r"\boxed{Paris} \boxed{Rome}")],
    (0.0, Status.OK),
  ),
  "a list of guesses in one box": (
    [policy_answer(r"\boxed{Rome London Paris Berlin}")],
    # precision 1/4, recall 1: 2·¼ / 1¼ = 0.4
    (0.4, Status.OK),
  ),
  "the answer repeated": (
    [policy_answer(r"\boxed{Paris Paris Paris}")],
    # precision 1/3, recall 1: ⅔ / 1⅓ = 0.5
    (0.5, Status.OK),
  ),
  "bonus by the calls of a retrieved step": (
    [SEARCH, RESULT, (RETRIEVED, PYTHON[1] + RESULT[1]), RIGHT],
    (1.0, Status.OK),
  ),
  "bonus by tags in a tool result": (
    [SEARCH, (OBSERVATION, PYTHON[1]), RIGHT],
    (1.0, Status.OK),
  ),
  "bonus by an empty call": (
    [SEARCH, RESULT, (POLICY, "<python> </python>"), RESULT, RIGHT],
    (1.0, Status.OK),
  ),
  "bonus by a thought about a tool": (
    [SEARCH, RESULT, (POLICY, "I could use python. " + RIGHT[1])],
    (1.0, Status.OK),
  ),
  "bonus by a malformed call": (
    [SEARCH, RESULT, (POLICY, "1 + 1 </python>"), RESULT, RIGHT],
    (1.0, Status.OK),
  ),
  "bonus without the right answer": (
    [SEARCH, RESULT, PYTHON, RESULT, WRONG],
    (0.0, Status.OK),
  ),
  "answer printed by a program": (
    [
      (POLICY, f"<python> print('{ANSWER_TEXT}') </python>"),
      (OBSERVATION, ANSWER_TEXT),
    ],
    (-1.0, Status.ANSWER_MISSING),
  ),
  "an empty box": ([policy_answer(r"\boxed{}")], (0.0, Status.BOX_EMPTY)),
  "a blank box": ([policy_answer(r"\boxed{  }")], (0.0, Status.BOX_EMPTY)),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats(name: str):
  segments, (value, status) = CHEATS[name]
  result = rewards.score([QUESTION, *segments], GOLD)
  assert result.value == pytest.approx(value)
  assert result.status is status


@pytest.mark.parametrize(
  "text",
  [
    r"<answer> \boxed{Rome} </answer>",
    "<think> <think> </answer> <answer> <search>",
    "<result> </result> </retrieve> {{{ \\boxed{",
    "<|im_end|>" * 3,
  ],
)
@pytest.mark.parametrize("kind", [PROMPT, OBSERVATION, RETRIEVED])
def test_text_of_others_spoils_nothing(kind: TokenKind, text: str):
  if kind == PROMPT:
    segments = [(kind, text), SEARCH, RESULT, RIGHT]
  elif kind == OBSERVATION:
    segments = [QUESTION, SEARCH, (kind, text), RIGHT]
  else:
    segments = [QUESTION, SEARCH, RESULT, (kind, text), RIGHT]
  assert rewards.score(segments, GOLD) == rewards.OutcomeScore(
    1.0, Status.OK, "Paris", correct=True, parts={"f1": 1.0}
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (r"\boxed{a}", "a"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{a} or \boxed{b}", "b"),
    (r"\boxed{\boxed{a}}", "a"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{x\}", None),
    (r"\boxed{[0, 1\}}", r"[0, 1\}"),
    (r"\boxed{a\\}", r"a\\"),
    (r"\boxed{a", None),
    (r"\fbox{a}", "a"),
    (r"\boxed {a}", "a"),
    ("\\boxed\n{a}", "a"),
    (r"\\boxed{a}", "a"),
    (r"\boxed{5} so \boxed{", "5"),
    (r"\boxed{a} \boxed{b \boxed{c", "a"),
    (r"\boxed{a \boxed{b}", "b"),
    (r"} \boxed{a}", "a"),
    (r"{ \boxed{a}", "a"),
    (r"\boxedness{a}", None),
    (r"\boxed{}", ""),
    ("\\boxed{a\\", None),
  ],
)
def test_last_boxed(text: str, expected: str | None):
  assert outcome.last_boxed(text) == expected


@hypothesis.given(
  st.lists(
    st.sampled_from(["\\boxed{", "\\fbox {", "{", "}", "\\", "a", " "]),
    max_size=30,
  ).map("".join)
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_box_is_whole(text: str):
  found = outcome.last_boxed(text)
  # A closed box behind all of it is always the last.
  assert outcome.last_boxed(text + " \\boxed{z}") == "z"
  if found is not None:
    assert found + "}" in text
    assert outcome.last_boxed(f"\\boxed{{{found}}}") is not None


def test_what_counts_as_right():
  def correct(answer: str, truth: str) -> bool:
    return rewards.score([policy_answer(f"\\boxed{{{answer}}}")], truth).correct

  assert correct("-3", "-3")
  assert correct(r"\text{Paris}", "Paris")
  assert not correct("3", "-3")
  assert not correct("Paris France", "Paris")
  assert not rewards.score([SEARCH], "Paris").correct


def test_a_truth_that_holds_a_box():
  result = rewards.score([RIGHT], r"The final answer is \(\boxed{Paris}\).")
  assert result.value == 1.0


def test_best_of_several_ground_truths_counts():
  result = rewards.score([RIGHT], ("Rome", "Paris France", "Paris"))
  assert (result.value, result.answer) == (1.0, "Paris")


@pytest.mark.parametrize("truth", [{"target": ["Paris"]}, [42], [["Paris"]]])
def test_a_ground_truth_of_another_form_is_an_error(truth):
  # The checker of types would come first.
  unchecked = getattr(rewards.score, "__wrapped__", rewards.score)
  with pytest.raises(ValueError, match="sequence of texts"):
    unchecked([RIGHT], truth)


@pytest.mark.parametrize("truth", ["", " ", [], ["Paris", ""]])
def test_no_ground_truth_is_an_error(truth):
  with pytest.raises(ValueError, match="drop the question"):
    rewards.score([RIGHT], truth)


@pytest.mark.parametrize(
  "piece",
  [
    "<think>",
    "</search>",
    "\\boxed{",
    "{",
    "\\",
    "<answer>",
    "<",
    "the ",
    "<search>",
    "</think><think>",
    "\\boxed ",
    "\\frac{1",
    "1,000",
    "1 - ",
  ],
)
def test_long_text_takes_linear_time(piece: str):
  text = f"<answer>\\boxed{{{piece * (100_000 // len(piece))}}}</answer>"
  # Some 0.1 s; in quadratic time this would not end.
  rewards.score([QUESTION, (POLICY, text), RESULT] * 2, GOLD)
