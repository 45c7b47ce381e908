"""The manifest of a Step-Trace Buffer's folder, and what is checked by it.

The manifest is written last: a folder without one is not a buffer. It names
every file with its size and digest. So opening a folder detects a partial copy
or a later change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapo_jax import files as files_lib
from rapo_jax import text_files
from rapo_jax.errors import InputError

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
MARKS = {MANIFEST_FILE: "num_traces"}
"""The file that makes a folder a buffer, and a key in it."""
TRACES_FILE = "traces.parquet"
INDEX_FOLDER = "index"
_SHA256 = re.compile(r"[0-9a-f]{64}")
PARTIAL_SUFFIX = ".partial"
"""Ends the name of a build until it is finished, after the buffer's name."""


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
    InputError: it is missing, the build was interrupted, it cannot be read, or
      it is of another format; says with which command to go on.
  """
  directory = pathlib.Path(directory)
  path = directory / MANIFEST_FILE
  if not path.is_file():
    if partial_folder(directory).exists():
      raise InputError(
        f"{directory} is not built yet: {partial_folder(directory)} is what an"
        " interrupted build left. Go on with the command that began it and"
        " --resume: `python -m experiments.buffer build --resume` or"
        " `python -m experiments.buffer import --resume`."
      )
    raise InputError(
      f"{directory} holds no Step-Trace Buffer: it has no {MANIFEST_FILE}."
      f" If it should, copy it again whole; `{repair_command(directory)}`"
      " tells what is there. Otherwise build one: `python -m"
      " experiments.buffer build`."
    )
  try:
    content = text_files.read_json(path)
  except (ValueError, OSError) as error:
    raise InputError(_unreadable(path, str(error))) from error
  if not isinstance(content, dict):
    raise InputError(_unreadable(path, "it is no object"))
  version = content.get("format_version")
  if version != FORMAT_VERSION:
    raise InputError(
      f"{directory} has format version {version!a:.60}, this code reads"
      f" {FORMAT_VERSION}. Build it again: `python -m experiments.buffer"
      " build` or `python -m experiments.buffer import`."
    )
  fields = _Fields()
  manifest = fields.manifest(content)
  if fields.problems:
    raise InputError(_unreadable(path, "; ".join(fields.problems)))
  return manifest


class _Fields:
  """Reads the fields of a manifest and notes what is wrong with them.

  Attributes:
    problems: a rule and a value each.
  """

  def __init__(self) -> None:
    self.problems: list[str] = []

  def manifest(self, content: Mapping[str, Any]) -> Manifest:
    self._check_names("", content, Manifest)
    agents = self._objects("agents", content.get("agents"))
    files = self._objects("files", content.get("files"))
    index = self._object("index", content.get("index"))
    self._text("index.kind", index.get("kind"))
    for name in files:
      self._check_path(name)
    return Manifest(
      version=self._whole("version", content.get("version"), least=1),
      agents={name: self._counts(name, c) for name, c in agents.items()},
      num_traces=self._whole("num_traces", content.get("num_traces")),
      num_keys=self._whole("num_keys", content.get("num_keys")),
      num_tokens=self._whole("num_tokens", content.get("num_tokens")),
      encoder=self._encoder(self._object("encoder", content.get("encoder"))),
      index=index,
      files={name: self._file(name, file) for name, file in files.items()},
    )

  def _counts(self, agent: str, content: Mapping[str, Any]) -> AgentCounts:
    where = f"agents.{agent}"
    self._check_names(f"{where}.", content, AgentCounts)
    return AgentCounts(
      *(
        self._whole(f"{where}.{field.name}", content.get(field.name))
        for field in dataclasses.fields(AgentCounts)
      )
    )

  def _encoder(self, content: Mapping[str, Any]) -> EncoderInfo:
    self._check_names("encoder.", content, EncoderInfo)
    return EncoderInfo(
      id=self._text("encoder.id", content.get("id")),
      sha256=self._digest("encoder.sha256", content.get("sha256")),
      max_tokens=self._whole(
        "encoder.max_tokens", content.get("max_tokens"), least=1
      ),
    )

  def _file(self, name: str, content: Mapping[str, Any]) -> FileInfo:
    self._check_names(f"files.{name}.", content, FileInfo)
    return FileInfo(
      bytes=self._whole(f"files.{name}.bytes", content.get("bytes")),
      sha256=self._digest(f"files.{name}.sha256", content.get("sha256")),
    )

  def _check_names(
    self, where: str, content: Mapping[str, Any], cls: type
  ) -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    for name in sorted(content.keys() - known):
      self.problems.append(f"{where}{name} is no field of it")

  def _check_path(self, name: str) -> None:
    path = pathlib.PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
      self.problems.append(
        f"files must have paths within the folder, got {name!a:.60}"
      )

  def _object(self, where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
      return value
    self.problems.append(f"{where} must be an object, got {value!a:.60}")
    return {}

  def _objects(self, where: str, value: Any) -> dict[str, dict[str, Any]]:
    content = self._object(where, value)
    return {
      name: self._object(f"{where}.{name}", item)
      for name, item in content.items()
    }

  def _whole(self, where: str, value: Any, least: int = 0) -> int:
    if type(value) is int and least <= value < 2**63:
      return value
    self.problems.append(
      f"{where} must be a whole number of at least {least}, got {value!a:.60}"
    )
    return least

  def _text(self, where: str, value: Any) -> str:
    if isinstance(value, str) and value:
      return value
    self.problems.append(f"{where} must be a text, got {value!a:.60}")
    return ""

  def _digest(self, where: str, value: Any) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
      return value
    self.problems.append(
      f"{where} must have 64 hexadecimal digits, got {value!a:.80}"
    )
    return ""


def _unreadable(path: pathlib.Path, reason: str) -> str:
  return (
    f"{path} must be a manifest as it was written, but cannot be read"
    f" ({reason}). Copy the folder again; `{repair_command(path.parent)}`"
    " checks the copy."
  )


def check_folder(directory: pathlib.Path, problems: Sequence[str]) -> None:
  """Refuses a buffer with problems.

  Args:
    directory: of the buffer.
    problems: a line each; empty without problems.

  Raises:
    InputError: there are some; says with which command to go on.
  """
  if problems:
    raise InputError(
      f"{directory} is not as it was saved: {'; '.join(problems)}. Copy the"
      f" folder again, or build the buffer again;"
      f" `{repair_command(directory)}` checks all of it."
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
