"""The runs of an experiment, and how each has ended."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import flags
from experiments.config import ExperimentConfig
from experiments.dependencies import (
  DIVERGED_FILE,
  DONE_FILE,
  TRAIN,
  train_differences,
)
from experiments.tasks import OpenedTask
from experiments.workdir import read_json, write_json
from rapo_jax import models
from rapo_jax.data import end_ids
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.manifest import (
  FileInfo,
  describe_files,
  file_problems,
)

POLICY_FOLDER = "policy"
"""Hugging Face folder of a finished run's policy, adapters merged."""
ADAPTERS_FOLDER = "adapters"
"""Its adapters alone, in PEFT's format, where it has any."""


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    task: name of its task.
    method: name of the algorithm that trains.
    seed: of sampling and retrieval.
  """

  task: str
  method: str
  seed: int

  @property
  def name(self) -> str:
    return f"{self.method}-seed{self.seed}"


def all_runs(
  config: ExperimentConfig,
  tasks: Sequence[str],
  seeds: Sequence[int] | None = None,
) -> Iterator[Run]:
  """Runs of an experiment, seed by seed, so that pairs end together.

  Args:
    config: the experiment.
    tasks: names of those whose runs are wanted.
    seeds: of those that are wanted; None for all.
  """
  for task in tasks:
    for seed in config.train.seeds if seeds is None else seeds:
      for method in config.train.algorithms:
        yield Run(task, method, seed)


def write_end(
  model: models.Decoder,
  task: OpenedTask,
  folder: pathlib.Path,
  update: int,
  origin: Mapping[str, Any],
) -> None:
  """Writes the trained policy, adapters if it has any, and that it ended."""
  model = models.gather(model)
  models.save_pretrained(
    models.merge_adapters(model),
    folder / POLICY_FOLDER,
    tokenizer=task.tokenizer,
    source=task.start_path,
    end_ids=end_ids(task.tokenizer),
  )
  if model.config.lora is not None:
    models.save_adapters(
      model,
      folder / ADAPTERS_FOLDER,
      base_model=task.start_path.absolute(),
      tokenizer=task.tokenizer,
    )
  written = describe_files(folder / POLICY_FOLDER)
  write_json(
    folder / DONE_FILE,
    {
      "run": origin["run"],
      "config": origin["config"],
      "update": update,
      "policy": {name: dataclasses.asdict(f) for name, f in written.items()},
    },
  )
  (folder / DIVERGED_FILE).unlink(missing_ok=True)


def ended_update(folder: pathlib.Path) -> int | None:
  """Updates behind the policy that a run has ended with.

  Args:
    folder: of the run.

  Returns:
    None if it has not ended, if its policy is not there whole, or if the
    folder is a copy of another run's.
  """
  done = _read_end(folder)
  if done is None:
    return None
  if file_problems(folder / POLICY_FOLDER, done.policy, checksums=False):
    return None
  return done.update


def is_finished(folder: pathlib.Path, config: ExperimentConfig) -> bool:
  """Whether a run has as many updates behind it as the config asks for.

  One that was copied here from a work folder of another config has not: what
  goes on with it says what differs.
  """
  done, update = _read_end(folder), ended_update(folder)
  if done is None or update is None or update < config.train.num_updates:
    return False
  task = folder.parent.name
  return not train_differences(
    TRAIN.complete(done.config, task),
    TRAIN.of(flags.to_dict(config), task),
    folder,
  )


def check_policy(folder: pathlib.Path) -> None:
  """Reads the policy of a run that has ended, and compares it byte by byte.

  Raises:
    InputError: it is not as it was written; says how to have it again.
  """
  done = _read_end(folder)
  found = (
    file_problems(folder / POLICY_FOLDER, done.policy, checksums=True)
    if done
    else [f"{DONE_FILE} cannot be read"]
  )
  if found:
    raise InputError(
      f"{folder / POLICY_FOLDER} is not as it was written: "
      f"{'; '.join(found)}. Delete {folder / DONE_FILE} and start "
      "--stage=train again: the policy is written once more, from the newest "
      "checkpoint."
    )


class _End(NamedTuple):
  """What `write_end` wrote of a run: see there."""

  update: int
  config: dict[str, Any]
  policy: dict[str, FileInfo]


def _read_end(folder: pathlib.Path) -> _End | None:
  """How a run has ended; None if that is missing, broken or another run's."""
  try:
    done = read_json(folder / DONE_FILE)
    if done["run"] != f"{folder.parent.name} {folder.name}":
      return None
    policy = {name: FileInfo(**info) for name, info in done["policy"].items()}
    return _End(int(done["update"]), dict(done["config"]), policy)
  except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
    return None
