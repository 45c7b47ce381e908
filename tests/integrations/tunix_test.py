"""The objective inside google-tunix, in an environment that has it."""

import pathlib
import subprocess

import pytest

from benchmarks import peers

PROGRAM = pathlib.Path(__file__).with_name("tunix_program.py")


@pytest.mark.slow
def test_tunix_trains_with_our_objective():
  try:
    python = peers.environment("tunix")
  except subprocess.CalledProcessError as error:
    pytest.skip(f"google-tunix cannot be installed: {error}")
  done = subprocess.run(
    [str(python), str(PROGRAM)],
    env={"PYTHONPATH": str(peers.ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    encoding="utf-8",
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_five_lines_are_not_tunixs_own():
  text = (peers.ROOT / "examples" / "tunix_rapo.py").read_text(encoding="utf-8")
  code = text.split('"""', 2)[2]
  assert sum("rapo" in line for line in code.splitlines()) <= 5
