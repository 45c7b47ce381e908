"""What the Step-Trace Buffer should hold, and whose traces.

    python -m experiments.study --study buffers --workdir runs/buffers

GRPO, and RAPO with the buffers of

- one off-policy agent that takes a right action at a step boundary with
  probability 0.99 (strong, the testbed's), 0.8 (middling) or 0.6 (weak); the
  base agent is the same;
- the strong and the weak agent, joined;
- the strong or the weak agent, growing: the policy's own successes of an update
  can be retrieved in the next, which the paper names as future work;
- the strong agent, with its best 1, 2 or 16 of 16 trajectories a question in
  place of 5.

Three families and five seeds: 150 runs of 20 updates, one to two minutes each
on two CPU cores with `--processes=2`. `--arm` runs a part of them.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.config import ExperimentConfig, GrowConfig
from experiments.configs import testbed
from experiments.flags import with_setting


def get_study() -> Study:
  config = testbed.get_config()
  reference = with_setting(config, "train.methods", ("grpo",))
  strong = with_setting(config, "train.methods", ("rapo",))
  weak = _with_agents(strong, 0.6)
  return Study(
    "buffers",
    "RAPO with buffers of several agents, of several sizes, and that grow.",
    (
      Arm("reference", reference),
      Arm("strong", strong, "strong agent"),
      Arm("middling", _with_agents(strong, 0.8), "middling agent"),
      Arm("weak", weak, "weak agent"),
      Arm(
        "both", strong, "strong and weak agent", buffers_of=("strong", "weak")
      ),
      Arm("strong_growing", _growing(strong), "strong agent, growing"),
      Arm("weak_growing", _growing(weak), "weak agent, growing"),
      *(
        Arm(f"best_{k}", _with_best(strong, k), f"strong agent, best {k}")
        for k in (1, 2, 16)
      ),
    ),
  )


def _with_agents(
  config: ExperimentConfig, correct_prob: float
) -> ExperimentConfig:
  """The config with off-policy agents that act rightly with a probability."""
  for task in config.tasks:
    path = f"tasks.{task.name}.agents.off_policy_correct_prob"
    config = with_setting(config, path, correct_prob)
  return config


def _growing(config: ExperimentConfig) -> ExperimentConfig:
  buffer = dataclasses.replace(config.buffer, grow=GrowConfig())
  return dataclasses.replace(config, buffer=buffer)


def _with_best(config: ExperimentConfig, k: int) -> ExperimentConfig:
  """The config whose buffer holds the best k trajectories of a question."""
  return with_setting(config, "buffer.top_k_trajectories", k)
