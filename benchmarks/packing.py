"""Padding of packed batches, beside one trajectory a row.

  python -m benchmarks.packing

Packs minibatches of 16 questions x 16 rollouts, the paper's, into rows of 5,632
tokens. The paper gives budgets (prompts of up to 1,536 and responses of up to
4,096 tokens) and no distribution. Three are tried. Response lengths are spread
evenly over the whole budget, log-normal around 900 tokens, or log-normal with a
tenth cut at the limit. Prints one JSON line with the share of positions that
hold no token. It is the median over batches, whole micro-batches counted. The
same is given for one trajectory a row. `computed` is how many positions are
computed where rows hold the prompt of their trajectories once, padding among
them, over those of rows that repeat it.
"""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np

from rapo_jax.training.packing import Prefix, assign_rows

PROMPT, RESPONSE, ROW = 1536, 4096, 5632
SEQUENCES = 16 * 16
TARGET = 0.08


def lengths(
  rng: np.random.Generator, spread: str
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of each prompt and response; a group shares its prompt."""
  prompts = np.repeat(rng.integers(150, 500, 16), 16)
  if spread == "even":
    responses = rng.integers(64, RESPONSE + 1, SEQUENCES)
  else:
    middle = {"log-normal": 900, "long": 1800}[spread]
    responses = np.exp(rng.normal(np.log(middle), 0.65, SEQUENCES))
  return prompts, np.clip(responses, 64, RESPONSE).astype(int)


def padding(tokens: int, rows: int, rows_per_microbatch: int) -> float:
  """Share of positions without a token in whole micro-batches."""
  used = -(-rows // rows_per_microbatch) * rows_per_microbatch
  return 1 - tokens / (used * ROW)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--batches", type=int, default=50)
  parser.add_argument("--rows_per_microbatch", type=int, default=4)
  known = parser.parse_args()
  rng = np.random.default_rng(0)
  report: dict[str, dict[str, float]] = {}
  for spread in ("even", "log-normal", "long"):
    packed, apart, computed = [], [], []
    for _ in range(known.batches):
      prompts, responses = lengths(rng, spread)
      drawn = prompts + responses
      prefixes = [Prefix(i // 16, n - 1) for i, n in enumerate(prompts)]
      rows = len(assign_rows(drawn.tolist(), ROW))
      sharing = len(assign_rows(drawn.tolist(), ROW, prefixes))
      tokens = int(drawn.sum())
      packed.append(padding(tokens, rows, known.rows_per_microbatch))
      computed.append(sharing / rows)
      apart.append(padding(tokens, SEQUENCES, known.rows_per_microbatch))
    report[spread] = {
      "packed": round(statistics.median(packed), 4),
      "packed_worst": round(max(packed), 4),
      "one_a_row": round(statistics.median(apart), 4),
      "computed": round(statistics.median(computed), 4),
    }
  print(
    json.dumps(
      {
        "benchmark": "packing",
        "unit": "share of positions without a token",
        "row_tokens": ROW,
        "sequences": SEQUENCES,
        "rows_per_microbatch": known.rows_per_microbatch,
        "batches": known.batches,
        "target": TARGET,
        **report,
      }
    )
  )


if __name__ == "__main__":
  main()
