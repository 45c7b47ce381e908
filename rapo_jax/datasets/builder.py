"""Data sets as TFDS builders, kept as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2
import tensorflow_datasets as tfds

from rapo_jax import encrypted, files
from rapo_jax.datasets.base import DataSet, Row, rows_of
from rapo_jax.datasets.table import DATA_SETS
from rapo_jax.errors import InputError, MissingInputError, accessing

DATA_DIR_VARIABLE = "RAPO_DATA_DIR"
"""Environment variable with the folder of what is prepared."""
_MADE_FROM = "made_from.json"
_log = logging.getLogger(__name__)


def default_data_dir() -> pathlib.Path:
  """Where prepared data sets are kept, unless a task says otherwise."""
  named = os.environ.get(DATA_DIR_VARIABLE)
  return pathlib.Path(named or "~/.cache/rapo_jax/datasets").expanduser()


class Questions(tfds.core.GeneratorBasedBuilder):
  """Questions with reference answers; a config for each data set.

  Features: `id`, `question`, `answers` and `solution` are texts, and `extra` is
  a JSON object. `canary` is the key of texts that stay encrypted on the disk,
  or blank.
  """

  VERSION = tfds.core.Version("1.1.0")
  BUILDER_CONFIGS = tuple(
    tfds.core.BuilderConfig(name=name, description=one.title)
    for name, one in DATA_SETS.items()
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the files of the data set there:\n" + (
    "\n".join(f"{name}: {one.source}" for name, one in DATA_SETS.items())
  )

  chosen: Mapping[str, Sequence[pathlib.Path]] | None = None
  """Files of each split; None for those in TFDS's `manual_dir`."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.builder_config.description,
      homepage=DATA_SETS[self.builder_config.name].source,
      features=tfds.features.FeaturesDict(
        {
          "id": text(),
          "question": text(),
          "answers": tfds.features.Sequence(text()),
          "extra": text(),
          "canary": text(),
          "solution": text(),
        }
      ),
      # Order is ours: see `data.order`.
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Any]:
    data_set = DATA_SETS[self.builder_config.name]
    there = self.chosen
    if there is None:
      there = data_set.files(pathlib.Path(dl_manager.manual_dir))
    return {
      split: self._generate_examples(data_set, paths)
      for split, paths in there.items()
    }

  def _generate_examples(
    self, data_set: DataSet, paths: Sequence[pathlib.Path]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows_of(data_set, paths)):
      yield (
        number,
        {
          "id": row.row_id,
          "question": row.question,
          "answers": list(row.answers),
          "extra": json.dumps(dict(row.extra)),
          "canary": row.canary,
          "solution": row.solution,
        },
      )


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A data set on the disk.

  Attributes:
    name: of the data set.
    sources: rows of each split, random access (`tfds.data_source`).
  """

  name: str
  sources: Mapping[str, Any]

  def rows(self, split: str, limit: int | None = None) -> list[Row]:
    """Rows of a split in the order of the file; encrypted ones in clear.

    Raises:
      InputError: there is no such split, or its files are broken.
    """
    if split not in self.sources:
      raise InputError(
        f"{self.name} must have a split {split!r}, and its files gave "
        f"{', '.join(self.sources)}: put the missing file beside them."
      )
    source = self.sources[split]
    count = len(source) if limit is None else min(limit, len(source))
    try:
      return [_row(source[i]) for i in range(count)]
    # ArrayRecord reports a missing or shortened file as a bug.
    except RuntimeError as error:
      raise InputError(
        f"what is prepared of {self.name} must be whole, and is not ({error}): "
        "delete its folder, and prepare it again."
      ) from error


def _row(record: Mapping[str, Any]) -> Row:
  question, canary = record["question"].decode(), record["canary"].decode()
  answers = [text.decode() for text in record["answers"]]
  if canary:
    question = encrypted.decrypted(question, canary)
    answers = [encrypted.decrypted(text, canary) for text in answers]
  return Row(
    record["id"].decode(),
    question,
    tuple(answers),
    json.loads(record["extra"].decode()),
    solution=record["solution"].decode(),
  )


def prepare(
  name: str,
  source: pathlib.Path | None = None,
  data_dir: pathlib.Path | None = None,
) -> Prepared:
  """Prepares a data set, or opens what is prepared.

  Args:
    name: of `DATA_SETS`.
    source: the publisher's file, or a folder with the publisher's files; None
      for what is prepared already, or can be downloaded. Where the files differ
      from those that were prepared, they are prepared anew.
    data_dir: gets the prepared data; None for `default_data_dir`.

  Raises:
    MissingInputError: a file is missing, with where it is published.
    InputError: the name is no data set, or a file is broken.
  """
  if name not in DATA_SETS:
    raise InputError(
      f"a data set must be one of {', '.join(DATA_SETS)}, got {name!r}: "
      "correct the name."
    )
  folder = (data_dir or default_data_dir()) / name
  with accessing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  with files.locked(folder / ".lock"):
    if source is None:
      check_prepared(name, data_dir)
      if not is_prepared(name, data_dir):
        source = _download(DATA_SETS[name], folder / "downloads")
    if source is not None:
      _prepare_from(DATA_SETS[name], source, folder)
  builder = Questions(config=name, data_dir=str(folder / "tfds"))
  return Prepared(
    name,
    {split: builder.as_data_source(split) for split in builder.info.splits},
  )


def is_prepared(name: str, data_dir: pathlib.Path | None = None) -> bool:
  """Whether a data set is prepared; arguments as in `prepare`.

  What an older version has prepared, whose rows have other features, is not.
  """
  folder = (data_dir or default_data_dir()) / name
  return (folder / _MADE_FROM).exists() and any(
    (folder / "tfds").glob(f"*/*/{Questions.VERSION}")
  )


def check_prepared(name: str, data_dir: pathlib.Path | None = None) -> None:
  """Refuses a data set that is not prepared, and cannot be downloaded.

  Args:
    name: of `DATA_SETS`.
    data_dir: as in `prepare`.

  Raises:
    MissingInputError: says where its files are published.
  """
  data_set = DATA_SETS[name]
  if not is_prepared(name, data_dir) and not data_set.urls:
    raise MissingInputError(
      f"{data_set.title} must be prepared before it is read, and is not: get "
      f"its files from {data_set.source}, and name their folder in path, or "
      f"`python -m experiments.data prepare {name} --source <folder>`."
    )


def _download(data_set: DataSet, folder: pathlib.Path) -> pathlib.Path:
  """Fetches the plain files that are not there yet.

  Raises:
    MissingInputError: one cannot be had.
  """
  for name, url in data_set.urls.items():
    target = folder / name
    if target.exists():
      continue
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
      with (
        files.replaced_file(target) as new,
        httpx2.stream("GET", url, follow_redirects=True) as response,
        new.open("wb") as file,
      ):
        response.raise_for_status()
        for part in response.iter_bytes():
          file.write(part)
    except httpx2.HTTPError as error:
      raise MissingInputError(
        f"{url} cannot be downloaded ({type(error).__name__}: {error}): get "
        f"the files of {data_set.title} from {data_set.source}, and name their "
        "folder."
      ) from error
  return folder


def _prepare_from(
  data_set: DataSet, source: pathlib.Path, folder: pathlib.Path
) -> None:
  """Writes ArrayRecord, unless it was made from the same bytes."""
  with accessing(source):
    there = data_set.files(source)
    digests = {
      split: [
        _digest(file) for path in paths for file in data_set.read_from(path)
      ]
      for split, paths in there.items()
    }
  made_from = folder / _MADE_FROM
  if is_prepared(data_set.name, folder.parent):
    written = made_from.read_text(encoding="utf-8", errors="replace")
    if written == json.dumps(digests) + "\n":
      return
    _log.warning("%s: the files have changed, and are prepared anew", source)
  # Errors of a row come with their own message. Until then what was prepared
  # before stays.
  for paths in there.values():
    for path in paths:
      _, left_out = data_set.read(path)
      if left_out:
        _log.warning("%s: %d rows cannot be scored", path, left_out)
  made_from.unlink(missing_ok=True)
  shutil.rmtree(folder / "tfds", ignore_errors=True)
  builder = Questions(
    config=data_set.name,
    data_dir=str(folder / "tfds"),
    file_format="array_record",
  )
  builder.chosen = there
  tfds.disable_progress_bar()
  # Its messages would go between the lines of a caller's own display.
  with contextlib.redirect_stdout(io.StringIO()), _room_on_the_disk(folder):
    builder.download_and_prepare()
  files.replace_text(made_from, json.dumps(digests) + "\n")


@contextlib.contextmanager
def _room_on_the_disk(folder: pathlib.Path) -> Iterator[None]:
  """Names a full disk, which ArrayRecord reports as a bug.

  Raises:
    InputError: it is full.
  """
  try:
    yield
  except RuntimeError as error:
    if os.strerror(errno.ENOSPC) not in str(error):
      raise
    raise InputError(
      f"{folder} must have room for the prepared data set, and the disk is "
      "full: free some space there, or choose another folder with "
      f"{DATA_DIR_VARIABLE}."
    ) from error


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
