"""A newcomer's path: a clone, the quickstart, then an experiment of their own.

  python -m benchmarks.newcomer

Clones the committed project into an empty folder, runs `make quickstart` there
with nothing installed, and then trains on questions that are new to the
project, with a tool and a reward of its own (`newcomer_files`). Reports
minutes of each part, lines written, and files of the package edited. Reading
and typing take no time here. Target: at most 15 minutes, 40 lines, 0 files.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks.peers import ROOT
from experiments.metrics import read_metrics

FILES = pathlib.Path(__file__).parent / "newcomer_files"
QUESTIONS = 48
METRES = {"cm": 1, "m": 100, "km": 100_000}


def write_questions(path: pathlib.Path) -> None:
  """The newcomer's data: lengths in another unit, as JSON lines."""
  draw = random.Random(0)
  with path.open("w", encoding="utf-8") as file:
    for _ in range(QUESTIONS):
      small, large = draw.choice([("cm", "m"), ("m", "km"), ("cm", "km")])
      number = draw.randint(2, 99)
      row = {
        "question": f"How many {small} are {number} {large}?",
        "answer": str(number * METRES[large] // METRES[small]),
      }
      file.write(json.dumps(row) + "\n")


def minutes_of(command: list[str], folder: pathlib.Path) -> float:
  """Minutes that a command takes in a folder."""
  # As a newcomer has it: no environment of this process, no cache of ours.
  kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
  began = time.perf_counter()
  if subprocess.run(
    command, cwd=folder, stdout=sys.stderr, env=kept
  ).returncode:
    sys.exit(f"failed: {' '.join(command)}")
  return (time.perf_counter() - began) / 60


def edited_files(clone: pathlib.Path) -> int:
  """Files of the project that are not as they were cloned."""
  found = subprocess.run(
    ["git", "status", "--porcelain", "--untracked-files=no"],
    cwd=clone,
    check=True,
    capture_output=True,
    text=True,
    encoding="utf-8",
  )
  return len(found.stdout.splitlines())


def main() -> None:
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  with tempfile.TemporaryDirectory() as name:
    clone = pathlib.Path(name) / "rapo_jax"
    minutes = {
      "clone": minutes_of(
        ["git", "clone", "--quiet", str(ROOT), str(clone)], pathlib.Path(name)
      ),
      "install": minutes_of(["make", "install"], clone),
      "quickstart": minutes_of(["make", "quickstart"], clone),
    }
    own = clone / "mine"
    own.mkdir()
    written = shutil.copy(FILES / "experiment.py", own)
    write_questions(own / "lengths.jsonl")
    run = [".venv/bin/rapo", "run", "--config", "mine/experiment.py"]
    run += ["--workdir", "runs/mine"]
    minutes["dry_run"] = minutes_of([*run, "--dry_run"], clone)
    minutes["own_run"] = minutes_of(run, clone)
    rows = read_metrics(clone / "runs/mine/train/lengths/grpo-seed0")
    text = pathlib.Path(written).read_text(encoding="utf-8")
    report = {
      "benchmark": "newcomer",
      "minutes": round(sum(minutes.values()), 1),
      "minutes_of": {part: round(took, 2) for part, took in minutes.items()},
      "lines": sum(bool(line.strip()) for line in text.splitlines()),
      "files_edited": edited_files(clone),
      "updates": int(rows[-1]["update"]),
      "generated_tokens": int(rows[-1]["generated_tokens"]),
      "targets": {"minutes": 15, "lines": 40, "files_edited": 0},
    }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
