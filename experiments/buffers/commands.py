"""The commands of `experiments.buffer`.

Each takes its parsed arguments and returns the exit status.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

from experiments import checks, config_places, flags
from experiments.buffers import endpoint as endpoint_lib
from experiments.buffers import imports, page
from experiments.buffers.imports import ImportConfig, LeakConfig
from experiments.buffers.solutions import solution_trajectories
from experiments.config import EncoderConfig, ExperimentConfig
from experiments.progress import Progress
from experiments.stages.buffer import build_buffer
from experiments.tasks import (
  load_encoder,
  open_task,
  questions_of,
  running_tools,
  task_names,
  tried_questions,
)
from experiments.workdir import Workdir
from rapo_jax import files
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import (
  IndexConfig,
  SentenceEncoder,
  StepTraceBuffer,
  index_class,
)
from rapo_jax.retrieval.buffer import store
from rapo_jax.retrieval.buffer.leaks import LeakCheck
from rapo_jax.retrieval.buffer.manifest import MARKS, Manifest, partial_folder
from rapo_jax.retrieval.buffer.selection import Selection
from rapo_jax.rollout.endpoint import EndpointConfig
from rapo_jax.tasks import Questions

_SHOWN_CHARS = 240


def import_files(known: argparse.Namespace) -> int:
  """Builds a buffer from files of trajectories."""
  _check_output(known)
  sources = [imports.parse_source(text) for text in known.sources]
  encoder = _encoder(known)
  with Progress(imports.STAGES) as progress:
    outcome = imports.import_files(
      sources,
      known.output,
      encoder,
      _import_config(known),
      progress,
      resume=known.resume,
      report_path=known.report,
    )
  print(imports.describe_outcome(outcome))
  assert outcome.manifest is not None
  print(_contents(known.output, outcome.manifest))
  return 0


def build(known: argparse.Namespace) -> int:
  """Builds a buffer of an off-policy agent, or of the task's solutions."""
  _check_output(known)
  config = flags.load_config(known.config)
  config = flags.apply_overrides(config, known.overrides)
  config = config_places.local_config(config)
  names = task_names(config)
  task = known.task or names[0]
  if task not in names or (known.task is None and len(names) > 1):
    raise InputError(f"--task must be one of {', '.join(names)}.")
  if known.solutions:
    return _build_from_solutions(known, config, task)
  if known.endpoint is not None:
    return _build_from_endpoint(known, config, task)
  if known.workdir is None:
    raise InputError(
      "build needs the agent: --workdir with the agents of the experiment, "
      "--endpoint and --model, or --solutions."
    )
  checks.quick_checks(config)
  _check_partial(known)
  encoder = _encoder(known, config.encoder)
  with (
    Progress(["build"]) as progress,
    progress.stage("build"),
    open_task(config, Workdir(known.workdir), task, encoder) as opened,
  ):
    questions = Questions(opened.train, opened.evaluation)
    train = _asked(known, questions, encoder)
    manifest = build_buffer(
      config,
      dataclasses.replace(opened, train=train),
      encoder,
      lambda share, text, *, earlier=False, until=None: progress.update(
        share, 1.0, text, earlier=earlier, until=until
      ),
      known.output,
    )
  print(_contents(known.output, manifest))
  return 0


def _build_from_solutions(
  known: argparse.Namespace, config: ExperimentConfig, task: str
) -> int:
  if known.endpoint is not None or known.workdir is not None:
    raise InputError(
      "--solutions takes the place of an agent: leave --endpoint and --workdir "
      "out, and `merge` the buffers."
    )
  encoder = _encoder(known, config.encoder)
  train = _asked(known, tried_questions(config, task), encoder)
  outcome = imports.Outcome()
  with Progress(imports.STAGES) as progress:
    with progress.stage(imports.STAGES[0]):
      found = solution_trajectories(config.task(task), train)
    if not found:
      raise InputError(
        f"--solutions needs worked solutions of training questions, and {task} "
        f"has none of its {len(train)}: take a task that gives some "
        "(Task.solutions), or build from an agent."
      )
    imports.write_buffer(
      found,
      known.output,
      encoder,
      _agent_import(config),
      progress,
      outcome,
      resume=known.resume,
    )
  right = outcome.num_selected
  print(
    f"{len(found):,} of {len(train):,} training questions have a solution that "
    f"can be used; {right:,} of these have a reward above "
    f"{config.retrieval.min_reward:g}"
  )
  assert outcome.manifest is not None
  print(_contents(known.output, outcome.manifest))
  return 0


def _agent_import(config: ExperimentConfig) -> ImportConfig:
  """What the config keeps of an agent's trajectories."""
  selection = Selection(
    top_k=config.buffer.top_k_trajectories,
    min_reward=config.retrieval.min_reward,
  )
  return ImportConfig(selection=selection, index=config.index)


def _build_from_endpoint(
  known: argparse.Namespace, config: ExperimentConfig, task: str
) -> int:
  if known.model is None:
    raise InputError("--endpoint needs --model: the model's name there.")
  endpoint = EndpointConfig(
    known.endpoint,
    known.model,
    temperature=config.rollout.temperature,
    max_step_tokens=config.rollout.max_step_tokens,
    concurrency=known.concurrency,
    request_timeout_s=known.request_timeout_s,
    max_retries=known.max_retries,
  )
  journal = known.output.with_name(f"{known.output.name}.journal.jsonl")
  if journal.exists() and not known.resume:
    raise InputError(
      f"{journal} holds trajectories of a build that was interrupted: go on "
      "with it (--resume), or remove it."
    )
  encoder = _encoder(known, config.encoder)
  train = _asked(known, questions_of(config, task), encoder)
  stages = ("roll out", *imports.STAGES)
  with Progress(stages) as progress:
    with (
      progress.stage("roll out"),
      running_tools(config, task, encoder) as tools,
    ):
      endpoint_lib.roll_out(
        endpoint,
        train,
        tools,
        config.rollout,
        journal,
        config.buffer.num_trajectories,
        progress,
        reward=config.task(task).reward,
      )
    outcome = imports.import_files(
      [imports.Source(known.model, journal)],
      known.output,
      encoder,
      _agent_import(config),
      progress,
      resume=known.resume,
    )
  print(imports.describe_outcome(outcome))
  assert outcome.manifest is not None
  print(_contents(known.output, outcome.manifest))
  return 0


def _asked(
  known: argparse.Namespace,
  questions: Questions,
  encoder: SentenceEncoder,
) -> list[Query]:
  """Training questions, without those held out; asked before anything is done.

  The config's own held-out questions may be alike in all but a name, and are
  compared by their text.
  """
  config = _leak_config(known)
  own = LeakCheck(
    [
      (f"{name} of the config", [query.question for query in queries])
      for name, queries in questions.evaluation.items()
    ]
  )
  train = questions.train
  asked = [query.question for query in train]
  overlaps = own.overlaps(asked)
  overlaps += imports.held_out(asked, encoder, config)
  imports.check_overlaps(overlaps, config)
  if overlaps:
    print(f"{len(overlaps)} questions are held out ({config.overlap}):")
    print(imports.describe_overlaps(overlaps))
  dropped = {o.question for o in overlaps if config.overlap == "drop"}
  return [query for query in train if query.question not in dropped]


def _check_partial(known: argparse.Namespace) -> None:
  partial = partial_folder(known.output)
  if partial.exists() and not known.resume:
    raise InputError(
      f"{partial} is what an interrupted build left: go on with it (--resume), "
      "or delete it to begin again."
    )


def verify(known: argparse.Namespace) -> int:
  """Reads a buffer and compares it with its manifest."""
  problems = store.verify(known.buffer)
  if not problems:
    manifest = store.read_manifest(known.buffer)
    print(f"{known.buffer} is as it was written")
    print(_contents(known.buffer, manifest))
    return 0
  print(f"{known.buffer} cannot be relied on:")
  for problem in problems:
    print(f"  {problem}")
  print(_repair(known.buffer))
  return 1


def _repair(buffer: pathlib.Path) -> str:
  """What repairs a buffer with problems."""
  if partial_folder(buffer).exists():
    return (
      "go on with the build: the command that began it, with --resume"
      f" (`python -m experiments.buffer import --resume --output {buffer} …`"
      " or `… build --resume …`)"
    )
  return (
    "copy the folder again from where it is whole, or build it again:"
    f" `python -m experiments.buffer import --replace --output {buffer} …`"
  )


def merge(known: argparse.Namespace) -> int:
  """Joins buffers into one."""
  _check_output(known)
  manifest = store.merge(
    known.buffers,
    known.output,
    _encoder(known),
    index_cls=index_class(IndexConfig(known.index)),
  )
  print(_contents(known.output, manifest))
  return 0


def search(known: argparse.Namespace) -> int:
  """Shows the steps that a waiting history finds."""
  buffer = StepTraceBuffer.load(known.buffer, _encoder(known))
  (hits,) = buffer.neighbors(
    [known.question], [known.history], known.num_neighbors
  )
  for rank, hit in enumerate(hits, 1):
    trace = hit.trace
    print(
      f"{rank}. similarity {hit.similarity:.3f}, reward {trace.reward:g},"
      f" {trace.source}, step {trace.step_index} of {trace.trajectory_id}"
    )
    print(f"   {_line(trace.question)}")
    if trace.history:
      print(f"   … {_line(trace.history[-1])}")
    print(f"   → {_line(trace.step)}")
  if not hits:
    print(f"{known.buffer} is empty")
  return 0


def inspect(known: argparse.Namespace) -> int:
  """Writes a page that shows a buffer."""
  if known.history and known.question is None:
    raise InputError("--history needs the --question that it is on.")
  asked = None
  if known.question is not None:
    buffer = StepTraceBuffer.load(known.buffer, _encoder(known))
    (hits,) = buffer.neighbors(
      [known.question], [known.history], known.num_neighbors
    )
    asked = page.Asked(known.question, known.history, hits)
  path = known.output or known.buffer.with_name(f"{known.buffer.name}.html")
  page.write_page(known.buffer, path, asked)
  print(_contents(known.buffer, store.read_manifest(known.buffer)))
  print(f"page: {path}")
  return 0


def _line(text: str) -> str:
  flat = " ".join(text.split())
  return flat if len(flat) <= _SHOWN_CHARS else f"{flat[: _SHOWN_CHARS - 1]}…"


def _contents(directory: pathlib.Path, manifest: Manifest) -> str:
  """What a buffer holds, in lines."""
  index = ", ".join(f"{k} {v}" for k, v in manifest.index.items())
  rows = [
    f"{directory}: {manifest.num_traces:,} step traces with"
    f" {manifest.num_keys:,} keys, {manifest.num_tokens:,} wordpieces;"
    f" version {manifest.version}",
    f"  encoder {manifest.encoder.id} ({manifest.encoder.sha256[:12]}); index"
    f" {index}",
  ]
  for name, agent in manifest.agents.items():
    rows.append(
      f"  {name}: {agent.num_trajectories:,} trajectories,"
      f" {agent.num_traces:,} steps"
    )
  return "\n".join(rows)


def _encoder(
  known: argparse.Namespace, config: EncoderConfig | None = None
) -> SentenceEncoder:
  """The encoder of --encoder, or else of the config, or MiniLM."""
  if known.encoder is not None:
    config = EncoderConfig(path=str(known.encoder))
  return load_encoder(config or EncoderConfig())


def _check_output(known: argparse.Namespace) -> None:
  # The folder behind a link is replaced, not the link.
  known.output = known.output.resolve()
  if known.replace:
    files.check_replaceable(known.output, MARKS, "a buffer")
  elif known.output.exists():
    raise InputError(
      f"there is something at {known.output} already: choose another --output, "
      "or let it be replaced (--replace)."
    )


def _import_config(known: argparse.Namespace) -> ImportConfig:
  return ImportConfig(
    file_format=None if known.format == "auto" else known.format,
    on_error=known.on_error,
    reward=known.reward,
    selection=Selection(
      num_trajectories=known.num_trajectories,
      top_k=known.top_k,
      min_reward=known.min_reward,
      exclude_answers=known.exclude_answers,
      near_duplicates=known.near_duplicates,
    ),
    leaks=_leak_config(known),
    index=IndexConfig(known.index),
  )


def _leak_config(known: argparse.Namespace) -> LeakConfig:
  return LeakConfig(
    held_out=tuple(known.held_out),
    overlap=known.overlap,
    min_similarity=known.similarity,
  )
