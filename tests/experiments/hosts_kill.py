"""Kills one of two hosts again and again, and compares with a run left alone.

    python -m tests.experiments.hosts_kill --kills 30

Two processes over loopback, of two fake devices each, train RAPO on a small
task. At a random moment, while they start, compile, train or save, one of them
is killed by SIGKILL. The other has to end by itself, and both are started
again. All kills fall into one run, which is long enough to see them all. After
the last one it runs to the end. Parameters, metrics apart from times, and
logged trajectories must be those of a run that was left alone, bit for bit. A
control, a run with another seed, must differ. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from tests import fake_devices
from tests.experiments import hosts_test
from tests.experiments.kill_test import metrics
from tests.experiments.run_test import read_rows

_ENDS_S = 120.0
# After the first update of a start: some updates and their checkpoints.
_WITHIN_S = 4.0
_WHOLE_S = 3600.0
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


class Killer:
  """Starts two hosts on one run again and again, and kills one each time.

  One kill in three falls while the hosts start and compile. The others fall
  within the next few updates, so that the run gets on.

  Args:
    config_file: of the experiment.
    folder: its work folder.
    arguments: of all hosts.
    rng: draws moments and hosts.
  """

  def __init__(
    self,
    config_file: pathlib.Path,
    folder: pathlib.Path,
    arguments: Sequence[str],
    rng: random.Random,
  ):
    self._start = functools.partial(
      hosts_test.Hosts, config_file, folder, *arguments
    )
    self._rows = folder / hosts_test.RUN / "metrics.jsonl"
    self._rng = rng
    self._begins_s = 10.0

  @property
  def updates(self) -> int:
    """Updates in the metrics of the run."""
    rows = read_rows(self._rows) if self._rows.exists() else []
    return int(rows[-1]["update"]) if rows else 0

  def kill_once(self) -> str:
    """Kills one host; says which, and after which update."""
    pair = self._start()
    began, before = time.monotonic(), self.updates
    try:
      if self._rng.random() < 1 / 3:
        time.sleep(self._rng.uniform(0, self._begins_s))
      else:
        # What is behind the newest checkpoint is dropped, and done again.
        while self.updates <= before:
          if time.monotonic() - began > hosts_test.TIMEOUT_S:
            sys.exit(pair.output(0))
          time.sleep(0.02)
        self._begins_s = time.monotonic() - began
        time.sleep(self._rng.uniform(0, _WITHIN_S))
      victim = self._rng.randrange(2)
      if pair.processes[victim].poll() is not None:
        sys.exit(f"the run ended before its time:\n{pair.output(0)}")
      pair.processes[victim].send_signal(signal.SIGKILL)
      pair.processes[1 - victim].wait(timeout=_ENDS_S)
    finally:
      pair.kill()
    return f"host {victim} after update {self.updates}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--updates", type=int, default=60)
  parser.add_argument("--seed", type=int, default=0)
  known = parser.parse_args()
  # As in the tests: what is compiled runs for milliseconds.
  os.environ.setdefault("XLA_FLAGS", fake_devices.QUICK_TO_COMPILE)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  hosts_test.TIMEOUT_S = _WHOLE_S
  length = [
    f"--config.train.{name}={known.updates}"
    for name in ("num_updates", "eval_every")
  ]
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    config_file = hosts_test.write_config(root, "whole_config")
    whole, killed = root / "whole" / "w", root / "killed" / "w"
    whole.parent.mkdir()
    killed.parent.mkdir()
    # The second seed is the control.
    pair = hosts_test.Hosts(config_file, whole, *length, _SEEDS)
    if pair.wait() != [0, 0]:
      sys.exit(pair.output(0))
    hosts_test.copied(whole, killed)
    again = [*length, "--stage=train"]
    killer = Killer(config_file, killed, again, random.Random(known.seed))
    moments: list[str] = []
    while len(moments) < known.kills:
      moments.append(killer.kill_once())
      sys.stderr.write(f"{len(moments)}: {moments[-1]}\n")
    pair = hosts_test.Hosts(config_file, killed, *again)
    if pair.wait() != [0, 0]:
      sys.exit(pair.output(0))
    report = {
      "program": "hosts_kill",
      "kills": len(moments),
      "updates": known.updates,
      "moments": moments,
      "same": same(killed / hosts_test.RUN, whole / hosts_test.RUN),
      "control": same(whole / _OTHER, whole / hosts_test.RUN),
    }
  sys.stdout.write(f"{json.dumps(report)}\n")


if __name__ == "__main__":
  main()
