"""The paper's ablations of RAPO beside RAPO, hybrid rollouts alone and GRPO.

    python -m experiments.study --study ablations --workdir runs/ablations

Three families and five seeds of ten methods: 150 runs of 20 updates. On two CPU
cores, `--processes=2`, about a minute a run.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting

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


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return Study(
    "ablations",
    "RAPO without one of its parts at a time (the paper's ablations).",
    (Arm("all", dataclasses.replace(config, name="ablations")),),
  )
