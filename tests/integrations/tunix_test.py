"""The objective inside google-tunix, in an environment that has it."""

import pathlib

import pytest

from benchmarks import peers
from tests import peer_programs

PROGRAM = pathlib.Path(__file__).with_name("tunix_program.py")


@pytest.mark.slow
def test_tunix_trains_with_our_objective():
  peer_programs.run("tunix", str(PROGRAM))


def test_five_lines_are_not_tunixs_own():
  text = (peers.ROOT / "examples" / "tunix_rapo.py").read_text(encoding="utf-8")
  code = text.split('"""', 2)[2]
  assert sum("rapo" in line for line in code.splitlines()) <= 5
