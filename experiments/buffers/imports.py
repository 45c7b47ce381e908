"""Builds a Step-Trace Buffer from files of trajectories, of any agents."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from experiments import places
from experiments.progress import Progress
from experiments.workdir import write_json
from rapo_jax import rewards
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval import (
  IndexConfig,
  SentenceEncoder,
  StepTrace,
  index_class,
)
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory
from rapo_jax.retrieval.buffer.leaks import LeakCheck, Overlap, overlap_counts
from rapo_jax.retrieval.buffer.manifest import Manifest
from rapo_jax.retrieval.buffer.selection import (
  Selection,
  TraceCounts,
  select_traces,
  select_trajectories,
)
from rapo_jax.retrieval.buffer.store import BufferWriter
from rapo_jax.retrieval.importers import (
  Format,
  ImportReport,
  OnError,
  read_trajectories,
)

OverlapPolicy = Literal["refuse", "drop", "keep"]

STAGES = ("read", "select", "write", "embed and index")
_SHOWN = 5
_EVERY = 512


@dataclasses.dataclass(frozen=True)
class Source:
  """A file of trajectories and the agent that wrote them."""

  agent: str
  path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class LeakConfig:
  """Questions that must not be in a buffer, and what to do about one.

  Attributes:
    held_out: files of questions.
    overlap: "refuse" builds nothing, "drop" leaves trajectories on such
      questions out, "keep" only reports them.
    min_similarity: cosine similarity at which two questions count as one; None
      compares texts alone.
  """

  held_out: tuple[pathlib.Path, ...] = ()
  overlap: OverlapPolicy = "refuse"
  min_similarity: float | None = None

  def __post_init__(self) -> None:
    check_numbers(self, "min_similarity", at_least=-1, at_most=1)


@dataclasses.dataclass(frozen=True)
class ImportConfig:
  """How files are read, and which of their steps are kept.

  Attributes:
    file_format: of all files; None to tell it from each.
    on_error: whether a broken line stops the import.
    reward: of conversations without one: "f1" of the answer, or a number; None
      refuses them.
    selection: which trajectories and steps are kept.
    leaks: questions that must not be in it.
    index: which index is built over the keys.
  """

  file_format: Format | None = None
  on_error: OnError = "stop"
  reward: Literal["f1"] | float | None = None
  selection: Selection = Selection()
  leaks: LeakConfig = LeakConfig()
  index: IndexConfig = IndexConfig()

  def __post_init__(self) -> None:
    if self.reward != "f1":
      check_numbers(self, "reward")


@dataclasses.dataclass
class Outcome:
  """What an import has read, left out and found.

  Attributes:
    lines: of the files.
    num_selected: trajectories after the choice by number and reward.
    num_held_out: of these, left out as their question is held out.
    traces: what became of the steps of the others.
    overlaps: questions that are held out.
    manifest: of the buffer; None until it is there.
  """

  lines: ImportReport = dataclasses.field(default_factory=ImportReport)
  num_selected: int = 0
  num_held_out: int = 0
  traces: TraceCounts = dataclasses.field(default_factory=TraceCounts)
  overlaps: list[Overlap] = dataclasses.field(default_factory=list)
  manifest: Manifest | None = None

  def to_dict(self) -> dict[str, Any]:
    """All of it, as JSON values."""
    return dataclasses.asdict(self)


def parse_source(text: str) -> Source:
  """Reads `AGENT=FILE`, or `FILE` for an agent of the file's name."""
  agent, found, path = text.partition("=")
  if not found:
    file = pathlib.Path(places.local(text, "a source"))
    return Source(file.stem, file)
  if not agent.strip() or not path:
    raise InputError(f"a source is FILE or AGENT=FILE, got {text!r}.")
  return Source(agent, pathlib.Path(places.local(path, "a source")))


def import_files(
  sources: Sequence[Source],
  output: pathlib.Path,
  encoder: SentenceEncoder,
  config: ImportConfig,
  progress: Progress,
  *,
  resume: bool = False,
  report_path: pathlib.Path | None = None,
) -> Outcome:
  """Builds a buffer from files.

  Args:
    sources: what to read, in this order.
    output: folder of the buffer.
    encoder: embeds the keys.
    config: what is taken.
    progress: display, with the stages `STAGES`.
    resume: go on with an import of the same files that was interrupted.
    report_path: JSON file for the outcome, also of an import that is refused.

  Returns:
    What was done.

  Raises:
    InputError: a file cannot be used, a line is broken, a question is held
      out, or nothing is left.
  """
  outcome = Outcome()
  with _written(outcome, report_path):
    with progress.stage("read"):
      trajectories = _read(sources, config, outcome, progress)
    write_buffer(
      trajectories, output, encoder, config, progress, outcome, resume=resume
    )
  return outcome


def write_buffer(
  trajectories: Sequence[AgentTrajectory],
  output: pathlib.Path,
  encoder: SentenceEncoder,
  config: ImportConfig,
  progress: Progress,
  outcome: Outcome,
  *,
  resume: bool = False,
) -> None:
  """Builds a buffer from trajectories.

  Args:
    trajectories: of any agents.
    output: folder of the buffer.
    encoder: embeds the keys.
    config: what is taken.
    progress: display, with the stages `STAGES` but the first.
    outcome: gets what was done.
    resume: go on with a build from the same trajectories.

  Raises:
    InputError: a question is held out, or nothing is left.
  """
  with progress.stage("select"):
    selected = select_trajectories(trajectories, config.selection)
    outcome.num_selected = len(selected)
    # As selected, not as read: what stays out leaks nothing.
    selected = _without_held_out(selected, encoder, config.leaks, outcome)
  traces = select_traces(selected, config.selection, outcome.traces)
  first = next(traces, None)
  if first is None:
    raise InputError(
      f"nothing is left to build a buffer of:\n{describe_outcome(outcome)}"
    )
  traces = itertools.chain([first], traces)
  with progress.stage("write"):
    writer = BufferWriter(
      output, encoder, index_cls=index_class(config.index), resume=resume
    )
    total = sum(len(t.steps) for t in selected)
    writer.add(_reported(_not_yet_in(writer, traces), total, progress))
  if not outcome.traces.num_traces:
    raise InputError(
      f"nothing is left to build a buffer of:\n{describe_outcome(outcome)}"
    )
  with progress.stage("embed and index"):
    outcome.manifest = writer.finish(
      lambda share, text: progress.update(share, 1.0, text)
    )


@contextlib.contextmanager
def _written(outcome: Outcome, path: pathlib.Path | None) -> Iterator[None]:
  """Writes the outcome as it is when the block ends, however it ends."""
  try:
    yield
  finally:
    if path is not None:
      write_json(path, outcome.to_dict())


def _read(
  sources: Sequence[Source],
  config: ImportConfig,
  outcome: Outcome,
  progress: Progress,
) -> list[AgentTrajectory]:
  for source in sources:
    if not source.path.is_file():
      raise InputError(f"no file of trajectories at {source.path}")
  total = sum(source.path.stat().st_size for source in sources)
  trajectories: list[AgentTrajectory] = []
  done = 0
  taken: set[tuple[str, str]] = set()
  for number, source in enumerate(sources):
    # Two files of one agent may have one name, in two folders.
    named_again = (source.agent, source.path.name) in taken
    taken.add((source.agent, source.path.name))
    found = read_trajectories(
      source.path,
      source.agent,
      report=outcome.lines,
      file_format=config.file_format,
      on_error=config.on_error,
      reward=_reward(config.reward),
    )
    for trajectory, num_bytes in found:
      if named_again:
        name = f"{number}:{trajectory.trajectory_id}"
        trajectory = dataclasses.replace(trajectory, trajectory_id=name)
      trajectories.append(trajectory)
      if len(trajectories) % _EVERY == 0:
        share = (done + num_bytes) / max(total, 1)
        progress.update(share, 1.0, f"{len(trajectories):,} trajectories")
    done += source.path.stat().st_size
  return trajectories


def _reward(
  reward: Literal["f1"] | float | None,
) -> Callable[[str, Sequence[str]], float] | None:
  if reward is None:
    return None
  if reward != "f1":
    return lambda answer, accepted: reward

  def f1(answer: str, accepted: Sequence[str]) -> float:
    if not accepted:
      raise InputError("there are no accepted answers to compute F1 with")
    given = rewards.last_boxed(answer) or answer
    return max(rewards.token_f1(given, truth) for truth in accepted)

  return f1


def _without_held_out(
  trajectories: list[AgentTrajectory],
  encoder: SentenceEncoder,
  config: LeakConfig,
  outcome: Outcome,
) -> list[AgentTrajectory]:
  """Looks for held-out questions and does what the config says."""
  questions = [trajectory.question for trajectory in trajectories]
  outcome.overlaps = held_out(questions, encoder, config)
  check_overlaps(outcome.overlaps, config)
  if config.overlap != "drop":
    return trajectories
  found = {overlap.question for overlap in outcome.overlaps}
  kept = [t for t in trajectories if t.question not in found]
  outcome.num_held_out = len(trajectories) - len(kept)
  return kept


def held_out(
  questions: Sequence[str],
  encoder: SentenceEncoder,
  config: LeakConfig,
) -> list[Overlap]:
  """Finds questions that the files of a config hold out."""
  if not config.held_out:
    return []
  check = LeakCheck.of_files(
    config.held_out,
    None if config.min_similarity is None else encoder,
    1.0 if config.min_similarity is None else config.min_similarity,
  )
  return check.overlaps(questions)


def check_overlaps(overlaps: Sequence[Overlap], config: LeakConfig) -> None:
  """Stops at overlaps, if they are to be refused.

  Raises:
    InputError: tells which they are.
  """
  if overlaps and config.overlap == "refuse":
    raise InputError(
      "questions that are held out must not be in a buffer, and "
      f"{len(overlaps)} are:\n{describe_overlaps(overlaps)}\n"
      "--overlap drop leaves their trajectories out, --overlap keep takes them "
      "all the same."
    )


def _not_yet_in(
  writer: BufferWriter, traces: Iterator[StepTrace]
) -> Iterator[StepTrace]:
  """Passes over what an interrupted build has written already."""
  written = list(itertools.islice(traces, writer.num_traces))
  last = written[-1].trace_id + 1 if written else 0
  if (len(written), last) != (writer.num_traces, writer.next_trace_id):
    raise InputError(
      "an import goes on with the files and the choice that it was begun with, "
      f"and these give other steps than the {writer.num_traces} that are "
      "written: give the same, or delete the folder .partial to begin again."
    )
  return traces


def _reported(
  traces: Iterator[StepTrace], total: int, progress: Progress
) -> Iterator[StepTrace]:
  for number, trace in enumerate(traces, 1):
    yield trace
    if number % _EVERY == 0:
      progress.update(number, total, f"{number:,} step traces")


def describe_outcome(outcome: Outcome) -> str:
  """The outcome in lines for people."""
  lines, traces = outcome.lines, outcome.traces
  rows = [
    f"read {lines.num_lines:,} lines: {lines.num_trajectories:,} trajectories,"
    f" {lines.num_steps:,} steps"
  ]
  if lines.num_number_lists:
    rows.append(f"passed over {lines.num_number_lists:,} lists of rewards")
  if lines.num_broken:
    rows.append(f"left out {lines.num_broken:,} broken lines, the first:")
    rows += [f"  {problem}" for problem in lines.problems[:_SHOWN]]
  left_out = lines.num_trajectories - outcome.num_selected
  if left_out:
    rows.append(f"left out {left_out:,} trajectories by number or reward")
  if outcome.overlaps:
    rows.append(
      f"{len(outcome.overlaps):,} questions are held out"
      f" ({outcome.num_held_out:,} trajectories left out):"
    )
    rows.append(describe_overlaps(outcome.overlaps))
  for count, what in (
    (traces.num_answers, "steps that hold an answer"),
    (traces.num_exact, "copies of steps"),
    (traces.num_near, "steps nearly the same as another"),
  ):
    if count:
      rows.append(f"left out {count:,} {what}")
  return "\n".join(rows)


def describe_overlaps(overlaps: Sequence[Overlap]) -> str:
  """Held-out questions by set, and the first of them."""
  rows = []
  for name, (same, alike) in overlap_counts(overlaps).items():
    rows.append(f"  {name}: {same} by text, {alike} by meaning")
  # Those alike are the ones to look at.
  shown = sorted(overlaps, key=lambda o: (o.same_text, -o.similarity))
  for overlap in shown[:_SHOWN]:
    rows.append(
      f"  {overlap.similarity:.3f} {overlap.question[:60]!r} is"
      f" {overlap.held_out[:60]!r}"
    )
  return "\n".join(rows)
