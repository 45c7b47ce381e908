"""What share of an update hosts wait for each other: 1, 2 and 4 processes.

  python -m benchmarks.host_idle

Trains the multi-hop family of the miniature world with RAPO, for a few updates,
in one process and in two and four over loopback, each with one fake CPU
device. Reports medians over updates of the share of an update in which a host
runs its loop between device programs (target: at most 5 %), and of the share in
which it waits for others: in a rollout until they have said what comes next,
beside it until host 0 has scored and packed. All processes share the cores of
this machine, so seconds say nothing here.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.peers import ROOT
from experiments.hosts import free_port
from experiments.metrics import read_metrics

RUN = pathlib.Path("train") / "multihop" / "rapo-seed0"
SETTINGS = (
  *("--config.train.methods=rapo,", "--config.train.seeds=0,"),
  *("--config.train.eval_every=1000", "--config.train.checkpoint_every=1000"),
  "--config.train.log_trajectories_every=1000",
)


def run(folder: pathlib.Path, updates: int, hosts: int, stage: str) -> None:
  """Runs a stage of the experiment on so many hosts."""
  command = [sys.executable, "-m", "experiments.run", "--config", "quickstart"]
  command += ["--workdir", str(folder), f"--stage={stage}", *SETTINGS]
  command += [f"--config.train.num_updates={updates}"]
  places: list[list[str]] = [[]]
  if hosts > 1:
    port = free_port()
    together = [f"--coordinator=localhost:{port}", f"--num_processes={hosts}"]
    places = [[*together, f"--process_id={index}"] for index in range(hosts)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [*command, *place], cwd=ROOT, env=environment, stdout=sys.stderr
    )
    for place in places
  ]
  statuses = [process.wait() for process in processes]
  if any(statuses):
    sys.exit(f"{hosts} hosts failed in the stage {stage}")


def shares(folder: pathlib.Path) -> dict[str, float]:
  """Medians over the updates of a run."""
  rows = [row for row in read_metrics(folder / RUN) if row["update"] > 0]
  found = {
    "host loop": [
      row["rollout/host_seconds"] / row["step/seconds"] for row in rows
    ],
    "waits": [row.get("hosts/idle_fraction_mean", 0.0) for row in rows],
  }
  return {k: round(statistics.median(v), 4) for k, v in found.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--updates", type=int, default=8)
  parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4])
  known = parser.parse_args()
  found: dict[int, Any] = {}
  with tempfile.TemporaryDirectory() as name:
    begun = pathlib.Path(name) / "begun"
    for stage in ("agents", "buffer"):
      run(begun, known.updates, 1, stage)
    for hosts in known.hosts:
      folder = pathlib.Path(name) / str(hosts)
      shutil.copytree(begun, folder)
      run(folder, known.updates, hosts, "train")
      found[hosts] = shares(folder)
  print(
    json.dumps(
      {
        "benchmark": "host_idle",
        "unit": "share of an update",
        "updates": known.updates,
        "by_hosts": found,
        "target": 0.05,
      }
    )
  )


if __name__ == "__main__":
  main()
