"""Rules when to retrieve where GRPO takes off by itself.

    python -m experiments.study --study guidance_control \\
        --workdir runs/guidance_control

The methods of `guidance.py` on the questions of `testbed_control.py`, where
RAPO is behind GRPO: 30 runs of 20 updates, about a minute each on two CPU cores
with `--processes=2`.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed_control
from experiments.flags import with_setting
from experiments.studies import guidance


def get_study() -> Study:
  config = with_setting(
    testbed_control.get_config(), "train.methods", guidance.METHODS
  )
  return Study(
    "guidance_control",
    "The rules of `guidance` on questions that GRPO learns by itself.",
    (Arm("all", dataclasses.replace(config, name="guidance_control")),),
  )
