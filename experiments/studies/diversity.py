"""Are hybrid rollouts more diverse than the policy's own?

    python -m experiments.study --study diversity --workdir runs/diversity

RAPO and hybrid rollouts alone: in each logged update the rollouts that may
retrieve are compared with the others of the same questions, from the same
policy. Distinct n-grams, distinct steps, and the spread of the steps'
embeddings. Three families and five seeds, 45 runs of 20 updates, about a minute
each on two CPU cores with `--processes=2`.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed


def get_study() -> Study:
  config = dataclasses.replace(testbed.get_config(), name="diversity")
  return Study(
    "diversity",
    "Hybrid rollouts beside plain ones of the same policy and questions.",
    (Arm("all", config),),
    diversity=True,
  )
