"""Loads the Tool-Star questions from the authors' parquet files."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from rapo_jax.data.prompts import chat_messages
from rapo_jax.data.queries import Query

TASK = "tool_star"
_COLUMNS = ("prompt", "reward_model", "extra_info")
_BATCH_ROWS = 1024
_log = logging.getLogger(__name__)


def load_tool_star(
  path: str | os.PathLike[str],
  tools: Collection[str] = ("search", "python"),
  limit: int | None = None,
) -> list[Query]:
  r"""Reads questions in the layout that RAPO and ARPO train on.

  The question is `extra_info.question`, else the last user message; the answer
  is `reward_model.ground_truth`. The file's own system prompt is not used (it
  has a backspace in the place of `\b` of `\boxed`); ours is.

  A row whose answer is blank cannot be scored and is left out with a warning:
  `train_10k.parquet` has one, a construction task.

  Args:
    path: a parquet file.
    tools: tools that the system prompt names.
    limit: most rows to read, from the start; all if None.

  Returns:
    Queries in the order of the file, with ids `<file name>-<row>`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a missing column, or for a row without a question or
      answer, named by row and column.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no parquet file at {path}")
  if limit is not None and limit < 1:
    raise ValueError(f"limit must be >= 1 or None, got {limit}")
  queries = []
  blank = []
  for row, record in _rows(path, limit):
    where = f"{path}, row {row}"
    truths = _ground_truth(record, where)
    question = _question(record, where)
    if not all(truth.strip() for truth in truths):
      blank.append(row)
      continue
    queries.append(
      Query(
        query_id=f"{path.stem}-{row}",
        question=question,
        ground_truth=truths,
        messages=chat_messages(question, tools),
        task=TASK,
      )
    )
  if blank:
    _log.warning("%s: left out rows with a blank ground truth: %s", path, blank)
  return queries


def _rows(
  path: pathlib.Path, limit: int | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
  with pq.ParquetFile(path) as file:
    names = file.schema_arrow.names
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
      raise ValueError(
        f"{path}: the columns {missing} are missing; the file has {names}"
      )
    row = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
      for record in batch.to_pylist():
        if row == limit:
          return
        yield row, record
        row += 1


def _question(record: Mapping[str, Any], where: str) -> str:
  question = (record["extra_info"] or {}).get("question")
  if question is None:
    users = [
      message["content"]
      for message in record["prompt"] or []
      if message["role"] == "user"
    ]
    question = users[-1] if users else None
  if not isinstance(question, str) or not question.strip():
    raise ValueError(
      f"{where}: no question in extra_info.question or in a user message of "
      f"prompt, got {question!r}"
    )
  return question


def _ground_truth(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
  truth = (record["reward_model"] or {}).get("ground_truth")
  truths = (truth,) if isinstance(truth, str) else tuple(truth or ())
  if not truths or not all(isinstance(t, str) for t in truths):
    raise ValueError(
      f"{where}: reward_model.ground_truth must be a string or a list of "
      f"strings, got {truth!r}"
    )
  return truths
