"""RAPO's own settings, each swept alone, with 16 rollouts a question.

    python -m experiments.run --config experiments/configs/sweeps.py \\
        --workdir runs/sweeps

The retrieval coefficient a, the shaping coefficient m, hybrid rollouts
N_hybrid and the probability p of a retrieval. Three families and five seeds of
16 methods: 240 runs of some three minutes on two CPU cores, so half a day. It
goes on where it was stopped; `--config.train.seeds=0` takes one seed.
"""

import dataclasses

from experiments.config import ExperimentConfig
from experiments.configs import testbed
from rapo_jax.algorithms import ALGORITHMS, variants

RAPO = ALGORITHMS["rapo"]
METHODS = (
  *variants(RAPO, "objective.retrieval_coef", (0.0, 0.05, 0.1, 0.2)),
  *variants(RAPO, "objective.shaping_coef", (0.0, 0.1, 0.2, 0.4)),
  *variants(RAPO, "rollout.num_hybrid", (2, 4, 8, 12)),
  *variants(RAPO, "rollout.retrieval_prob", (0.25, 0.5, 0.75, 1.0)),
)


def get_config() -> ExperimentConfig:
  config = testbed.get_config()
  return dataclasses.replace(
    config,
    name="sweeps",
    rollout=dataclasses.replace(
      config.rollout, num_generations=16, num_hybrid=8
    ),
    train=dataclasses.replace(config.train, methods=METHODS),
  )
