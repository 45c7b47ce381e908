"""The manifest of a Step-Trace Buffer's folder, and what is checked by it.

The manifest is written last: a folder without one is not a buffer. It names
every file with its size and digest, so that a folder that was copied in part,
or changed since, is noticed when it is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rapo_jax import files as files_lib

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
TRACES_FILE = "traces.parquet"
INDEX_FOLDER = "index"
PARTIAL_SUFFIX = ".partial"
"""What a build is called until it is finished, after the buffer's name."""


@dataclasses.dataclass(frozen=True)
class AgentCounts:
  """What one agent contributed.

  Attributes:
    num_trajectories: distinct trajectory ids, "" apart.
    num_traces: steps.
    num_tokens: of these steps, in the encoder's wordpieces, tags apart.
  """

  num_trajectories: int
  num_traces: int
  num_tokens: int


@dataclasses.dataclass(frozen=True)
class EncoderInfo:
  """Which encoder embedded the keys.

  Attributes:
    id: its name, for people.
    sha256: its digest; vectors of another do not compare.
    max_tokens: wordpieces of a text that it reads.
  """

  id: str
  sha256: str
  max_tokens: int


@dataclasses.dataclass(frozen=True)
class FileInfo:
  """Size and digest of a file."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Content of manifest.json.

  Attributes:
    version: of the content; it grows with every addition.
    agents: counts by the name of the agent (`StepTrace.source`).
    num_traces: rows of traces.parquet.
    num_keys: distinct keys, which are the rows of the index.
    num_tokens: of all steps, as in `AgentCounts`.
    encoder: embedded the keys.
    index: its kind and what was chosen for it.
    files: by their path relative to the folder, the manifest apart.
    format_version: of the layout.
  """

  version: int
  agents: Mapping[str, AgentCounts]
  num_traces: int
  num_keys: int
  num_tokens: int
  encoder: EncoderInfo
  index: Mapping[str, Any]
  files: Mapping[str, FileInfo]
  format_version: int = FORMAT_VERSION


def repair_command(directory: pathlib.Path) -> str:
  """The command that tells what is wrong with a buffer, and what to do."""
  return f"python -m experiments.buffer verify --buffer {directory}"


def partial_folder(directory: pathlib.Path) -> pathlib.Path:
  """Where a buffer is built until it is finished; a link is followed."""
  directory = files_lib.followed(directory)
  return directory.with_name(directory.name + PARTIAL_SUFFIX)


def write_manifest(directory: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest of a folder whose files are all there."""
  text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
  (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | pathlib.Path) -> Manifest:
  """Reads the manifest of a buffer's folder; looks at no other file.

  Raises:
    ValueError: there is none, its build was interrupted, it cannot be read, or
      it is of another format; says with which command to go on.
  """
  directory = pathlib.Path(directory)
  path = directory / MANIFEST_FILE
  if not path.is_file():
    if partial_folder(directory).exists():
      raise ValueError(
        f"{directory} is not built yet: {partial_folder(directory)} is what an"
        " interrupted build left. Go on with the command that began it and"
        " --resume: `python -m experiments.buffer build --resume` or"
        " `python -m experiments.buffer import --resume`."
      )
    raise ValueError(
      f"{directory} holds no Step-Trace Buffer: it has no {MANIFEST_FILE}."
      f" If it should, copy it again whole; `{repair_command(directory)}`"
      " tells what is there. Otherwise build one: `python -m"
      " experiments.buffer build`."
    )
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    version = content.get("format_version")
  except (ValueError, AttributeError) as error:
    raise ValueError(_unreadable(path, str(error))) from error
  if version != FORMAT_VERSION:
    raise ValueError(
      f"{directory} has format version {version}, this code reads"
      f" {FORMAT_VERSION}. Build it again: `python -m experiments.buffer"
      " build` or `python -m experiments.buffer import`."
    )
  try:
    return Manifest(
      **content
      | {
        "agents": {
          name: AgentCounts(**counts)
          for name, counts in content["agents"].items()
        },
        "encoder": EncoderInfo(**content["encoder"]),
        "files": {
          name: FileInfo(**file) for name, file in content["files"].items()
        },
      }
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(_unreadable(path, str(error))) from error


def _unreadable(path: pathlib.Path, reason: str) -> str:
  return (
    f"{path} must be a manifest as it was written, but cannot be read"
    f" ({reason}). Copy the folder again; `{repair_command(path.parent)}`"
    " checks the copy."
  )


def describe_files(directory: pathlib.Path) -> dict[str, FileInfo]:
  """Size and digest of every file below a folder, the manifest apart."""
  return {
    name: FileInfo((directory / name).stat().st_size, _sha256(directory / name))
    for name in _file_names(directory)
  }


def file_problems(
  directory: pathlib.Path, files: Mapping[str, FileInfo], *, checksums: bool
) -> list[str]:
  """What differs between a folder's files and its manifest, a line each.

  Args:
    directory: the folder.
    files: what its manifest says of them, by path.
    checksums: read every file and compare its digest, not just its size.
  """
  problems = []
  there = _file_names(directory)
  for name in sorted({*there, *files}):
    if name not in files:
      problems.append(f"{name} is not in the manifest")
      continue
    wanted, path = files[name], directory / name
    if name not in there:
      problems.append(f"{name} is missing")
    elif (size := path.stat().st_size) != wanted.bytes:
      problems.append(f"{name} has {size} bytes instead of {wanted.bytes}")
    elif checksums and _sha256(path) != wanted.sha256:
      problems.append(f"{name} has another checksum")
  return problems


def _file_names(directory: pathlib.Path) -> list[str]:
  """Paths of all files below a folder, relative to it."""
  names = (
    path.relative_to(directory).as_posix()
    for path in directory.rglob("*")
    if path.is_file()
  )
  return sorted(name for name in names if name != MANIFEST_FILE)


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
