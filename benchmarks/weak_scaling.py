"""What a device computes, moves and sends as devices and work grow together.

  python -m benchmarks.weak_scaling

Plans the miniature's experiment for 1, 2, 4 and 8 fake CPU devices, with as
many more questions, slots and rows: the real programs, compiled, and what the
planner reads off them (`experiments.plan`). Reports for each program FLOP,
bytes moved and bytes sent of one device in one round, and the ratio of the
largest to the least over the numbers of devices. Target: FLOP and bytes moved
flat within 3 %. Bytes sent stand beside them: most grow as (n - 1) / n.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.peers import ROOT
from rapo_jax.errors import InputError

DEVICES = (1, 2, 4, 8)
FIGURES = {
  "flops": "FLOP",
  "memory_bytes": "bytes moved",
  "network_bytes": "bytes sent",
}
# Of one device; all of them divide by 8.
A_DEVICE = {
  "rollout.num_slots": 32,
  "rollout.prefill_rows": 8,
  "update.queries_per_update": 4,
  "update.queries_per_minibatch": 4,
  "update.rows_per_microbatch": 8,
}


def plan(devices: int, axis: str, config: str) -> dict[str, Any]:
  """The plan for so many devices, each with the same share of the work."""
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "plan.json"
    command = [sys.executable, "-m", "experiments.plan", "--config", config]
    command += ["--topology", f"h100:{devices}", "--json", str(path)]
    command += [f"--config.mesh.{axis}={devices}"]
    if axis != "fsdp":
      command += ["--config.mesh.fsdp=1"]
    command += [f"--config.{n}={k * devices}" for n, k in A_DEVICE.items()]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode > 1:
      raise InputError(f"{' '.join(command)} failed: look at what it printed.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
  return content


def figures(plans: dict[int, dict[str, Any]]) -> dict[str, Any]:
  """By program and figure: of each number of devices, and how they spread."""
  found: dict[str, Any] = {}
  for number, one in plans.items():
    for program in one["programs"]:
      if not program["calls"]:
        continue
      row = found.setdefault(program["name"], {})
      for key, label in FIGURES.items():
        of_round = program[key] * program["calls"]
        row.setdefault(label, {})[number] = round(of_round)
  for row in found.values():
    for label in ("FLOP", "bytes moved"):
      values = [value for value in row[label].values() if value]
      if values:
        row[f"{label}, largest / least"] = round(max(values) / min(values), 3)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="testbed")
  parser.add_argument("--axis", default="fsdp", choices=("data", "fsdp"))
  known = parser.parse_args()
  plans = {n: plan(n, known.axis, known.config) for n in DEVICES}
  print(
    json.dumps(
      {
        "benchmark": "weak_scaling",
        "config": known.config,
        "axis": known.axis,
        "a_device": A_DEVICE,
        "programs": figures(plans),
        "targets": {"largest / least": 1.03},
      }
    )
  )


if __name__ == "__main__":
  main()
