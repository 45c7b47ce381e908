"""Folders that take another's place whole."""

import os

import pytest

from rapo_jax.models import folder


def _fill(path, text):
  with folder.replaced_folder(path) as new:
    (new / "sub").mkdir()
    (new / "sub" / "file").write_text(text, encoding="utf-8")


def _fail_to_fill(path):
  with folder.replaced_folder(path) as new:
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
  folder.clear_leftovers(tmp_path / "out")
  assert sorted(os.listdir(tmp_path)) == [".other.new-1a", "out"]
  folder.clear_leftovers(tmp_path / "missing" / "out")
