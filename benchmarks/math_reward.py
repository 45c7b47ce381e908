"""The equality of mathematical answers, beside math-verify in this process.

    python -m benchmarks.math_reward

Answers are altered in ways that keep or change what they say: sign, decimal
point, form of a fraction, units, order of a sum. Prints one JSON line.

- `pairs`: pairs of an altered answer and its ground truth.
- `disagreements`: where `math_equal` differs from math-verify, called directly
  on the same texts; units apart, where it differs from what the change means.
- `wrong`: where it differs from what the change means.
- `seconds_for_10000`: of 10,000 different pairs, on all processors.
- `hostile_seconds`: of 32 answers that would take for ever, on all processors.
"""

from __future__ import annotations

import argparse
import fractions
import json
import random
import time
from collections.abc import Iterator

import math_verify

from rapo_jax.rewards.mathematics import math_equal_all

HOSTILE = (
  *("9^{9^{9^9}}", "10^{10^{10}}", "(" * 900, "1" * 1999),
  *("\\sum_{n=1}^{10^9} n^n", "100000!", "\\frac" * 300, "\\sqrt{" * 300),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--pairs", type=int, default=5000)
  known = parser.parse_args()
  math_equal_all([("1", "1")] * 8)
  cases = list(_cases(random.Random(0), known.pairs))
  found = math_equal_all([(answer, truth) for answer, truth, *_ in cases])
  disagreements = wrong = 0
  for equal, (answer, truth, means, unit) in zip(found, cases, strict=True):
    wrong += equal != means
    reference = means if unit else _reference(answer, truth)
    disagreements += equal != reference
  many = [(a, t) for a, t, *_ in _cases(random.Random(1), 10_000)]
  started = time.perf_counter()
  math_equal_all(many)
  seconds = time.perf_counter() - started
  hostile = [(f"{text} + {n}", "1") for n in range(4) for text in HOSTILE]
  started = time.perf_counter()
  math_equal_all(hostile)
  print(
    json.dumps(
      {
        "pairs": len(cases),
        "disagreements": disagreements,
        "wrong": wrong,
        "seconds_for_10000": round(seconds, 2),
        "hostile_seconds": round(time.perf_counter() - started, 2),
      }
    )
  )


def _reference(answer: str, truth: str) -> bool:
  wanted, given = (
    math_verify.parse(f"\\boxed{{{text}}}") for text in (truth, answer)
  )
  return bool(math_verify.verify(wanted, given))


def _cases(
  rng: random.Random, count: int
) -> Iterator[tuple[str, str, bool, bool]]:
  """Altered answer, ground truth, whether they are equal, whether by a unit."""
  for _ in range(count):
    number = rng.randint(2, 9999)
    other = rng.randint(2, 99)
    value = fractions.Fraction(number, other)
    fraction = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    decimal = f"{number / 8:.3f}"
    yield rng.choice(
      [
        (f"-{number}", f"{number}", False, False),
        (f"-{fraction}", fraction, False, False),
        (f"{number}", f"-{number}", False, False),
        (f"{number / 10:.1f}", f"{number}", False, False),
        (decimal.replace(".", ""), decimal, False, False),
        (decimal, f"\\frac{{{number}}}{{8}}", True, False),
        (f"{value.numerator}/{value.denominator}", fraction, True, False),
        (fraction.replace("frac", "dfrac"), fraction, True, False),
        (
          f"\\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}",
          fraction,
          True,
          False,
        ),
        (
          f"\\frac{{{value.denominator}}}{{{value.numerator}}}",
          fraction,
          value.denominator == value.numerator,
          False,
        ),
        (f"{number:,}", f"{number}", True, False),
        (f"{number}.0", f"{number}", True, False),
        (f"{number}x + {other}", f"{other} + {number} x", True, False),
        (
          f"({number}, {other})",
          f"({other}, {number})",
          number == other,
          False,
        ),
        (f"\\sqrt{{{number * 4}}}", f"2\\sqrt{{{number}}}", True, False),
        (f"{number}\\text{{ cm}}", f"{number}", True, True),
        (f"{number} apples", f"{number}", True, True),
        (f"{number + 1} dollars", f"{number}", False, True),
      ]
    )


if __name__ == "__main__":
  main()
