"""Files that are there whole or not at all, and for their owner alone."""

import contextlib
import os
import pathlib

import pytest

from rapo_jax import files
from rapo_jax.errors import InputError


def _fail_to_write(path):
  with files.replaced_file(path) as new:
    new.write_text("sec", encoding="utf-8")
    raise OSError("no space")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / "[x]*" / "a.json"
  path.parent.mkdir()
  with files.replaced_file(path) as new:
    new.write_text("first", encoding="utf-8")
    assert not path.exists()
  with pytest.raises(OSError, match="no space"):
    _fail_to_write(path)
  assert path.read_text(encoding="utf-8") == "first"
  assert os.listdir(path.parent) == ["a.json"]


def test_what_a_kill_left_does_not_stand_in_the_way(tmp_path):
  (tmp_path / "a.partial").write_text("half", encoding="utf-8")
  with files.replaced_file(tmp_path / "a") as new:
    assert new.read_text(encoding="utf-8") == ""
    new.write_text("whole", encoding="utf-8")
  assert (tmp_path / "a").read_text(encoding="utf-8") == "whole"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_files_and_folders_are_their_owner_s_alone(umask, tmp_path):
  before = os.umask(umask)
  try:
    files.make_private_folder(tmp_path / "a" / "b")
    with files.replaced_file(tmp_path / "a" / "b" / "c") as new:
      new.write_text("secret", encoding="utf-8")
  finally:
    os.umask(before)
  modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")]
  assert modes == [0o700, 0o700]
  assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_there_keeps_its_permissions(tmp_path):
  (tmp_path / "a").mkdir(mode=0o755)
  (tmp_path / "a").chmod(0o755)
  files.make_private_folder(tmp_path / "a" / "b")
  assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
  assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
  (tmp_path / "a").write_text("", encoding="utf-8")
  with pytest.raises(InputError, match="must be a folder"):
    files.make_private_folder(tmp_path / "a")


def test_a_folder_that_the_system_refuses_is_named():
  with pytest.raises(InputError, match=r"/proc/x/y must exist, .*/proc/x"):
    files.make_private_folder(pathlib.Path("/proc/x/y"))


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(there, tmp_path):
  target, link = tmp_path / "far" / "target", tmp_path / "link"
  target.parent.mkdir()
  if there:
    target.write_text("old", encoding="utf-8")
  link.symlink_to(target)
  with files.replaced_file(link) as new:
    new.write_text("new", encoding="utf-8")
  assert link.is_symlink()
  assert target.read_text(encoding="utf-8") == "new"
  assert files.followed(link) == pathlib.Path(target)


def _fill(path, text):
  with files.replaced_folder(path) as new:
    (new / "sub").mkdir()
    (new / "sub" / "file").write_text(text, encoding="utf-8")


def _fail_to_fill(path):
  with files.replaced_folder(path) as new:
    (new / "file").write_text("half", encoding="utf-8")
    raise OSError("full")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / "out"
  _fill(path, "first")
  with pytest.raises(OSError, match="full"):
    _fail_to_fill(path)
  assert (path / "sub" / "file").read_text(encoding="utf-8") == "first"
  assert os.listdir(tmp_path) == ["out"]
  _fill(path, "second")
  assert (path / "sub" / "file").read_text(encoding="utf-8") == "second"
  assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_is_followed_and_stays(there, tmp_path):
  target, link = tmp_path / "far" / "target", tmp_path / "link"
  target.parent.mkdir()
  if there:
    _fill(target, "old")
  link.symlink_to(target, target_is_directory=True)
  _fill(link, "new")
  assert link.is_symlink()
  assert (target / "sub" / "file").read_text(encoding="utf-8") == "new"
  assert sorted(os.listdir(tmp_path)) == ["far", "link"]
  assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("name", ["[x]", "*?", "back\\slash", "line\nbreak"])
def test_a_folder_may_have_any_name(name, tmp_path):
  _fill(tmp_path / name, "text")
  _fill(tmp_path / name, "again")
  assert os.listdir(tmp_path) == [name]
  assert (tmp_path / name / "sub" / "file").read_text(
    encoding="utf-8"
  ) == "again"


def test_what_killed_writers_left_is_cleared(tmp_path):
  for name in (".out.new-1a", ".out.old-2b", ".other.new-1a", "out"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("", encoding="utf-8")
  files.clear_leftovers(tmp_path / "out")
  assert sorted(os.listdir(tmp_path)) == [".other.new-1a", "out"]
  files.clear_leftovers(tmp_path / "missing" / "out")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_file_that_is_not_private_follows_the_umask(umask, tmp_path):
  before = os.umask(umask)
  try:
    with files.replaced_file(tmp_path / "a", private=False) as new:
      new.write_text("open", encoding="utf-8")
  finally:
    os.umask(before)
  assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_rename_replaces_a_file(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).write_text(name, encoding="utf-8")
  files.rename(tmp_path / "a", tmp_path / "b")
  assert os.listdir(tmp_path) == ["b"]
  assert (tmp_path / "b").read_text(encoding="utf-8") == "a"


def test_what_fails_under_a_lock_is_not_the_lock_s_fault(tmp_path):
  with (
    pytest.raises(FileNotFoundError, match="nowhere"),
    files.locked(tmp_path / ".lock"),
  ):
    (tmp_path / "nowhere").read_bytes()
  with (
    pytest.raises(InputError, match="within must be usable"),
    files.locked(tmp_path / ".lock" / "within"),
  ):
    pass


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
  path = tmp_path / "notes.txt"
  path.write_text("mine", encoding="utf-8")
  with (
    pytest.raises(InputError, match=r"notes.txt, and a file lies there"),
    files.replaced_folder(path),
  ):
    pass
  assert path.read_text(encoding="utf-8") == "mine"
  assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
  ("content", "replaceable"),
  [
    (None, True),
    ('{"mark": 0}', True),
    ('{"other": 0}', False),
    ('["mark"]', False),
    ("no JSON", False),
    ("[" * 100_000, False),
  ],
)
def test_what_may_be_replaced(tmp_path, content, replaceable):
  (tmp_path / "out").mkdir()
  if content is not None:
    (tmp_path / "out" / "mine.json").write_text(content, encoding="utf-8")
  files.check_replaceable(tmp_path / "none", {"mine.json": "mark"}, "one")
  with contextlib.ExitStack() as stack:
    if not replaceable:
      stack.enter_context(pytest.raises(InputError, match="something else"))
    files.check_replaceable(tmp_path / "out", {"mine.json": "mark"}, "one")


def test_a_file_is_not_to_be_replaced(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="something else: give another folder"):
    files.check_replaceable(tmp_path / "file", {"file": "mark"}, "one")
