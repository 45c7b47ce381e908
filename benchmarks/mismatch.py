"""How far trainer and sampler are apart in a token's log-probability.

    .venv/bin/python -m benchmarks.mismatch --model models/smollm2-135m

The sampler decodes with a cache, a token at a time. The trainer computes packed
rows at once. Each update compares the two on every token that a real model
sampled, in steps with the python tool, on GSM8K's questions (--data) or sums.
Then it runs, at learning rate 0: so over many --updates there may be no trend.
Each prompt ends with a call and its result, so that the policy calls again.

Prints one JSON line: nats, means and maxima over the tokens of an update; and
the slope of the means over updates with its standard error. The target of 1e-4
is for the mean in float32. On an accelerator: --dtype bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import real_model
from benchmarks.rollout_setup import about_this_machine
from experiments.tokenizer_files import load_tokenizer
from rapo_jax import data, models
from rapo_jax.algorithms import ALGORITHMS, CLIPPED_LOSS
from rapo_jax.rollout import RolloutConfig, RolloutEngine
from rapo_jax.tools import PythonTool
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  Trainer,
  UpdateConfig,
  init_train_state,
)

BEGUN = "".join(
  f"<think> I compute a step. </think><python> print({program}) </python>\n"
  f"<result> {value} </result>\n"
  for program, value in (("6 * 7", 42), ("42 + 3", 45), ("45 * 2", 90))
)
"""Behind each prompt: a policy that was not trained to call does it again."""
_TARGET = 1e-4
# Tokens are compared where nothing is learned from them, too.
_ALGORITHM = dataclasses.replace(
  ALGORITHMS["grpo"], loss=dataclasses.replace(CLIPPED_LOSS, vanishes=False)
)
_FIGURES = (
  "mismatch/abs_log_prob_mean",
  "mismatch/abs_log_prob_max",
  "rollout/generated_tokens",
  "rollout/tool_calls",
)


def slope(values: Sequence[float]) -> dict[str, float] | None:
  """The straight line's slope, and its standard error; None for few values.

  Args:
    values: one an update.
  """
  count = len(values)
  if count < 3:
    return None
  x = np.arange(count) - (count - 1) / 2
  y = np.asarray(values) - np.mean(values)
  squares = float(x @ x)
  value = float(x @ y) / squares
  rest = y - value * x
  error = math.sqrt(float(rest @ rest) / (count - 2) / squares)
  return {"per_update": value, "standard_error": error}


def measure(arguments: argparse.Namespace) -> list[dict[str, float]]:
  """The figures of each update."""
  folder = real_model.folder_of(arguments.model)
  tokenizer = load_tokenizer(folder)
  model = models.from_pretrained(folder)
  optimizer = OptimizerConfig(learning_rate=0.0)
  with PythonTool() as tool:
    rollout = RolloutConfig(
      num_generations=arguments.rollouts,
      num_hybrid=0,
      dtype=arguments.dtype,
      num_slots=arguments.questions * arguments.rollouts,
      max_prompt_tokens=arguments.prompt_tokens,
      max_response_tokens=arguments.response_tokens,
      max_step_tokens=arguments.response_tokens,
      max_tool_tokens=min(64, arguments.response_tokens),
      trajectory_timeout_s=3600.0,
    )
    engine = RolloutEngine(
      rollout,
      tokenizer,
      vocab_size=model.config.vocab_size,
      tools={tool.name: tool},
    )
    trainer = Trainer(
      engine,
      tokenizer,
      rollout=rollout,
      objective=ObjectiveConfig(),
      optimizer=optimizer,
      update=UpdateConfig(
        queries_per_update=arguments.questions,
        queries_per_minibatch=arguments.questions,
        row_length=2 * engine.max_length,
        rows_per_microbatch=1,
        remat=arguments.remat,
      ),
      seed=0,
      algorithm=_ALGORITHM,
    )
    state = init_train_state(model, optimizer)
    asked = _asked(arguments, tokenizer)
    reports = []
    for update in range(arguments.updates):
      at = update * arguments.questions % len(asked)
      chosen = (asked[at:] + asked[:at])[: arguments.questions]
      queries, prompts = zip(*chosen, strict=True)
      state, _, report = trainer.step(state, queries, prompts, update)
      reports.append({name: report[name] for name in _FIGURES})
      print(update, reports[-1], file=sys.stderr, flush=True)
  return reports


def _asked(
  arguments: argparse.Namespace, tokenizer: Any
) -> list[tuple[data.Query, np.ndarray]]:
  """Questions with prompts that hold a call, those that are short enough."""
  begun = np.asarray(
    tokenizer.encode(BEGUN, add_special_tokens=False), np.int32
  )
  room = arguments.prompt_tokens
  found: list[tuple[data.Query, np.ndarray]] = []
  wanted = arguments.questions * arguments.updates
  for text, answer in real_model.read_questions(arguments.data):
    query = data.Query(
      f"q{len(found)}",
      text,
      (answer,),
      tuple(data.chat_messages(text, [PythonTool])),
      "benchmark",
    )
    # Too long for any budget is too long here.
    prompt = data.encode_prompt(tokenizer, query, 10**6)
    if len(prompt) + len(begun) <= room:
      found.append((query, np.concatenate([prompt, begun])))
    if len(found) == wanted:
      break
  if len(found) < arguments.questions:
    raise ValueError("too few questions are short: raise --prompt-tokens.")
  return found


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  real_model.add_arguments(parser)
  parser.add_argument("--updates", type=int, default=1)
  parser.add_argument("--questions", type=int, default=2)
  parser.add_argument("--rollouts", type=int, default=4, help="of a question")
  parser.add_argument("--prompt-tokens", type=int, default=448, help="at most")
  parser.add_argument("--response-tokens", type=int, default=64)
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument(
    "--remat", default="layer", choices=typing.get_args(models.Remat)
  )
  return parser


def main() -> None:
  arguments = _parser().parse_args()
  reports = measure(arguments)
  mean, largest, tokens, calls = ([r[n] for r in reports] for n in _FIGURES)
  sizes = {
    n: v for n, v in vars(arguments).items() if n not in ("model", "data")
  }
  print(
    json.dumps(
      {
        "benchmark": "mismatch",
        "unit": "nats, |trainer - sampler|",
        "model": pathlib.Path(arguments.model).name,
        "data": "gsm8k" if arguments.data else "sums",
        "sizes": sizes,
        "mean": statistics.fmean(mean),
        "max": max(largest),
        "slope_of_the_mean": slope(mean),
        "generated_tokens": sum(tokens),
        "tool_calls": sum(calls),
        "target": _TARGET,
        **about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
