"""The paper's ablations of RAPO beside RAPO, hybrid rollouts alone and GRPO.

    python -m experiments.run --config experiments/configs/ablations.py \\
        --workdir runs/ablations

Three families and five seeds of ten methods: 150 runs of about a minute and a
half on two CPU cores, so some four hours. It goes on where it was stopped;
`--task=multihop` runs one family alone.
"""

import dataclasses

from experiments.config import ExperimentConfig
from experiments.configs import testbed

METHODS = (
  "grpo",
  "hybrid",
  "rapo",
  "rapo_no_retrieval_reward",
  "rapo_no_shaping",
  "rapo_no_quality",
  "rapo_no_timing",
  "rapo_inverted",
  "rapo_low_entropy_timing",
  "rapo_trajectory",
)


def get_config() -> ExperimentConfig:
  config = testbed.get_config()
  train = dataclasses.replace(config.train, methods=METHODS)
  return dataclasses.replace(config, name="ablations", train=train)
