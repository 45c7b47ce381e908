"""What the Step-Trace Buffer should hold, and whose traces.

    python -m experiments.study --study buffers --workdir runs/buffers

GRPO, and RAPO with the buffers of

- one off-policy agent that takes a right action at a step boundary with
  probability 0.99 (strong, the testbed's), 0.8 (middling) or 0.6 (weak); the
  base agent is the same;
- the strong and the weak agent, joined;
- the strong agent, with its best 1 or 16 of 16 trajectories a question in place
  of 5;
- the weak agent, growing: the policy's own successes of an update can be
  retrieved in the next, which the paper names as future work.

Of the testbed's 128 questions a run asks each once or twice, and what has grown
is of use for the second time. So GRPO and the weak agent's buffer, fixed and
growing, run on 32 questions, too, each of which is asked five times.

Three families and five seeds: 165 runs of 20 updates, one to two minutes each
on two CPU cores with `--processes=2`. `--arm` runs a part of them.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.config import ExperimentConfig, GrowConfig
from experiments.configs import testbed
from experiments.flags import with_setting


def get_study() -> Study:
  config = testbed.get_config()
  grpo = with_setting(config, "train.methods", ("grpo",))
  strong = with_setting(config, "train.methods", ("rapo",))
  weak = _with_agents(strong, 0.6)
  return Study(
    "buffers",
    "RAPO with buffers of several agents, of several sizes, and that grow.",
    (
      Arm("reference", grpo),
      Arm("strong", strong, "strong agent"),
      Arm("middling", _with_agents(strong, 0.8), "middling agent"),
      Arm("weak", weak, "weak agent"),
      Arm(
        "both", strong, "strong and weak agent", buffers_of=("strong", "weak")
      ),
      Arm("best_1", _with_best(strong, 1), "strong agent, best 1"),
      Arm("best_16", _with_best(strong, 16), "strong agent, best 16"),
      Arm("weak_growing", _growing(weak), "weak agent, growing"),
      Arm("few", _with_few(grpo), "32 questions"),
      Arm("few_weak", _with_few(weak), "weak agent, 32 questions"),
      Arm(
        "few_weak_growing",
        _with_few(_growing(weak)),
        "weak agent, growing, 32 questions",
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


def _with_few(config: ExperimentConfig) -> ExperimentConfig:
  """The config with a quarter of the training questions."""
  for task in config.tasks:
    config = with_setting(config, f"tasks.{task.name}.world.num_train", 32)
  return config
