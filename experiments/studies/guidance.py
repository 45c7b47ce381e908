"""Rules when to retrieve, beside RAPO and GRPO, on the testbed's families.

    python -m experiments.study --study guidance --workdir runs/guidance

Six methods, three families and five seeds: 90 runs of 20 updates, about a
minute each on two CPU cores with `--processes=2`. Agents, buffer, questions and
seeds are those of `testbed.py`.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting

METHODS = (
  "grpo",
  "rapo",
  "rapo_unsolved",
  "rapo_dead",
  "rapo_unsolved_share",
  "rapo_dead_share",
)


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return Study(
    "guidance",
    "RAPO that retrieves only where the policy's own rollouts need guidance.",
    (Arm("all", dataclasses.replace(config, name="guidance")),),
  )
