"""RAPO beside the methods of other papers, on the multi-hop family.

    python -m experiments.run --config experiments/configs/baselines.py \\
        --workdir runs/baselines

Two CPU cores and 24 runs, of which `quickstart.py` has four. All methods have
the same order of questions and as many updates, and start from the same base
agent; what each sets by itself is in `rapo_jax/algorithms`. DAPO rolls out more
than once an update where groups teach nothing, so it generates more tokens: see
`budget/generated_tokens`. RolloutReplay trains on groups of earlier updates too
and generates fewer. Two seeds a method show that it runs, not which one is
best.
"""

from experiments.config import (
  ExperimentConfig,
  TrainConfig,
  miniature_health,
  miniature_optimizer,
  miniature_retrieval,
  miniature_rollout,
  miniature_update,
)

METHODS = (
  "grpo",
  "dr_grpo",
  "rloo",
  "reinforce_pp",
  "reinforce_pp_baseline",
  "dapo",
  "gspo",
  "cispo",
  "gppo",
  "gigpo",
  "rollout_replay",
  "rapo",
)


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="baselines",
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(methods=METHODS, health=miniature_health()),
  )
