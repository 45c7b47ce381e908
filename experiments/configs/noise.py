"""RAPO with retrievals that are replaced by random traces, ever more often.

    python -m experiments.run --config experiments/configs/noise.py \\
        --workdir runs/noise

Six probabilities from 0 to 1, three families and five seeds: 90 runs of about
a minute and a half on two CPU cores. It goes on where it was stopped.
"""

import dataclasses

from experiments.config import ExperimentConfig
from experiments.configs import testbed
from rapo_jax.algorithms import ALGORITHMS, variants

METHODS = variants(
  ALGORITHMS["rapo"], "retrieval.noise_prob", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
)


def get_config() -> ExperimentConfig:
  config = testbed.get_config()
  train = dataclasses.replace(config.train, methods=METHODS)
  return dataclasses.replace(config, name="noise", train=train)
