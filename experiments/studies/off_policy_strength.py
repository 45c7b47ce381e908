"""RAPO with off-policy agents of three strengths, and with two of them at once.

    python -m experiments.study --study off_policy_strength \\
        --workdir runs/strength

The off-policy agent takes a right action at a step boundary with probability
0.99 (the testbed's), 0.8 or 0.6; the base agent is the same. "strong and weak"
joins the buffers of the first and the last. GRPO and four arms of RAPO, three
families and five seeds: 75 runs of 20 updates, about a minute each on two CPU
cores with `--processes=2`.
"""

from experiments.arms import Arm, Study
from experiments.config import ExperimentConfig
from experiments.configs import testbed
from experiments.flags import with_setting

STRENGTHS = {"strong": None, "middling": 0.8, "weak": 0.6}


def with_agents(
  config: ExperimentConfig, correct_prob: float | None
) -> ExperimentConfig:
  """The config with off-policy agents that act rightly with a probability."""
  for task in config.tasks:
    path = f"tasks.{task.name}.agents.off_policy_correct_prob"
    config = with_setting(config, path, correct_prob)
  return config


def get_study() -> Study:
  config = testbed.get_config()
  reference = with_setting(config, "train.methods", ("grpo",))
  rapo = with_setting(config, "train.methods", ("rapo",))
  return Study(
    "off_policy_strength",
    "RAPO with off-policy agents of three strengths, one or two at a time.",
    (
      Arm("reference", reference),
      *(
        Arm(name, with_agents(rapo, prob), f"{name} agent")
        for name, prob in STRENGTHS.items()
      ),
      Arm("both", rapo, "strong and weak agent", buffers_of=("strong", "weak")),
    ),
  )
