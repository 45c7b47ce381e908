"""Builds corpora of passages for the search tool, searches and checks them.

    python -m experiments.corpus build --input wiki-18.jsonl.gz \\
        --output corpora/wiki-18
    python -m experiments.corpus search --corpus corpora/wiki-18 \\
        "designer of the bridge" --mode hybrid
    python -m experiments.corpus check --corpus corpora/wiki-18

`COMMAND --help` tells more of each. docs/corpus.md shows them at work.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from experiments import cli, config_places, flags, input_errors, places
from experiments.buffers.arguments import at_least_one, utf8_text
from experiments.config import EncoderConfig, ExperimentConfig
from experiments.devices import check_devices, use_compilation_cache
from experiments.help_text import HelpFormatter
from experiments.progress import Progress
from experiments.stop_signal import StopSignal
from experiments.tasks import load_encoder
from rapo_jax.corpora import (
  MODES,
  Chunking,
  CorpusBuilder,
  Mode,
  Shard,
  open_corpus,
)
from rapo_jax.corpora.builder import STAGES, Report, check_room
from rapo_jax.corpora.corpus import Corpus, check
from rapo_jax.corpora.passages import Sample, read_sample
from rapo_jax.corpora.plan import Plan, Rates
from rapo_jax.errors import InputError
from rapo_jax.retrieval import IndexConfig, SentenceEncoder
from rapo_jax.retrieval.index.kinds import AUTO, INDEXES

_BUILD = """\
Builds a corpus from a file of passages.

The file has a passage a line, `{"id": …, "contents": …}`, as wiki-18.jsonl of
Search-R1; it may be compressed by gzip, or be a .csv or .parquet file. What the
build will take is printed before it starts.

A build that was interrupted goes on with the same command. Several machines
embed at a time with --shard 1/N to N/N on a folder that they share, and then
one of them builds without --shard.
"""
_SEARCH = """\
Shows the passages that a query finds, the best first.
"""
_CHECK = """\
Reads all of a corpus and compares it with its manifest.

Exit status 1 if it is not as it was built.
"""
_SAMPLED = 2000
_MEASURED = 64
"""Passages whose embedding is timed, after as many that compile programs."""
_SHOWN_CHARS = 400


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = make_parser()
  known, overrides = flags.parse_arguments(parser, arguments)
  if overrides and getattr(known, "config", None) is None:
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  known.overrides = overrides
  check_devices()
  use_compilation_cache()
  with StopSignal("go on with the same command."):
    run: Callable[[argparse.Namespace], int] = known.run
    return run(known)


def build(known: argparse.Namespace) -> int:
  """Builds a corpus, a part of its vectors, or a plan."""
  chunking = Chunking(known.chunk_words, known.overlap)
  mode: Mode = known.mode
  if known.shard is not None and mode == "bm25":
    raise InputError(
      "--shard is a part of the passages to embed, and the mode bm25 embeds "
      "none: leave --shard out."
    )
  if not known.plan:
    check_room(known.output, replace=known.replace)
  config = _config(known)
  sample = read_sample(known.input, _SAMPLED)
  encoder = None if mode == "bm25" else _encoder(known, config)
  plan = _plan(known, sample, chunking, encoder)
  print("\n".join(plan.lines()), flush=True)
  if known.plan:
    return 0
  _warn_of_disk(known.output, plan.peak_disk_bytes)
  builder = CorpusBuilder(
    known.input,
    known.output,
    encoder,
    mode=mode,
    chunking=chunking,
    index=_index_config(known, config),
    replace=known.replace,
  )
  shard: Shard | None = known.shard
  with Progress(STAGES if shard is None else STAGES[:2]) as progress:
    _run_stages(builder, shard, plan, progress)
    if shard is not None:
      print(
        f"shard {shard.number}/{shard.count} is embedded: after all others, "
        "give the same command without --shard."
      )
      return 0
    builder.finish()
  print(_contents(open_corpus(known.output)))
  return 0


def _run_stages(
  builder: CorpusBuilder, shard: Shard | None, plan: Plan, progress: Progress
) -> None:
  def report(done: int, total: int, text: str) -> None:
    progress.update(done, total or max(done, plan.passages), text)

  stages: dict[str, Callable[[Report], object]] = {
    "read": builder.read,
    "embed": lambda report: builder.embed(report, shard),
    "index": lambda _: builder.index(),
    "words": builder.words,
  }
  for name in STAGES if shard is None else STAGES[:2]:
    with progress.stage(name):
      stages[name](report)


def search(known: argparse.Namespace) -> int:
  """Shows the passages that a query finds."""
  corpus = open_corpus(known.corpus)
  encoder = None if known.mode == "bm25" else _encoder(known, _config(known))
  retriever = corpus.retriever(known.mode, encoder)
  (rows,) = retriever.search([known.query], known.top_k)
  for rank, row in enumerate((int(i) for i in rows if i >= 0), 1):
    print(f"{rank}. {corpus.ids[row]}")
    print(f"   {_line(corpus.documents[row])}")
  if not any(rows >= 0):
    print("no passage was found")
  return 0


def check_corpus(known: argparse.Namespace) -> int:
  """Reads a corpus and compares it with its manifest."""
  problems = check(known.corpus)
  if not problems:
    print(f"{known.corpus} is as it was built")
    print(_contents(open_corpus(known.corpus)))
    return 0
  print(f"{known.corpus} cannot be relied on:")
  for problem in problems:
    print(f"  {problem}")
  print("copy the folder again from where it is whole, or build it again.")
  return 1


def _plan(
  known: argparse.Namespace,
  sample: Sample,
  chunking: Chunking,
  encoder: SentenceEncoder | None,
) -> Plan:
  """What the build takes, from a short measurement of the encoder."""
  chunks = [
    chunk.contents
    for passage in sample.passages
    for chunk in chunking.chunks(passage)
  ]
  passages = sample.total
  if known.passages is not None:
    passages = known.passages
  passages = round(passages * len(chunks) / len(sample.passages))
  cores = 1.0
  if known.cores is not None:
    cores = known.cores / len(os.sched_getaffinity(0))
  return Plan.of(
    chunks,
    passages,
    Rates(None if encoder is None else _embedded_s(encoder, chunks), cores),
    1 if encoder is None else encoder.dimension,
    words=known.mode != "dense",
  )


def _embedded_s(encoder: SentenceEncoder, texts: Sequence[str]) -> float:
  """Texts that the encoder embeds a second."""
  count = min(_MEASURED, len(texts) // 2)
  encoder.encode(texts[:count])
  began = time.perf_counter()
  encoder.encode(texts[count : 2 * count] or texts)
  return max(count, 1) / (time.perf_counter() - began)


def _warn_of_disk(folder: pathlib.Path, needed: float) -> None:
  there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  free = shutil.disk_usage(there).free
  if free < needed:
    print(
      f"warning: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are "
      f"free at {there}"
    )


def _contents(corpus: Corpus) -> str:
  """What a corpus holds, in lines."""
  manifest = corpus.manifest
  encoder = manifest.source.encoder
  rows = [f"{corpus.folder}: {manifest.num_passages:,} passages"]
  if encoder is not None and manifest.index is not None:
    index = ", ".join(
      f"{k} {v}" for k, v in manifest.index.items() if k != "encoder_sha256"
    )
    rows.append(
      f"  encoder {encoder.id} ({encoder.sha256[:12]}); index {index}"
    )
  if manifest.source.words:
    rows.append("  BM25")
  for name, info in manifest.source.input.items():
    rows.append(f"  made from {name}, sha256 {info.sha256}")
  return "\n".join(rows)


def _line(text: str) -> str:
  flat = " ".join(text.split())
  return flat if len(flat) <= _SHOWN_CHARS else f"{flat[: _SHOWN_CHARS - 1]}…"


def _config(known: argparse.Namespace) -> ExperimentConfig | None:
  if known.config is None:
    return None
  config = flags.load_config(known.config)
  return config_places.local_config(
    flags.apply_overrides(config, known.overrides)
  )


def _encoder(
  known: argparse.Namespace, config: ExperimentConfig | None
) -> SentenceEncoder:
  """The encoder of --encoder, or else of the config, or MiniLM."""
  if known.encoder is not None:
    return load_encoder(EncoderConfig(path=str(known.encoder)))
  return load_encoder(EncoderConfig() if config is None else config.encoder)


def _index_config(
  known: argparse.Namespace, config: ExperimentConfig | None
) -> IndexConfig:
  if known.index is not None:
    return IndexConfig(known.index)
  return IndexConfig() if config is None else config.index


def make_parser() -> argparse.ArgumentParser:
  """The parser of all commands; each sets `run` to what it does."""
  top = argparse.ArgumentParser(
    cli.prog("experiments.corpus"),
    description=__doc__,
    epilog="Exit status: 0 done, 1 check found problems, 2 nothing was done, "
    "as a line on standard error tells.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  subparsers = top.add_subparsers(metavar="COMMAND", required=True)
  for name, run, add, text in (
    ("build", build, _add_build, _BUILD),
    ("search", search, _add_search, _SEARCH),
    ("check", check_corpus, _add_check, _CHECK),
  ):
    command = subparsers.add_parser(
      name,
      help=text.split(".")[0],
      description=text,
      formatter_class=HelpFormatter,
      allow_abbrev=False,
    )
    add(command)
    command.set_defaults(run=run)
  return top


def _add_build(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--input",
    type=places.path_argument,
    required=True,
    help="file of passages: .jsonl, .jsonl.gz, .csv, .tsv, .json or .parquet",
  )
  parser.add_argument(
    "--output",
    type=places.path_argument,
    required=True,
    help="folder of the corpus",
  )
  parser.add_argument(
    "--replace", action="store_true", help="replace the corpus at --output"
  )
  _add_mode(parser, "ways to search that it is to have; hybrid for both")
  _add_encoder(parser)
  parser.add_argument(
    "--index",
    choices=(AUTO, *sorted(INDEXES)),
    help="kind of index over the vectors (default: that of the config, or "
    f"{AUTO}, which is ScaNN where it is installed)",
  )
  parser.add_argument(
    "--chunk_words",
    type=at_least_one,
    metavar="N",
    help="cut passages into chunks of at most N words, each behind the title "
    "(default: passages stay whole)",
  )
  parser.add_argument(
    "--overlap",
    type=int,
    default=0,
    metavar="M",
    help="words that a chunk shares with the one before it (default: 0)",
  )
  parser.add_argument(
    "--shard",
    type=_shard,
    metavar="I/N",
    help="embed the Ith of N parts alone, and build nothing else",
  )
  group = parser.add_argument_group("planning")
  group.add_argument(
    "--plan", action="store_true", help="print what the build will take alone"
  )
  group.add_argument(
    "--passages",
    type=at_least_one,
    metavar="N",
    help="plan for so many passages like those of --input",
  )
  group.add_argument(
    "--cores",
    type=at_least_one,
    metavar="N",
    help="plan for a machine, or machines, of so many cores like these",
  )


def _add_search(parser: argparse.ArgumentParser) -> None:
  _add_corpus(parser)
  parser.add_argument("query", type=utf8_text, help="what is looked up")
  _add_mode(parser, "way to search")
  parser.add_argument(
    "--top_k",
    type=at_least_one,
    default=3,
    metavar="K",
    help="passages shown (default: 3)",
  )
  _add_encoder(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
  _add_corpus(parser)


def _add_corpus(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--corpus",
    type=places.path_argument,
    required=True,
    help="folder of the corpus",
  )


def _add_mode(parser: argparse.ArgumentParser, text: str) -> None:
  parser.add_argument(
    "--mode",
    choices=MODES,
    default="hybrid",
    help=f"{text} (default: %(default)s)",
  )


def _add_encoder(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--config",
    type=places.text_argument,
    help="Python config file whose encoder and index are taken; "
    "`--config.<path>=<value>` overrides a field",
  )
  parser.add_argument(
    "--encoder",
    type=places.path_argument,
    metavar="FOLDER",
    help="sentence-transformers folder (default: that of the config, or "
    "all-MiniLM-L6-v2)",
  )


def _shard(text: str) -> Shard:
  number, _, count = text.partition("/")
  if not (number.isdecimal() and count.isdecimal()):
    raise argparse.ArgumentTypeError(f"must be I/N, got {text!r}")
  try:
    return Shard(int(number), int(count))
  except InputError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
  sys.exit(main())
