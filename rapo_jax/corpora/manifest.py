"""The manifest of a built corpus, and what is checked by it.

It is written last: a folder without one is no corpus. It names every file with
its size and digest.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rapo_jax import text_files
from rapo_jax.corpora.passages import Chunking
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.manifest import (
  MANIFEST_FILE,
  EncoderInfo,
  FileInfo,
  partial_folder,
)

FORMAT_VERSION = 1
KIND = "corpus"
MARKS = {MANIFEST_FILE: "num_passages"}
"""The file that makes a folder a corpus, and a key in it."""


@dataclasses.dataclass(frozen=True)
class Source:
  """What a corpus is made from; the same source gives the same corpus.

  Attributes:
    input: name, size and digest of the file of passages.
    chunking: how they were cut.
    encoder: embeds them; None where they are found by words alone.
    words: whether they are found by words.
  """

  input: Mapping[str, FileInfo]
  chunking: Chunking
  encoder: EncoderInfo | None
  words: bool


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Content of manifest.json.

  Attributes:
    source: what the corpus is made from.
    num_passages: chunks, where passages were cut.
    index: kind and parameters of the index over vectors; None without one.
    files: by their path relative to the folder, the manifest apart.
    kind: "corpus".
    format_version: of the layout.
  """

  source: Source
  num_passages: int
  index: Mapping[str, Any] | None
  files: Mapping[str, FileInfo]
  kind: str = KIND
  format_version: int = FORMAT_VERSION


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest of a folder whose files are all there."""
  text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
  (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: pathlib.Path) -> Manifest:
  """Reads the manifest of a corpus; looks at no other file.

  Raises:
    InputError: the folder is missing, not built to its end, no corpus, or of
      another format; says what to do.
  """
  path = folder / MANIFEST_FILE
  if not path.is_file():
    if partial_folder(folder).exists():
      raise InputError(
        f"{folder} is not built yet: {partial_folder(folder)} is what an "
        "interrupted build left. Go on with the command that began it, "
        "`python -m experiments.corpus build`."
      )
    raise InputError(
      f"{folder} must be a built corpus, and has no {MANIFEST_FILE}: correct "
      "the path, or build one with `python -m experiments.corpus build`."
    )
  content = text_files.read_json(path)
  kind = content.get("kind") if isinstance(content, dict) else None
  if kind != KIND:
    raise InputError(
      f"{path} must be of the kind {KIND!r}, got {kind!a:.60}: correct the "
      "path."
    )
  if content.get("format_version") != FORMAT_VERSION:
    raise InputError(
      f"{folder} has format version {content.get('format_version')!a:.60}, "
      f"this code reads {FORMAT_VERSION}: build it again."
    )
  try:
    manifest = _manifest(content)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(
      f"{path} must be a manifest as it was written, and is not "
      f"({type(error).__name__}: {error}): copy the folder again."
    ) from error
  return manifest


def source_of(content: Any) -> Source:
  """Reads a source from what `dataclasses.asdict` made of it.

  Raises:
    KeyError, TypeError, AttributeError, ValueError: it is none.
  """
  encoder = content["encoder"]
  if encoder is not None:
    encoder = EncoderInfo(
      str(encoder["id"]), str(encoder["sha256"]), int(encoder["max_tokens"])
    )
  return Source(
    input=_files(content["input"]),
    chunking=Chunking(**content["chunking"]),
    encoder=encoder,
    words=bool(content["words"]),
  )


def _manifest(content: Mapping[str, Any]) -> Manifest:
  index = content["index"]
  return Manifest(
    source=source_of(content["source"]),
    num_passages=int(content["num_passages"]),
    index=None if index is None else dict(index),
    files=_files(content["files"]),
  )


def _files(content: Mapping[str, Any]) -> dict[str, FileInfo]:
  for name in content:
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
      raise ValueError(f"{name!a:.60} is no path within the folder")
  return {
    name: FileInfo(int(info["bytes"]), str(info["sha256"]))
    for name, info in content.items()
  }


def is_partial(folder: pathlib.Path) -> bool:
  """Whether a corpus is being built there, or its build was interrupted."""
  return not folder.exists() and partial_folder(folder).exists()
