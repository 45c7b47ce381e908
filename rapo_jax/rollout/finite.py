"""A rollout whose numbers are not finite is no data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapo_jax.trajectory import Trajectory


class NonFiniteRollout(RuntimeError):
  """A policy token has a log-prob or an entropy that is NaN or infinite."""


def check_finite(trajectories: Sequence[Trajectory], dtype: str) -> None:
  """Refuses trajectories of a policy whose numbers are not finite.

  Such a policy still writes tokens, so nothing else would notice: its
  evaluation would read as an accuracy of 0.

  Args:
    trajectories: of one rollout.
    dtype: in which the policy was computed, for the message.

  Raises:
    NonFiniteRollout: names the first such token, the cause and the remedy.
  """
  broken = [(t, at) for t in trajectories if (at := _first(t)) is not None]
  if not broken:
    return
  trajectory, at = broken[0]
  raise NonFiniteRollout(
    "log-probs and entropies of a rollout must be finite: "
    f"{len(broken)} of {len(trajectories)} trajectories have NaN or infinity, "
    f"the first at token {at} of question {trajectory.query_id!r}. The "
    "policy's parameters are not finite, or its activations overflow in "
    f"{dtype}. Go back to a checkpoint from before and lower "
    "optimizer.learning_rate, or set rollout.dtype to float32."
  )


def _first(trajectory: Trajectory) -> int | None:
  """Position of the first token whose numbers are not finite."""
  finite = np.isfinite(trajectory.log_probs) & np.isfinite(trajectory.entropies)
  return None if finite.all() else int(np.argmin(finite))
