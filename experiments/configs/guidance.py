"""Rules when to retrieve, beside RAPO and GRPO, on the testbed's families.

    python -m experiments.run --config experiments/configs/guidance.py \\
        --workdir runs/guidance

Six methods, three families and five seeds: 90 runs of 20 updates, about a
minute each on two CPU cores. Agents, buffer, questions and seeds are those of
`testbed.py`.
"""

import dataclasses

from experiments.arms import with_setting
from experiments.config import ExperimentConfig
from experiments.configs import testbed

METHODS = (
  "grpo",
  "rapo",
  "rapo_dead",
  "rapo_unsolved",
  "rapo_dead_share",
  "rapo_unsolved_share",
)


def get_config() -> ExperimentConfig:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return dataclasses.replace(config, name="guidance")
