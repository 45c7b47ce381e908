"""Many texts in two files that are mapped, not read.

`NAME.bin` has the texts in UTF-8, one behind the other. `NAME.offsets` has
their N + 1 bounds in bytes, as little-endian uint64.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from rapo_jax.errors import InputError

BYTES_SUFFIX = ".bin"
OFFSETS_SUFFIX = ".offsets"
_OFFSET = np.dtype("<u8")


class PackedWriter:
  """Writes texts. One thread uses it."""

  def __init__(self, path: pathlib.Path):
    """Begins with no texts.

    Args:
      path: of both files, without their endings; their folder exists.
    """
    self._bytes = path.with_name(path.name + BYTES_SUFFIX).open("wb")
    self._offsets = path.with_name(path.name + OFFSETS_SUFFIX).open("wb")
    self._offsets.write(np.zeros(1, _OFFSET).tobytes())
    self._end = 0

  def __enter__(self) -> PackedWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self._bytes.close()
    self._offsets.close()

  def extend(self, texts: Iterable[str]) -> None:
    """Writes texts behind those that are there."""
    encoded = [text.encode("utf-8") for text in texts]
    sizes = np.fromiter(map(len, encoded), np.uint64, len(encoded))
    ends = self._end + np.cumsum(sizes, dtype=np.uint64)
    self._bytes.write(b"".join(encoded))
    self._offsets.write(ends.astype(_OFFSET).tobytes())
    self._end += int(sizes.sum())


class PackedTexts(Sequence[str]):
  """Reads texts where they lie."""

  def __init__(self, path: pathlib.Path):
    """Maps both files.

    Args:
      path: of both files, without their endings.

    Raises:
      InputError: they are missing, or do not belong together.
    """
    self._bytes = _mapped(
      path.with_name(path.name + BYTES_SUFFIX), np.dtype(np.uint8)
    )
    self._offsets = _mapped(path.with_name(path.name + OFFSETS_SUFFIX), _OFFSET)
    if not len(self._offsets) or self._offsets[-1] != len(self._bytes):
      raise InputError(
        f"{path}{BYTES_SUFFIX} and {path.name}{OFFSETS_SUFFIX} must belong "
        "together, and do not: copy the folder again."
      )

  def __len__(self) -> int:
    return len(self._offsets) - 1

  @overload
  def __getitem__(self, index: int) -> str: ...

  @overload
  def __getitem__(self, index: slice) -> list[str]: ...

  def __getitem__(self, index: int | slice) -> str | list[str]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not -len(self) <= index < len(self):
      raise IndexError(f"there are {len(self)} texts, got the number {index}")
    return self.encoded(index % len(self)).decode("utf-8", errors="replace")

  def encoded(self, index: int) -> bytes:
    """The UTF-8 of the text of a number from 0 on."""
    start, end = self._offsets[index : index + 2].tolist()
    return self._bytes[start:end].tobytes()

  def problems(self) -> list[str]:
    """What is wrong with the bounds; reads all of them."""
    if np.any(self._offsets[1:] < self._offsets[:-1]):
      return ["a bound of a text is below the one before it"]
    return []


def _mapped(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  if not path.is_file():
    raise InputError(f"{path} is missing: copy the folder again.")
  size = path.stat().st_size
  if size % dtype.itemsize:
    raise InputError(
      f"{path} must hold whole numbers of {dtype.itemsize} bytes, and has "
      f"{size} bytes: copy the folder again."
    )
  if not size:
    return np.empty(0, dtype)
  return np.asarray(np.memmap(path, dtype, mode="r"))
