"""When a run has diverged: what is looked at, and what is to be done."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from experiments.config import ExperimentConfig
from experiments.dependencies import DIVERGED_FILE, trained
from experiments.workdir import Workdir, write_json
from rapo_jax import hosts, models
from rapo_jax.errors import InputError
from rapo_jax.training import (
  Checkpoints,
  TrainState,
  non_finite,
  parameter_norm,
)

# A learning rate below which runs of language models seldom diverge.
_CAREFUL_LEARNING_RATE = 1e-4
_SHOWN_NAMES = 5


class Diverged(InputError):
  """The policy is not finite or too large; more updates cannot repair it."""


class Look(NamedTuple):
  """What was seen of what is trained.

  Attributes:
    broken: names of the parameters that hold NaN or infinity.
    moments: whether the optimizer's moments do.
    norm: of all parameters.
  """

  broken: list[str]
  moments: bool
  norm: float


@hosts.led
def look_at_policy(model: models.Decoder) -> Look:
  """Looks at the parameters that are trained, on the devices of all hosts."""
  values = {
    name: variable[...] for name, variable in models.trainable(model).items()
  }
  broken = [name.strip("[]'") for name in non_finite(values)]
  return Look(broken, False, parameter_norm(values))


@hosts.led
def look_at_state(state: TrainState) -> Look:
  """Looks at the parameters and their moments."""
  found = look_at_policy(state.model)
  return found._replace(moments=bool(non_finite(state.opt_state)))


class Watch:
  """Looks at the policy after each update, before it is saved or evaluated.

  Args:
    config: the experiment.
    workdir: its folder.
    folder: of the run.
    start: the policy before the first update.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    workdir: Workdir,
    folder: pathlib.Path,
    start: models.Decoder,
  ):
    self._config = config
    self._workdir = workdir
    self._folder = folder
    self._start_norm = look_at_policy(start).norm

  def check(
    self,
    number: int,
    row: Mapping[str, float],
    state: TrainState,
    checkpoints: Checkpoints,
  ) -> None:
    """Stops the run if its policy has diverged.

    Args:
      number: of the update.
      row: its metrics.
      state: after it.
      checkpoints: of the run.

    Raises:
      Diverged: names the cause, the newest checkpoint and a remedy.
    """
    found = self._signs(state)
    if not found:
      return
    rate = self._config.optimizer.learning_rate
    write_json(
      self._folder / DIVERGED_FILE,
      {"update": number, "learning_rate": rate, "signs": found},
    )
    raise Diverged(
      f"{self._folder.parent.name} {self._folder.name} has diverged: after "
      f"update {number} {'; '.join(found)}. optimizer.learning_rate is "
      f"{rate:g}, the update's gradient norm {row['gradient_norm']:.3g}, which "
      f"is clipped to {self._config.optimizer.max_gradient_norm:g}. Its policy "
      f"was not saved. {self._remedy(checkpoints)}"
    )

  def _signs(self, state: TrainState) -> list[str]:
    found: list[str] = []
    broken, moments, norm = look_at_state(state)
    if broken:
      more = len(broken) - _SHOWN_NAMES
      found.append(
        f"NaN or infinity is in {', '.join(broken[:_SHOWN_NAMES])}"
        + (f" and {more} others" if more > 0 else "")
      )
    elif moments:
      found.append("the optimizer's moments are not finite")
    limit = self._config.train.stop_parameter_growth
    # Not `norm > …`: an infinite norm of finite numbers has to count too.
    if not broken and not norm <= limit * max(self._start_norm, 1.0):
      found.append(
        f"the parameters' norm is {norm:.3g}, at the start it was "
        f"{self._start_norm:.3g}, and it may grow {limit:g} times "
        "(train.stop_parameter_growth)"
      )
    return found

  def _remedy(self, checkpoints: Checkpoints) -> str:
    """What works: the settings of runs that went well cannot change."""
    rate = min(
      self._config.optimizer.learning_rate / 10, _CAREFUL_LEARNING_RATE
    )
    override = f"--config.optimizer.learning_rate={rate:g}"
    others = [
      run.name
      for run in trained(self._workdir)
      if run != self._folder and not (run / DIVERGED_FILE).exists()
    ]
    if others:
      return (
        f"{', '.join(others)} went well with this learning rate, and all runs "
        "of a work folder have the same: start again in another --workdir with "
        f"{override} or less; the folders agents and buffer may be copied."
      )
    newest = checkpoints.latest()
    whence = "the start" if newest is None else f"the policy of update {newest}"
    return (
      f"Start again with {override} or less: it goes on from {whence}, the "
      "newest that is good."
    )
