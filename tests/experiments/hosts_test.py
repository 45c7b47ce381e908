"""`experiments.run` on several hosts: two processes over loopback."""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import hosts, run
from experiments.workdir import read_json
from rapo_jax import hosts as library
from rapo_jax.errors import InputError
from tests import fake_devices
from tests.experiments.tiny_hosts import get_config
from tests.hosts.link_test import free_port

CONFIG_FILE = '''
"""A small experiment for tests."""
from tests.experiments.tiny_hosts import {name} as get_config
'''
TIMEOUT_S = 550


def parse(*arguments):
  parser = argparse.ArgumentParser()
  hosts.add_arguments(parser)
  return parser.parse_args(arguments)


def place_arguments(port, index, count=2):
  return (
    f"--coordinator=localhost:{port}",
    f"--num_processes={count}",
    f"--process_id={index}",
  )


class Hosts:
  """Processes over loopback, each with devices of its own.

  Args:
    config_file: of the experiment.
    workdir: its folder.
    arguments: of all of them.
    own: further arguments of each.
    code: that runs instead of `experiments.run`.
    count: of processes.
    num_devices: fake devices of each.
  """

  def __init__(
    self,
    config_file,
    workdir,
    *arguments,
    own=None,
    code=None,
    count=2,
    num_devices=2,
  ):
    port = free_port()
    self._logs = [workdir.parent / f"host{i}.log" for i in range(count)]
    self.processes = []
    begin = ("-c", code) if code else ("-m", "experiments.run")
    for index in range(count):
      command = [
        *(sys.executable, *begin, *place_arguments(port, index, count)),
        *("--config", str(config_file), "--workdir", str(workdir)),
        *(*arguments, *(own[index] if own else ())),
      ]
      with self._logs[index].open("w", encoding="utf-8") as log:
        self.processes.append(
          subprocess.Popen(
            command,
            cwd=fake_devices.ROOT,
            env=environment(num_devices),
            stdout=log,
            stderr=subprocess.STDOUT,
          )
        )

  def output(self, index):
    return self._logs[index].read_text(encoding="utf-8")

  def wait(self):
    """Exit statuses of all."""
    try:
      until = time.monotonic() + TIMEOUT_S
      return [p.wait(until - time.monotonic()) for p in self.processes]
    finally:
      self.kill()

  def kill(self):
    """Ends all that still run, and waits for them."""
    for process in self.processes:
      process.kill()
      process.wait()

  def wait_for(self, path):
    """Until a file is there and has content."""
    until = time.monotonic() + TIMEOUT_S
    while not (path.exists() and path.stat().st_size):
      assert time.monotonic() < until, self.output(0)
      assert self.processes[0].poll() is None, self.output(0)
      time.sleep(0.1)


def environment(num_devices):
  count = f"--xla_force_host_platform_device_count={num_devices} "
  return {
    **os.environ,
    "XLA_FLAGS": count + os.environ["XLA_FLAGS"],
    "PYTHONPATH": str(fake_devices.ROOT),
  }


def write_config(folder, name="get_config"):
  path = folder / "config.py"
  path.write_text(CONFIG_FILE.format(name=name), encoding="utf-8")
  return path


def test_a_place_among_hosts_is_named_whole_or_not_at_all():
  assert hosts.find_place(parse()) is None
  assert hosts.find_place(parse(*place_arguments(80, 0, 1))) is None
  place = hosts.find_place(parse(*place_arguments(1234, 1)))
  assert place == library.Place(("localhost", 1234), 2, 1)
  six = parse("--coordinator=[::1]:80", *place_arguments(1, 0)[1:])
  assert hosts.find_place(six).address == ("::1", 80)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--num_processes=2"], "go together"),
    (place_arguments(80, 2), "--process_id must be from 0 to"),
    (place_arguments(80, -1), "--process_id must be from 0 to"),
    (place_arguments(80, 0, 0), "--num_processes must be at least 1"),
    (place_arguments(70000, 0), "must be HOST:PORT, got 'localhost:70000'"),
    (["--distributed", "--process_id=0"], "leave one out"),
    (["--distributed"], "finds none: give --coordinator"),
  ],
)
def test_a_place_that_makes_no_sense_is_refused(arguments, words, monkeypatch):
  monkeypatch.setattr(library, "detect", lambda: None)
  with pytest.raises(InputError, match=words):
    hosts.find_place(parse(*arguments))


@pytest.mark.parametrize(
  ("arguments", "found", "expected"),
  [
    ([], (1, 4, "a"), (("a", 61_000), 4, 1)),
    (["--coordinator=b:80"], (1, 4, None), (("b", 80), 4, 1)),
    (["--num_processes=3"], (2, None, "a"), (("a", 61_000), 3, 2)),
    ([], (0, 1, "a"), None),
  ],
)
def test_what_a_scheduler_does_not_say_is_given(
  arguments, found, expected, monkeypatch
):
  answer = library.Found("Slurm", *found)
  monkeypatch.setattr(library, "detect", lambda: answer)
  place = hosts.find_place(parse("--distributed", *arguments))
  assert place == (expected and library.Place(*expected))


@pytest.mark.parametrize(
  ("arguments", "found", "words"),
  [
    ([], (1, 4, None), "Slurm does not say where host 0 is: give --coordin"),
    ([], (1, None, "a"), "not say how many hosts there are: give --num_proc"),
    (["--num_processes=1"], (1, 4, "a"), "must be from 0 to"),
    (["--coordinator=b"], (1, 4, "a"), "must be HOST:PORT, got 'b'"),
  ],
)
def test_what_nothing_says_is_asked_for(arguments, found, words, monkeypatch):
  answer = library.Found("Slurm", *found)
  monkeypatch.setattr(library, "detect", lambda: answer)
  with pytest.raises(InputError, match=words):
    hosts.find_place(parse("--distributed", *arguments))


def test_a_digest_changes_with_any_file(tmp_path, monkeypatch):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b").write_bytes(b"12345678")
  seen = {hosts.digest(tmp_path)}
  for content in (b"12345679", b"1234567", b"123456780"):
    (tmp_path / "a" / "b").write_bytes(content)
    seen.add(hosts.digest(tmp_path))
  (tmp_path / "c").write_bytes(b"")
  seen.add(hosts.digest(tmp_path))
  assert len(seen) == 5
  # Of a large file the middle is not read.
  monkeypatch.setattr(hosts, "_WHOLE_BYTES", 4)
  monkeypatch.setattr(hosts, "_SAMPLE_BYTES", 2)
  (tmp_path / "a" / "b").write_bytes(b"12345678")
  large = hosts.digest(tmp_path / "a" / "b")
  for content, same in ((b"12003678", True), (b"12345679", False)):
    (tmp_path / "a" / "b").write_bytes(content)
    assert (hosts.digest(tmp_path / "a" / "b") == large) == same


def test_what_a_host_runs_with_names_its_files(tmp_path):
  config = get_config()
  config = dataclasses.replace(
    config, buffer=dataclasses.replace(config.buffer, path=str(tmp_path))
  )
  found = hosts.facts(config)
  assert {"code", "python", "jax", "jaxlib", "rapo_jax", "config"} <= {*found}
  assert found[str(tmp_path)] == hosts.digest(tmp_path)
  json.dumps(found)


def test_a_host_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(library.link, "JOIN_S", 0.5)
  arguments = ["--config", str(write_config(tmp_path))]
  arguments += ["--workdir", str(tmp_path / "w")]
  port = free_port()
  assert run.main([*arguments, *place_arguments(port, 0)]) == 2
  assert "these have not: host 1. Start the same" in capsys.readouterr().err
  assert run.main([*arguments, *place_arguments(port, 1)]) == 2
  assert f"host 0 must answer at localhost:{port}" in capsys.readouterr().err
  dry = [*arguments, "--dry_run", *place_arguments(port, 1)]
  assert run.main(dry) == 2
  assert "--dry_run checks on one host" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [True, False])
def test_after_jax_has_started_no_bug_waits_for_hosts_that_are_gone(
  begun, monkeypatch, capsys
):
  ended = []
  monkeypatch.setattr(hosts.os, "_exit", ended.append)
  # Before the team, or else it would stay among those of this process.
  monkeypatch.setattr(hosts, "_teams", [])
  team = hosts.Team(library.Place(("localhost", 80), 2, 0))
  team.has_begun = begun

  @hosts.ends_process
  def main():
    raise RuntimeError("a bug")

  if begun:
    main()
    assert ended == [1]
    assert "RuntimeError: a bug" in capsys.readouterr().err
  else:
    with pytest.raises(RuntimeError, match="a bug"):
      main()
    assert ended == []


def test_idle_hosts_are_counted_from_where_the_count_began(monkeypatch):
  monkeypatch.setattr(hosts, "_teams", [])
  assert hosts.Idle().metrics() == {}
  team = hosts.Team(library.Place(("localhost", 80), 3, 0))
  assert hosts.Idle().metrics() == {}
  now = [100.0]
  monkeypatch.setattr(hosts.time, "monotonic", lambda: now[0])
  for index, seconds in ((1, 5.0), (2, 7.0)):
    assert team._heard(index, {"waited": seconds})
  idle = hosts.Idle()
  now[0] += 10
  for index, seconds in ((1, 6.0), (2, 12.0)):
    assert team._heard(index, {"waited": seconds})
  assert idle.metrics() == {
    # Host 0 did not wait.
    "hosts/idle_fraction_mean": pytest.approx(0.2),
    "hosts/idle_fraction_max": pytest.approx(0.5),
  }


@pytest.fixture
def leading_team(tmp_path, monkeypatch):
  """A leader, the link of the other host, and what the leader ended with."""
  monkeypatch.setattr(library.link, "_PING_S", 0.1)
  monkeypatch.setattr(library.link, "_LATE_S", 1.0)
  monkeypatch.setattr(hosts, "_LEAVE_S", 1.5)
  for module in (library, library.link):
    monkeypatch.setattr(module, "SILENCE_S", 3.0)
  ended = queue.SimpleQueue()
  monkeypatch.setattr(
    hosts.Team,
    "_end_process",
    lambda _, text, status: ended.put((text, status)),
  )
  address = ("localhost", free_port())
  team = hosts.Team(library.Place(address, 2, 0))
  other = library.Link(
    library.Place(address, 2, 1), lambda *_: False, lambda _: None
  )
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for joined in [
      pool.submit(library.join, link, tmp_path) for link in (team.link, other)
    ]:
      joined.result(timeout=60)
  yield team, other, ended
  team.link.close()
  other.close()


def test_an_error_beside_a_silent_host_names_that_host(leading_team):
  team, other, ended = leading_team
  # As of a process that is stopped: connected, and no sign of life.
  for connection in other._connections.values():
    connection._over.set()
  team.fail(RuntimeError("collective broken"))
  text, status = ended.get_nowait()
  assert status == hosts.HOST_STATUS
  assert "host 1 (" in text
  assert "it has said nothing for" in text


def test_an_error_while_all_hosts_live_is_what_they_are_told(leading_team):
  team, other, ended = leading_team
  team.fail(RuntimeError("out of memory"))
  _, message = other.messages.get(timeout=60)
  assert message["text"] == "error: RuntimeError: out of memory"
  assert (message["over"], message["orderly"]) == (1, False)
  assert ended.empty()


def test_hosts_with_another_config_or_file_end_with_one_error(tmp_path):
  buffers = [tmp_path / name for name in ("one", "other")]
  for number, folder in enumerate(buffers):
    folder.mkdir()
    (folder / "manifest.json").write_text(str(number), encoding="utf-8")
  pair = Hosts(
    *(write_config(tmp_path), tmp_path / "w"),
    own=[[f"--config.buffer.path={folder}"] for folder in buffers],
  )
  assert pair.wait() == [2, 2]
  for index in range(2):
    text = pair.output(index)
    assert "these differ from host 0" in text
    assert "config of host 1" in text
    assert f"{buffers[1]} of host 1" in text
    assert "Traceback" not in text
  assert not (tmp_path / "w" / "config.json").exists()


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
  """A work folder in which the agents are."""
  folder = tmp_path_factory.mktemp("agents")
  config_file = write_config(folder)
  arguments = ["--config", str(config_file), "--workdir", str(folder / "w")]
  assert run.main([*arguments, "--stage=agents"]) == 0
  return folder / "w"


def test_two_hosts_evaluate_as_one(agents, tmp_path):
  folders = [tmp_path / name for name in ("one", "two")]
  for folder in folders:
    shutil.copytree(agents, folder)
  config_file = write_config(tmp_path)
  pair = Hosts(config_file, folders[1], "--stage=evaluate")
  alone = ["--config", str(config_file), "--workdir", str(folders[0])]
  assert run.main([*alone, "--stage=evaluate"]) == 0
  assert pair.wait() == [0, 0], pair.output(0) + pair.output(1)
  one, two = (
    (f / "evaluate/compute/base.answers.jsonl").read_text(encoding="utf-8")
    for f in folders
  )
  assert [json.loads(line) for line in one.splitlines()] == [
    json.loads(line) for line in two.splitlines()
  ]
  # Host 0 alone reports.
  assert "evaluate: done" in pair.output(0)
  for index in range(2):
    words = rf"host {index} \(.+\) waited for others in [0-9.]+ of [0-9.]+ s"
    assert re.search(words, pair.output(0))
  assert "evaluate" not in pair.output(1)


def parameters(folder):
  return load_file(folder / "policy" / "model.safetensors")


def rows(path):
  with path.open(encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def described(folder):
  """Of the trajectories of a run, what was written and what came of it."""
  return [
    (
      row["update"],
      row["query_id"],
      row["index"],
      row["finish_reason"],
      [(part["kind"], part["text"]) for part in row["segments"]],
      [event["type"] for event in row["events"]],
    )
    for row in rows(folder / "trajectories.jsonl")
  ]


RUN = pathlib.Path("train") / "compute" / "rapo-seed0"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Config file and folder of an experiment that two hosts ran in one go."""
  folder = tmp_path_factory.mktemp("both")
  config_file = write_config(folder, "whole_config")
  pair = Hosts(config_file, folder / "w")
  assert pair.wait() == [0, 0], pair.output(0) + pair.output(1)
  return config_file, folder / "w"


@pytest.mark.slow
def test_two_hosts_run_every_stage_as_one_with_their_mesh(both, tmp_path):
  config_file, folder = both
  alone = tmp_path / "alone"
  command = ["--config", str(config_file), "--workdir", str(alone)]
  subprocess.run(
    [sys.executable, "-m", "experiments.run", *command],
    cwd=fake_devices.ROOT,
    env=environment(4),
    check=True,
    stdout=subprocess.DEVNULL,
  )
  buffer = pathlib.Path("buffer") / "compute" / "traces.parquet"
  assert (alone / buffer).read_bytes() == (folder / buffer).read_bytes()
  warm = pathlib.Path("warm_start") / "compute"
  for run_folder in (warm, RUN):
    expected, found = (parameters(f / run_folder) for f in (alone, folder))
    assert {*expected} == {*found}
    for name, value in expected.items():
      assert np.abs(value - found[name]).max() < 1e-5, name
  trajectories = described(alone / RUN)
  assert described(folder / RUN) == trajectories
  assert len({update for update, *_ in trajectories}) == 5
  kinds = {kind for *_, parts, _ in trajectories for kind, _ in parts}
  assert "retrieved" in kinds
  assert (folder / "report.html").exists()
  adapters = RUN / "adapters" / "adapter_model.safetensors"
  assert (
    load_file(folder / adapters).keys() == load_file(alone / adapters).keys()
  )


@pytest.mark.slow
def test_four_hosts_train_as_two(both, tmp_path):
  config_file, folder = both
  four = copied(folder, tmp_path / "four")
  together = Hosts(config_file, four, "--stage=train", count=4, num_devices=1)
  assert together.wait() == [0] * 4, together.output(0)
  expected, found = parameters(folder / RUN), parameters(four / RUN)
  for name, value in expected.items():
    assert np.abs(value - found[name]).max() < 1e-5, name
  assert described(four / RUN) == described(folder / RUN)
  assert "host 0 (" in together.output(0)
  assert "4 devices are there" in together.output(3)


@pytest.mark.slow
def test_one_host_goes_on_where_two_have_stopped(both, tmp_path):
  config_file, whole = both
  folder = copied(whole, tmp_path / "w")
  pair = Hosts(config_file, folder, "--stage=train")
  pair.wait_for(folder / RUN / "checkpoints" / "2" / "manifest.json")
  pair.processes[0].send_signal(signal.SIGTERM)
  assert pair.wait() == [128 + signal.SIGTERM] * 2, pair.output(0)
  command = ["--config", str(config_file), "--workdir", str(folder)]
  ended = subprocess.run(
    [sys.executable, "-m", "experiments.run", *command, "--stage=train"],
    cwd=fake_devices.ROOT,
    env=environment(1),
    check=False,
    capture_output=True,
    encoding="utf-8",
  )
  assert ended.returncode == 0, ended.stderr
  # Sums are rounded in another order from there on.
  expected, found = parameters(whole / RUN), parameters(folder / RUN)
  for name, value in expected.items():
    assert np.abs(value - found[name]).max() < 1e-4, name


def copied(folder, target):
  """What comes before training, in a folder of its own."""
  target.mkdir()
  for name in ("agents", "buffer", "warm_start"):
    shutil.copytree(folder / name, target / name)
  return target


def check_same_run(folder, expected):
  """A run ended as one that was not disturbed, bit for bit."""
  found = parameters(folder / RUN)
  for name, value in parameters(expected / RUN).items():
    np.testing.assert_array_equal(found[name], value)
  assert described(folder / RUN) == described(expected / RUN)


# A host that is killed in update 2, after one call that compiles.
DYING = """
import itertools, os, signal, sys
from experiments import run
from rapo_jax.training import trainer

calls, update_minibatch = itertools.count(), trainer.update_minibatch

def dying(*args, **kwargs):
  if "--process_id=1" in sys.argv and next(calls) == 4:
    os.kill(os.getpid(), signal.SIGNAL)
  return update_minibatch(*args, **kwargs)

trainer.update_minibatch = dying
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "words"),
  [("SIGKILL", "its connection has ended"), ("SIGSTOP", "it has said nothing")],
)
def test_a_host_that_dies_or_hangs_in_an_update_is_named(
  number, words, both, tmp_path
):
  config_file, whole = both
  folder = copied(whole, tmp_path / "w")
  code = DYING.replace("SIGNAL", number)
  pair = Hosts(config_file, folder, "--stage=train", code=code)
  checkpoints = folder / RUN / "checkpoints" / "1"
  pair.wait_for(checkpoints / "manifest.json")
  began = time.monotonic()
  assert pair.processes[0].wait(timeout=TIMEOUT_S) == hosts.HOST_STATUS
  assert time.monotonic() - began < 75
  assert "host 1 (" in pair.output(0)
  assert words in pair.output(0)
  assert "on all hosts again; it goes on from" in pair.output(0)
  pair.processes[1].kill()
  again = Hosts(config_file, folder, "--stage=train")
  assert again.wait() == [0, 0], again.output(0)
  check_same_run(folder, whole)


@pytest.mark.slow
def test_a_leader_that_dies_is_named(both, tmp_path):
  config_file, whole = both
  folder = copied(whole, tmp_path / "w")
  code = DYING.replace("SIGNAL", "SIGKILL").replace("id=1", "id=0")
  pair = Hosts(config_file, folder, "--stage=train", code=code)
  status = pair.wait()
  assert status == [-signal.SIGKILL, hosts.HOST_STATUS]
  assert "host 0 (" in pair.output(1)
  assert "of 2 is gone" in pair.output(1)


@pytest.mark.slow
def test_a_signal_to_any_host_saves_and_ends_all(both, tmp_path):
  config_file, whole = both
  folder = copied(whole, tmp_path / "w")
  pair = Hosts(config_file, folder, "--stage=train")
  pair.wait_for(folder / RUN / "checkpoints" / "1" / "manifest.json")
  pair.processes[1].send_signal(signal.SIGTERM)
  assert pair.wait() == [128 + signal.SIGTERM] * 2, pair.output(0)
  for index in range(2):
    assert "stopped after update" in pair.output(index)
  done = read_json(folder / "config.json")  # Whole, as all that is written.
  assert done["name"]
  again = Hosts(config_file, folder, "--stage=train")
  assert again.wait() == [0, 0], again.output(0)
  check_same_run(folder, whole)


@pytest.mark.slow
def test_an_error_of_the_leader_ends_all_with_its_words(agents, tmp_path):
  folder = tmp_path / "w"
  shutil.copytree(agents, folder)
  weights = folder / "agents" / "compute" / "base" / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  pair = Hosts(write_config(tmp_path), folder, "--stage=train")
  assert pair.wait() == [2, 2]
  for index in range(2):
    assert "model.safetensors" in pair.output(index)
    assert "Traceback" not in pair.output(index)


STUCK = """
import sys, time
from experiments import run
from rapo_jax.training import trainer

if "--process_id=1" in sys.argv:
  def update_minibatch(*args, **kwargs):
    while True:
      time.sleep(0.01)

  trainer.update_minibatch = update_minibatch
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_host_that_computes_for_ever_is_named(agents, tmp_path, monkeypatch):
  monkeypatch.setenv("RAPO_STALL_S", "60")
  workdir = tmp_path / "run"
  shutil.copytree(agents, workdir)
  pair = Hosts(write_config(tmp_path), workdir, "--stage=train", code=STUCK)
  assert pair.wait() == [hosts.HOST_STATUS] * 2
  for index in range(2):
    text = pair.output(index)
    assert "one of these hosts computes for ever" in text
    assert "host 1" in text
    assert "train_minibatch" in text
    assert "(update_minibatch)" in text


@pytest.mark.slow
def test_a_run_whose_hosts_are_killed_again_and_again_loses_nothing():
  ended = subprocess.run(
    [sys.executable, "-m", "tests.experiments.hosts_kill", "--kills=3"],
    cwd=fake_devices.ROOT,
    env={**os.environ, "PYTHONPATH": str(fake_devices.ROOT)},
    check=False,
    capture_output=True,
    encoding="utf-8",
  )
  assert ended.returncode == 0, ended.stderr
  report = json.loads(ended.stdout.splitlines()[-1])
  assert report["kills"] == 3
  assert all(report["same"].values()), report
  assert not any(report["control"].values()), report
