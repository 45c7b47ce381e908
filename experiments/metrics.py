"""Metrics of a run: JSONL always; TensorBoard, W&B and Trackio by config.

Our own results and report are computed from `metrics.jsonl`: one object an
update, written whole and flushed. A resumed run first drops the rows after the
update that it resumes from. So no update is counted twice.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import pathlib
import types
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from experiments.workdir import parse_row
from rapo_jax import extras, files
from rapo_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"
WANDB_KEY = "WANDB_API_KEY"


@dataclasses.dataclass(frozen=True)
class WandbConfig:
  """Where Weights & Biases gets the metrics. Its key is never in a config.

  Attributes:
    project: project name.
    entity: user or team; None for the key's default.
    mode: "online" needs WANDB_API_KEY in the environment; "offline" writes
      files that `wandb sync` sends later.
  """

  project: str = "rapo_jax"
  entity: str | None = None
  mode: Literal["online", "offline"] = "online"


@dataclasses.dataclass(frozen=True)
class TrackioConfig:
  """Where Trackio keeps the metrics: on this machine, without an account.

  `trackio show` shows them. `TRACKIO_DIR` names another folder than that of
  Hugging Face's cache.

  Attributes:
    project: project name.
    space_id: Space on the Hugging Face hub that gets them, too, with the
      machine's own login; None for none.
  """

  project: str = "rapo_jax"
  space_id: str | None = None


class MetricsWriter:
  """Writes the metrics of one run, one row an update.

  Args:
    directory: folder of the run; made when missing.
    tensorboard: whether to write event files under `directory/tensorboard`.
    wandb: None for no Weights & Biases.
    trackio: None for no Trackio. After a resume it has two rows of an update
      that was done again.
    resumed_update: number of the last update that counts; rows after it are
      dropped. -1 (a fresh run) drops all.
    config: plain form of the config, for both of them.

  Raises:
    InputError: if one of them is wanted and not installed, or Weights & Biases
      is online and the environment holds no key.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    tensorboard: bool,
    wandb: WandbConfig | None,
    trackio: TrackioConfig | None = None,
    resumed_update: int = -1,
    config: Mapping[str, Any] | None = None,
  ):
    self._directory = pathlib.Path(directory)
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / METRICS_FILE
    truncate_rows(path, resumed_update)
    # External services first: their errors come before any row is written.
    started = (
      _start_wandb(self._directory, wandb, config),
      _start_trackio(self._directory, trackio, config),
    )
    self._services = [run for run in started if run is not None]
    self._tensorboard = (
      _start_tensorboard(self._directory, resumed_update)
      if tensorboard
      else None
    )
    self._file = path.open("a", encoding="utf-8")

  def write(self, update: int, values: Mapping[str, Any]) -> None:
    """Appends the row of one update.

    Args:
      update: number of the update, 0 for what is measured before the first.
      values: numbers by name. NaN and infinity become null in the JSONL.
    """
    numbers = {name: float(value) for name, value in values.items()}
    row = {"update": int(update)} | {
      name: _plain(number) for name, number in numbers.items()
    }
    self._file.write(json.dumps(row, allow_nan=False) + "\n")
    self._file.flush()
    if self._tensorboard is not None:
      for name, number in numbers.items():
        self._tensorboard.add_scalar(name, number, int(update))
      self._tensorboard.flush()
    for run in self._services:
      run.log(numbers, step=int(update))

  def close(self) -> None:
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()
    for run in self._services:
      run.finish()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def check_wandb(config: WandbConfig | None) -> None:
  """Checks whether Weights & Biases can get metrics.

  Raises:
    InputError: it is wanted and not installed, or online and the environment
      holds no key.
  """
  if config is None:
    return
  _imported("wandb")
  if config.mode == "online" and not os.environ.get(WANDB_KEY):
    raise InputError(
      f"Weights & Biases is on and {WANDB_KEY} is not set: export it, or use"
      " mode=offline, or set wandb to none. A key is read from the environment"
      " alone, never from a config."
    )


def check_trackio(config: TrackioConfig | None) -> None:
  """Checks whether Trackio can get metrics.

  Raises:
    InputError: it is wanted and not installed.
  """
  if config is not None:
    _imported("trackio")


def read_metrics(path: str | pathlib.Path) -> list[dict[str, float]]:
  """Rows of a `metrics.jsonl`, in order; null comes back as NaN.

  A last line that a kill has cut short is left out.

  Args:
    path: the file, or the folder of the run.

  Returns:
    One dict an update; `update` is an int. Empty when there is no file.

  Raises:
    InputError: a line is no such dict.
  """
  path = pathlib.Path(path)
  path = path / METRICS_FILE if path.is_dir() else path
  rows = []
  for number, line in enumerate(_whole_lines(path), 1):
    row = parse_row(line, path, number)
    rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows


def truncate_rows(path: str | pathlib.Path, last_update: int) -> None:
  """Drops the rows of a JSONL file whose `update` is after `last_update`.

  A last line that a kill has cut short goes too. The file is replaced in one
  step, so that a second kill leaves either the old or the new one.

  Args:
    path: JSONL file with an `update` in each row; may be missing.
    last_update: number of the last update to keep.

  Raises:
    InputError: a line has no `update`.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  kept = (
    line
    for number, line in enumerate(_whole_lines(path), 1)
    if parse_row(line, path, number)["update"] <= last_update
  )
  files.replace_text(path, "".join(kept))


def _whole_lines(path: pathlib.Path) -> list[str]:
  if not path.exists():
    return []
  with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
    return [line for line in file if line.endswith("\n") and line.strip()]


def _plain(number: float) -> int | float | None:
  if not math.isfinite(number):
    return None
  return int(number) if number.is_integer() else number


def _start_tensorboard(directory: pathlib.Path, resumed_update: int) -> Any:
  from tensorboardX import SummaryWriter  # Slow to import; not always wanted.

  return SummaryWriter(
    str(directory / "tensorboard"),
    # TensorBoard then hides what a killed run wrote after its checkpoint.
    purge_step=resumed_update + 1,
  )


def _start_wandb(
  directory: pathlib.Path,
  config: WandbConfig | None,
  values: Mapping[str, Any] | None,
) -> Any:
  if config is None:
    return None
  check_wandb(config)
  return _imported("wandb").init(
    project=config.project,
    entity=config.entity,
    mode=config.mode,
    dir=str(directory),
    id=_run_id(directory),
    name=directory.name,
    resume="allow",
    config=dict(values or {}),
  )


def _start_trackio(
  directory: pathlib.Path,
  config: TrackioConfig | None,
  values: Mapping[str, Any] | None,
) -> Any:
  if config is None:
    return None
  return _imported("trackio").init(
    project=config.project,
    # It tells runs apart by their names.
    name=f"{directory.name}-{_run_id(directory)}",
    space_id=config.space_id,
    resume="allow",
    config=dict(values or {}),
    embed=False,
  )


def _run_id(directory: pathlib.Path) -> str:
  """Under which a service knows the run, also after a resume."""
  path = directory / "run_id"
  if not path.exists():
    path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
  return path.read_text(encoding="utf-8")


def _imported(name: str) -> types.ModuleType:
  """The module of a service."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(
      f"logging.{name} is on in the config and {name} is not installed: "
      f"`{extras.install_command(name)}`, or set logging.{name} to none."
    ) from error
