"""RAPO whose buffer grows by the policy's own successes while it trains.

    python -m experiments.study --study growing_buffer --workdir runs/growing

GRPO; RAPO with the off-policy agent's buffer; the same that grows; and one that
begins with the traces of a weak agent and grows, or does not. The policy's
trajectories of an update can be retrieved in the next. The paper names this as
future work. Three families and five seeds: 75 runs of 20 updates, about a
minute each on two CPU cores with `--processes=2`.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.config import ExperimentConfig, GrowConfig
from experiments.configs import testbed
from experiments.flags import with_setting
from experiments.studies.off_policy_strength import with_agents

WEAK = 0.6


def get_study() -> Study:
  config = testbed.get_config()
  reference = with_setting(config, "train.methods", ("grpo",))
  rapo = with_setting(config, "train.methods", ("rapo",))
  weak = with_agents(rapo, WEAK)
  return Study(
    "growing_buffer",
    "RAPO whose buffer grows by the policy's own successes.",
    (
      Arm("reference", reference),
      Arm("fixed", rapo, "fixed buffer"),
      Arm("growing", _growing(rapo), "growing buffer"),
      Arm("weak", weak, "fixed buffer of a weak agent"),
      Arm("weak_growing", _growing(weak), "growing buffer of a weak agent"),
    ),
  )


def _growing(config: ExperimentConfig) -> ExperimentConfig:
  buffer = dataclasses.replace(config.buffer, grow=GrowConfig())
  return dataclasses.replace(config, buffer=buffer)
