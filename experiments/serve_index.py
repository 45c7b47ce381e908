"""Serves a Step-Trace Buffer over HTTP to trainers in torch, or of any kind.

    python -m experiments.serve_index --buffer runs/quickstart/buffer/multihop

speaks the retrieval protocol of Search-R1 and of the authors of RAPO:

    POST /retrieve  {"queries": ["..."], "topk": 3,
                     "return_scores": true}
    GET  /healthz   what is served, and the limits
    GET  /metrics   counts, and how long requests took

A query is a question on its first line and what has happened since below it.
Search-R1's trainer takes the address with `/retrieve`. RAPO's takes
`/retrieve?document=text`, since it reads a document as the text itself.
docs/serving.md has the protocol in full.

There are no users and no passwords: every client that reaches the address can
read the buffer. Other machines reach it with --host 0.0.0.0; keep the port
inside your cluster. SIGTERM or Ctrl+C ends it once all requests are answered.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import get_args

from experiments import cli, http_server, input_errors, places
from experiments.config import EncoderConfig
from experiments.devices import check_devices, use_compilation_cache
from experiments.help_text import HelpFormatter
from experiments.tasks import load_encoder
from rapo_jax.errors import InputError
from rapo_jax.retrieval import RetrievalConfig, StepTraceBuffer
from rapo_jax.retrieval.encoder.sentence_folder import Pooling
from rapo_jax.retrieval.serving import protocol
from rapo_jax.retrieval.serving.config import ServerConfig

_KEEP_ALIVE_S = 75
_EXAMPLE_CHARS = 60
_OTHER_FILES = 128
"""That are open besides connections."""


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known = make_parser().parse_args(arguments)
  config = _config(known)
  _allow_files(config.max_connections + _OTHER_FILES)
  check_devices()
  # Before the buffer is read, which takes longer.
  listener = http_server.listen(known.host, known.port)
  with listener:
    buffer = _open(known)
    _print_address(buffer, known.host, listener.getsockname()[1])
    _serve(buffer, config, listener)
  return 0


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.serve_index"),
    description=__doc__,
    epilog="Exit status: 0 it was ended, 2 it cannot be started.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  config = ServerConfig()
  _add_source(parser)
  _add_answers(parser, config)
  _add_limits(parser, config)
  _add_load(parser, config)
  return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
  what = parser.add_argument_group("what is served")
  what.add_argument(
    "--buffer",
    type=places.path_argument,
    required=True,
    help="folder of a Step-Trace Buffer",
  )
  what.add_argument(
    "--encoder",
    type=places.path_argument,
    help="folder of the encoder that the buffer was built with (default: the "
    "installed all-MiniLM-L6-v2)",
  )
  what.add_argument(
    "--pooling",
    choices=get_args(Pooling),
    help="how it pools (default: as its folder says)",
  )
  what.add_argument(
    "--key_prefix",
    help='in front of its keys, "passage: " for e5 (default: the folder\'s)',
  )
  what.add_argument(
    "--query_prefix",
    help='in front of its queries, "query: " for e5 (default: the folder\'s)',
  )
  what.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="in which it computes (%(default)s)",
  )
  where = parser.add_argument_group("where")
  where.add_argument(
    "--host", default="127.0.0.1", help="address to listen at (%(default)s)"
  )
  where.add_argument(
    "--port",
    type=int,
    default=8000,
    help="port to listen at; 0 for any that is free (%(default)s)",
  )


def _add_answers(parser: argparse.ArgumentParser, config: ServerConfig) -> None:
  answers = parser.add_argument_group(
    "answers, where a request does not say otherwise"
  )
  answers.add_argument(
    "--topk",
    type=int,
    default=config.defaults.topk,
    help="documents a query (%(default)s)",
  )
  answers.add_argument(
    "--document",
    choices=get_args(protocol.Document),
    default=config.defaults.document,
    help="object: as Search-R1 reads it; text: as RAPO's authors do "
    "(%(default)s)",
  )
  answers.add_argument(
    "--mode",
    choices=get_args(protocol.Mode),
    default=config.defaults.mode,
    help="list: the nearest traces; choice: of these the one that a rollout "
    "would take, or none (%(default)s)",
  )
  answers.add_argument(
    "--min_similarity",
    type=float,
    default=config.retrieval.min_similarity,
    help="of a choice: least cosine similarity (%(default)s)",
  )
  answers.add_argument(
    "--min_reward",
    type=float,
    default=config.retrieval.min_reward,
    help="of a choice: rewards must be above it (%(default)s)",
  )


def _add_limits(parser: argparse.ArgumentParser, config: ServerConfig) -> None:
  bounds = parser.add_argument_group("limits of a request")
  bounds.add_argument(
    "--max_topk",
    type=int,
    default=config.limits.max_topk,
    help="documents a query (%(default)s)",
  )
  bounds.add_argument(
    "--max_queries",
    type=int,
    default=config.limits.max_queries,
    help="queries; Search-R1 sends those of a whole batch at once "
    "(%(default)s)",
  )
  bounds.add_argument(
    "--max_query_chars",
    type=int,
    default=config.limits.max_query_chars,
    help="characters of a query with its history (%(default)s)",
  )
  bounds.add_argument(
    "--max_body_mib",
    type=int,
    default=config.limits.max_body_bytes // 2**20,
    help="size of its body (%(default)s)",
  )


def _add_load(parser: argparse.ArgumentParser, config: ServerConfig) -> None:
  load = parser.add_argument_group("load")
  load.add_argument(
    "--max_queue",
    type=int,
    default=config.max_queue,
    help="queries that may wait; beyond it the answer is 503 with Retry-After "
    "(%(default)s)",
  )
  load.add_argument(
    "--max_batch",
    type=int,
    default=config.max_batch,
    help="queries that are embedded and searched at once (%(default)s)",
  )
  load.add_argument(
    "--max_wait_ms",
    type=float,
    default=config.max_wait_s * 1e3,
    help="for how long an idle server waits for more requests to batch "
    "(%(default)s)",
  )
  load.add_argument(
    "--max_connections",
    type=int,
    default=config.max_connections,
    help="connections that may be open; one more closes one that waits for "
    "nothing (%(default)s)",
  )
  load.add_argument(
    "--header_timeout_s",
    type=float,
    default=config.header_timeout_s,
    help="in which the head of a request has to come (%(default)s)",
  )
  load.add_argument(
    "--timeout_s",
    type=float,
    default=config.timeout_s,
    help="after which a request is answered 504 (%(default)s)",
  )


def _config(known: argparse.Namespace) -> ServerConfig:
  return ServerConfig(
    limits=protocol.Limits(
      max_body_bytes=known.max_body_mib * 2**20,
      max_queries=known.max_queries,
      max_query_chars=known.max_query_chars,
      max_topk=known.max_topk,
    ),
    defaults=protocol.Defaults(known.topk, known.document, known.mode),
    retrieval=RetrievalConfig(
      min_similarity=known.min_similarity, min_reward=known.min_reward
    ),
    max_batch=known.max_batch,
    max_wait_s=known.max_wait_ms / 1e3,
    max_queue=known.max_queue,
    timeout_s=known.timeout_s,
    header_timeout_s=known.header_timeout_s,
    max_connections=known.max_connections,
  )


def _allow_files(number: int) -> None:
  """Lets this process have as many open files, each connection being one."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < number:
    if hard != resource.RLIM_INFINITY and hard < number:
      raise InputError(
        f"{number} open files are needed for the connections, {hard} are"
        " allowed: give less --max_connections, or raise `ulimit -n`."
      )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def _open(known: argparse.Namespace) -> StepTraceBuffer:
  directory = known.buffer
  print(f"opening {directory}", file=sys.stderr)
  encoder = load_encoder(
    EncoderConfig(
      path=None if known.encoder is None else str(known.encoder),
      pooling=known.pooling,
      key_prefix=known.key_prefix,
      query_prefix=known.query_prefix,
      dtype=known.dtype,
    )
  )
  buffer = StepTraceBuffer.load(directory, encoder)
  if not len(buffer):
    raise InputError(
      f"{directory} holds no traces, so that there is nothing to serve: a"
      " trainer would get empty answers, and RAPO's would train on its error."
    )
  print("compiling the encoder", file=sys.stderr)
  use_compilation_cache()
  encoder.compile()
  return buffer


def _print_address(buffer: StepTraceBuffer, host: str, port: int) -> None:
  url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
  question = " ".join(next(iter(buffer)).question.split())[:_EXAMPLE_CHARS]
  body = json.dumps(
    {"queries": [question], "topk": 3, "return_scores": True},
    ensure_ascii=False,
  )
  print(
    f"{len(buffer):,} step traces (version {buffer.version},"
    f" {buffer.encoder.encoder_id}) at {url}\n"
    f"try: curl -s {url}{protocol.PATH} -d {shlex.quote(body)}",
    flush=True,
  )


def _serve(
  buffer: StepTraceBuffer, config: ServerConfig, listener: socket.socket
) -> None:
  """Serves until a signal comes, and what has been asked by then."""
  from rapo_jax.retrieval.serving.connections import limited
  from rapo_jax.retrieval.serving.server import buffer_app

  http_server.serve(
    buffer_app(buffer, config),
    listener,
    http=limited(config),
    # Clients keep connections between the steps of a training run.
    timeout_keep_alive=_KEEP_ALIVE_S,
    timeout_graceful_shutdown=math.ceil(config.timeout_s) + 1,
  )


if __name__ == "__main__":
  sys.exit(main())
