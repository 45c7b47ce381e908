"""The objective in a plain loop of flax.linen and optax."""

import pathlib
import statistics

from examples import linen_rapo


def test_the_policy_learns_to_count_on():
  history = linen_rapo.main(60)
  assert len(history) == 60
  first, last = map(statistics.mean, (history[:10], history[-10:]))
  assert last > first + 0.3, history


def test_seven_lines_are_not_of_the_loop_itself():
  text = pathlib.Path(linen_rapo.__file__).read_text(encoding="utf-8")
  code = text.split('"""', 2)[2]
  assert sum("objectives" in line for line in code.splitlines()) <= 7
