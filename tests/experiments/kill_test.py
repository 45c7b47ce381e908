"""Every method, killed by SIGKILL within an update, ends as if it were not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from experiments import run
from experiments.config import ExperimentConfig
from experiments.workdir import read_json
from rapo_jax.algorithms import ALGORITHMS
from tests.experiments.run_test import read_rows, run_whole, small_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
UPDATES = 3
# RAPO's ablations carry nothing that RAPO does not.
METHODS = [name for name in ALGORITHMS if not name.startswith("rapo_")]
CONFIG_FILE = '''
"""A small experiment for tests."""
from tests.experiments.kill_test import kill_config as get_config
'''
# One before the first update, two of update 1, one of update 2.
DYING = """
import itertools, os, signal, sys
from experiments import run
from rapo_jax.training import trainer

calls, update_minibatch = itertools.count(), trainer.update_minibatch

def dying(*args, **kwargs):
  if next(calls) == 4:
    os.kill(os.getpid(), signal.SIGKILL)
  return update_minibatch(*args, **kwargs)

trainer.update_minibatch = dying
run.main(sys.argv[1:])
"""
# What depends on the clock, and what a process compiles.
TIMES = ("second", "idle", "compile/", "occupancy", "rollout/padding_fraction")

pytestmark = pytest.mark.slow


def kill_config() -> ExperimentConfig:
  config = small_config()
  return dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train,
      methods=tuple(METHODS),
      num_updates=UPDATES,
      eval_every=UPDATES,
      checkpoint_every=1,
    ),
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A config file, and the folder of an experiment that ran in one go."""
  return run_whole(tmp_path_factory.mktemp("kill") / "whole", CONFIG_FILE)


def metrics(folder):
  """Rows of a run without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if not any(word in k for word in TIMES)}
    for row in read_rows(folder / "metrics.jsonl")
  ]


def trajectories(folder):
  """Those that a run has logged, without what depends on the clock."""
  rows = read_rows(folder / "trajectories.jsonl")
  for row in rows:
    for event in row["events"]:
      event.pop("seconds", None)
  return rows


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_one_that_was_not(method, whole, tmp_path):
  config_file, there = whole
  for name in ("agents", "buffer"):
    shutil.copytree(there / name, tmp_path / name)
  command = [
    *("--config", str(config_file), "--workdir", str(tmp_path)),
    *("--stage=train", f"--config.train.methods={method},"),
  ]
  ended = subprocess.run(
    [sys.executable, "-c", DYING, *command],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    check=False,
    capture_output=True,
    encoding="utf-8",
  )
  assert ended.returncode == -signal.SIGKILL, ended.stderr
  name = pathlib.Path("train") / "compute" / f"{method}-seed0"
  killed, expected = tmp_path / name, there / name
  assert not (killed / "done.json").exists()
  rows = read_rows(killed / "metrics.jsonl")
  assert [row["update"] for row in rows] == [0, 1]
  assert run.main(command) == 0
  policy = pathlib.Path("policy") / "model.safetensors"
  assert (killed / policy).read_bytes() == (expected / policy).read_bytes()
  # A control: what never moves cannot differ.
  base = there / "agents" / "compute" / "base" / policy.name
  assert base.read_bytes() != (expected / policy).read_bytes()
  assert metrics(killed) == metrics(expected)
  assert trajectories(killed) == trajectories(expected)
  assert {row["update"] for row in trajectories(killed)} == {1, 2, 3}


def test_all_methods_stand_in_one_report(whole):
  _, folder = whole
  results = read_json(folder / "results.json")
  # The agents that they begin with stand there too.
  assert sorted(results["methods"]) == sorted([*METHODS, "base", "off_policy"])
  assert results["unfinished_runs"] == []
  assert sorted(results["board"]["compute"]) == sorted(METHODS)
  page = (folder / "report.html").read_text(encoding="utf-8")
  for method in METHODS:
    assert ALGORITHMS[method].label in page
