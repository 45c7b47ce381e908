"""Loads the Tool-Star questions from the authors' parquet files."""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rapo_jax import row_files
from rapo_jax.data.prompts import chat_messages
from rapo_jax.data.queries import Query
from rapo_jax.dataset_rows import verl_answers, verl_question
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.tools import Described, PythonTool, SearchTool

TASK = "tool_star"
_COLUMNS = ("prompt", "reward_model")
_OPTIONAL_COLUMNS = ("extra_info", "question")
_log = logging.getLogger(__name__)


def load_tool_star(
  path: str | os.PathLike[str],
  tools: Iterable[Described] = (SearchTool, PythonTool),
  limit: int | None = None,
) -> list[Query]:
  r"""Reads questions in the layout that RAPO, ARPO, verl and Search-R1 use.

  The question is `extra_info.question` or `question`, else the last user
  message; the answer is `reward_model.ground_truth`, in any form that
  `accepted_answers` reads. Columns may hold JSON texts. The file's own system
  prompt is not used (it has a backspace in the place of `\b` of `\boxed`);
  ours is.

  A row whose answers are all blank cannot be scored and is left out with a
  warning: `train_10k.parquet` has one, a construction task.

  Args:
    path: a parquet file.
    tools: those that the system prompt names, or their classes.
    limit: most rows to read, from the start; all if None.

  Returns:
    Queries in the order of the file, with ids `<file name>-<row>`.

  Raises:
    MissingInputError: if there is no such file.
    InputError: for a missing column, or for a row without a question or
      answer, named by row and column.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingInputError(f"no parquet file at {path}")
  if limit is not None and limit < 1:
    raise InputError(f"limit must be >= 1 or None, got {limit}")
  tools = tuple(tools)
  queries = []
  blank = []
  for row, (where, record) in enumerate(_rows(path, limit)):
    truths = verl_answers(record, where)
    question = verl_question(record, where)
    if not truths:
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
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  names = row_files.parquet_names(path)
  missing = [name for name in _COLUMNS if name not in names]
  if missing:
    raise InputError(
      f"{path}: the columns {missing} are missing; the file has {names}"
    )
  wanted = [n for n in (*_COLUMNS, *_OPTIONAL_COLUMNS) if n in names]
  rows = row_files.parquet_rows(path, wanted, wanted)
  yield from itertools.islice(rows, limit)
