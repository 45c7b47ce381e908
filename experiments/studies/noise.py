"""RAPO with retrievals that are replaced by random traces, ever more often.

    python -m experiments.study --study noise --workdir runs/noise

Six probabilities from 0, which is RAPO itself, to 1 beside GRPO, three families
and five seeds: 105 runs of 20 updates, about a minute each on two CPU cores,
`--processes=2`.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting
from rapo_jax.algorithms import ALGORITHMS, variants

METHODS = (
  "grpo",
  "rapo",
  *variants(
    ALGORITHMS["rapo"], "retrieval.noise_prob", (0.2, 0.4, 0.6, 0.8, 1.0)
  ),
)


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return Study(
    "noise",
    "RAPO where a share of the retrieved traces is drawn at random.",
    (Arm("all", dataclasses.replace(config, name="noise")),),
  )
