"""Whether two checkouts train the same parameters, bit for bit.

  git worktree add ../before <revision>
  python -m benchmarks.same_parameters --before ../before

A change of structure must change no number. Runs the first updates of the
quickstart with the code of another checkout and then with this one: warm start,
buffer, rollouts with retrieval, objective and optimizer. Both run in the
environment of this process, from the same seeds. Prints one JSON line: for each
agent and each method whether all of its parameters are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.peers import ROOT

METHODS = ("grpo", "hybrid", "rapo")
WEIGHTS = "model.safetensors"


def digests(
  checkout: pathlib.Path, folder: pathlib.Path, updates: int
) -> dict[str, str]:
  """SHA-256 of the weights that a checkout trains, by agent or run.

  Args:
    checkout: whose code runs.
    folder: empty; becomes the run's work folder.
    updates: of each method.
  """
  config = checkout / "experiments" / "configs" / "quickstart.py"
  subprocess.run(
    [
      *(sys.executable, "-m", "experiments.run"),
      *("--config", config, "--workdir", folder),
      f"--config.train.num_updates={updates}",
      "--config.train.seeds=0",
      f"--config.train.methods={','.join(METHODS)}",
    ],
    cwd=checkout,
    env={**os.environ, "PYTHONPATH": str(checkout)},
    check=True,
    stdout=sys.stderr,
  )
  return {
    path.relative_to(folder).parent.as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(folder.glob(f"*/*/**/{WEIGHTS}"))
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--before", type=pathlib.Path, required=True)
  parser.add_argument("--updates", type=int, default=3)
  known = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    before, after = (
      digests(checkout.resolve(), pathlib.Path(name) / label, known.updates)
      for label, checkout in (("before", known.before), ("after", ROOT))
    )
  names = sorted({*before, *after})
  print(
    json.dumps(
      {
        "benchmark": "same_parameters",
        "updates": known.updates,
        "same": bool(names) and before == after,
        "equal": {n: before.get(n) == after.get(n) for n in names},
      }
    )
  )


if __name__ == "__main__":
  main()
