"""Checkpoints: one folder an update, written by Orbax and verified by us."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx

from rapo_jax import files, hosts, models
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer import manifest as manifests
from rapo_jax.training.update import TrainState

_FORMAT_VERSION = 1
_MANIFEST_FILE = manifests.MANIFEST_FILE
_LEDGER_FILE = "kept.json"
_PARTIAL_PREFIX = ".partial-"
# TensorStore reads paths as URLs: `[` and `\` are lost, bytes that are no
# UTF-8 refused. These characters alone are known to be kept.
_PLAIN_PATH = re.compile(r"[\w/ .+=,@%:~-]*")
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_OPEN_FOLDERS = pathlib.Path("/proc/self/fd")


class BrokenCheckpointError(InputError):
  """A checkpoint that is not what was written."""


class Newest(NamedTuple):
  """The checkpoint that a run goes on from.

  Attributes:
    update: its number; None if no checkpoint was ever saved.
    problems: what is wrong with later ones, a line each.
  """

  update: int | None
  problems: list[str]


@hosts.held()
class Store:
  """Arrays on the disk: each process writes and reads its own slices.

  Args:
    path: folder of the checkpoints; it exists.
  """

  def __init__(self, path: pathlib.Path):
    self._handle: int | None = None
    self._path = self._safe_path(path)
    self._orbax = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler("state", "metadata")
    )

  @hosts.led
  def save(
    self, name: str, state: TrainState, metadata: dict[str, Any]
  ) -> None:
    """Writes a folder of that name, in the background."""
    self._orbax.save(
      self._path / name,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_named(_saved(state))),
        metadata=ocp.args.JsonSave(metadata),
      ),
      force=True,
    )

  @hosts.led
  def restore(self, name: str, like: TrainState) -> TrainState:
    """The state in a folder, as `like` lies; see `Checkpoints.restore`."""
    like_saved = _saved(like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like_saved))
    restored = self.read(name, state=ocp.args.StandardRestore(abstract))
    saved = _unnamed(restored.state, like_saved)
    model = models.with_trainable(like.model, saved.variables)
    return TrainState(model, saved.opt_state)

  def read(self, name: str, **items: Any) -> Any:
    """Some items of a folder; no other process need read them."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=own,
      active_processes={own},
      barrier_sync_key_prefix=f"read-{own}",
    )
    # Its own: a checkpointer keeps the kind of arguments an item was saved by.
    with ocp.Checkpointer(
      ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
      ),
      multiprocessing_options=alone,
    ) as reader:
      return reader.restore(self._path / name, args=ocp.args.Composite(**items))

  def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a folder, by name."""
    stored = self._orbax.metadata(self._path / name)
    arrays = stored.item_metadata.state.tree
    return {key: tuple(array.shape) for key, array in arrays.items()}

  def wait(self) -> None:
    """Waits for what `save` does in the background."""
    self._orbax.wait_until_finished()

  @hosts.led
  def close(self) -> None:
    """Ends what runs in the background."""
    self._orbax.close()
    if self._handle is not None:
      os.close(self._handle)
      self._handle = None

  def _safe_path(self, path: pathlib.Path) -> pathlib.Path:
    """Where the folder lies, in a spelling that Orbax reads as it stands."""
    if _PLAIN_PATH.fullmatch(str(path)) and str(path).isprintable():
      return path
    if not _OPEN_FOLDERS.is_dir():
      raise InputError(
        "on this system the path of a folder of checkpoints must hold nothing "
        "but letters, digits, spaces and / . + = , @ % : ~ - _, got "
        f"{str(path)!r}: choose another folder."
      )
    self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    return _OPEN_FOLDERS / str(self._handle)


@hosts.led
def open_store(path: pathlib.Path, mesh: jax.sharding.Mesh | None) -> Store:
  """A `Store`, on all hosts of a mesh."""
  del mesh  # Says where to call this.
  return Store(path)


class Checkpoints:
  """Saves and restores the training state of one run.

  A checkpoint becomes visible only when all of it is on the disk and verified.
  So a process killed at any moment leaves the one before it intact. Beside its
  files lies a manifest with a checksum of each; nothing is read before all of
  them agree. `kept.json` lists the checkpoints, so that one that was removed is
  missed. One process reads and writes them; of several hosts each writes its
  own slices, and the one that leads does the rest.

  Args:
    path: folder of the run's checkpoints, of any name.
    max_to_keep: older checkpoints are deleted once a newer one is verified. The
      one with the highest score is kept beside them.
    create: make the folder if it is missing, and delete what an interrupted
      write has left; not needed to read.
    mesh: devices that hold the state; None for one device. Those of several
      processes need a folder that all hosts share.

  Raises:
    InputError: the checkpoint library cannot write to a folder of that name.
  """

  def __init__(
    self,
    path: pathlib.Path,
    *,
    max_to_keep: int = 2,
    create: bool = True,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self._path = files.followed(path)
    self._max_to_keep = max_to_keep
    self._sound: set[int] = set()
    self._writing: concurrent.futures.Future[None] | None = None
    if create:
      files.make_private_folder(self._path)
      self._clear_partial()
    self._store = open_store(self._path, mesh)
    self._pool = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="checkpoint"
    )

  def latest(self) -> int | None:
    """Update number of the newest complete checkpoint, None without one."""
    return max(self.updates(), default=None)

  def updates(self) -> list[int]:
    """Update numbers of all complete checkpoints, from old to new."""
    return self.numbers(self._path)

  @staticmethod
  def numbers(path: pathlib.Path) -> list[int]:
    """Update numbers of the checkpoints in a folder, from old to new."""
    return sorted(
      int(entry.name)
      for entry in path.iterdir()
      if _NUMBER.fullmatch(entry.name) and entry.is_dir()
    )

  def newest_sound(self) -> Newest:
    """The newest checkpoint that is as it was written.

    Raises:
      BrokenCheckpointError: there are or were checkpoints, and none is sound;
        says what is wrong with each.
    """
    lost, problems = self._lost()
    for update in sorted({*self.updates(), *lost}, reverse=True):
      found = (
        [f"checkpoint {update} is missing"]
        if update in lost
        else [f"checkpoint {update}: {line}" for line in self.problems(update)]
      )
      if not found:
        return Newest(update, problems)
      problems += found
    if problems:
      raise BrokenCheckpointError(
        f"a run goes on from a sound checkpoint, and {self._path} holds none:\n"
        + "\n".join(f"  {line}" for line in problems)
        + "\nput its files back as they were, or delete the run's folder to "
        "train it from the start."
      )
    return Newest(None, [])

  def problems(self, update: int) -> list[str]:
    """What differs between a checkpoint and what was written, a line each."""
    if update in self._sound:
      return []
    folder = self._path / str(update)
    try:
      manifest = _read_manifest(folder, update)
    except BrokenCheckpointError as error:
      return [str(error)]
    found = manifests.file_problems(folder, manifest.files, checksums=True)
    if not found:
      self._sound.add(update)
    return found

  def save(
    self,
    update: int,
    state: TrainState,
    metadata: dict[str, Any],
    attached: Mapping[str, bytes] | None = None,
    score: float | None = None,
  ) -> None:
    """Writes the state after `update` updates, in the background.

    Of a model with adapters they alone are written, with their optimizer state.
    Errors of the write before this one are raised here.

    Args:
      update: number of updates behind the state.
      state: of training.
      metadata: values of JSON.
      attached: contents of further files, by name; see `attached`.
      score: by which the best one is kept; None for one that has none.
    """
    self._wait()
    partial = f"{_PARTIAL_PREFIX}{update}"
    with self._disk_errors():
      self._store.save(partial, state, metadata)
    shapes = {
      name: tuple(leaf.shape) for name, leaf in _named(_saved(state)).items()
    }
    self._writing = self._pool.submit(
      self._finish, update, partial, shapes, dict(attached or {}), score
    )

  def restore(self, update: int, like: TrainState) -> TrainState:
    """State of a checkpoint; read and judge its `metadata` first.

    Args:
      update: one that exists.
      like: a state of the same structure. Trained values are not read, only
        where they lie; frozen values are taken from here.

    Raises:
      BrokenCheckpointError: it is not as it was written.
    """
    self._check(update)
    return self._store.restore(str(update), like)

  def metadata(self, update: int) -> dict[str, Any]:
    """What was saved beside the state of a checkpoint that exists.

    Raises:
      BrokenCheckpointError: it is not as it was written.
    """
    return self._read(update, metadata=ocp.args.JsonRestore()).metadata

  def attached(self, update: int, name: str) -> bytes | None:
    """Content of a further file of a checkpoint that exists; None without it.

    Raises:
      BrokenCheckpointError: the checkpoint is not as it was written.
    """
    self._check(update)
    path = self._path / str(update) / name
    return path.read_bytes() if path.exists() else None

  def restore_policy(self, update: int, like: models.Decoder) -> models.Decoder:
    """The policy of a checkpoint on the default device, and no optimizer state.

    Args:
      update: one that exists, written on any devices.
      like: a decoder of the same structure. Trained values are not read and may
        be abstract; frozen values are taken from here.

    Raises:
      BrokenCheckpointError: it is not as it was written.
    """
    variables = models.trainable(like)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
      for name, leaf in _named(_Saved(variables, ())).items()
    }
    restored = self._read(
      update,
      state=ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
    saved = _unnamed(restored.state, _Saved(variables, ()))
    return models.with_trainable(like, saved.variables)

  def close(self) -> None:
    """Waits for the last write and raises its error if it failed."""
    try:
      self._wait()
    finally:
      self._pool.shutdown()
      self._store.close()

  def _wait(self) -> None:
    """Waits for a write, and raises its error."""
    writing, self._writing = self._writing, None
    if writing is not None:
      writing.result()

  def _read(self, update: int, **items: Any) -> Any:
    """Some items of a checkpoint, after all of its files were verified."""
    self._check(update)
    return self._store.read(str(update), **items)

  def _check(self, update: int) -> None:
    """Refuses a checkpoint that is not as it was written."""
    found = self.problems(update)
    if found:
      raise BrokenCheckpointError(
        f"checkpoint {update} in {self._path} is not as it was written: "
        f"{'; '.join(found)}. Take another one, or put its files back."
      )

  def _finish(
    self,
    update: int,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    attached: Mapping[str, bytes],
    score: float | None,
  ) -> None:
    """Verifies what was written and puts it in its place."""
    with self._disk_errors():
      self._store.wait()
      partial = self._path / name
      self._check_arrays(name, shapes)
      for file, content in attached.items():
        (partial / file).write_bytes(content)
      written = _Manifest(update, manifests.describe_files(partial))
      (partial / _MANIFEST_FILE).write_text(written.text(), encoding="utf-8")
      files.sync_tree(partial)
      _forget_cached(partial)
      found = manifests.file_problems(partial, written.files, checksums=True)
      if found:
        raise OSError(
          f"checkpoint {update} in {self._path} cannot be read as it was "
          f"written: {'; '.join(found)}. The one before it is untouched; look "
          "at the disk."
        )
      self._place(update, partial, score)

  @contextlib.contextmanager
  def _disk_errors(self) -> Iterator[None]:
    """Clears what a failed write leaves, and raises the system's own error.

    Raises:
      OSError: instead of TensorStore's ValueError, as for a full disk.
    """
    try:
      yield
    except (ValueError, OSError) as error:
      self._clear_partial()
      found = _SYSTEM_ERROR.search(str(error))
      if found is None or isinstance(error, OSError):
        raise
      number = int(found[1])
      raise OSError(number, os.strerror(number), str(self._path)) from error

  def _clear_partial(self) -> None:
    for entry in self._path.iterdir():
      if not entry.name.startswith(_PARTIAL_PREFIX):
        continue
      if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
      else:
        entry.unlink()

  def _check_arrays(
    self, name: str, shapes: Mapping[str, tuple[int, ...]]
  ) -> None:
    """Sees that every array can be opened again, with its shape."""
    there = self._store.shapes(name)
    if there != shapes:
      wrong = sorted(dict(there.items() ^ shapes.items()))
      raise OSError(
        f"a checkpoint in {self._path} cannot be read as it was written; "
        f"these arrays are missing or of another shape: {', '.join(wrong)}."
      )

  def _place(
    self, update: int, partial: pathlib.Path, score: float | None
  ) -> None:
    """Makes a written checkpoint visible and deletes those it replaces."""
    target = self._path / str(update)
    self._sound.discard(update)
    if target.exists():
      self._delete(target)
    files.rename(partial, target)
    older = [number for number in self.updates() if number <= update]
    scores = self._scores([number for number in older if number != update])
    if score is not None:
      scores[update] = score
    kept = older[-self._max_to_keep :]
    if scores:
      kept = sorted({*kept, max(scores, key=lambda n: (scores[n], n))})
    _write_ledger(
      self._path,
      _Ledger(kept, {n: s for n, s in scores.items() if n in kept}),
    )
    for number in older:
      if number not in kept:
        self._delete(self._path / str(number))

  def _scores(self, updates: Sequence[int]) -> dict[int, float]:
    """Scores of those checkpoints that have one."""
    try:
      scores = _read_ledger(self._path).scores
    except (ValueError, KeyError, TypeError, OSError):
      return {}
    return {n: scores[n] for n in updates if n in scores}

  def _delete(self, folder: pathlib.Path) -> None:
    """Deletes a checkpoint that is never seen in part."""
    hidden = self._path / f"{_PARTIAL_PREFIX}old-{folder.name}"
    folder.rename(hidden)
    shutil.rmtree(hidden)

  def _lost(self) -> tuple[set[int], list[str]]:
    """Checkpoints that were kept and are gone; what is wrong with the list."""
    there = self.updates()
    try:
      listed = _read_ledger(self._path).kept
    except FileNotFoundError:
      missing = [f"{_LEDGER_FILE} is missing"] if there else []
      return set(), missing
    except (ValueError, KeyError, TypeError, OSError) as error:
      return set(), [f"{_LEDGER_FILE} cannot be read ({error})"]
    return set(listed) - set(there), []


class _Manifest(NamedTuple):
  """The content of a checkpoint.

  Attributes:
    update: number of updates behind it.
    files: by their path relative to its folder, the manifest apart.
  """

  update: int
  files: Mapping[str, manifests.FileInfo]

  def text(self) -> str:
    """As it is written, with a checksum of its own in the last line."""
    content = json.dumps(
      {
        "format_version": _FORMAT_VERSION,
        "update": self.update,
        "files": {
          name: {"bytes": info.bytes, "sha256": info.sha256}
          for name, info in sorted(self.files.items())
        },
      },
      indent=1,
    )
    return f"{content}\n{_digest(content)}\n"


def _read_manifest(folder: pathlib.Path, update: int) -> _Manifest:
  """Reads a checkpoint's manifest.

  Raises:
    BrokenCheckpointError: it is not as it was written, or of another update.
  """
  try:
    text = (folder / _MANIFEST_FILE).read_bytes().decode()
    content, separator, _ = text.rstrip("\n").rpartition("\n")
    if not separator or text != f"{content}\n{_digest(content)}\n":
      raise BrokenCheckpointError(f"{_MANIFEST_FILE} has another checksum")
    values = json.loads(content)
    if values["format_version"] != _FORMAT_VERSION:
      raise BrokenCheckpointError(
        f"{_MANIFEST_FILE} has format version {values['format_version']}, and "
        f"{_FORMAT_VERSION} is read"
      )
    written = _Manifest(
      values["update"],
      {name: manifests.FileInfo(**f) for name, f in values["files"].items()},
    )
  except FileNotFoundError:
    raise BrokenCheckpointError(f"{_MANIFEST_FILE} is missing") from None
  except OSError as error:
    raise BrokenCheckpointError(
      f"{_MANIFEST_FILE} cannot be read ({error.strerror})"
    ) from error
  except UnicodeDecodeError:
    raise BrokenCheckpointError(f"{_MANIFEST_FILE} is no text") from None
  if written.update != update:
    raise BrokenCheckpointError(
      f"it is of update {written.update}, and its folder is named {update}"
    )
  return written


class _Ledger(NamedTuple):
  """Which checkpoints a folder holds.

  Attributes:
    kept: their update numbers.
    scores: of those that have one.
  """

  kept: list[int]
  scores: dict[int, float]


def _write_ledger(path: pathlib.Path, ledger: _Ledger) -> None:
  content = json.dumps(ledger._asdict())
  with files.replaced_file(path / _LEDGER_FILE) as new:
    new.write_text(f"{content}\n{_digest(content)}\n", encoding="utf-8")


def _read_ledger(path: pathlib.Path) -> _Ledger:
  """Raises FileNotFoundError, or ValueError for what was not written so."""
  text = (path / _LEDGER_FILE).read_bytes().decode()
  content = text.partition("\n")[0]
  if text != f"{content}\n{_digest(content)}\n":
    raise InputError("it has another checksum")
  values = json.loads(content)
  return _Ledger(
    [int(number) for number in values["kept"]],
    {int(n): float(score) for n, score in values["scores"].items()},
  )


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _forget_cached(folder: pathlib.Path) -> None:
  """Drops a folder's files from memory, so that they are read from the disk."""
  if not hasattr(os, "posix_fadvise"):
    return
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Saved(NamedTuple):
  """What a checkpoint holds of a state: nothing that is frozen."""

  variables: dict[str, nnx.Variable]
  opt_state: optax.OptState


def _saved(state: TrainState) -> _Saved:
  return _Saved(models.trainable(state.model), state.opt_state)


def _named(tree: Any) -> dict[str, Any]:
  """Leaves by their path, whatever classes the tree is made of."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _unnamed(leaves: dict[str, Any], like: Any) -> Any:
  """Undoes `_named`."""
  paths, structure = jax.tree_util.tree_flatten_with_path(like)
  return jax.tree.unflatten(
    structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths]
  )
