"""What a long run leaves behind, and how soon a killed one goes on.

  python -m benchmarks.long_run

Trains the multi-hop family of the miniature world with RAPO for 500 small
updates, evaluations, checkpoints, tools and retrieval among them. After each
update the resident memory, threads, open files and child processes of the run
are read from /proc. Reports their medians over updates 51 to 100 and over the
last 50. Target: memory within 2 %, no more of the others.

Then the finished run is asked for more updates, killed by SIGKILL and started
again, several times. Reports the seconds from the start of the process to its
next update, with JAX's compilation cache warm. Target: at most 20 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.peers import ROOT
from experiments.metrics import read_metrics
from rapo_jax.training import Checkpoints

RUN = pathlib.Path("train") / "multihop" / "rapo-seed0"
SETTINGS = (
  "--config.train.methods=rapo,",
  "--config.train.seeds=0,",
  "--config.train.eval_every=50",
  "--config.train.checkpoint_every=10",
  "--config.rollout.num_generations=4",
  "--config.rollout.num_hybrid=2",
  "--config.rollout.num_slots=16",
  "--config.update.queries_per_update=4",
  "--config.update.queries_per_minibatch=4",
  "--config.evaluation.curve_samples=1",
)
_MB = 1024
_POLL_S = 0.05


def start(
  folder: pathlib.Path, updates: int, *arguments: str
) -> subprocess.Popen[bytes]:
  """Starts the experiment in a work folder, to so many updates."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.run", "--config", "quickstart"),
      *("--workdir", str(folder), f"--config.train.num_updates={updates}"),
      *SETTINGS,
      *arguments,
    ],
    cwd=ROOT,
    stdout=sys.stderr,
  )


def updates_done(folder: pathlib.Path) -> int:
  """Updates in the metrics of the run."""
  rows = read_metrics(folder / RUN)
  return int(rows[-1]["update"]) if rows else 0


def usage(pid: int) -> dict[str, int]:
  """What a process holds now."""
  process = pathlib.Path("/proc") / str(pid)
  status = dict(
    line.split(":", 1)
    for line in (process / "status").read_text(encoding="utf-8").splitlines()
  )
  children = ""
  for task in (process / "task").iterdir():
    # A thread may end meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      children += (task / "children").read_text(encoding="utf-8") + " "
  return {
    "resident_mb": int(status["VmRSS"].split()[0]) // _MB,
    "threads": int(status["Threads"]),
    "files": len(list((process / "fd").iterdir())),
    "processes": len(children.split()),
  }


def watch(
  process: subprocess.Popen[bytes], folder: pathlib.Path
) -> dict[int, dict[str, int]]:
  """What a run holds after each of its updates, until it ends."""
  seen: dict[int, dict[str, int]] = {}
  while process.poll() is None:
    done = updates_done(folder)
    if done and done not in seen:
      seen[done] = usage(process.pid)
    time.sleep(_POLL_S)
  if process.returncode:
    sys.exit(f"the run ended with status {process.returncode}")
  return seen


def median_of(
  seen: dict[int, dict[str, int]], first: int, last: int
) -> dict[str, float]:
  """Medians over updates, by name."""
  chosen = [held for done, held in seen.items() if first <= done <= last]
  return {
    name: statistics.median(held[name] for held in chosen) for name in chosen[0]
  }


def seconds_to_go_on(folder: pathlib.Path, updates: int) -> float:
  """Starts a run, and kills it later; seconds to its first update."""
  saved = Checkpoints.numbers(folder / RUN / "checkpoints")[-1]
  began = time.perf_counter()
  process = start(folder, updates, "--stage=train")
  # What was done after the checkpoint is dropped first.
  dropped = False
  while not dropped or updates_done(folder) <= saved:
    dropped = dropped or updates_done(folder) <= saved
    if process.poll() is not None:
      sys.exit(f"the run ended with status {process.returncode}")
    time.sleep(_POLL_S)
  seconds = time.perf_counter() - began
  # Behind the next checkpoint, so that each start has an update of its own.
  while updates_done(folder) <= saved + 12:
    time.sleep(_POLL_S)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--updates", type=int, default=500)
  parser.add_argument("--starts", type=int, default=6)
  known = parser.parse_args()
  if known.starts < 2:
    parser.error(
      f"--starts must be at least 2, got {known.starts}: the first "
      "compiles and is not counted"
    )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "run"
    for stage in ("agents", "buffer"):
      if start(folder, known.updates, f"--stage={stage}").wait():
        sys.exit(f"the stage {stage} failed")
    process = start(folder, known.updates, "--stage=train")
    seen = watch(process, folder)
    early = median_of(seen, known.updates // 10 + 1, known.updates // 5)
    late = median_of(
      seen, known.updates - known.updates // 10 + 1, known.updates
    )
    more = 100 * known.updates
    # The first start compiles what the cache has not.
    starts = [seconds_to_go_on(folder, more) for _ in range(known.starts)][1:]
  report: dict[str, Any] = {
    "benchmark": "long_run",
    "updates": known.updates,
    "early": early,
    "late": late,
    "memory_ratio": round(late["resident_mb"] / early["resident_mb"], 4),
    "start_to_update_s": round(statistics.median(starts), 1),
    "start_to_update_s_range": [round(f(starts), 1) for f in (min, max)],
    "targets": {"memory_ratio": 1.02, "start_to_update_s": 20},
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
