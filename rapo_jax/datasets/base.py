"""A data set: its files, and how a question is read from a row."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rapo_jax import row_files, text_files
from rapo_jax.dataset_rows import accepted_answers
from rapo_jax.errors import InputError, MissingInputError

QUESTION_KEYS = ("question", "problem", "query", "prompt")
ANSWER_KEYS = ("answer", "final answer", "solution", "reward_model")
TEST, TRAIN = "test", "train"
_log = logging.getLogger(__name__)


class Row(NamedTuple):
  """A question of a data set.

  Attributes:
    row_id: stable, and unique in its split.
    question: its text.
    answers: accepted answers, at least one.
    extra: further useful values, such as its level or the pages to start from.
    canary: with which both texts are encrypted; "" if they are not.
    solution: the publisher's own, as it is written there; "" without one.
  """

  row_id: str
  question: str
  answers: tuple[str, ...]
  extra: Mapping[str, Any] = {}
  canary: str = ""
  solution: str = ""


Parse = Callable[[Mapping[str, Any], str], Row | None]
"""A row by its small names and where it stands, for errors, to a `Row`.

None for a row that cannot be scored. An id of "" takes the row's number.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Files of a data set, as one publisher lays them out.

  Attributes:
    pattern: of the end of a path, such as "gsm8k*/test.jsonl".
    split: "train" or "test".
    parse: None for that of the data set.
    num_rows: of the whole file at its publisher; None if unknown.
  """

  pattern: str
  split: str = TEST
  parse: Parse | None = None
  num_rows: int | None = None

  @property
  def row_per_file(self) -> bool:
    """Whether each row is a file of its own."""
    return self.pattern.endswith("/*.json")

  def matches(self, path: pathlib.Path) -> bool:
    """Whether a path ends as the pattern says."""
    wanted = self.pattern.split("/")
    parts = path.parts[-len(wanted) :]
    return len(parts) == len(wanted) and all(
      fnmatch.fnmatchcase(part, pattern)
      for part, pattern in zip(parts, wanted, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set of questions with reference answers.

  Attributes:
    name: in commands and configs.
    title: for people.
    source: where its files are published.
    layouts: the first that matches a file says how it is read.
    parse: reads a row.
    urls: plain files that may be downloaded, by their names.
    aliases: name of a file that may lie beside the others. Each of its lines
      has further answers (`aliases`, `demonyms`) of the rows whose `answer_id`
      is its `Q_id`.
    steps: steps of a row's solution in the agent's format; None for one that
      cannot be used. None for a data set without such solutions.
  """

  name: str
  title: str
  source: str
  layouts: tuple[Layout, ...]
  parse: Parse
  urls: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
  aliases: str | None = None
  steps: Callable[[str], tuple[str, ...] | None] | None = None

  def read_from(self, path: pathlib.Path) -> list[pathlib.Path]:
    """The files that `read` reads for one of them."""
    beside = [] if self.aliases is None else [path.with_name(self.aliases)]
    return [path, *(file for file in beside if file.is_file())]

  def layout(self, path: pathlib.Path) -> Layout | None:
    """The layout of a file; None if this data set has no such file."""
    return next((one for one in self.layouts if one.matches(path)), None)

  def files(self, folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The files of each split in a folder, or the file itself.

    A split takes the files of one layout, the first that has any. A file of
    another name is read as the first layout of its kind.

    Raises:
      MissingInputError: no file is found; says where they are published.
    """
    there = [folder] if folder.is_file() else row_files.files_in(folder)
    found: dict[str, list[pathlib.Path]] = {}
    for layout in self.layouts:
      chosen = self._of_its_kind if folder.is_file() else self.layout
      own = [path for path in there if chosen(path) == layout]
      if own:
        found.setdefault(layout.split, own)
    if not found:
      patterns = ", ".join(layout.pattern for layout in self.layouts)
      raise MissingInputError(
        f"{folder} must hold a file of {self.title} ({patterns}), and does not:"
        f" get it from {self.source}."
      )
    return found

  def _of_its_kind(self, path: pathlib.Path) -> Layout | None:
    """The layout of a file, or the first whose files end as it does."""
    same = (one for one in self.layouts if one.pattern.endswith(path.suffix))
    return self.layout(path) or next(same, None)

  def read(self, path: pathlib.Path) -> tuple[list[Row], int]:
    """The rows of a file that can be scored, and how many others it has.

    Raises:
      InputError: the file is of no known layout or broken, or a row cannot be
        read; names file, row and remedy.
    """
    layout = self._of_its_kind(path)
    if layout is None:
      raise InputError(
        f"{path} is no file of {self.title}: its path must end as one of "
        f"{', '.join(one.pattern for one in self.layouts)}."
      )
    aliases: dict[str, tuple[str, ...]] = {}
    for file in self.read_from(path)[1:]:
      aliases |= _aliases(file)
    rows: list[Row] = []
    left_out = 0
    names = (*QUESTION_KEYS, *ANSWER_KEYS, "messages")
    for number, (where, row) in enumerate(row_files.read_rows(path, names)):
      if not isinstance(row, Mapping):
        raise InputError(
          f"{where}: a row must be an object, got {row!a:.80}: get the file "
          "again."
        )
      found = (layout.parse or self.parse)(row_files.by_small_name(row), where)
      if found is None:
        left_out += 1
      else:
        own = f"{layout.split}-{number}"
        if layout.row_per_file:
          own = f"{path.parent.name}/{path.stem}"
        known = aliases.get(str(row.get("answer_id")), ())
        answers = dict.fromkeys((*found.answers, *known))
        found = found._replace(answers=tuple(answers))
        rows.append(_checked(found, own, where))
    if not rows:
      raise InputError(f"{path} has no question: get the file again.")
    return rows, left_out


def _aliases(file: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Further answers by the id of an answer.

  Raises:
    InputError: a line has another form; names it.
  """
  found: dict[str, tuple[str, ...]] = {}
  for number, line in text_files.json_lines(file):
    fields = line if isinstance(line, Mapping) else {}
    lists = [fields.get("aliases"), fields.get("demonyms", [])]
    if not isinstance(fields.get("Q_id"), str) or not all(
      isinstance(texts, list) and all(isinstance(text, str) for text in texts)
      for texts in lists
    ):
      raise InputError(
        f"{file}:{number}: a line must have Q_id, a text, and lists of texts "
        f"under aliases and demonyms, got {line!a:.80}: get the file again."
      )
    texts = (text for texts in lists for text in texts)
    found[line["Q_id"]] = tuple(text for text in texts if text.strip())
  return found


def _checked(row: Row, own_id: str, where: str) -> Row:
  for text in (row.question, *row.answers, row.solution):
    try:
      text_files.check_text(text)
    except text_files.TextError as error:
      raise InputError(f"{where}: {error}. Get the file again.") from error
  return row._replace(row_id=row.row_id or own_id)


def text_of(row: Mapping[str, Any], keys: Collection[str], where: str) -> str:
  """The text under the first of some keys that a row has.

  Raises:
    InputError: the row has no such key, or the text is blank.
  """
  value = next((row[key] for key in keys if row.get(key) is not None), None)
  if isinstance(value, str) and value.strip():
    return value
  raise InputError(
    f"{where}: {' or '.join(keys)} must be a text that is not blank, got "
    f"{value!a:.80} in a row with {', '.join(map(str, row))}: get the file "
    "again."
  )


def question_row(
  row: Mapping[str, Any],
  where: str,
  *,
  question: Collection[str] = QUESTION_KEYS,
  answer: Iterable[str] = ("answer", "final answer"),
  row_id: Iterable[str] = ("_id", "task_id", "unique_id", "id"),
  extra: Collection[str] = (),
) -> Row | None:
  """Reads a row whose question and answers stand under keys.

  Args:
    row: by small names.
    where: file and row.
    question: keys of the question; the first that is there counts.
    answer: keys of the answers; all of them count, as aliases.
    row_id: keys of the id; none for the row's number.
    extra: further keys that are kept.

  Returns:
    None if every answer is blank.

  Raises:
    InputError: there is no question, or no answer under any key.
  """
  there = [key for key in answer if row.get(key) is not None]
  if not there:
    raise InputError(
      f"{where}: every question needs an answer, under {' or '.join(answer)}; "
      f"the row has {', '.join(map(str, row))}: get the file again."
    )
  answers: dict[str, None] = {}
  for key in there:
    # Aliases may be an empty list.
    if row[key] != [] or len(there) == 1:
      found = accepted_answers(row[key], f"{where}, {key!r}")
      answers |= dict.fromkeys(found)
  if not answers:
    return None
  known = next((row[key] for key in row_id if row.get(key) is not None), "")
  return Row(
    str(known),
    text_of(row, question, where),
    tuple(answers),
    {key: row[key] for key in extra if row.get(key) is not None},
  )


def rows_of(data_set: DataSet, paths: Iterable[pathlib.Path]) -> Iterator[Row]:
  """Rows of several files; two rows of one id become different.

  A folder may hold two copies of a file, or parts of it that overlap. A
  question that stands in an earlier file does not count again.

  Raises:
    InputError: as `DataSet.read`.
  """
  seen: dict[str, int] = {}
  asked: set[str] = set()
  for path in paths:
    rows = data_set.read(path)[0]
    layout = data_set.layout(path)
    if layout is not None and layout.row_per_file:
      asked.clear()
    new = [row for row in rows if _words(row) not in asked]
    if len(new) < len(rows):
      _log.warning(
        "%s: %d of %d questions stand in an earlier file, and count once",
        *(path, len(rows) - len(new), len(rows)),
      )
    asked.update(map(_words, new))
    for row in new:
      count = seen.get(row.row_id, 0)
      seen[row.row_id] = count + 1
      yield row if not count else row._replace(row_id=f"{row.row_id}.{count}")


def _words(row: Row) -> str:
  return " ".join(row.question.split())
