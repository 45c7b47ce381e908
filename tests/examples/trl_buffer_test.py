"""TRL with steps of a served buffer, in an environment that has it."""

import statistics

import httpx2
import pytest

from tests import peer_programs


@pytest.mark.slow
def test_trl_trains_with_retrieved_steps(counting_url):
  printed = peer_programs.run(
    "trl", "-m", "examples.trl_buffer", f"--url={counting_url}"
  )
  history = [float(reward) for reward in printed.splitlines()[-1].split()]
  assert len(history) == 30
  first, last = map(statistics.mean, (history[:10], history[-10:]))
  assert last > first + 0.1, history
  metrics = httpx2.get(f"{counting_url}/metrics").json()
  assert metrics["queries"] > 500, metrics


@pytest.mark.slow
def test_retrieved_tokens_are_masked(counting_url):
  peer_programs.run("trl", "tests/examples/trl_program.py", counting_url)
