"""A run whose work folder lies on an object store, killed and moved."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments import object_store, pull, run
from experiments.config import ExperimentConfig
from tests.experiments import kill_test, stores

FAST = "from experiments import mirror\nmirror.EVERY_S = 0.2\n"
CONFIG_FILE = '''
"""A small experiment for tests."""
from tests.experiments.mirror_run_test import config as get_config
'''

pytestmark = pytest.mark.slow


def config() -> ExperimentConfig:
  made = kill_test.kill_config()
  train = dataclasses.replace(made.train, methods=("rapo",))
  return dataclasses.replace(made, train=train)


@pytest.mark.parametrize("scheme", sorted(stores.SERVERS))
def test_a_killed_run_goes_on_on_another_machine(scheme, tmp_path, monkeypatch):
  config_file, there = kill_test.run_whole(tmp_path / "whole", CONFIG_FILE)
  with stores.SERVERS[scheme]() as server, stores.variables(server):
    url = f"{scheme}://{stores.BUCKET}/killed"
    command = ["--config", str(config_file), "--workdir", url]
    monkeypatch.setenv(object_store.FOLDER_VARIABLE, str(tmp_path / "first"))
    ended = subprocess.run(
      [sys.executable, "-c", FAST + kill_test.DYING, *command],
      cwd=kill_test.ROOT,
      env={**os.environ, "PYTHONPATH": str(kill_test.ROOT)},
      check=False,
      capture_output=True,
      encoding="utf-8",
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    monkeypatch.setenv(object_store.FOLDER_VARIABLE, str(tmp_path / "second"))
    monkeypatch.setattr("experiments.mirror.CLAIM_S", 1.0)
    assert run.main(command) == 0
    assert pull.main([url, "--output", str(tmp_path / "pulled")]) == 0
  name = pathlib.Path("train") / "compute" / "rapo-seed0"
  killed, expected = tmp_path / "pulled" / name, there / name
  policy = pathlib.Path("policy") / "model.safetensors"
  assert (killed / policy).read_bytes() == (expected / policy).read_bytes()
  assert kill_test.metrics(killed) == kill_test.metrics(expected)
  assert kill_test.trajectories(killed) == kill_test.trajectories(expected)
  starts = (tmp_path / "pulled" / "starts.jsonl").read_text(encoding="utf-8")
  assert len(starts.splitlines()) == 2
