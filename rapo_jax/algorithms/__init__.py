"""Methods of training, as values; one short file a method.

`ALGORITHMS` holds what the modules of this package define as `ALGORITHM`, or
as `ALGORITHMS` where there are several. A new file adds a method.
"""

from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  COLUMNS,
  Algorithm,
  Plan,
  Resample,
  Signals,
  TokenLoss,
  group_relative,
  outcome_advantages,
)
from rapo_jax.algorithms.checks import check_algorithm
from rapo_jax.algorithms.guidance import GuideRule
from rapo_jax.algorithms.settings import ObjectiveConfig
from rapo_jax.algorithms.table import ALGORITHMS, find_algorithm, unique
from rapo_jax.algorithms.variants import spread_colours, variants

__all__ = [
  "ALGORITHMS",
  "CLIPPED_LOSS",
  "COLUMNS",
  "Algorithm",
  "GuideRule",
  "ObjectiveConfig",
  "Plan",
  "Resample",
  "Signals",
  "TokenLoss",
  "check_algorithm",
  "find_algorithm",
  "group_relative",
  "outcome_advantages",
  "spread_colours",
  "unique",
  "variants",
]
