"""The paper's baselines and what came after: three families, five seeds.

    python -m experiments.study --study leader_board --workdir runs/leader_board

All start from the same base agent and have the same order of questions and as
many updates; what each sets by itself is in `rapo_jax/algorithms`. Not all
generate as many tokens: the report shows each at equal leaves and at equal
generated tokens. 20 updates, about a minute a run on two CPU cores with
`--processes=2`; `--task=multihop` runs one family.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting

METHODS = (
  "grpo",
  "rapo",
  "hybrid",
  "dapo",
  "gigpo",
  "arpo",
  "aepo",
  "tree_grpo",
  "luffy",
  "rollout_replay",
  "dr_grpo",
  "gspo",
  "cispo",
  "gppo",
  "rloo",
  "reinforce_pp",
  "reinforce_pp_baseline",
  "sft",
  "prefix_rl",
  "rapo_unsolved",
  "rapo_effect",
)


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  return Study(
    "leader_board",
    "The paper's baselines and what came after it, with the same questions, "
    "agents and seeds.",
    (Arm("all", dataclasses.replace(config, name="leader_board")),),
  )
