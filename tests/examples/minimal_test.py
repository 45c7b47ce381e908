"""The program that shows all of RAPO on one page."""

import pathlib
import statistics

from examples import minimal


def test_the_agent_learns_in_a_few_updates():
  history = minimal.main(4)
  assert len(history) == 4
  # One update's questions are few: the later ones together, not the last.
  assert statistics.mean(history[1:]) > history[0]


def test_it_stays_short():
  lines = pathlib.Path(minimal.__file__).read_text(encoding="utf-8")
  assert len(lines.splitlines()) <= 150
