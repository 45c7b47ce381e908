"""Rules when to retrieve where GRPO takes off by itself.

    python -m experiments.run --config guidance_control \\
        --workdir runs/guidance_control

The methods of `guidance.py` on the questions of `testbed_control.py`, where
RAPO is behind GRPO: 30 runs of 20 updates, about a minute each on two CPU
cores.
"""

import dataclasses

from experiments.arms import with_setting
from experiments.config import ExperimentConfig
from experiments.configs import guidance, testbed_control


def get_config() -> ExperimentConfig:
  config = with_setting(
    testbed_control.get_config(), "train.methods", guidance.METHODS
  )
  return dataclasses.replace(config, name="guidance_control")
