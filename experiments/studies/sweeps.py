"""RAPO's own settings, each swept alone, with 16 rollouts a question.

    python -m experiments.study --study sweeps --workdir runs/sweeps

The retrieval coefficient a, the shaping coefficient m, hybrid rollouts
N_hybrid and the probability p of a retrieval. RAPO itself has a = 0.2, m =
0.05, N_hybrid = 8 and p = 0.5. Three families and five seeds of 15 methods: 225
runs of 20 updates, one to two minutes each on two CPU cores, `--processes=2`.
`--seed=0` runs one seed.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting
from rapo_jax.algorithms import ALGORITHMS, variants

RAPO = ALGORITHMS["rapo"]
METHODS = (
  "grpo",
  "rapo",
  *variants(RAPO, "objective.retrieval_coef", (0.0, 0.05, 0.1)),
  *variants(RAPO, "objective.shaping_coef", (0.0, 0.1, 0.2, 0.4)),
  *variants(RAPO, "rollout.num_hybrid", (2, 4, 12)),
  *variants(RAPO, "rollout.retrieval_prob", (0.25, 0.75, 1.0)),
)


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return Study(
    "sweeps",
    "RAPO's coefficients a and m, its hybrid rollouts and its probability p.",
    (Arm("all", dataclasses.replace(config, name="sweeps")),),
  )
