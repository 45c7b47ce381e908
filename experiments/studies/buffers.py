"""What the Step-Trace Buffer should hold, and whose traces.

    python -m experiments.study --study buffers --workdir runs/buffers

GRPO, and RAPO with the buffers of

- one off-policy agent that takes a right action at a step boundary with
  probability 0.99 (strong, the testbed's), 0.8 (middling) or 0.6 (weak); the
  base agent is the same;
- the strong and the weak agent, joined;
- the strong agent, with its best 1 or 16 of 16 trajectories a question in place
  of 5.

A buffer that grows by the policy's own successes, which can be retrieved in the
next update, is named as future work by the paper. It can matter only where a
question is asked again, and where the agent has left a gap. So GRPO, and the
buffers of the weak agent and of a poor one (0.3), fixed and growing, run on 32
questions, each of which is asked five times. Of 16 trajectories of the poor
agent most questions have no right one.

Three families and five seeds: 180 runs of 20 updates, one to two minutes each
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
  few_grpo = _with_few(grpo)
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
      Arm("few", few_grpo, "32 questions"),
      *(
        arm
        for name, agent in (("weak", weak), ("poor", _with_agents(strong, 0.3)))
        for arm in _growing_and_not(name, _with_few(agent))
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


def _growing_and_not(name: str, config: ExperimentConfig) -> tuple[Arm, Arm]:
  """Two arms on few questions: the buffer stays as it is, or grows."""
  buffer = dataclasses.replace(config.buffer, grow=GrowConfig())
  growing = dataclasses.replace(config, buffer=buffer)
  label = f"{name} agent, 32 questions"
  return (
    Arm(f"few_{name}", config, label),
    Arm(f"few_{name}_growing", growing, f"{label}, growing"),
  )


def _with_best(config: ExperimentConfig, k: int) -> ExperimentConfig:
  """The config whose buffer holds the best k trajectories of a question."""
  return with_setting(config, "buffer.top_k_trajectories", k)


def _with_few(config: ExperimentConfig) -> ExperimentConfig:
  """The config with a quarter of the training questions."""
  for task in config.tasks:
    config = with_setting(config, f"tasks.{task.name}.world.num_train", 32)
  return config
