"""The objective inside Levanter, in an environment that has it."""

import pathlib
import statistics

import pytest

from benchmarks import peers
from tests import peer_programs

EXAMPLE = peers.ROOT / "examples" / "levanter_rapo.py"
PROGRAM = pathlib.Path(__file__).with_name("levanter_program.py")


@pytest.mark.slow
def test_levanter_trains_with_our_objective():
  printed = peer_programs.run("levanter", "-m", "examples.levanter_rapo")
  history = [float(reward) for reward in printed.splitlines()[-1].split()]
  assert len(history) == 60
  first, last = map(statistics.mean, (history[:10], history[-10:]))
  assert last > first + 0.3, history


@pytest.mark.slow
def test_its_log_probs_are_those_of_the_logits():
  peer_programs.run("levanter", str(PROGRAM))


def test_four_lines_are_not_levanters_own():
  code = EXAMPLE.read_text(encoding="utf-8").split('"""', 2)[2]
  assert sum("objectives" in line for line in code.splitlines()) <= 5
