"""The JSON form of a trajectory: one owner, one version.

Logs of training, journals of endpoints, importers, the report and its viewer
all read and write trajectories through this module. A record is one line of a
JSONL file. `VERSION` is written into each and grows when a field changes its
meaning. Records from before there was a version count as version 0.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rapo_jax.errors import InputError
from rapo_jax.trajectory import (
  Candidate,
  RetrievalEvent,
  Segment,
  Source,
  TokenKind,
  ToolEvent,
  Trajectory,
  decode,
  token_lengths,
)

VERSION = 1
_KINDS = tuple(kind.name.lower() for kind in TokenKind)


@dataclasses.dataclass(frozen=True)
class TokensRecord:
  """Figures of each token of a segment that the policy wrote.

  Figures are lists with one number a token, to five decimals.

  Attributes:
    lengths: characters of the segment's text that each token adds. One that
      only begins a character adds none.
    entropy: in nats, of the distribution that it was sampled from; None for
      what another agent wrote.
    log_prob: under that distribution; None as for `entropy`.
    trainer_log_prob: under the policy that its minibatch was computed with;
      None in the list for a token that is not in the loss.
    advantage: None where every token of the trajectory has the same.
  """

  lengths: tuple[int, ...]
  entropy: tuple[float, ...] | None = None
  log_prob: tuple[float, ...] | None = None
  trainer_log_prob: tuple[float | None, ...] | None = None
  advantage: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TokenFigures:
  """What training knows of each token of a trajectory of `T` tokens.

  Attributes:
    trainer_log_probs: see `TokensRecord`; NaN for a token that is not in the
      loss, `[T]`.
    advantages: `[T]`; None where every token has the same.
  """

  trainer_log_probs: Float[np.ndarray, " T"]
  advantages: Float[np.ndarray, " T"] | None = None


@dataclasses.dataclass(frozen=True)
class SegmentRecord:
  """A run of tokens of one kind and step, as text.

  Attributes:
    kind: name of its `TokenKind` in small letters.
    step_id: its step; -1 for the prompt.
    text: decoded.
    num_tokens: how many tokens; None where the tokens are not known.
    entropy: mean over a policy segment, in nats; None elsewhere, and for what
      another agent wrote.
    log_prob: mean over a policy segment; None as for `entropy`.
    tokens: figures of each token of a policy segment; None where the log does
      not hold them.
  """

  kind: str
  step_id: int
  text: str
  num_tokens: int | None = None
  entropy: float | None = None
  log_prob: float | None = None
  tokens: TokensRecord | None = None


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
  """What training made of a trajectory.

  Attributes:
    update: number of the update that trained on it.
    hybrid: whether it was allowed to retrieve.
    policy_version: number of updates behind the policy that sampled it.
    buffer_version: version of its Step-Trace Buffer; None without one.
    left_out: whether it did not count.
    advantage: mean over its policy tokens.
    retrieval_reward: Z_ret (Eq. 7).
    retrieved_fraction: F_ret (Eq. 8).
    parent: index of the trajectory that it was forked from; None for one that
      began at the prompt.
    shared_steps: first steps that were copied from it.
    origin: name of its `trajectory.Source` in small letters: "policy",
      "replay" or "agent".
  """

  update: int
  hybrid: bool
  policy_version: int
  buffer_version: int | None
  left_out: bool
  advantage: float
  retrieval_reward: float
  retrieved_fraction: float
  parent: int | None = None
  shared_steps: int = 0
  origin: str = "policy"


@dataclasses.dataclass(frozen=True)
class TrajectoryRecord:
  """A finished trajectory as text, with its score.

  Attributes:
    query_id: id of the question.
    question: the question alone.
    ground_truth: accepted answers.
    index: number of the trajectory among those of the question.
    finish_reason: why it ended; see `trajectory.FinishReason`.
    score: `value`, a number, and what else the reward says of it: see
      `rewards.Score.record`.
    segments: in order.
    events: tool calls and retrievals in order, as JSON objects with `type`
      "tool" or "retrieval" and `step_id`. A retrieval that was probed has
      `effect`: the reward less that of the trajectory without the step. One
      that chose among several has `others`, see `trajectory.Candidate`.
    source: name of the agent that wrote it; None if the file says it.
    training: what training made of it; None for one that was not trained on.
  """

  query_id: str
  question: str
  ground_truth: tuple[str, ...]
  index: int
  finish_reason: str
  score: Mapping[str, Any]
  segments: tuple[SegmentRecord, ...]
  events: tuple[Mapping[str, Any], ...] = ()
  source: str | None = None
  training: TrainingRecord | None = None

  def to_json(self) -> dict[str, Any]:
    """The record as a JSON object; figures are rounded, texts are not."""
    content: dict[str, Any] = {"version": VERSION}
    if self.source is not None:
      content["source"] = self.source
    if self.training is not None:
      content |= _rounded(dataclasses.asdict(self.training))
    return content | {
      "query_id": self.query_id,
      "question": self.question,
      "ground_truth": list(self.ground_truth),
      "index": self.index,
      "finish_reason": self.finish_reason,
      "score": dict(self.score),
      "segments": [_segment_to_json(segment) for segment in self.segments],
      "events": [_rounded(dict(event)) for event in self.events],
    }

  @classmethod
  def from_json(cls, content: Any) -> TrajectoryRecord:
    """Reads what `to_json` wrote, by this version or an earlier one.

    Args:
      content: one JSON object.

    Raises:
      InputError: names the field that is missing or wrong, or the version.
    """
    if not isinstance(content, Mapping):
      raise InputError(f"a record must be a JSON object, got {content!a:.60}")
    version = check_version(content)
    score = content.get("score")
    value = score.get("value") if isinstance(score, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise InputError("score.value must be a number")
    for field in ("question", "query_id"):
      if not isinstance(content.get(field), str):
        raise InputError(f"{field} must be a text")
    index = content.get("index", 0)
    if isinstance(index, bool) or not isinstance(index, int):
      raise InputError(f"index must be a whole number, got {index!a:.60}")
    source = content.get("source")
    if not isinstance(source or "", str):
      raise InputError(f"source must be a text, got {source!a:.60}")
    segments = content.get("segments")
    if not isinstance(segments, list):
      raise InputError("segments must be a list")
    truth = content.get("ground_truth", [])
    truth = [truth] if isinstance(truth, str) else truth
    _check_list("ground_truth", truth, str, "texts")
    events = content.get("events", [])
    _check_list("events", events, Mapping, "objects")
    return cls(
      query_id=content["query_id"],
      question=content["question"],
      ground_truth=tuple(truth),
      index=index,
      finish_reason=content.get("finish_reason", ""),
      score=dict(score or {}) if version else _first_score(score or {}),
      segments=tuple(map(_segment_from_json, segments)),
      events=tuple(events),
      source=source or None,
      training=_training_from_json(content),
    )


def record_of(
  trajectory: Trajectory,
  tokenizer: Any,
  *,
  question: str,
  ground_truth: tuple[str, ...],
  score: Mapping[str, Any],
  training: TrainingRecord | None = None,
  figures: TokenFigures | None = None,
) -> TrajectoryRecord:
  """A sampled trajectory as a record.

  Args:
    trajectory: as sampled.
    tokenizer: decodes its tokens.
    question: the question alone.
    ground_truth: accepted answers.
    score: what the reward says of it, as JSON holds it.
    training: what training made of it.
    figures: what training knows of each token; None for a record without
      figures of tokens.
  """
  return TrajectoryRecord(
    query_id=trajectory.query_id,
    question=question,
    ground_truth=ground_truth,
    index=trajectory.index,
    finish_reason=str(trajectory.finish_reason),
    score=score,
    segments=_segments(trajectory, tokenizer, figures),
    events=tuple(map(event_to_json, trajectory.events)),
    training=training,
  )


def check_version(content: Mapping[str, Any]) -> int:
  """Version of a record; 0 for one from before there was a version.

  Raises:
    InputError: it is of a newer version, or no version at all.
  """
  version = content.get("version", 0)
  if isinstance(version, bool) or not isinstance(version, int) or version < 0:
    raise InputError(
      f"version must be a whole number from 0 on, got {version!a:.60}"
    )
  if version > VERSION:
    raise InputError(
      f"this rapo_jax reads trajectory records up to version {VERSION}, this "
      f"one has version {version}: use the rapo_jax that wrote it, or a newer "
      "one"
    )
  return version


def _segments(
  trajectory: Trajectory, tokenizer: Any, figures: TokenFigures | None
) -> tuple[SegmentRecord, ...]:
  found = []
  for segment in trajectory.segments():
    span = slice(segment.start, segment.end)
    wrote = (
      segment.kind is TokenKind.POLICY and trajectory.source is not Source.AGENT
    )
    text = decode(tokenizer, trajectory.tokens[span])
    tokens = None
    if figures is not None and segment.kind is TokenKind.POLICY:
      lengths = token_lengths(tokenizer, trajectory.tokens[span], text)
      tokens = _tokens(trajectory, segment, figures, lengths)
    found.append(
      SegmentRecord(
        kind=segment.kind.name.lower(),
        step_id=segment.step_id,
        text=text,
        num_tokens=segment.end - segment.start,
        entropy=float(np.mean(trajectory.entropies[span])) if wrote else None,
        log_prob=float(np.mean(trajectory.log_probs[span])) if wrote else None,
        tokens=tokens,
      )
    )
  return tuple(found)


def _tokens(
  trajectory: Trajectory,
  segment: Segment,
  figures: TokenFigures,
  lengths: Sequence[int],
) -> TokensRecord:
  """Figures of the tokens of a segment that the policy wrote."""
  span = slice(segment.start, segment.end)
  sampled = trajectory.source is not Source.AGENT
  trainer = _listed(figures.trainer_log_probs[span])
  return TokensRecord(
    lengths=tuple(lengths),
    entropy=_listed(trajectory.entropies[span]) if sampled else None,
    log_prob=_listed(trajectory.log_probs[span]) if sampled else None,
    trainer_log_prob=tuple(x if math.isfinite(x) else None for x in trainer),
    advantage=None
    if figures.advantages is None
    else _listed(figures.advantages[span]),
  )


def _listed(values: Float[np.ndarray, " T"]) -> tuple[float, ...]:
  """Numbers with five decimals."""
  return tuple(np.round(values.astype(np.float64), 5).tolist())


def event_to_json(event: ToolEvent | RetrievalEvent) -> dict[str, Any]:
  """A tool call or a retrieval as a JSON object."""
  if isinstance(event, ToolEvent):
    return {
      "type": "tool",
      "step_id": event.step_id,
      "tool": event.name,
      "argument": event.argument,
      "result": event.result,
      "status": str(event.status),
      "seconds": event.seconds,
    }
  content = {
    "type": "retrieval",
    "step_id": event.step_id,
    "outcome": event.outcome,
    "similarity": event.similarity,
    "reward": event.reward,
    "trace_id": event.trace_id,
    "source": event.source,
    "answers": event.answers,
  }
  if event.others:
    content["others"] = [dataclasses.asdict(one) for one in event.others]
  # Few are measured.
  return content if event.effect is None else content | {"effect": event.effect}


def event_from_json(content: Mapping[str, Any]) -> ToolEvent | RetrievalEvent:
  """Reads what `event_to_json` made."""
  fields = {name: value for name, value in content.items() if name != "type"}
  if content["type"] == "tool":
    return ToolEvent(name=fields.pop("tool"), **fields)
  others = tuple(Candidate(**one) for one in fields.pop("others", ()))
  return RetrievalEvent(**fields, others=others)


def _first_score(score: Mapping[str, Any]) -> dict[str, Any]:
  """A score of version 0, which says F1 and the recipe's status."""
  f1 = score.get("f1") or 0.0
  if not isinstance(f1, int | float):
    raise InputError(f"score.f1 must be a number, got {f1!a:.60}")
  status = score.get("status", "")
  return {
    "value": score["value"],
    "status": status,
    "answer": score.get("answer"),
    "correct": score.get("correct", f1 >= 1),
    "whole": status in ("ok", "box_empty"),
    "parts": {"f1": f1},
  }


def _segment_to_json(segment: SegmentRecord) -> dict[str, Any]:
  own = dataclasses.replace(segment, tokens=None)
  content = _told(_rounded(dataclasses.asdict(own)))
  if segment.tokens is not None:
    content["tokens"] = _told(dataclasses.asdict(segment.tokens))
  return content


def _told(content: dict[str, Any]) -> dict[str, Any]:
  """What is known."""
  return {name: value for name, value in content.items() if value is not None}


def _segment_from_json(content: Any) -> SegmentRecord:
  match content:
    case {"step_id": int(step), "text": str(text)} if step is not True:
      kind = content.get("kind", "policy")
      if kind not in _KINDS:
        raise InputError(
          f"kind of a segment must be one of {', '.join(_KINDS)}, got "
          f"{kind!a:.60}"
        )
      return SegmentRecord(
        kind=kind,
        step_id=step,
        text=text,
        num_tokens=content.get("num_tokens"),
        entropy=content.get("entropy"),
        log_prob=content.get("log_prob"),
        tokens=_tokens_from_json(content.get("tokens")),
      )
  raise InputError("a segment must have a step_id and a text")


def _tokens_from_json(content: Any) -> TokensRecord | None:
  if content is None:
    return None
  names = [field.name for field in dataclasses.fields(TokensRecord)]
  if not isinstance(content, Mapping) or "lengths" not in content:
    raise InputError(
      f"tokens of a segment must be an object with lengths, got {content!a:.60}"
    )
  columns = {n: content[n] for n in names if content.get(n) is not None}
  for name, values in columns.items():
    _check_list(f"tokens.{name}", values, float | int | None, "numbers")
  return TokensRecord(**{n: tuple(values) for n, values in columns.items()})


def _check_list(
  name: str, values: Any, kind: type[Any] | types.UnionType, said: str
) -> None:
  """Refuses what is no list of a kind.

  Raises:
    InputError: names the field.
  """
  if not isinstance(values, list | tuple) or not all(
    isinstance(value, kind) for value in values
  ):
    raise InputError(f"{name} must be a list of {said}, got {values!a:.60}")


def _training_from_json(content: Mapping[str, Any]) -> TrainingRecord | None:
  if "advantage" not in content:
    return None
  fields = {
    # Logs of earlier versions do not say these.
    "buffer_version": None,
    "left_out": False,
    "parent": None,
    "shared_steps": 0,
    "origin": "policy",
    **{
      field.name: content[field.name]
      for field in dataclasses.fields(TrainingRecord)
      if field.name in content
    },
  }
  missing = [
    field.name
    for field in dataclasses.fields(TrainingRecord)
    if field.name not in fields
  ]
  if missing:
    raise InputError(
      f"a record of training must have {', '.join(missing)}, and this one has "
      "not"
    )
  return TrainingRecord(**fields)


def _rounded(content: dict[str, Any]) -> dict[str, Any]:
  """Finite numbers with five decimals; JSON has no others."""
  return {
    name: (round(value, 5) if math.isfinite(value) else None)
    if isinstance(value, float)
    else value
    for name, value in content.items()
  }
