"""Kills one of two hosts again and again, and compares with a run left alone.

    python -m tests.experiments.hosts_kill --kills 30

Two processes over loopback, of two fake devices each, train RAPO on a small
task. At a random moment, while they start, compile, train or save, one of them
is killed by SIGKILL. The other has to end by itself, and both are started
again. After the last kill they run to the end. Parameters, metrics apart from
times, and logged trajectories must be those of a run that was left alone, bit
for bit. A control, a run with another seed, must differ. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import numpy as np

from tests import fake_devices
from tests.experiments import hosts_test
from tests.experiments.kill_test import metrics
from tests.experiments.run_test import read_rows

_ENDS_S = 120.0
_SEEDS = "--config.train.seeds=0,1"
_OTHER = hosts_test.RUN.with_name("rapo-seed1")


def same(found: pathlib.Path, expected: pathlib.Path) -> dict[str, bool]:
  """What two runs have in common, bit for bit."""
  one, two = (hosts_test.parameters(f) for f in (found, expected))
  return {
    "parameters": one.keys() == two.keys()
    and all(np.array_equal(value, two[name]) for name, value in one.items()),
    "metrics": metrics(found) == metrics(expected),
    "trajectories": hosts_test.described(found)
    == hosts_test.described(expected),
  }


def kill_once(
  config_file: pathlib.Path,
  folder: pathlib.Path,
  rng: random.Random,
  longest_s: float,
) -> str:
  """Starts both hosts and kills one; says at which moment that was."""
  pair = hosts_test.Hosts(config_file, folder, "--stage=train")
  try:
    time.sleep(rng.uniform(0, longest_s))
    victim = rng.randrange(2)
    if pair.processes[victim].poll() is not None:
      return "ended"
    pair.processes[victim].send_signal(signal.SIGKILL)
    pair.processes[1 - victim].wait(timeout=_ENDS_S)
  finally:
    pair.kill()
  rows = folder / hosts_test.RUN / "metrics.jsonl"
  done = read_rows(rows)[-1]["update"] if rows.exists() else "none"
  return f"host {victim} after update {done}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  known = parser.parse_args()
  # As in the tests: what is compiled runs for milliseconds.
  os.environ.setdefault("XLA_FLAGS", fake_devices.QUICK_TO_COMPILE)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  rng = random.Random(known.seed)
  moments: list[str] = []
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    config_file = hosts_test.write_config(root, "whole_config")
    whole, killed = root / "whole" / "w", root / "killed" / "w"
    whole.parent.mkdir()
    killed.parent.mkdir()
    began = time.monotonic()
    # The second seed is the control.
    pair = hosts_test.Hosts(config_file, whole, _SEEDS)
    if pair.wait() != [0, 0]:
      sys.exit(pair.output(0))
    # Two trained runs, and what comes before them: a kill falls anywhere in the
    # training of one.
    longest_s = (time.monotonic() - began) / 3
    hosts_test.copied(whole, killed)
    while len(moments) < known.kills:
      moment = kill_once(config_file, killed, rng, longest_s)
      sys.stderr.write(f"{len(moments) + 1}: {moment}\n")
      if moment == "ended":
        # It was done before its time: the rest falls into a new run.
        shutil.rmtree(killed)
        hosts_test.copied(whole, killed)
        continue
      moments.append(moment)
    pair = hosts_test.Hosts(config_file, killed, "--stage=train")
    if pair.wait() != [0, 0]:
      sys.exit(pair.output(0))
    report = {
      "program": "hosts_kill",
      "kills": len(moments),
      "same": same(killed / hosts_test.RUN, whole / hosts_test.RUN),
      "control": same(whole / _OTHER, whole / hosts_test.RUN),
    }
  sys.stdout.write(f"{json.dumps(report)}\n")


if __name__ == "__main__":
  main()
