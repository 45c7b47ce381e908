"""A study: experiments that differ in some settings, compared in one report.

A study file is a Python file whose docstring says what is asked and whose
`get_study()` returns a `Study`. Methods and seeds are those of the configs;
what differs beside them are the arms:

    def get_study() -> Study:
      config = testbed.get_config()
      sizes = {"buffer.top_k_trajectories": (1, 5, 16)}
      return Study("sizes", "…", grid(config, sizes))

Settings of a method itself (`objective`, `retrieval`, `rollout`) need no arms:
`rapo_jax.algorithms.variants` makes a method of each value.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import flags
from experiments.config import ExperimentConfig
from experiments.report.folders import name_in_report
from experiments.report.sources import REFERENCE
from rapo_jax.algorithms import spread_colours
from rapo_jax.errors import InputError

_PACKAGED = pathlib.Path(__file__).resolve().parent / "studies"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One experiment of a study.

  Attributes:
    name: of its folder: lower case letters, digits and `_`.
    config: the experiment.
    label: behind the labels of its methods in the report. Empty for an arm
      whose methods keep their names, such as a reference.
    buffers_of: arms whose Step-Trace Buffers are joined into this one's, in
      place of one that the arm fills itself.
  """

  name: str
  config: ExperimentConfig
  label: str = ""
  buffers_of: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if not _NAME.fullmatch(self.name):
      raise InputError(
        "the name of an arm must be lower case letters, digits and _, got "
        f"{self.name!r}: choose another."
      )
    if self.buffers_of and not self.config.builds_buffer:
      raise InputError(
        f"the arm {self.name} joins buffers ({', '.join(self.buffers_of)}), "
        "and its config names a buffer or retrieves nothing: leave one out."
      )


@dataclasses.dataclass(frozen=True)
class Study:
  """Experiments that are compared.

  Attributes:
    name: shown in the report.
    description: what is asked, in a sentence or two.
    arms: the experiments; at least one.
    reference: name of the method, in the report, that all are compared with;
      without it there, the first one.
    diversity: whether the report compares the rollouts that may retrieve with
      the others of their questions, which embeds every logged step.
  """

  name: str
  description: str
  arms: tuple[Arm, ...]
  reference: str = REFERENCE
  diversity: bool = False

  def __post_init__(self) -> None:
    names = [arm.name for arm in self.arms]
    labels = [arm.label for arm in self.arms]
    for what, values in (("name", names), ("label", labels)):
      if not values or len(set(values)) < len(values):
        raise InputError(
          f"a study needs at least one arm, and a {what} of its own for each, "
          f"got {values}: change the one that is twice."
        )
    methods = {
      name_in_report(method, arm.name, arm.label)
      for arm in self.arms
      for method in arm.config.train.algorithms
    }
    if self.reference not in {REFERENCE, *methods}:
      raise InputError(
        "the reference of a study must be one of its methods, named as in the "
        f"report ({', '.join(sorted(methods))}), got {self.reference!r}: "
        "correct it."
      )
    for arm in self.arms:
      own = {other.name for other in self.arms if not other.buffers_of}
      unknown = sorted(set(arm.buffers_of) - own)
      if unknown:
        raise InputError(
          f"buffers_of the arm {arm.name} must be arms that fill a buffer "
          f"({', '.join(sorted(own))}), got {', '.join(unknown)}: correct it."
        )

  def arm(self, name: str) -> Arm:
    """The arm of that name."""
    return next(arm for arm in self.arms if arm.name == name)

  def seeds(self) -> list[int]:
    """Seeds of all arms, in the order in which they are run."""
    return list(
      dict.fromkeys(s for a in self.arms for s in a.config.train.seeds)
    )

  def to_json(self) -> dict[str, Any]:
    """What the report of the study has to know."""
    labelled = [arm.name for arm in self.arms if arm.label]
    colours = dict(zip(labelled, spread_colours(len(labelled)), strict=True))
    return {
      "name": self.name,
      "description": self.description,
      "reference": self.reference,
      "diversity": self.diversity,
      "arms": [
        {
          "name": arm.name,
          "label": arm.label,
          "colours": colours.get(arm.name),
        }
        for arm in self.arms
      ],
    }


def grid(
  config: ExperimentConfig, settings: Mapping[str, Sequence[Any]]
) -> tuple[Arm, ...]:
  """An arm for each combination of values.

  Args:
    config: of all arms.
    settings: values by dotted path, as `--config.<path>` has it.

  Raises:
    InputError: there is no such field, or it refuses a value.
  """
  arms = []
  for values in itertools.product(*settings.values()):
    arm_config, words = config, []
    for path, value in zip(settings, values, strict=True):
      arm_config = flags.with_setting(arm_config, path, value)
      words.append(f"{path.rpartition('.')[2]} {value}")
    # The sign of a number, not the dash of a text or of 1e-05.
    text = re.sub(r"(?<=[ (])-(?=[\d.])", "minus ", " ".join(words).lower())
    name = "_".join(re.findall(r"[a-z0-9]+", text))
    arms.append(Arm(name, arm_config, ", ".join(words)))
  return tuple(arms)


def packaged_studies() -> dict[str, pathlib.Path]:
  """The studies that come along, by name."""
  return {path.stem: path for path in sorted(_PACKAGED.glob("[!_]*.py"))}


def load_study(path: str, overrides: Sequence[str] = ()) -> Study:
  """Runs a study file.

  Args:
    path: of the file, or the name of a study that comes along.
    overrides: `--config.<field>=<value>`, for the configs of all arms.

  Raises:
    flags.ConfigError: the file gives no study, or a config of it cannot be
      used.
  """
  file, study = flags.load_value(path, "study", packaged_studies())
  if not isinstance(study, Study):
    raise flags.ConfigError(
      f"get_study() of {file} returned a {type(study).__name__}: return an "
      "experiments.arms.Study."
    )
  arms = []
  for arm in study.arms:
    flags.check_config(file, arm.config)
    config = flags.apply_overrides(arm.config, overrides)
    arms.append(dataclasses.replace(arm, config=config))
  return dataclasses.replace(study, arms=tuple(arms))
