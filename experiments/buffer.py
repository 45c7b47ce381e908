"""Builds Step-Trace Buffers, looks into them, joins and checks them.

    python -m experiments.buffer import --output buffers/teacher \\
        teacher=Step_Trace_Buffer.jsonl webdancer=sample_traj.jsonl \\
        --reward 1 --held_out test.jsonl --overlap drop
    python -m experiments.buffer build --output buffers/endpoint \\
        --config experiments/configs/quickstart.py \\
        --endpoint http://127.0.0.1:8000/v1 --model teacher
    python -m experiments.buffer verify --buffer buffers/teacher
    python -m experiments.buffer search --buffer buffers/teacher \\
        --question "Who directed the film that won in 1995?"

`COMMAND --help` tells more of each. docs/buffer_building.md shows them at work.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

from experiments import checks, flags, input_errors, places
from experiments.buffers import endpoint as buffer_endpoint
from experiments.buffers import imports as buffer_import
from experiments.buffers import page as buffer_page
from experiments.buffers.imports import ImportConfig, LeakConfig, OverlapPolicy
from experiments.config import EncoderConfig, ExperimentConfig
from experiments.devices import check_devices
from experiments.progress import Progress
from experiments.run import use_compilation_cache
from experiments.stages.buffer import build_buffer
from experiments.stop_signal import StopSignal
from experiments.tasks import (
  load_encoder,
  open_task,
  open_tools,
  questions,
  task_names,
)
from experiments.workdir import Workdir
from rapo_jax import text_files
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import SentenceEncoder, StepTraceBuffer
from rapo_jax.retrieval.buffer import store
from rapo_jax.retrieval.buffer.leaks import MIN_SIMILARITY, LeakCheck
from rapo_jax.retrieval.buffer.manifest import Manifest, partial_folder
from rapo_jax.retrieval.buffer.selection import Selection
from rapo_jax.rollout.endpoint import EndpointConfig

_SHOWN_CHARS = 240


@input_errors.told_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = _parser()
  known, overrides = flags.parse_arguments(parser, arguments)
  if overrides and known.run is not _build:
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  known.overrides = overrides
  check_devices()
  use_compilation_cache()
  with StopSignal(
    "go on with the same command and --resume."
    if "resume" in known
    else "start it again."
  ):
    return known.run(known)


def _import(known: argparse.Namespace) -> int:
  _check_output(known)
  sources = [buffer_import.parse_source(text) for text in known.sources]
  encoder = _encoder(known)
  with Progress(buffer_import.STAGES) as progress:
    outcome = buffer_import.import_files(
      sources,
      known.output,
      encoder,
      _import_config(known),
      progress,
      resume=known.resume,
      report_path=known.report,
    )
  print(buffer_import.told(outcome))
  assert outcome.manifest is not None
  print(_contents(known.output, outcome.manifest))
  return 0


def _build(known: argparse.Namespace) -> int:
  _check_output(known)
  config = flags.load_config(known.config)
  config = flags.apply_overrides(config, known.overrides)
  config = places.local_config(config)
  names = task_names(config)
  task = known.task or names[0]
  if task not in names or (known.task is None and len(names) > 1):
    raise InputError(f"--task must be one of {', '.join(names)}.")
  if known.endpoint is not None:
    return _build_from_endpoint(known, config, task)
  if known.workdir is None:
    raise InputError(
      "build needs the agent: --workdir with the agents of the experiment, or "
      "--endpoint and --model."
    )
  checks.quick_checks(config)
  _check_partial(known)
  encoder = _encoder(known, config.encoder)
  with (
    Progress(["build"]) as progress,
    progress.stage("build"),
    open_task(config, Workdir(known.workdir), task, encoder) as opened,
    input_errors.from_outside(),
  ):
    train = _asked(known, opened.train, opened.held_out, encoder)
    manifest = build_buffer(
      config,
      dataclasses.replace(opened, train=train),
      encoder,
      lambda share, text: progress.update(share, 1.0, text),
      known.output,
    )
  print(_contents(known.output, manifest))
  return 0


def _build_from_endpoint(
  known: argparse.Namespace, config: ExperimentConfig, task: str
) -> int:
  if known.model is None:
    raise InputError("--endpoint needs --model: the model's name there.")
  with input_errors.from_outside():
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
  train = _asked(known, *questions(config, task), encoder)
  stages = ("roll out", *buffer_import.STAGES)
  with Progress(stages) as progress:
    with (
      progress.stage("roll out"),
      open_tools(config, task, encoder) as tools,
    ):
      buffer_endpoint.roll_out(
        endpoint,
        train,
        tools,
        config.rollout,
        journal,
        config.buffer.num_trajectories,
        progress,
      )
    selection = Selection(
      top_k=config.buffer.top_k_trajectories,
      min_reward=config.retrieval.min_reward,
    )
    outcome = buffer_import.import_files(
      [buffer_import.Source(known.model, journal)],
      known.output,
      encoder,
      ImportConfig(selection=selection),
      progress,
      resume=known.resume,
    )
  print(buffer_import.told(outcome))
  assert outcome.manifest is not None
  print(_contents(known.output, outcome.manifest))
  return 0


@input_errors.from_outside()
def _asked(
  known: argparse.Namespace,
  train: Sequence[Query],
  held_out: Sequence[Query],
  encoder: SentenceEncoder,
) -> list[Query]:
  """Training questions, without those held out; asked before anything is done.

  The config's own held-out questions may be alike in all but a name, and are
  compared by their text.
  """
  config = _leak_config(known)
  own = LeakCheck([("held out by the config", [q.question for q in held_out])])
  asked = [query.question for query in train]
  overlaps = own.overlaps(asked)
  overlaps += buffer_import.held_out(asked, encoder, config)
  buffer_import.check_overlaps(overlaps, config)
  if overlaps:
    print(f"{len(overlaps)} questions are held out ({config.overlap}):")
    print(buffer_import.overlaps_told(overlaps))
  dropped = {o.question for o in overlaps if config.overlap == "drop"}
  return [query for query in train if query.question not in dropped]


def _check_partial(known: argparse.Namespace) -> None:
  partial = partial_folder(known.output)
  if partial.exists() and not known.resume:
    raise InputError(
      f"{partial} is what an interrupted build left: go on with it (--resume), "
      "or delete it to begin again."
    )


def _verify(known: argparse.Namespace) -> int:
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


@input_errors.from_outside()
def _merge(known: argparse.Namespace) -> int:
  _check_output(known)
  manifest = store.merge(known.buffers, known.output, _encoder(known))
  print(_contents(known.output, manifest))
  return 0


@input_errors.from_outside()
def _search(known: argparse.Namespace) -> int:
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


@input_errors.from_outside()
def _inspect(known: argparse.Namespace) -> int:
  if known.history and known.question is None:
    raise InputError("--history needs the --question that it is on.")
  asked = None
  if known.question is not None:
    buffer = StepTraceBuffer.load(known.buffer, _encoder(known))
    (hits,) = buffer.neighbors(
      [known.question], [known.history], known.num_neighbors
    )
    asked = buffer_page.Asked(known.question, known.history, hits)
  path = known.output or known.buffer.with_name(f"{known.buffer.name}.html")
  buffer_page.write_page(known.buffer, path, asked)
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


@input_errors.from_outside()
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
  if known.output.exists() and not known.replace:
    raise InputError(
      f"there is something at {known.output} already: choose another --output, "
      "or let it be replaced (--replace)."
    )


@input_errors.from_outside()
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
  )


def _leak_config(known: argparse.Namespace) -> LeakConfig:
  return LeakConfig(
    held_out=tuple(known.held_out),
    overlap=known.overlap,
    min_similarity=known.similarity,
  )


def _parser() -> argparse.ArgumentParser:
  parser = _command(argparse.ArgumentParser, "python -m experiments.buffer")
  parser.description = __doc__
  parser.epilog = (
    "Exit status: 0 done, 1 verify found problems, 2 nothing was done, as a "
    "line on standard error tells."
  )
  commands = parser.add_subparsers(metavar="COMMAND", required=True)
  for name, run, add, text in (
    ("build", _build, _add_build, _BUILD),
    ("import", _import, _add_import, _IMPORT),
    ("inspect", _inspect, _add_inspect, _INSPECT),
    ("search", _search, _add_search, _SEARCH),
    ("merge", _merge, _add_merge, _MERGE),
    ("verify", _verify, _add_verify, _VERIFY),
  ):
    short = " ".join(text.split(".")[0].split())
    command = _command(commands.add_parser, name, help=short)
    command.description = text
    add(command)
    command.set_defaults(run=run)
  return parser


def _command(
  make: Callable[..., argparse.ArgumentParser], name: str, **kwargs: str
) -> argparse.ArgumentParser:
  return make(
    name,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    **kwargs,
  )


_BUILD = """\
Builds a buffer by rolling an off-policy agent out.

It is asked the training questions of an experiment's config, has its tools, and
writes N trajectories a question, of which the best K are kept (config.buffer).
`--config.<path>=<value>` overrides a field.

The agent is either the config's own, from the work folder of the experiment
(--workdir), or the model behind an OpenAI-compatible endpoint (--endpoint and
--model; its key comes from OPENAI_API_KEY; needs the extra `buffer`). What an
endpoint has written lies in OUTPUT.journal.jsonl and stays there.

A build that was interrupted goes on with the same command and --resume.
"""
_IMPORT = """\
Builds a buffer from JSONL files of trajectories, of one agent or several.

Formats, told from each file: the file of RAPO's authors (`key`, `value`,
`reward`); conversations (`messages`, with calls in the text or in
`tool_calls`); our own logs (`segments`). Steps are cut after each result of a
tool.

An import that was interrupted goes on with the same command and --resume.
"""
_INSPECT = """\
Writes a page that shows what is in a buffer.

It has agents, lengths, rewards, tools used, a map of the keys, samples, and the
neighbours of a waiting history that is given. The page is one file and fetches
nothing.
"""
_SEARCH = """\
Shows the steps that a waiting history finds, the nearest first.

The history is given oldest step first: --history STEP --history STEP.
"""
_MERGE = """\
Joins buffers into one. Nothing is embedded again; the index is built anew.
"""
_VERIFY = """\
Reads all of a buffer and compares it with its manifest.

Looks at sizes, checksums, every row and every vector. Exit status 1 if it is
not as it was written; then says how to repair it.
"""


def _add_build(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--config",
    type=places.text_argument,
    required=True,
    help="Python config file",
  )
  parser.add_argument(
    "--task", help="task (family) of the experiment, if it has several"
  )
  _add_output(parser)
  _add_resume(parser)
  parser.add_argument(
    "--workdir",
    type=places.path_argument,
    help="work folder of the experiment, with its agents",
  )
  group = parser.add_argument_group("an agent behind an endpoint")
  group.add_argument(
    "--endpoint", metavar="URL", help="of the API, such as http://host:8000/v1"
  )
  group.add_argument("--model", help="name of the model there")
  group.add_argument(
    "--concurrency",
    type=int,
    default=16,
    help="trajectories under way at once (default: %(default)s)",
  )
  group.add_argument(
    "--request_timeout_s",
    type=float,
    default=300.0,
    help="deadline of a request in seconds (default: %(default)s)",
  )
  group.add_argument(
    "--max_retries",
    type=int,
    default=6,
    help="times that a failed request is made again (default: %(default)s)",
  )
  _add_leaks(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "sources",
    nargs="+",
    metavar="[AGENT=]FILE",
    help="a JSONL file, and the name of the agent that wrote it (default: the "
    "file's name)",
  )
  _add_output(parser)
  _add_resume(parser)
  parser.add_argument(
    "--format",
    choices=("auto", "authors", "messages", "trajectories"),
    default="auto",
    help="of all files (default: told from each)",
  )
  parser.add_argument(
    "--on_error",
    choices=("stop", "skip"),
    default="stop",
    help="at a broken line: stop and name it (default), or leave it out, count "
    "it and go on",
  )
  parser.add_argument(
    "--reward",
    type=_reward,
    metavar="{f1,NUMBER}",
    help="of conversations that have none: the F1 of their answer, or this "
    "number (default: they are broken lines)",
  )
  _add_selection(parser)
  _add_leaks(parser)
  parser.add_argument(
    "--report",
    type=places.path_argument,
    metavar="FILE",
    help="write what was read, left out and found held out as JSON, also when "
    "the import is refused",
  )


def _add_output(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--output",
    type=places.path_argument,
    required=True,
    help="folder of the buffer",
  )
  parser.add_argument(
    "--replace", action="store_true", help="replace what is at --output"
  )
  _add_encoder(parser)


def _add_encoder(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--encoder",
    type=places.path_argument,
    metavar="FOLDER",
    help="sentence-transformers folder (default: that of the config, if one is "
    "given, or all-MiniLM-L6-v2)",
  )


def _add_resume(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--resume",
    action="store_true",
    help="go on with a build that was interrupted",
  )


def _add_selection(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("what is taken")
  group.add_argument(
    "--num_trajectories",
    type=int,
    metavar="N",
    help="consider an agent's first N trajectories on a question (default: "
    "all)",
  )
  group.add_argument(
    "--top_k",
    type=int,
    metavar="K",
    help="keep an agent's K best of these by reward (default: all; the paper 5 "
    "of 16)",
  )
  group.add_argument(
    "--min_reward",
    type=_number_or_none,
    default=Selection().min_reward,
    metavar="{R,none}",
    help="a reward must be above R (default: %(default)s)",
  )
  group.add_argument(
    "--exclude_answers",
    action="store_true",
    help="leave out steps that hold an answer",
  )
  group.add_argument(
    "--near_duplicates",
    type=float,
    metavar="SHARE",
    help="leave out a step that shares this part of its word triples with "
    "another of its question and number, as its history does (0.9 is good; "
    "many traces of a question need the extra `buffer`; default: only copies "
    "are left out)",
  )


def _add_leaks(parser: argparse.ArgumentParser) -> None:
  policies: tuple[OverlapPolicy, ...] = ("refuse", "drop", "keep")
  group = parser.add_argument_group("held-out questions")
  group.add_argument(
    "--held_out",
    type=places.path_argument,
    action="append",
    default=[],
    metavar="FILE",
    help="questions that must not be in the buffer: .jsonl, .json, .csv, .tsv "
    "or .parquet with a field question, problem, query or prompt; may be "
    "repeated",
  )
  group.add_argument(
    "--overlap",
    choices=policies,
    default="refuse",
    help="if some are: build nothing (default), drop their trajectories, or "
    "keep them and tell",
  )
  group.add_argument(
    "--similarity",
    type=_number_or_none,
    default=MIN_SIMILARITY,
    metavar="{S,none}",
    help="cosine similarity at which two questions count as one (default: "
    "%(default)s); none compares texts alone",
  )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
  _add_buffer(parser)
  parser.add_argument(
    "--output",
    type=places.path_argument,
    metavar="FILE",
    help="HTML file to write (default: BUFFER.html)",
  )
  parser.add_argument("--question", type=_text, help="show what it finds")
  _add_history(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
  _add_buffer(parser)
  parser.add_argument(
    "--question", type=_text, required=True, help="the question"
  )
  _add_history(parser)


def _add_history(parser: argparse.ArgumentParser) -> None:
  _add_encoder(parser)
  parser.add_argument(
    "--history",
    type=_text,
    action="append",
    default=[],
    metavar="STEP",
    help="a step so far; may be repeated, the oldest first",
  )
  parser.add_argument(
    "--num_neighbors",
    type=_at_least_one,
    default=5,
    help="steps shown (default: 5)",
  )


def _add_merge(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "buffers", nargs="+", type=places.path_argument, help="folders of buffers"
  )
  _add_output(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
  _add_buffer(parser)


def _add_buffer(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--buffer",
    type=places.path_argument,
    required=True,
    help="folder of the buffer",
  )


def _text(text: str) -> str:
  """What a shell gave, which need not be UTF-8; a type for argparse."""
  try:
    text_files.check_text(text)
  except text_files.TextError as error:
    raise argparse.ArgumentTypeError(f"it must be UTF-8: {error}") from error
  return text


def _reward(text: str) -> str | float:
  return text if text == "f1" else _number(text, "f1 or a number")


def _number_or_none(text: str) -> float | None:
  return None if text == "none" else _number(text, "none or a number")


def _number(text: str, rule: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"must be {rule}, got {text!r}") from None


def _at_least_one(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
  return int(text)


if __name__ == "__main__":
  sys.exit(main())
