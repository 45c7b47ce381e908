"""Whole studies, small: shared agents, joined buffers, resume, a failure."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments import diversity
from experiments import study as study_lib
from experiments.arms import Arm, Study
from experiments.flags import with_setting
from experiments.report.folders import arm_folder
from experiments.workdir import Workdir, hold_lock, read_json
from rapo_jax.retrieval.buffer.store import read_manifest
from tests.experiments import fake_workdir
from tests.experiments.run_test import small_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY_FILE = '''
"""A small study for tests."""
from tests.experiments.study_test import {name} as get_study
'''


def _arm(name, methods, label="", **settings):
  config = with_setting(small_config(), "train.methods", methods)
  config = with_setting(config, "train.num_updates", 2)
  for path, value in settings.items():
    config = with_setting(config, path.replace("__", "."), value)
  return Arm(name, config, label)


def small_study() -> Study:
  one = _arm("one", ("rapo",), "one", buffer__top_k_trajectories=1)
  joined = dataclasses.replace(
    _arm("joined", ("rapo",), "joined"), buffers_of=("one", "one")
  )
  return Study(
    "small",
    "Is a larger buffer better?",
    (_arm("plain", ("grpo",)), one, joined),
  )


def measured_study() -> Study:
  return dataclasses.replace(small_study(), diversity=True)


def failing_study() -> Study:
  # No trace has such a reward.
  broken = _arm("broken", ("rapo",), "broken", retrieval__min_reward=5.0)
  return Study("failing", "d", (broken, _arm("plain", ("grpo",))))


def _file(tmp_path, name):
  path = tmp_path / "study.py"
  path.write_text(STUDY_FILE.format(name=name), encoding="utf-8")
  return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Arguments and folder of a study that ran in one go."""
  folder = tmp_path_factory.mktemp("studies")
  arguments = ["--study", _file(folder, "small_study")]
  arguments += ["--workdir", str(folder / "whole")]
  assert study_lib.main([*arguments, "--processes=2"]) == 0
  return arguments, folder / "whole"


def test_arms_made_alike_share_their_agents(finished):
  _, folder = finished
  agents = {
    Workdir(arm_folder(folder, arm)).agent("compute", "base")
    for arm in ("plain", "one", "joined")
  }
  assert len(agents) == 1
  assert (agents.pop() / "model.safetensors").exists()
  # Arms of other buffers have folders of their own.
  buffers = {
    arm: Workdir(arm_folder(folder, arm)).buffer("compute")
    for arm in ("one", "joined")
  }
  counts = {arm: read_manifest(b).num_traces for arm, b in buffers.items()}
  assert counts["joined"] == 2 * counts["one"] > 0
  assert buffers["joined"].is_relative_to(arm_folder(folder, "joined"))


def test_the_report_shows_every_arm(finished):
  _, folder = finished
  results = read_json(folder / "results.json")
  assert results["study"]["name"] == "small"
  # The base agent is the same in all arms, and there once.
  assert results["methods"] == [
    "base",
    "off_policy",
    "grpo",
    "rapo_joined",
    "rapo_one",
  ]
  assert results["labels"]["rapo_one"] == "RAPO, one"
  assert results["colours"]["rapo_one"] != results["colours"]["rapo_joined"]
  assert "rapo_one - grpo" in results["differences"]
  row = results["board"]["compute"]["rapo_one"]
  # Two updates of four questions with four rollouts each.
  assert row["budget"]["leaves"] == 16
  assert 0 <= row["at_tokens"]["mean"] <= 1
  page = (folder / "report.html").read_text(encoding="utf-8")
  assert "RAPO, joined" in page
  assert "Is a larger buffer better?" in page
  assert "plain: 2, one: 1, joined: 2" in page
  assert "| RAPO, one |" in (folder / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_the_table_keeps_to_the_terminal(
  columns, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("COLUMNS", str(columns))
  root = tmp_path / "study"
  for arm in small_study().arms:
    methods = arm.config.train.methods
    fake_workdir.write(
      arm_folder(root, arm.name), tasks=("compute",), methods=methods
    )
  arguments = ["--study", _file(tmp_path, "small_study"), "--report"]
  assert study_lib.main([*arguments, "--workdir", str(root)]) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  assert last == f"report: {root / 'report.html'}"
  assert max(map(len, lines)) <= columns
  first = next(i for i, line in enumerate(lines) if line.startswith("method"))
  table = lines[first : first + 4]
  # Numbers end where their header does.
  for name in ("seeds", "equal leaves"):
    end = table[0].index(name) + len(name)
    assert all(row[end - 1] != " " for row in table)
    assert all(row[end : end + 2].strip() == "" for row in table)
  if columns == 60:
    assert any(line.startswith("No room for: ") for line in lines)
  if columns == 200:
    assert "device seconds" in table[0]


def test_a_finished_study_is_not_run_again(finished, capfd):
  arguments, folder = finished
  done = arm_folder(folder, "one") / "train/compute/rapo-seed0/done.json"
  before = done.stat().st_mtime_ns
  assert study_lib.main(arguments) == 0
  assert "3 of 3 cells are finished" in capfd.readouterr().out
  assert done.stat().st_mtime_ns == before


def test_runs_that_were_cut_off_before_they_were_measured_are_measured(
  finished, tmp_path, capfd
):
  folder = tmp_path / "w"
  shutil.copytree(finished[1], folder, symlinks=True)
  arguments = ["--study", _file(tmp_path, "measured_study"), "--arm=one"]
  arguments += ["--workdir", str(folder)]
  for before in (0, 1):
    assert study_lib.main(arguments) == 0
    assert f"{before} of 1 cells are finished" in capfd.readouterr().out
    run = arm_folder(folder, "one") / "train/compute/rapo-seed0"
    assert diversity.read_diversity(run)["num_groups"] > 0


def test_two_commands_do_not_run_the_same_task(finished, capfd):
  arguments, folder = finished
  with hold_lock(folder, ".lock-compute", wait=False) as held:
    assert held
    assert study_lib.main(arguments) == 2
  assert "another command runs compute" in capfd.readouterr().err


def test_cells_that_are_not_there_are_refused(finished, capfd):
  arguments, _ = finished
  assert study_lib.main([*arguments, "--arm=two"]) == 2
  assert "must be one of plain, one, joined" in capfd.readouterr().err
  assert study_lib.main([*arguments, "--seed=7"]) == 2
  assert "--seed must be one of 0, got 7" in capfd.readouterr().err


def test_a_failed_cell_stops_no_other(tmp_path, capfd):
  arguments = ["--study", _file(tmp_path, "failing_study")]
  arguments += ["--workdir", str(tmp_path / "w")]
  assert study_lib.main(arguments) == study_lib.FAILED_STATUS
  captured = capfd.readouterr()
  assert "broken-compute-seed0: FAILED with exit status 2" in captured.out
  assert "failed cells: broken-compute-seed0" in captured.err
  log = tmp_path / "w/logs/broken-compute-seed0.log"
  assert "its buffer holds no trace" in log.read_text(encoding="utf-8")
  assert (tmp_path / "w/arms/plain/train/compute/grpo-seed0/done.json").exists()


def test_seeds_come_before_arms():
  arms = [
    _arm(name, ("grpo",), name, train__seeds=(0, 1)) for name in ("a", "b")
  ]
  cells = list(study_lib.cells(Study("s", "d", tuple(arms))))
  assert [str(cell) for cell in cells] == [
    "a-compute-seed0",
    "b-compute-seed0",
    "a-compute-seed1",
    "b-compute-seed1",
  ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_goes_on_after_a_signal_with_the_same_result(
  finished, tmp_path, number
):
  _, whole = finished
  folder = tmp_path / "stopped"
  command = [sys.executable, "-m", "experiments.study"]
  command += ["--study", _file(tmp_path, "small_study")]
  # As many as the other one had: a cell on fewer cores rounds otherwise.
  command += ["--workdir", str(folder), "--processes=2"]
  process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
  metrics = folder / "arms/plain/train/compute/grpo-seed0/metrics.jsonl"
  deadline = time.monotonic() + 300
  while not metrics.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(number)
  assert process.wait(60) in (128 + number, -number)
  # The cell's process notices, saves and ends, and leaves its lock.
  while study_lib.main(command[3:]) != 0:
    assert time.monotonic() < deadline
  for name in ("plain/train/compute/grpo", "one/train/compute/rapo"):
    weights = [
      (root / f"arms/{name}-seed0/policy/model.safetensors").read_bytes()
      for root in (whole, folder)
    ]
    assert weights[0] == weights[1]
