"""Tensors in safetensors files, mapped when read and streamed when written.

The library's own reader copies what it returns and keeps whole files mapped.
Here one tensor at a time is mapped. So the memory beyond the parameters stays
small for files of any size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.models.checkpoint_layout import INDEX, WEIGHTS
from rapo_jax.text_files import read_object

_DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_NAMED = 8
"""Tensors or files that a message lists."""
_LENGTH_BYTES = 8
"""In front of the header stands its length."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in a file.

  Attributes:
    path: the file.
    dtype_name: in the format's spelling.
    shape: its shape.
    offset: where in the file its data begins.
    num_bytes: size of its data.
  """

  path: pathlib.Path
  dtype_name: str
  shape: tuple[int, ...]
  offset: int
  num_bytes: int

  @property
  def readable(self) -> bool:
    """Whether its dtype is one of float32, float16 and bfloat16."""
    return self.dtype_name in _DTYPES

  def map(self) -> np.ndarray:
    """Returns a read-only view of the file; unmapped with its last view."""
    return np.memmap(
      self.path,
      _DTYPES[self.dtype_name],
      mode="r",
      offset=self.offset,
      shape=self.shape,
    )


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file with sorted keys."""
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  path.write_text(text, encoding="utf-8")


def stored_tensors(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Finds every tensor of a checkpoint, in one file or in several.

  Args:
    folder: holds `model.safetensors`, or an index and the files it names.

  Raises:
    MissingInputError: there are no weights, or a file that the index names is
      absent.
    InputError: a file is cut short or otherwise broken; names it. Or weights
      are there twice.
  """
  if (folder / INDEX).is_file():
    shards = _indexed_files(folder)
  elif (folder / WEIGHTS).is_file():
    shards = [WEIGHTS]
  else:
    raise MissingInputError(
      f"A checkpoint folder holds {WEIGHTS} or {INDEX}, and {folder} does "
      "not; convert other formats to safetensors first."
    )
  tensors: dict[str, StoredTensor] = {}
  for shard in shards:
    found = file_tensors(folder / shard)
    twice = sorted(found.keys() & tensors.keys())
    if twice:
      raise InputError(
        f"A tensor must lie in one file, and {folder / shard} and "
        f"{tensors[twice[0]].path.name} both hold {name_some(twice)}; download "
        "the model again."
      )
    tensors |= found
  return tensors


def name_some(items: Iterable[str], separator: str = ", ") -> str:
  """Lists the first items, and says how many more there are."""
  listed = list(items)
  shown = separator.join(listed[:_MOST_NAMED])
  more = len(listed) - _MOST_NAMED
  return f"{shown}{separator}and {more} more" if more > 0 else shown


def _indexed_files(folder: pathlib.Path) -> list[str]:
  """Names of the files that an index spreads a checkpoint over."""
  index = folder / INDEX
  weight_map = read_object(index).get("weight_map")
  if (
    not isinstance(weight_map, dict)
    or not weight_map
    or not all(isinstance(name, str) for name in weight_map.values())
  ):
    raise InputError(
      f"{index} must name the file of each tensor under weight_map; copy or "
      "download it again."
    )
  shards = sorted(set(weight_map.values()))
  outside = [shard for shard in shards if pathlib.Path(shard).name != shard]
  if outside:
    raise InputError(
      f"{index} must name files beside it, got {name_some(outside)}; download "
      "the model again."
    )
  if (folder / WEIGHTS).is_file() and WEIGHTS not in shards:
    raise InputError(
      f"A checkpoint folder must hold its weights once, and {folder} holds "
      f"{WEIGHTS} beside an index of other files. transformers reads the "
      f"former, other programs read the latter: delete {WEIGHTS}, or {INDEX} "
      "with its files."
    )
  absent = [shard for shard in shards if not (folder / shard).is_file()]
  if absent:
    raise MissingInputError(
      f"{index} names files that must lie beside it, and these do not: "
      f"{name_some(absent)}; copy or download them."
    )
  return shards


def file_tensors(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Finds every tensor of one file.

  Raises:
    InputError: it is cut short or otherwise broken; names it.
  """
  try:
    # Checks that the header is sound and that the data is all there.
    with safetensors.safe_open(str(path), framework="numpy"):
      pass
  except safetensors.SafetensorError as error:
    raise InputError(
      f"{path} must be a complete safetensors file ({error}); copy or "
      "download it again."
    ) from error
  with path.open("rb") as file:
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    header = json.loads(file.read(length))
  header.pop("__metadata__", None)
  return {
    name: StoredTensor(
      path,
      entry["dtype"],
      tuple(entry["shape"]),
      _LENGTH_BYTES + length + entry["data_offsets"][0],
      entry["data_offsets"][1] - entry["data_offsets"][0],
    )
    for name, entry in header.items()
  }


@dataclasses.dataclass(frozen=True)
class TensorToWrite:
  """A tensor that is fetched only when its turn comes.

  Attributes:
    name: its name in the file.
    dtype: one of float32, float16 and bfloat16.
    shape: its shape.
    fetch: returns its values.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  fetch: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    """Size in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
  folder: pathlib.Path,
  tensors: Iterable[TensorToWrite],
  max_shard_bytes: int,
) -> None:
  """Writes the tensors of a checkpoint, one in memory at a time.

  Args:
    folder: where to, and what `stored_tensors` reads.
    tensors: in the order in which they are spread over files.
    max_shard_bytes: most bytes in a file, but for a larger tensor alone; with
      more there are several files and an index.
  """
  shards: list[list[TensorToWrite]] = [[]]
  used = 0
  for tensor in tensors:
    if shards[-1] and used + tensor.num_bytes > max_shard_bytes:
      shards.append([])
      used = 0
    shards[-1].append(tensor)
    used += tensor.num_bytes
  if len(shards) == 1:
    write_file(folder / WEIGHTS, shards[0])
    return
  weight_map: dict[str, str] = {}
  total = 0
  for number, shard in enumerate(shards, start=1):
    name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    write_file(folder / name, shard)
    weight_map |= {tensor.name: name for tensor in shard}
    total += sum(tensor.num_bytes for tensor in shard)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  write_json(folder / INDEX, index)


def write_file(path: pathlib.Path, tensors: Iterable[TensorToWrite]) -> None:
  """Writes tensors into one file, one in memory at a time."""
  ordered = sorted(tensors, key=lambda tensor: tensor.name)
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for tensor in ordered:
    start, end = end, end + tensor.num_bytes
    header[tensor.name] = {
      "dtype": _DTYPE_NAMES[tensor.dtype],
      "shape": tensor.shape,
      "data_offsets": (start, end),
    }
  encoded = json.dumps(header, separators=(",", ":")).encode()
  # Data begins at a multiple of 8.
  encoded += b" " * (-len(encoded) % _LENGTH_BYTES)
  with path.open("wb") as file:
    file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little"))
    file.write(encoded)
    for tensor in ordered:
      # A transposed view would be written in the order of its memory.
      values = np.ascontiguousarray(tensor.fetch())
      file.write(values.reshape(-1).view(np.uint8).data)
