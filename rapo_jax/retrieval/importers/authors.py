"""The Step-Trace Buffer file of RAPO's authors.

One object a line: `key`, the decoded context before a step (prompt and
history); `value`, the step with its result; `reward`, that of its trajectory;
and the other outputs of the reward function (the code of arXiv 2603.03078, the
trainer of the off-policy agent). Lines of one trajectory follow each other:
each key is the previous key with the previous step. For every question, a list
of the rewards of the kept trajectories stands between them.

A trajectory that branched off another one starts with the history that they
share.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from rapo_jax.retrieval.buffer.agent_trajectory import (
  AgentTrajectory,
  question_id,
)
from rapo_jax.retrieval.importers.lines import ImportReport, JsonLines, OnError
from rapo_jax.tools.tags import RESULT, TagSet

# How chat templates show a user's turn and the start of the next. They come
# with their special tokens and without (as the authors decode them).
_TURNS = (
  ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
  (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
  ),
  ("\nuser\n", "\nassistant\n"),
  ("user\n\n", "assistant\n\n"),
)
_STEP = re.compile(rf".*?</{RESULT}>|.+\Z", re.DOTALL)
_FIELDS = ("key", "value", "reward")


@dataclasses.dataclass
class _Open:
  """A trajectory that further lines may go on with."""

  key: str
  question: str
  history: tuple[str, ...]
  steps: list[str]
  reward: float
  line: int
  extras: dict[str, Any]

  def goes_on(self, key: str, reward: float) -> bool:
    """Whether a line with this key holds the next step."""
    if reward != self.reward or not key.startswith(self.key):
      return False
    return key[len(self.key) :].strip() == self.steps[-1]


def read_authors(
  path: pathlib.Path,
  source: str,
  *,
  report: ImportReport,
  on_error: OnError = "stop",
) -> Iterator[tuple[AgentTrajectory, int]]:
  """Reads trajectories from a file of the authors' code.

  Args:
    path: the JSONL file.
    source: name of the agent that wrote the trajectories.
    report: counts what is read.
    on_error: "stop" raises at the first broken line; "skip" leaves it out.

  Yields:
    Each trajectory, and the bytes of the file read until then.

  Raises:
    ValueError: for a broken line, named by its number, if it is to stop.
  """
  lines = JsonLines(path, report, on_error)
  current: _Open | None = None
  for line in lines:
    reason = _fault(line.content)
    if reason:
      lines.broken(line.number, reason, str(line.content))
      continue
    key, value = line.content["key"], line.content["value"].strip()
    reward = float(line.content["reward"])
    if current is not None:
      if current.goes_on(key, reward):
        report.num_used += 1
        current.key = key
        current.steps.append(value)
        continue
      yield _closed(current, path, source, report), line.num_bytes
      current = None
    question, history = split_key(key)
    if not question:
      lines.broken(line.number, "key holds no question", key)
      continue
    report.num_used += 1
    extras = {k: v for k, v in line.content.items() if k not in _FIELDS}
    current = _Open(
      key, question, history, [value], reward, line.number, extras
    )
  if current is not None:
    yield _closed(current, path, source, report), path.stat().st_size


def split_key(key: str) -> tuple[str, tuple[str, ...]]:
  """Question and history of a key.

  The question is the first user's turn of the chat; where no chat template can
  be seen, what stands before the first of our tags. The history is cut after
  each result.
  """
  for user, assistant in _TURNS:
    start = key.find(user)
    end = key.find(assistant, start + len(user)) if start >= 0 else -1
    if end >= 0:
      question, rest = key[start + len(user) : end], key[end + len(assistant) :]
      break
  else:
    found = TagSet.of_text(key).find_tags(key)
    end = next((tag.start for tag in found if not tag.closing), len(key))
    question, rest = key[:end], key[end:]
  steps = (match.strip() for match in _STEP.findall(rest))
  return question.strip(), tuple(step for step in steps if step)


def _fault(content: dict[str, Any]) -> str | None:
  """What keeps a line from being used."""
  missing = [name for name in _FIELDS if name not in content]
  if missing:
    return f"the fields {', '.join(missing)} are missing"
  for name in ("key", "value"):
    text = content[name]
    if not isinstance(text, str) or not text.strip():
      return f"{name} must be a text that is not blank, got {text!r:.60}"
  reward = content["reward"]
  if isinstance(reward, bool) or not isinstance(reward, int | float):
    return f"reward must be a number, got {reward!r:.60}"
  if not math.isfinite(reward):
    return f"reward must be finite, got {reward}"
  return None


def _closed(
  current: _Open, path: pathlib.Path, source: str, report: ImportReport
) -> AgentTrajectory:
  report.num_trajectories += 1
  report.num_steps += len(current.steps)
  return AgentTrajectory(
    question=current.question,
    steps=tuple(current.steps),
    reward=current.reward,
    source=source,
    query_id=question_id(current.question),
    trajectory_id=f"{source}/{path.name}:{current.line}",
    history=current.history,
    extras=current.extras,
  )
