"""Work folders on object stores, against real servers on this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import mirror, object_store, pull, run
from rapo_jax import files
from tests.experiments import stores

ROOT = pathlib.Path(__file__).resolve().parents[2]
_numbers = itertools.count()
WRITES = """
import os, pathlib, signal, sys
from experiments import mirror, object_store

create, url = object_store.ObjectStore.create, sys.argv[1]

def dying(self, name, content):
  if name.endswith("3.json"):
    os.kill(os.getpid(), signal.SIGKILL)
  return create(self, name, content)

object_store.ObjectStore.create = dying
made = mirror.Mirror(
  object_store.ObjectStore(url), object_store.local_folder(url, "workdirs")
)
made.claim()
made.begin()
(made.tree / "config.json").write_text("first", encoding="utf-8")
made.push()
(made.tree / "config.json").write_text("second", encoding="utf-8")
(made.tree / "results.json").write_text("results", encoding="utf-8")
made.push()
"""


@pytest.fixture(scope="module", params=sorted(stores.SERVERS))
def server(request):
  """The scheme of a store whose server runs."""
  with stores.SERVERS[request.param]() as found, stores.variables(found):
    yield request.param


@pytest.fixture
def url(server):
  return f"{server}://{stores.BUCKET}/some/run{next(_numbers)}"


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Makes this process one on another machine, by name."""

  def change(name):
    folder = tmp_path / name
    monkeypatch.setenv(object_store.FOLDER_VARIABLE, str(folder))
    return folder

  change("first")
  return change


def _mirror(url):
  folder = object_store.local_folder(url, "workdirs")
  return mirror.Mirror(object_store.ObjectStore(url), folder)


def _content(tree):
  return {
    path.relative_to(tree).as_posix(): path.read_bytes()
    for path in sorted(tree.rglob("*"))
    if path.is_file()
  }


def _fill(tree):
  """Files of all kinds that a run writes."""
  files.replace_text(tree / "config.json", "{}")
  checkpoint = tree / "train" / "a task" / "rapo-seed0" / "checkpoints" / "1"
  with files.replaced_folder(checkpoint) as new:
    (new / "ocdbt.process_0").mkdir()
    (new / "ocdbt.process_0" / "données").write_bytes(os.urandom(3 << 20))
    (new / "manifest.json").write_text("manifest", encoding="utf-8")
    (new / "empty").touch()
  with (tree / "metrics.jsonl").open("a", encoding="utf-8") as log:
    log.write('{"update": 1}\n')


def test_another_machine_goes_on_from_what_the_first_has_left(url, machine):
  with mirror.opened(url) as tree:
    assert _content(tree) == {}
    _fill(tree)
    left = _content(tree)
  machine("second")
  with mirror.opened(url) as tree:
    assert _content(tree) == left
    assert tree.stat().st_mode & 0o77 == 0
    (tree / "config.json").write_text("changed", encoding="utf-8")
    checkpoints = tree / "train" / "a task" / "rapo-seed0" / "checkpoints"
    (checkpoints / "1").rename(checkpoints / "2")
    left = _content(tree)
  machine("first")
  with mirror.opened(url) as tree:
    assert _content(tree) == left
  # All that lies there is what the newest index names.
  there = object_store.ObjectStore(url).names()
  assert len(there) == len(left) + 1


def test_what_is_being_written_and_locks_are_left_out(url, machine):
  with mirror.opened(url) as tree:
    _fill(tree)
    left = _content(tree)
    (tree / ".lock").touch()
    (tree / "results.json.partial").touch()
    for name in (".partial-3", ".policy.new-0123abcd"):
      (tree / name).mkdir()
      (tree / name / "file").touch()
  machine("second")
  with mirror.opened(url) as tree:
    assert _content(tree) == left


def test_a_log_is_copied_by_what_it_has_grown(url, machine, monkeypatch):
  monkeypatch.setattr(mirror, "_LEAST_LOG_BYTES", 10)
  monkeypatch.setattr(mirror, "_MOST_PARTS", 4)
  store, made = object_store.ObjectStore(url), _mirror(url)
  made.claim()
  made.begin()
  log = made.tree / "metrics.jsonl"
  sizes = []
  for number in range(6):
    with log.open("a", encoding="utf-8") as file:
      file.write(f'{{"update": {number}, "loss": 0.5}}\n')
    made.push()
    sizes.append(
      sorted(n for name, n in store.names().items() if "metrics" in name)
    )
  line = len('{"update": 0, "loss": 0.5}\n')
  assert sizes[3] == [line] * 4
  # So many parts are made one.
  assert sizes[4] == [5 * line]
  assert sizes[5] == [line, 5 * line]
  expected = log.read_text(encoding="utf-8")
  # One that has taken its place is copied whole, with its inode, too.
  with log.open("r+b") as file:
    file.write(b"{" + b" " * (line - 3) + b"}\n")
    file.truncate(5 * line)
  made.push()
  with log.open("r+b") as file:
    file.seek(4 * line)
    file.write(b"[" * 2 * line)
  made.push()
  machine("other")
  there = _mirror(url)
  there.pull()
  assert (there.tree / "metrics.jsonl").read_bytes() == log.read_bytes()
  machine("first")
  files.replace_text(log, expected[:line])
  made.push()
  machine("second")
  again = _mirror(url)
  again.pull()
  assert (again.tree / "metrics.jsonl").read_text(encoding="utf-8") == expected[
    :line
  ]


def test_a_kill_while_it_copies_leaves_what_was_there(url, machine, tmp_path):
  ended = subprocess.run(
    [sys.executable, "-c", WRITES, url],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    check=False,
    capture_output=True,
    encoding="utf-8",
  )
  assert ended.returncode == -signal.SIGKILL, ended.stderr
  machine("second")
  other = _mirror(url)
  other.pull()
  assert _content(other.tree) == {"config.json": b"first"}
  # The machine itself is ahead, and goes on at once: its claim is its own.
  machine("first")
  with mirror.opened(url) as tree:
    assert _content(tree) == {
      "config.json": b"second",
      "results.json": b"results",
    }
  other.pull()
  assert (other.tree / "results.json").exists()
  assert len(object_store.ObjectStore(url).names()) == 3


def test_two_processes_do_not_write_one_folder(
  url, machine, monkeypatch, capsys
):
  monkeypatch.setattr(mirror, "EVERY_S", 0.2)
  monkeypatch.setattr(mirror, "_LOOK_S", 0.2)
  with mirror.opened(url) as tree:
    _fill(tree)
    with (
      pytest.raises(mirror.StoreError, match="another on this machine"),
      mirror.opened(url),
    ):
      pass
    machine("second")
    other = _mirror(url)
    with pytest.raises(mirror.StoreError, match="one process at a time"):
      other.claim()
    assert "waiting" in capsys.readouterr().out


def test_a_claim_of_a_dead_process_ends(url, machine, monkeypatch):
  monkeypatch.setattr(mirror, "CLAIM_S", 0.2)
  dead = _mirror(url)
  dead.claim()
  dead.begin()
  machine("second")
  alive = _mirror(url)
  alive.claim()
  alive.begin()
  (alive.tree / "a").write_text("alive", encoding="utf-8")
  alive.push()
  # It was not dead, and only slow.
  (dead.tree / "a").write_text("dead", encoding="utf-8")
  with pytest.raises(mirror.ClaimLostError, match="has taken it over"):
    dead.push()
  machine("third")
  third = _mirror(url)
  third.pull()
  assert _content(third.tree) == {"a": b"alive"}


@pytest.mark.parametrize("by", ["its_claim", "its_files"])
def test_a_process_whose_folder_is_taken_over_is_ended(
  url, by, machine, monkeypatch
):
  monkeypatch.setattr(mirror, "EVERY_S", 0.05)
  got = []
  before = signal.signal(signal.SIGTERM, lambda *_: got.append(True))

  def take_over(other):
    # The first may have renewed its claim in between.
    with contextlib.suppress(mirror.StoreError):
      other._store.delete([".rapo/claim.json"])
      other.claim()

  def work():
    with mirror.opened(url) as tree:
      machine("second")
      other = _mirror(url)
      if by == "its_files":
        other.begin()
        (other.tree / "b").touch()
        other.push()
        (tree / "a").touch()
      until = time.monotonic() + 60
      while not got and time.monotonic() < until:
        if by == "its_claim":
          take_over(other)
        time.sleep(0.05)
      assert got

  try:
    with pytest.raises(mirror.StoreError, match="taken it over"):
      work()
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_folder_that_never_rests_is_said(url, machine, monkeypatch):
  made = _mirror(url)
  made.claim()
  made.begin()
  numbers = itertools.count()
  walk = made._walk

  def restless():
    (made.tree / "a").write_text(str(next(numbers)), encoding="utf-8")
    return walk()

  monkeypatch.setattr(made, "_walk", restless)
  with pytest.raises(mirror.StoreError, match="must rest for a moment"):
    made.push()


def test_what_has_changed_on_the_store_is_refused(url, machine):
  with mirror.opened(url) as tree:
    _fill(tree)
  store = object_store.ObjectStore(url)
  (name,) = (name for name in store.names() if name.startswith("config"))
  store.write(name, b"[]")
  machine("second")
  with (
    pytest.raises(mirror.StoreError, match="must be as it was written"),
    mirror.opened(url),
  ):
    pass
  store.delete([name])
  with (
    pytest.raises(mirror.StoreError, match="lacks some"),
    mirror.opened(url),
  ):
    pass


def test_what_is_no_work_folder_is_refused(url, machine):
  store = object_store.ObjectStore(url)
  store.write("thesis.txt", b"chapter one")
  with (
    pytest.raises(mirror.StoreError, match=r"holds thesis\.txt"),
    mirror.opened(url),
  ):
    pass
  assert store.read("thesis.txt") == b"chapter one"
  for index in (b"{", b"[]", json.dumps({"format_version": 2}).encode()):
    store.write(".rapo/index-00000001.json", index)
    with (
      pytest.raises(mirror.StoreError, match="must be an index"),
      mirror.opened(url),
    ):
      pass


def test_a_path_out_of_the_folder_is_refused(url, machine, tmp_path):
  store = object_store.ObjectStore(url)
  index = {"format_version": 1, "files": {"../../x": []}}
  store.write(".rapo/index-00000001.json", json.dumps(index).encode())
  with (
    pytest.raises(mirror.StoreError, match="must be paths of files"),
    mirror.opened(url),
  ):
    pass


def test_links_are_refused_and_errors_of_the_run_are_kept(url, machine, capsys):
  def work():
    with mirror.opened(url) as tree:
      (tree / "link").symlink_to("elsewhere")
      raise KeyError("bug")

  with pytest.raises(KeyError, match="bug"):
    work()
  assert "must hold no links" in capsys.readouterr().err


def test_a_bucket_that_is_missing_is_said(server, machine):
  for action in (
    lambda: mirror.opened(f"{server}://nowhere/run").__enter__(),
    lambda: object_store.fetched(f"{server}://nowhere/run"),
  ):
    with pytest.raises(object_store.StoreError) as error:
      action()
    assert "nowhere" in str(error.value)


def test_files_and_folders_are_read_from_a_store(url, machine):
  store = object_store.ObjectStore(url)
  store.write("model/config.json", b"{}")
  store.write("model/deep/weights", b"w" * 1000)
  folder = object_store.fetched(f"{url}/model")
  assert _content(folder) == {"config.json": b"{}", "deep/weights": b"w" * 1000}
  again = object_store.fetched(f"{url}/model/")
  assert again == folder
  before = (folder / "deep" / "weights").stat().st_mtime_ns
  assert (again / "deep" / "weights").stat().st_mtime_ns == before
  store.write("model/deep/weights", b"v" * 1000)
  changed = object_store.fetched(f"{url}/model")
  assert (changed / "deep" / "weights").read_bytes() == b"v" * 1000
  file = object_store.fetched(f"{url}/model/config.json")
  assert (file.name, file.read_bytes()) == ("config.json", b"{}")
  with pytest.raises(object_store.StoreError, match="nothing lies there"):
    object_store.fetched(f"{url}/model/con")


def test_a_work_folder_is_copied_from_a_store(url, machine, tmp_path, capsys):
  output = tmp_path / "copy"
  command = [url, "--output", str(output)]
  assert pull.main(command) == 2
  assert "must hold a work folder" in capsys.readouterr().err
  with mirror.opened(url) as tree:
    _fill(tree)
    left = _content(tree)
  for _ in range(2):
    assert pull.main(command) == 0
    there = _content(output)
    del there[".copied_from"]
    assert there == left
  other = tmp_path / "other"
  other.mkdir()
  assert pull.main([url, "--output", str(other)]) == 2
  assert "must be new" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_there(machine, capsys):
  url = f"s3://{stores.BUCKET}/dry"
  command = ["--config", "quickstart", "--workdir", url, "--dry_run"]
  with stores.s3() as found, stores.variables(found):
    assert run.main(command) == 0
    assert object_store.ObjectStore(url).names() == {}


def test_several_hosts_need_a_folder_that_they_share(capsys, machine):
  command = [
    *("--config", "quickstart", "--workdir", "s3://runs/a"),
    *("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=0"),
  ]
  assert run.main(command) == 2
  assert "file system that all share" in capsys.readouterr().err
