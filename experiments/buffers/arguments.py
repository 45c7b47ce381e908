"""The arguments of `experiments.buffer`, command by command."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from experiments import cli, places
from experiments.buffers import commands
from experiments.buffers.imports import OverlapPolicy
from experiments.help_text import HelpFormatter
from rapo_jax import text_files
from rapo_jax.retrieval.buffer.leaks import MIN_SIMILARITY
from rapo_jax.retrieval.buffer.selection import Selection
from rapo_jax.retrieval.index.kinds import AUTO, INDEXES


def parser(description: str) -> argparse.ArgumentParser:
  """The parser of all commands; each sets `run` to what it does."""
  top = _command(argparse.ArgumentParser, cli.prog("experiments.buffer"))
  top.description = description
  top.epilog = (
    "Exit status: 0 done, 1 verify found problems, 2 nothing was done, as a "
    "line on standard error tells."
  )
  subparsers = top.add_subparsers(metavar="COMMAND", required=True)
  for name, run, add, text in (
    ("build", commands.build, _add_build, _BUILD),
    ("import", commands.import_files, _add_import, _IMPORT),
    ("inspect", commands.inspect, _add_inspect, _INSPECT),
    ("search", commands.search, _add_search, _SEARCH),
    ("merge", commands.merge, _add_merge, _MERGE),
    ("verify", commands.verify, _add_verify, _VERIFY),
  ):
    short = " ".join(text.split(".")[0].split())
    command = _command(subparsers.add_parser, name, help=short)
    command.description = text
    add(command)
    command.set_defaults(run=run)
  return top


def _command(
  make: Callable[..., argparse.ArgumentParser], name: str, **kwargs: str
) -> argparse.ArgumentParser:
  return make(
    name,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
    **kwargs,
  )


_BUILD = """\
Builds a buffer by rolling an off-policy agent out, or of worked solutions.

The agent is asked the training questions of an experiment's config, has its
tools, and writes N trajectories a question, of which the best K are kept
(config.buffer).
`--config.<path>=<value>` overrides a field.

The agent is either the config's own, from the work folder of the experiment
(--workdir), or the model behind an OpenAI-compatible endpoint (--endpoint and
--model; its key comes from OPENAI_API_KEY; needs the extra `buffer`). What an
endpoint has written lies in OUTPUT.journal.jsonl and stays there.

With --solutions no agent is asked: the task's own worked solutions, such as
those of GSM8K, are the trajectories of an agent called "solutions".

A build that was interrupted goes on with the same command and --resume.
"""
_IMPORT = """\
Builds a buffer from JSONL files of trajectories, of one agent or several.

Formats, detected from each file: the file of RAPO's authors (`key`, `value`,
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
  parser.add_argument(
    "--solutions",
    action="store_true",
    help="take the worked solutions of the task's training questions",
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
  _add_index(parser)
  _add_resume(parser)
  parser.add_argument(
    "--format",
    choices=("auto", "authors", "messages", "trajectories"),
    default="auto",
    help="of all files (default: detected from each)",
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
    type=places.file_argument,
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
    "--replace", action="store_true", help="replace the buffer at --output"
  )
  _add_encoder(parser)


def _add_index(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--index",
    choices=(AUTO, *sorted(INDEXES)),
    default=AUTO,
    help="kind of index over the keys (default: %(default)s, which is ScaNN "
    "where it is installed)",
  )


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
    type=places.file_argument,
    metavar="FILE",
    help="HTML file to write (default: BUFFER.html)",
  )
  parser.add_argument("--question", type=utf8_text, help="show what it finds")
  _add_history(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
  _add_buffer(parser)
  parser.add_argument(
    "--question", type=utf8_text, required=True, help="the question"
  )
  _add_history(parser)


def _add_history(parser: argparse.ArgumentParser) -> None:
  _add_encoder(parser)
  parser.add_argument(
    "--history",
    type=utf8_text,
    action="append",
    default=[],
    metavar="STEP",
    help="a step so far; may be repeated, the oldest first",
  )
  parser.add_argument(
    "--num_neighbors",
    type=at_least_one,
    default=5,
    help="steps shown (default: 5)",
  )


def _add_merge(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "buffers", nargs="+", type=places.path_argument, help="folders of buffers"
  )
  _add_output(parser)
  _add_index(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
  _add_buffer(parser)


def _add_buffer(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--buffer",
    type=places.path_argument,
    required=True,
    help="folder of the buffer",
  )


def utf8_text(text: str) -> str:
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


def at_least_one(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
  return int(text)
