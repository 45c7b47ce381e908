"""The comparison with the authors' numbers, where they are there."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT.parent / "shared" / "golden" / "baselines"


def _compared(folder: pathlib.Path) -> tuple[int, dict[str, str]]:
  # A process of its own: numbers are of 64 bits there.
  done = subprocess.run(
    [sys.executable, "-m", "tests.algorithms.golden", str(folder)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    encoding="utf-8",
    check=False,
  )
  assert done.returncode in (0, 1), done.stderr
  return done.returncode, dict(
    line.split(": ") for line in done.stdout.splitlines()
  )


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the numbers are not there")
def test_every_case_that_is_here_agrees():
  code, lines = _compared(FOLDER)
  assert code == 0, lines
  agree = [name for name, said in lines.items() if said.startswith("agrees")]
  assert len(agree) >= 36
  assert lines["adv_grpo"] == "agrees, but for a group of one"


def _write(folder: pathlib.Path, loss: list[list[float]]) -> None:
  """A loss of two tokens by hand: ratios 2 and 1/2, advantages 1 and -1."""
  about = {
    "name": "ppo",
    "file": "ppo.npz",
    "algorithm": "GRPO",
    "kind": "loss",
    "function": "compute_policy_loss",
    "arguments": {"cliprange": 0.2, "loss_agg_mode": "token-mean"},
    "computed_in": "float64",
  }
  (folder / "cases.json").write_text(
    json.dumps({"cases": [about]}), encoding="utf-8"
  )
  np.savez(
    folder / "ppo.npz",
    in_log_probs=np.log([[1.0, 0.25, 9.0]]),
    in_old_log_probs=np.log([[0.5, 0.5, 1.0]]),
    in_advantages=np.asarray([[1.0, -1.0, 7.0]]),
    in_mask=np.asarray([[1.0, 1.0, 0.0]]),
    out_token_loss=np.asarray(loss),
    # Both are clipped, so that nothing is learned.
    out_grad_log_probs=np.zeros((1, 3)),
    out_loss=np.asarray((-1.2 + 0.8) / 2),
  )


def test_a_case_by_hand_agrees_and_a_wrong_one_does_not(tmp_path):
  _write(tmp_path, [[-1.2, 0.8, 0.0]])
  assert _compared(tmp_path) == (0, {"ppo": "agrees"})
  _write(tmp_path, [[-1.2, 0.9, 0.0]])
  assert _compared(tmp_path) == (1, {"ppo": "DIFFERS in out_token_loss"})
