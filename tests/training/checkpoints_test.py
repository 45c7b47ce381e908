"""Checkpoints: what comes back is what went in."""

import errno
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from rapo_jax import models
from rapo_jax.retrieval.buffer import manifest
from rapo_jax.training import (
  BrokenCheckpointError,
  Checkpoints,
  OptimizerConfig,
  init_train_state,
)
from tests.tiny_decoder import tiny_decoder


def _state(seed, lora=None):
  model = tiny_decoder(seed=seed)
  if lora is not None:
    model = models.add_adapters(model, lora, rngs=nnx.Rngs(seed))
  return init_train_state(model, OptimizerConfig())


def test_restores_every_bit_and_the_metadata(tmp_path):
  state = _state(0)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() is None
  checkpoints.save(3, state, {"totals": {"seconds": 1.5}})
  checkpoints.close()

  reopened = Checkpoints(tmp_path)
  assert reopened.latest() == 3
  metadata = reopened.metadata(3)
  restored = reopened.restore(3, _state(1))
  reopened.close()
  assert metadata == {"totals": {"seconds": 1.5}}
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(
    jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_further_files_are_kept_and_verified(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(0), {}, {"groups.npz": b"content"})
  checkpoints.save(2, _state(0), {})
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.attached(1, "groups.npz") == b"content"
  assert checkpoints.attached(2, "groups.npz") is None
  checkpoints.close()
  (tmp_path / "1" / "groups.npz").write_bytes(b"contenu")
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(BrokenCheckpointError, match="groups"):
    checkpoints.attached(1, "groups.npz")
  checkpoints.close()


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(0), {})
  checkpoints.close()
  # What a kill in the middle of a write leaves behind.
  (tmp_path / "2.orbax-checkpoint-tmp-7").mkdir()
  reopened = Checkpoints(tmp_path)
  assert reopened.latest() == 1
  reopened.close()


def test_keeps_the_newest(tmp_path):
  checkpoints = Checkpoints(tmp_path, max_to_keep=2)
  for update in (1, 2, 3):
    checkpoints.save(update, _state(0), {})
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == [
    "2",
    "3",
  ]


def test_keeps_the_best_beside_the_newest(tmp_path):
  checkpoints = Checkpoints(tmp_path, max_to_keep=1)
  kept = []
  for update, score in enumerate([0.2, 0.5, None, 0.5, 0.4, None], 1):
    checkpoints.save(update, _state(0), {}, score=score)
    if update == 3:
      # What is best is known to another process, too.
      checkpoints.close()
      checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    checkpoints._wait()
    kept.append(checkpoints.updates())
  # Of equals the newest.
  assert kept == [[1], [2], [2, 3], [4], [4, 5], [4, 6]]
  assert checkpoints.newest_sound().update == 6
  assert checkpoints.problems(4) == []
  checkpoints.close()


def _saved_arrays(path):
  """What a checkpoint holds, by name."""
  manager = ocp.CheckpointManager(path, item_names=("state", "metadata"))
  restored = manager.restore(
    1, args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )
  manager.close()
  return restored.state


def test_of_adapters_nothing_frozen_is_written(tmp_path):
  lora = models.LoraConfig(2, 4.0, ("query", "up"))
  state = jax.tree.map(lambda x: x + 1, _state(0, lora))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, {})
  checkpoints.close()
  saved = _saved_arrays(tmp_path)
  # A and B of two projections with two moments each, and the step counter.
  assert len(saved) == 2 * 2 * 3 + 1
  assert all("lora_" in name or "count" in name for name in saved)
  # Layers x rank x (in + out): query 16 + 32, up 16 + 32; three arrays of each.
  assert sum(x.size for x in saved.values()) == 3 * 2 * 2 * (48 + 48) + 1

  reopened = Checkpoints(tmp_path)
  like = _state(1, lora)
  frozen = np.array(like.model.embedding[...])
  restored = reopened.restore(1, like)
  reopened.close()
  for a, b in zip(
    jax.tree.leaves((models.trainable(restored.model), restored.opt_state)),
    jax.tree.leaves((models.trainable(state.model), state.opt_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(restored.model.embedding[...], frozen)


def test_the_policy_is_read_without_the_optimizer(tmp_path):
  state = _state(0)
  checkpoints = Checkpoints(tmp_path)
  for update in (1, 3):
    checkpoints.save(update, state, {"update": update})
  checkpoints.close()
  reader = Checkpoints(tmp_path, create=False)
  assert reader.updates() == [1, 3]
  assert reader.metadata(1) == {"update": 1}
  policy = reader.restore_policy(3, jax.eval_shape(lambda: state.model))
  reader.close()
  assert jax.tree.structure(policy) == jax.tree.structure(state.model)
  for a, b in zip(
    jax.tree.leaves(policy), jax.tree.leaves(state.model), strict=True
  ):
    np.testing.assert_array_equal(a, b)


_NAMES = (
  "[x]",
  "a[0]b",
  "back\\slash",
  "two words",
  "ünï 文",
  "*?",
  "line\nbreak",
  "%20#{}|\"'$&;",
  "no\udcffutf8",
)


@pytest.mark.parametrize("name", _NAMES)
def test_a_folder_may_have_any_name(name, tmp_path):
  folder = tmp_path / name / "checkpoints"
  state = _state(0)
  checkpoints = Checkpoints(folder)
  for update in (1, 2, 3):
    checkpoints.save(update, state, {"update": update})
  checkpoints.close()
  assert [p.name for p in tmp_path.iterdir()] == [name]
  reopened = Checkpoints(folder, create=False)
  assert reopened.updates() == [2, 3]
  assert reopened.newest_sound() == (3, [])
  assert reopened.metadata(3) == {"update": 3}
  _assert_same(reopened.restore(3, _state(1)), state)
  policy = reopened.restore_policy(2, jax.eval_shape(lambda: state.model))
  reopened.close()
  _assert_same(policy, state.model)


def _assert_same(first, second):
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
  """A folder with the checkpoints 1 and 2, of different states."""
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  checkpoints = Checkpoints(folder)
  for update in (1, 2):
    checkpoints.save(update, _state(update), {"update": update})
  checkpoints.close()
  return folder


def _flip(path, other):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def _flip_the_last(path, other):
  path.write_bytes(path.read_bytes()[:-1] + b"\0")


def _truncate(path, other):
  path.write_bytes(path.read_bytes()[:-1])


def _empty(path, other):
  path.write_bytes(b"")


def _remove(path, other):
  path.unlink()


def _lengthen(path, other):
  path.write_bytes(path.read_bytes() + b"\0")


def _swap(path, other):
  own, theirs = path.read_bytes(), other.read_bytes()
  path.write_bytes(theirs)
  other.write_bytes(own)


def _files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


def _found(folder):
  checkpoints = Checkpoints(folder, create=False)
  try:
    return checkpoints.newest_sound()
  finally:
    checkpoints.close()


def _copied(folder, path):
  shutil.copytree(folder, path)
  return path


@pytest.mark.parametrize(
  "tamper", [_flip, _flip_the_last, _truncate, _empty, _remove, _lengthen]
)
def test_every_tampered_file_of_the_newest_is_found(
  tamper, two_checkpoints, tmp_path
):
  files = [
    p.relative_to(two_checkpoints) for p in _files(two_checkpoints / "2")
  ]
  assert len(files) > 8
  changed = 0
  for number, name in enumerate(files):
    folder = _copied(two_checkpoints, tmp_path / str(number))
    before = (folder / name).read_bytes()
    if not before and tamper not in (_remove, _lengthen):
      continue  # Nothing to change in an empty file.
    tamper(folder / name, None)
    if (folder / name).exists() and (folder / name).read_bytes() == before:
      continue
    changed += 1
    update, problems = _found(folder)
    assert update == 1, name
    assert len(problems) == 1
    assert "checkpoint 2: " in problems[0]
  assert changed > 5


@pytest.mark.parametrize("tamper", [_flip, _truncate, _empty, _remove])
def test_without_a_sound_checkpoint_all_are_named(
  tamper, two_checkpoints, tmp_path
):
  folder = _copied(two_checkpoints, tmp_path / "all")
  for path in _files(folder):
    if path.stat().st_size:
      tamper(path, None)
  with pytest.raises(BrokenCheckpointError) as error:
    _found(folder)
  assert "checkpoint 1: " in str(error.value)
  assert "checkpoint 2: " in str(error.value)
  assert "delete the run's folder" in str(error.value)


def test_what_is_broken_is_never_read(two_checkpoints, tmp_path):
  folder = _copied(two_checkpoints, tmp_path / "read")
  _flip(next(p for p in _files(folder / "2" / "state" / "d")), None)
  checkpoints = Checkpoints(folder, create=False)
  like = _state(0)
  with pytest.raises(BrokenCheckpointError, match="is not as it was"):
    checkpoints.restore(2, like)
  with pytest.raises(BrokenCheckpointError, match="is not as it was"):
    checkpoints.restore_policy(2, like.model)
  with pytest.raises(BrokenCheckpointError, match="is not as it was"):
    checkpoints.metadata(2)
  _assert_same(checkpoints.restore(1, like), _state(1))
  checkpoints.close()


def test_swapped_files_and_folders_are_found(two_checkpoints, tmp_path):
  for name in ("metadata/metadata", "manifest.json"):
    folder = _copied(two_checkpoints, tmp_path / name.replace("/", "-"))
    _swap(folder / "2" / name, folder / "1" / name)
    with pytest.raises(BrokenCheckpointError, match="checkpoint 1: "):
      _found(folder)
  folder = _copied(two_checkpoints, tmp_path / "folders")
  (folder / "1").rename(folder / "other")
  (folder / "2").rename(folder / "1")
  (folder / "other").rename(folder / "2")
  with pytest.raises(BrokenCheckpointError, match="it is of update 1, and its"):
    _found(folder)


def test_an_added_file_is_found(two_checkpoints, tmp_path):
  folder = _copied(two_checkpoints, tmp_path / "added")
  (folder / "2" / "state" / "more").write_text("", encoding="utf-8")
  assert _found(folder) == (
    1,
    ["checkpoint 2: state/more is not in the manifest"],
  )


def test_a_removed_checkpoint_is_missed(two_checkpoints, tmp_path):
  folder = _copied(two_checkpoints, tmp_path / "removed")
  shutil.rmtree(folder / "2")
  assert _found(folder) == (1, ["checkpoint 2 is missing"])
  shutil.rmtree(folder / "1")
  with pytest.raises(BrokenCheckpointError, match="1 is missing"):
    _found(folder)


@pytest.mark.parametrize("tamper", [_flip, _truncate, _empty, _remove])
def test_a_tampered_list_of_checkpoints_is_said(
  tamper, two_checkpoints, tmp_path
):
  folder = _copied(two_checkpoints, tmp_path / "list")
  tamper(folder / "kept.json", None)
  update, problems = _found(folder)
  assert update == 2
  assert len(problems) == 1
  assert problems[0].startswith("kept.json ")


def test_a_folder_in_the_place_of_a_file_is_found(two_checkpoints, tmp_path):
  folder = _copied(two_checkpoints, tmp_path / "manifest")
  (folder / "2" / "manifest.json").unlink()
  (folder / "2" / "manifest.json").mkdir()
  update, problems = _found(folder)
  assert update == 1
  assert "checkpoint 2: manifest.json cannot be read" in problems[0]
  folder = _copied(two_checkpoints, tmp_path / "list")
  (folder / "kept.json").unlink()
  (folder / "kept.json").mkdir()
  update, problems = _found(folder)
  assert update == 2
  assert problems[0].startswith("kept.json cannot be read")


def test_a_broken_checkpoint_is_replaced_by_the_next_of_its_number(
  two_checkpoints, tmp_path
):
  folder = _copied(two_checkpoints, tmp_path / "again")
  _flip(folder / "2" / "metadata" / "metadata", None)
  checkpoints = Checkpoints(folder)
  assert checkpoints.newest_sound().update == 1
  checkpoints.save(2, _state(5), {"update": 2})
  checkpoints.close()
  assert _found(folder) == (2, [])
  reopened = Checkpoints(folder, create=False)
  _assert_same(reopened.restore(2, _state(0)), _state(5))
  reopened.close()


def test_what_cannot_be_read_again_never_takes_a_place(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, max_to_keep=1)
  checkpoints.save(1, _state(0), {})
  checkpoints._wait()
  monkeypatch.setattr(
    manifest, "file_problems", lambda *_, **__: ["metadata has rotted"]
  )
  checkpoints.save(2, _state(0), {})
  with pytest.raises(OSError, match="metadata has rotted"):
    checkpoints.close()
  monkeypatch.undo()
  # The older one is deleted only after the newer one was verified.
  assert _found(tmp_path) == (1, [])


def test_a_full_disk_is_the_system_s_error_and_leaves_nothing(
  tmp_path, monkeypatch
):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(0), {})
  checkpoints._wait()

  def fail(name, shapes):
    # As TensorStore words it.
    raise ValueError(
      "RESOURCE_EXHAUSTED: Failed to write 6351 bytes to file 5: No space left "
      "on device [os_error_code='28']"
    )

  monkeypatch.setattr(checkpoints, "_check_arrays", fail)
  checkpoints.save(2, _state(0), {})
  with pytest.raises(OSError, match="No space left on device") as error:
    checkpoints._wait()
  assert error.value.errno == errno.ENOSPC
  assert error.value.filename == str(tmp_path)
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "kept.json"]
  assert _found(tmp_path) == (1, [])


def test_what_an_interrupted_write_left_is_cleared(tmp_path):
  (tmp_path / ".partial-4").mkdir()
  (tmp_path / ".partial-4" / "state").write_text("half", encoding="utf-8")
  (tmp_path / ".partial-5").write_text("half", encoding="utf-8")
  (tmp_path / ".partial-6").symlink_to(tmp_path / ".partial-4")
  Checkpoints(tmp_path, create=False).close()
  assert (tmp_path / ".partial-4").exists()
  Checkpoints(tmp_path).close()
  assert list(tmp_path.iterdir()) == []


def test_the_folder_is_its_owner_s_alone(tmp_path):
  folder = tmp_path / "run" / "checkpoints"
  before = os.umask(0)
  try:
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, _state(0), {})
    checkpoints.close()
  finally:
    os.umask(before)
  assert folder.stat().st_mode & 0o777 == 0o700
  assert folder.parent.stat().st_mode & 0o777 == 0o700
