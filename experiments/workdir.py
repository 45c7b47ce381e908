"""Where the files of an experiment lie, and how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from rapo_jax import files
from rapo_jax.errors import InputError, accessing
from rapo_jax.records import TrajectoryRecord

# Fields that every config of an experiment has.
_OF_EVERY_CONFIG = frozenset({"name", "tasks", "train"})

TRAJECTORIES_FILE = "trajectories.jsonl"
"""Log of trajectories in the folder of a run."""


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The folder of one experiment.

  Agents, buffer and warm start of a task may be links to those of another work
  folder, as the arms of a study have them; what is made there is then shared.

  Attributes:
    root: the folder itself.
  """

  root: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    return self.root / "config.json"

  def agent(self, task: str, name: str) -> pathlib.Path:
    """Hugging Face folder of the "base" or "off_policy" agent."""
    return _followed(self.root / "agents" / task) / name

  def buffer(self, task: str) -> pathlib.Path:
    return _followed(self.root / "buffer" / task)

  def warm_start(self, task: str) -> pathlib.Path:
    """What the warm start of a task has written."""
    return _followed(self.root / "warm_start" / task)

  def warm_started(self, task: str) -> pathlib.Path:
    """Hugging Face folder of the agent that the warm start gave."""
    return self.warm_start(task) / "policy"

  def run(self, task: str, name: str) -> pathlib.Path:
    """Folder of one training run, named `<method>-seed<seed>`."""
    return self.root / "train" / task / name

  def evaluation(self, task: str, agent: str) -> pathlib.Path:
    return self.root / "evaluate" / task / f"{agent}.json"


def _followed(path: pathlib.Path) -> pathlib.Path:
  """What a link points to, so that it is replaced there; or the path itself."""
  return files.followed(path) if path.is_symlink() else path


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path, name: str, *, wait: bool) -> Iterator[bool]:
  """Holds a lock file of a folder; gives whether it could be had.

  Raises:
    InputError: the folder cannot be written, or its file system has no locks.
  """
  with accessing(folder):
    file = (folder / name).open("a", encoding="utf-8")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      held = True
    except BlockingIOError:
      held = False
    except OSError as error:
      raise InputError(
        f"two runs must not write one folder, and the file system of "
        f"{folder} has no locks ({error}): choose a --workdir on a local "
        "disk."
      ) from error
    yield held


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes plain values as JSON, all or nothing; NaN is refused."""
  text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
  files.replace_text(path, text + "\n")


def read_json(path: pathlib.Path) -> Any:
  """Reads what `write_json` wrote.

  Raises:
    MissingInputError: there is no such file.
    InputError: it cannot be read, or has been changed and is no JSON.
  """
  with accessing(path):
    content = path.read_bytes()
  try:
    return json.loads(content)
  # Of a character that is no UTF-8, too.
  except ValueError as error:
    raise InputError(
      f"{path} must hold the JSON that was written there, and does not "
      f"({error}): restore it, or choose another --workdir."
    ) from error


def parse_row(
  line: str | bytes, path: pathlib.Path, number: int | None = None
) -> Any:
  """One update's line of a JSONL file, as an object with its `update`.

  Args:
    line: the text.
    path: file that it is from, for the message.
    number: of the line, from 1 on; None where it is not counted.

  Raises:
    InputError: the line has been changed, or a crash of the machine lost it.
  """
  try:
    row = json.loads(line)
  except ValueError as error:
    row, reason = None, f": {error}"
  else:
    reason = ""
  update = row.get("update") if isinstance(row, dict) else None
  if type(update) is not int:
    which = "one" if number is None else f"line {number}"
    raise InputError(
      f"every line of {path} must be an object with the number of its update, "
      f"and {which} is none{reason}: restore it, or delete the line."
    )
  return row


def read_trajectories(folder: pathlib.Path) -> Iterator[TrajectoryRecord]:
  """The logged trajectories of a run, in order; none without a log.

  Args:
    folder: of the run.

  Raises:
    InputError: a line has been changed.
  """
  path = folder / TRAJECTORIES_FILE
  if not path.exists():
    return
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      yield TrajectoryRecord.from_json(parse_row(line, path, number))


def read_evaluation(path: pathlib.Path) -> dict[str, Any]:
  """Reads the evaluation of one agent.

  Raises:
    InputError: the file has been changed.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    whole = all(
      isinstance(answers, dict)
      for answers in (content["sampled"], content["greedy"])
    )
    whole = whole and isinstance(content["method"], str)
  except (ValueError, KeyError, TypeError):
    whole = False
  if not whole:
    raise InputError(
      f"{path} must hold the evaluation that was written there, and does not: "
      "restore it, or delete it and start --stage=evaluate, which makes it "
      "again."
    )
  return dict(content)


def read_config(workdir: Workdir) -> dict[str, Any]:
  """The plain config that a work folder was last used with.

  Raises:
    InputError: the file has been changed.
  """
  content = read_json(workdir.config)
  if not isinstance(content, dict) or not content.keys() >= _OF_EVERY_CONFIG:
    holds = "other fields" if isinstance(content, dict) else "no object"
    raise InputError(
      f"{workdir.config} must hold an experiment's config, and holds {holds}: "
      "restore it, or choose another --workdir."
    )
  return content
