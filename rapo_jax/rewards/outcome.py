"""The outcome reward of one trajectory: its format, then its answer.

Only what the policy wrote can earn or lose anything. Whether a call has a
result is read off the segment that follows it, never off text. A tag counts
only if all of it stands in one uninterrupted run of policy text.

Tags are counted from the state in which the prompt leaves them: where the chat
template opens the thought, the policy's text begins inside it. A tag in the
argument of a call is part of the argument. A tool or an answer that a thought
only names does not count.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapo_jax.errors import InputError
from rapo_jax.rewards.base import RECIPE_TAGS, Sample, Score
from rapo_jax.rewards.f1 import is_match, token_f1
from rapo_jax.tools import tags as tags_lib
from rapo_jax.trajectory import TokenKind

FORMAT_PENALTY = -1.0
TOOLS_BONUS = 0.1
BONUS_TOOLS = frozenset({"search", "python"})
# A run of backslashes, the start of a box behind it, or a brace. More
# backslashes than one: models escape them as in JSON.
_BRACES = re.compile(r"(\\++)((?:boxed|fbox)[ \t\n]*+\{)?|[{}]")


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
  r"""No `\boxed{…}` or `\fbox{…}` with balanced braces in the answer."""


WHOLE_FORMAT = frozenset({ScoreStatus.OK, ScoreStatus.BOX_EMPTY})
"""Where the trajectory closes its tags and gives an answer."""


@dataclasses.dataclass(frozen=True)
class OutcomeScore(Score):
  """Score of the recipe.

  `value` is -1 for a broken format, else F1 in [0, 1], plus 0.1 if earned.
  `answer` is the content of the answer's last closed box.
  """

  @property
  def f1(self) -> float:
    """F1 with the best of the ground truths; 0 for a broken format."""
    return self.parts["f1"]


@dataclasses.dataclass(frozen=True)
class OutcomeReward:
  """The recipe's reward: see `score`."""

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores each sample by its question's accepted answers."""
    return [score(s.segments, s.query.ground_truth, s.tag_set) for s in batch]


OUTCOME = OutcomeReward()
"""The reward of a task that names none."""


def _score(
  value: float,
  status: ScoreStatus,
  f1: float,
  answer: str | None,
  correct: bool = False,
) -> OutcomeScore:
  whole = status in WHOLE_FORMAT
  return OutcomeScore(value, status, answer, correct, whole, {"f1": f1})


@dataclasses.dataclass(frozen=True)
class _Run:
  """Policy text without interruption.

  Attributes:
    text: the text.
    calls: tags of tools.
    others: all other tags that do not stand in the argument of a call.
      Neither holds the opening tags that a thought only names, as its end
      comes before theirs.
    engine_tags: whether there is a tag of the engine, in arguments too.
    observed: whether an observation follows.
  """

  text: str
  calls: list[tags_lib.Tag]
  others: list[tags_lib.Tag]
  engine_tags: bool
  observed: bool


def score(
  segments: Sequence[tuple[TokenKind, str]],
  ground_truth: str | Sequence[str],
  tag_set: tags_lib.TagSet = RECIPE_TAGS,
) -> OutcomeScore:
  r"""Scores a trajectory by the recipe's rules.

  The format of the policy's text is broken (-1) in each of these cases: think
  tags do not pair; there is not exactly one answer block; a tool call has no
  result; the answer has no `\boxed{}`; there is a `<result>` or `<retrieve>`
  tag. Otherwise the value is the token F1 of the last boxed text with the best
  ground truth. It is 0.1 more if F1 > 0 and both search and python were called.

  Departs from the authors' code, which reads all text: prompt, tool results
  and retrieved steps neither give nor spoil anything here. An empty call earns
  no bonus.

  Args:
    segments: kind and text of each run of tokens, in order.
    ground_truth: the accepted answer or answers, none of them blank. Of one
      that holds a box, the box alone counts.
    tag_set: tags of the agent's tools. Other tags make no call.

  Returns:
    The score. The time taken is linear in the length of the text.

  Raises:
    InputError: if there is no ground truth or a blank one, since nothing could
      be right; drop such a question. Or if it is neither a text nor a sequence
      of texts.
  """
  truths = _checked_truths(ground_truth)
  opened = _opened_by_prompt(segments)
  runs = _policy_runs(segments, opened, tag_set)
  status, answer = _check_format(runs, opened)
  if status is not ScoreStatus.OK:
    return _score(FORMAT_PENALTY, status, 0.0, answer)
  assert answer is not None
  if not answer.strip():
    return _score(0.0, ScoreStatus.BOX_EMPTY, 0.0, answer)
  f1 = max(token_f1(answer, truth) for truth in truths)
  earned = f1 > 0 and _tools_used(runs, tag_set) >= BONUS_TOOLS
  value = f1 + TOOLS_BONUS if earned else f1
  correct = any(is_match(answer, truth) for truth in truths)
  return _score(value, ScoreStatus.OK, f1, answer, correct)


def _checked_truths(ground_truth: Any) -> Sequence[str]:
  truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
  if isinstance(truths, Mapping) or not all(isinstance(t, str) for t in truths):
    raise InputError(
      "ground_truth must be a text or a sequence of texts, got "
      f"{ground_truth!r:.200}; read it with dataset_rows.accepted_answers"
    )
  if not truths or not all(truth.strip() for truth in truths):
    raise InputError(
      "ground_truth needs at least one answer and none that is blank, got "
      f"{ground_truth!r}; drop the question"
    )
  # Some data sets keep the sentence that the answer was boxed in.
  return [last_boxed(truth) or truth for truth in truths]


def _opened_by_prompt(segments: Sequence[tuple[TokenKind, str]]) -> bool:
  """Whether the prompt, all that stands before the rest, opens a thought."""
  prompt = []
  for kind, text in segments:
    if kind != TokenKind.PROMPT:
      break
    prompt.append(text)
  return tags_lib.opens_thought("".join(prompt))


def _policy_runs(
  segments: Sequence[tuple[TokenKind, str]],
  opened: bool,
  tag_set: tags_lib.TagSet,
) -> list[_Run]:
  """Joins adjacent policy segments; anything else between them parts them."""
  runs = []
  parts: list[str] = []
  end = (TokenKind.PROMPT, "")
  for kind, text in [*segments, end]:
    if kind == TokenKind.POLICY:
      parts.append(text)
    elif parts:
      observed = kind == TokenKind.OBSERVATION
      run = _run("".join(parts), opened, observed, tag_set)
      runs.append(run)
      thoughts = [t for t in run.others if t.name == tags_lib.THINK]
      opened = not thoughts[-1].closing if thoughts else opened
      parts = []
  return runs


def _run(
  text: str, opened: bool, observed: bool, tag_set: tags_lib.TagSet
) -> _Run:
  """Sorts the tags of a text that begins inside a thought or outside."""
  found = tag_set.find_tags(text)
  # What a thought may name without doing it.
  named = (tags_lib.ANSWER, *tag_set.tool_names)
  # For each tag, the first closing one from there on.
  ends: list[str | None] = [None] * (len(found) + 1)
  for at in range(len(found) - 1, -1, -1):
    ends[at] = found[at].name if found[at].closing else ends[at + 1]
  last_close = {t.name: at for at, t in enumerate(found) if t.closing}
  calls, others = [], []
  inside = False
  for at, tag in enumerate(found):
    in_thought = opened and not inside and ends[at + 1] == tags_lib.THINK
    if in_thought and not tag.closing and tag.name in named:
      continue
    if tag.name in tag_set.tool_names:
      calls.append(tag)
      # A call that is never closed holds nothing, and its tags count.
      inside = not tag.closing and last_close.get(tag.name, -1) > at
    elif not inside:
      others.append(tag)
      if tag.name == tags_lib.THINK:
        opened = not tag.closing
  engine_tags = any(tag.name in tags_lib.ENGINE_TAGS for tag in found)
  return _Run(text, calls, others, engine_tags, observed)


def _check_format(
  runs: Sequence[_Run], opened: bool
) -> tuple[ScoreStatus, str | None]:
  """The first rule that fails, and the boxed answer if all hold."""
  if any(run.engine_tags for run in runs):
    return ScoreStatus.ENGINE_TAG, None
  every = [tag for run in runs for tag in run.others]
  thoughts = [t for t in every if t.name == tags_lib.THINK]
  if not _alternates(thoughts, opened=opened):
    return ScoreStatus.THINK_UNPAIRED, None
  if not all(_calls_have_results(run) for run in runs):
    return ScoreStatus.TOOL_WITHOUT_RESULT, None
  # What a call prints, one that was refused too, is no answer.
  answer_tags = [
    tag
    for run in runs
    if not run.calls
    for tag in run.others
    if tag.name == tags_lib.ANSWER
  ]
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


def _alternates(tags: Sequence[tags_lib.Tag], *, opened: bool = False) -> bool:
  """Whether tags are opened and closed by turns, with none left open.

  `opened`: one is open before the first of them.
  """
  return (len(tags) + opened) % 2 == 0 and all(
    tag.closing == bool((i + opened) % 2) for i, tag in enumerate(tags)
  )


def _calls_have_results(run: _Run) -> bool:
  """Whether every tool tag of a run belongs to one call with a result.

  The engine stops at the first closing tool tag and appends the result. So a
  run holds one call at most. An opening tag that its own closing tag follows is
  part of that call. This holds even if it was only named in a thought before. A
  closing tag alone was answered with an error and is forgiven, as in the
  recipe.
  """
  closing = [t for t in run.calls if t.closing]
  if not run.calls:
    return True
  if len(closing) != 1 or not run.observed:
    return False
  return all(
    t.name == closing[0].name and t.start < closing[0].start
    for t in run.calls
    if not t.closing
  )


def _answer_block(run: _Run) -> str | None:
  """The answer of a run; a call may print one, which does not count."""
  if run.calls:
    return None
  tags = [t for t in run.others if t.name == tags_lib.ANSWER]
  if len(tags) != 2 or not _alternates(tags):
    return None
  return run.text[tags[0].end : tags[1].start]


def _tools_used(runs: Sequence[_Run], tag_set: tags_lib.TagSet) -> set[str]:
  """Tools called with an argument and answered; the format is whole."""
  calls = [tag_set.parse_call(run.text) for run in runs if run.observed]
  return {
    call.name
    for call in calls
    if isinstance(call, tags_lib.ToolCall) and call.argument.strip()
  }


def last_boxed(text: str) -> str | None:
  r"""Content of the last box that is closed: `\boxed{…}` or `\fbox{…}`.

  Braces are matched by counting; `\{` and `\}` are characters, not braces.
  White space may stand before the brace, as in TeX. None without such a box.
  """
  last: tuple[int, int] | None = None
  # For each open brace the start of its box, -1 for a brace of another kind.
  opened: list[int] = []
  escaped = -1
  for match in _BRACES.finditer(text):
    if match.group(2):
      opened.append(match.end())
    elif match.group(1):
      escaped = match.end() if len(match.group(1)) % 2 else -1
    elif match.start() == escaped:
      continue
    elif match.group() == "{":
      opened.append(-1)
    elif opened:
      start = opened.pop()
      if start >= 0 and (last is None or start > last[0]):
        last = (start, match.start())
  return None if last is None else text[last[0] : last[1]]
