"""The outcome reward of one trajectory: its format, then its answer.

Only what the policy wrote can earn or lose anything. Whether a call has a
result is read off the segment that follows it, never off text, and a tag
counts only if all of it stands in one uninterrupted run of policy text.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from rapo_jax.rewards.f1 import token_f1
from rapo_jax.tools import tags as tags_lib
from rapo_jax.trajectory import TokenKind

FORMAT_PENALTY = -1.0
TOOLS_BONUS = 0.1
BONUS_TOOLS = frozenset({tags_lib.SEARCH, tags_lib.PYTHON})
_BOX = "\\boxed{"


class ScoreStatus(enum.StrEnum):
  """Which rule decided. Only `OK` and `BOX_EMPTY` escape the penalty."""

  OK = "ok"
  """The format is whole; value = F1 plus bonus."""
  BOX_EMPTY = "box_empty"
  """The format is whole but the box is blank; value 0."""
  ENGINE_TAG = "engine_tag"
  """The policy wrote a result or retrieve tag, which only the engine may."""
  THINK_UNPAIRED = "think_unpaired"
  """A think tag without its partner, or thoughts inside one another."""
  TOOL_WITHOUT_RESULT = "tool_without_result"
  """A tool call that was not finished or that no observation follows."""
  ANSWER_MISSING = "answer_missing"
  """No answer block that is opened and closed, outside of a tool call."""
  ANSWER_REPEATED = "answer_repeated"
  """More than one opening or closing answer tag."""
  BOX_MISSING = "box_missing"
  r"""No `\boxed{…}` with balanced braces in the answer."""


WHOLE_FORMAT = frozenset({ScoreStatus.OK, ScoreStatus.BOX_EMPTY})
"""Where the trajectory closes its tags and gives an answer."""


@dataclasses.dataclass(frozen=True)
class Score:
  """Outcome reward of a trajectory.

  Attributes:
    value: -1 for a broken format, else F1 in [0, 1], plus 0.1 if earned.
    status: the rule that decided.
    f1: F1 with the best of the ground truths; 0 for a broken format.
    answer: content of the answer's last box; None if there is none.
  """

  value: float
  status: ScoreStatus
  f1: float
  answer: str | None


@dataclasses.dataclass(frozen=True)
class _Run:
  """Policy text without interruption, and whether an observation follows."""

  text: str
  tags: list[tags_lib.Tag]
  observed: bool


def score(
  segments: Sequence[tuple[TokenKind, str]],
  ground_truth: str | Sequence[str],
) -> Score:
  r"""Scores a trajectory by the recipe's rules.

  The format is broken (-1) when the policy's text has think tags that do not
  pair, not exactly one answer block, a tool call without a result, no
  `\boxed{}` in its answer, or a `<result>` or `<retrieve>` tag. Otherwise the
  value is the token F1 of the last boxed text with the best ground truth, and
  0.1 more if F1 > 0 and both search and python were called.

  Departs from the authors' code, which reads all text: prompt, tool results
  and retrieved steps neither give nor spoil anything here. An empty call earns
  no bonus.

  Args:
    segments: kind and text of each run of tokens, in order.
    ground_truth: the accepted answer or answers, none of them blank.

  Returns:
    The score. The time taken is linear in the length of the text.

  Raises:
    ValueError: if there is no ground truth or a blank one, since nothing could
      be right; drop such a question.
  """
  truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
  if not truths or not all(truth.strip() for truth in truths):
    raise ValueError(
      "ground_truth needs at least one answer and none that is blank, got "
      f"{ground_truth!r}; drop the question"
    )
  runs = _policy_runs(segments)
  status, answer = _check_format(runs)
  if status is not ScoreStatus.OK:
    return Score(FORMAT_PENALTY, status, 0.0, answer)
  assert answer is not None
  if not answer.strip():
    return Score(0.0, ScoreStatus.BOX_EMPTY, 0.0, answer)
  f1 = max(token_f1(answer, truth) for truth in truths)
  earned = f1 > 0 and _tools_used(runs) >= BONUS_TOOLS
  value = f1 + TOOLS_BONUS if earned else f1
  return Score(value, ScoreStatus.OK, f1, answer)


def _policy_runs(segments: Sequence[tuple[TokenKind, str]]) -> list[_Run]:
  """Joins adjacent policy segments; anything else between them parts them."""
  runs = []
  parts: list[str] = []
  end = (TokenKind.PROMPT, "")
  for kind, text in [*segments, end]:
    if kind == TokenKind.POLICY:
      parts.append(text)
    elif parts:
      joined = "".join(parts)
      found = tags_lib.find_tags(joined)
      runs.append(_Run(joined, found, kind == TokenKind.OBSERVATION))
      parts = []
  return runs


def _check_format(runs: Sequence[_Run]) -> tuple[ScoreStatus, str | None]:
  """The first rule that fails, and the boxed answer if all hold."""
  every = [tag for run in runs for tag in run.tags]
  if any(tag.name in tags_lib.ENGINE_TAGS for tag in every):
    return ScoreStatus.ENGINE_TAG, None
  if not _alternates([t for t in every if t.name == tags_lib.THINK]):
    return ScoreStatus.THINK_UNPAIRED, None
  if not all(_calls_have_results(run) for run in runs):
    return ScoreStatus.TOOL_WITHOUT_RESULT, None
  answer_tags = [t for t in every if t.name == tags_lib.ANSWER]
  num_closing = sum(t.closing for t in answer_tags)
  if num_closing > 1 or len(answer_tags) - num_closing > 1:
    return ScoreStatus.ANSWER_REPEATED, None
  blocks = [b for run in runs if (b := _answer_block(run)) is not None]
  if not blocks:
    return ScoreStatus.ANSWER_MISSING, None
  answer = last_boxed(blocks[0])
  if answer is None:
    return ScoreStatus.BOX_MISSING, None
  return ScoreStatus.OK, answer


def _alternates(tags: Sequence[tags_lib.Tag]) -> bool:
  """Whether tags are opened and closed by turns, with none left open."""
  return len(tags) % 2 == 0 and all(
    tag.closing == bool(i % 2) for i, tag in enumerate(tags)
  )


def _calls_have_results(run: _Run) -> bool:
  """Whether every tool tag of a run belongs to one call with a result.

  The engine stops at the first closing tool tag and appends the result, so a
  run holds one call at most. An opening tag that its own closing tag follows
  is part of that call, even if it was only named in a thought before; a
  closing tag alone was answered with an error and is forgiven, as in the
  recipe.
  """
  tags = [t for t in run.tags if t.name in tags_lib.TOOL_TAGS]
  closing = [t for t in tags if t.closing]
  if not tags:
    return True
  if len(closing) != 1 or not run.observed:
    return False
  return all(
    t.name == closing[0].name and t.start < closing[0].start
    for t in tags
    if not t.closing
  )


def _answer_block(run: _Run) -> str | None:
  """The answer of a run; a call may print one, but it is none."""
  if any(t.name in tags_lib.TOOL_TAGS for t in run.tags):
    return None
  tags = [t for t in run.tags if t.name == tags_lib.ANSWER]
  if len(tags) != 2 or not _alternates(tags):
    return None
  return run.text[tags[0].end : tags[1].start]


def _tools_used(runs: Sequence[_Run]) -> set[str]:
  """Tools called with an argument and answered; the format is whole."""
  calls = [
    tags_lib.parse_call(run.text, tags_lib.TOOL_TAGS)
    for run in runs
    if run.observed
  ]
  return {
    call.name
    for call in calls
    if isinstance(call, tags_lib.ToolCall) and call.argument
  }


def last_boxed(text: str) -> str | None:
  r"""Content of the last `\boxed{…}`; None without one that is closed.

  Braces are matched by counting; `\{` and `\}` are characters, not braces.
  """
  start = text.rfind(_BOX)
  if start < 0:
    return None
  start += len(_BOX)
  depth = 1
  position = start
  while position < len(text):
    character = text[position]
    if character == "\\":
      position += 1
    elif character == "{":
      depth += 1
    elif character == "}":
      depth -= 1
      if depth == 0:
        return text[start:position]
    position += 1
  return None
