"""Whole RAPO updates of a real model's shape, and the device's idle share.

  python -m benchmarks.rapo_updates --rows updates.jsonl

Rollout with the python tool and retrieval, rewards, advantages, packing and
update, by the project's trainer and with the settings of
`experiments/configs/gsm8k_qwen2_5_0_5b.py`: 16 questions of 16 rollouts. Needs
one accelerator, no network, no data and no weights.

- The policy has Qwen2.5-0.5B's shape, but an output head of its own. It is
  scripted (see `rollout_setup`): it calls the tool after 16 to 64 tokens, and
  never answers. So every rollout fills its budget of 512 tokens. The learning
  rate is 0, or the script would be lost; the optimizer does all its work.
- Each call runs a program behind the python tool's wall, which prints words.
- The buffer holds 169,489 made-up traces (see `rollout_host`). The encoder has
  MiniLM's shape and random weights, and reads all that a run's would.
- Rewards are a coin's, so that every question has a signal.

The device is idle while it neither decodes nor fills caches nor runs a
minibatch. All programs are compiled before the first update. With --rows each
update is written to a file as it ends, and a second start goes on from there;
medians are over all rows. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from benchmarks import rollout_host
from benchmarks import rollout_setup as setup
from experiments.config import ExperimentConfig
from experiments.configs import gsm8k_qwen2_5_0_5b
from rapo_jax import models, retrieval, rewards
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.models import published
from rapo_jax.retrieval.encoder.bert import BertConfig, BertEncoder
from rapo_jax.rollout import RolloutEngine
from rapo_jax.text_files import json_lines
from rapo_jax.tools import PythonTool, ToolResult
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state

SHAPE = models.DecoderConfig.from_hf(
  published.QWEN2_5_0_5B | {"torch_dtype": "float32"}
)
_STEP_TOKENS = tuple(range(16, 65, 8))
_RESULT_WORDS = 24
_NUM_WORDS = 8_000
MINILM = BertConfig(
  vocab_size=30_522,
  hidden_size=384,
  num_hidden_layers=6,
  num_attention_heads=12,
  intermediate_size=1536,
  max_position_embeddings=512,
  type_vocab_size=2,
  layer_norm_eps=1e-12,
)
_MAX_WORDPIECES = 256
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_TARGETS = {"idle_share": 0.10, "seconds_of_100_updates": 1_800}
_PARTS = (
  "step/seconds",
  "rollout/seconds",
  "rollout/decode_seconds",
  "rollout/cache_seconds",
  "rollout/tool_seconds",
  "rollout/retrieval_seconds",
  "rollout/host_seconds",
  "update/seconds",
  "update/device_seconds",
)
_COUNTS = (
  "rollout/generated_tokens",
  "rollout/tool_calls",
  "rollout/tool_failures",
  "rollout/retrievals",
  "groups/live_fraction",
)


class PrintedWords(setup.WordsTool):
  """Words as the scripted policy's tool gives them, printed by a program.

  Args:
    words: to print.
    python: runs the programs.
  """

  def __init__(self, words: tuple[str, ...], python: PythonTool):
    super().__init__(words, num_words=_RESULT_WORDS)
    self._python = python

  def call(self, argument: str) -> ToolResult:
    """Runs one program; the argument does not matter."""
    return self._python.call(f"print({super().call(argument).text!r})")


def made_up_words() -> tuple[str, ...]:
  """Distinct words of four letters."""
  syllables = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
  pairs = itertools.product(syllables, repeat=2)
  return tuple(a + b for a, b in itertools.islice(pairs, _NUM_WORDS))


def random_encoder(
  words: tuple[str, ...], config: BertConfig
) -> retrieval.SentenceEncoder:
  """An encoder with random weights, to which each word is one wordpiece."""
  vocabulary = {text: i for i, text in enumerate((*_SPECIAL, *words))}
  tokenizer = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = BertPreTokenizer()
  tokenizer.post_processor = BertProcessing(
    ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
  )
  model = jax.jit(
    lambda: BertEncoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
  )()
  return retrieval.SentenceEncoder(
    model,
    tokenizer,
    max_tokens=_MAX_WORDPIECES,
    encoder_id="random",
    sha256="",
  )


def coin(sample: rewards.Sample) -> float:
  """0 or 1, by what the policy wrote and what it was answered."""
  text = "".join(text for _, text in sample.segments)
  return float(zlib.crc32(text.encode()) % 2)


def measure(
  config: ExperimentConfig,
  shape: models.DecoderConfig,
  encoder: BertConfig,
  *,
  updates: int,
  first: int = 0,
  traces: int,
  rows: pathlib.Path | None = None,
) -> list[dict[str, float]]:
  """The figures of each update.

  Args:
    config: whose rollout and update are taken.
    shape: of the policy.
    encoder: shape of the encoder of keys and queries.
    updates: how many.
    first: number of the first one.
    traces: in the buffer.
    rows: file that each is written to as it ends; None for none.
  """
  words = made_up_words()
  policy = setup.scripted_policy(
    _STEP_TOKENS,
    words=words,
    config=dataclasses.replace(shape, tie_embeddings=False),
  )
  buffer, _ = rollout_host.make_buffer(
    traces, words, random_encoder(words, encoder)
  )
  optimizer = OptimizerConfig(learning_rate=0.0)
  rollout = dataclasses.replace(
    config.rollout, trajectory_timeout_s=setup.TRAJECTORY_TIMEOUT_S
  )
  asked = setup.queries(config.update.queries_per_update)
  reports = []
  with PythonTool() as python:
    engine = RolloutEngine(
      rollout,
      policy.tokenizer,
      vocab_size=shape.vocab_size,
      tools={setup.TOOL: PrintedWords(words, python)},
      buffer=buffer,
      retrieval=config.retrieval,
    )
    trainer = Trainer(
      engine,
      policy.tokenizer,
      rollout=rollout,
      objective=config.objective,
      optimizer=optimizer,
      update=config.update,
      seed=0,
      reward=rewards.FunctionReward(coin),
      algorithm=ALGORITHMS["rapo"],
    )
    state = init_train_state(policy.model, optimizer)
    state = trainer.compile(state)
    for update in range(first, first + updates):
      rng = np.random.default_rng(update)
      prompts = [policy.prompt(rollout.max_prompt_tokens, rng) for _ in asked]
      state, _, report = trainer.step(state, asked, prompts, update)
      reports.append({n: float(report[n]) for n in (*_PARTS, *_COUNTS)})
      print(update, reports[-1], file=sys.stderr, flush=True)
      if rows is not None:
        with rows.open("a", encoding="utf-8") as file:
          file.write(json.dumps(reports[-1]) + "\n")
  return reports


def summarise(reports: list[dict[str, float]]) -> dict[str, Any]:
  """Medians over updates, and the share of their time without the device."""
  median = {
    name: statistics.median(row[name] for row in reports)
    for name in (*_PARTS, *_COUNTS)
  }
  return {
    "updates": len(reports),
    "idle_share": round(
      statistics.median(
        1
        - (
          row["rollout/decode_seconds"]
          + row["rollout/cache_seconds"]
          + row["update/device_seconds"]
        )
        / row["step/seconds"]
        for row in reports
      ),
      4,
    ),
    "seconds_of_100_updates": round(100 * median["step/seconds"], 1),
    "targets": _TARGETS,
    "seconds": {name: round(median[name], 4) for name in _PARTS},
    "counts": {name: round(median[name], 3) for name in _COUNTS},
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--updates", type=int, default=20)
  parser.add_argument("--traces", type=int, default=169_489)
  parser.add_argument("--rows", type=pathlib.Path, help="file of the updates")
  arguments = parser.parse_args()
  before: list[dict[str, float]] = []
  if arguments.rows is not None and arguments.rows.exists():
    before = [row for _, row in json_lines(arguments.rows)]
  reports = measure(
    gsm8k_qwen2_5_0_5b.get_config(),
    SHAPE,
    MINILM,
    updates=arguments.updates,
    first=len(before),
    traces=arguments.traces,
    rows=arguments.rows,
  )
  print(
    json.dumps(
      {
        "benchmark": "rapo_updates",
        "unit": "s, and share of an update",
        "model": "Qwen2.5-0.5B's shape, random weights",
        "traces": arguments.traces,
        **summarise([*before, *reports]),
        **setup.about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
