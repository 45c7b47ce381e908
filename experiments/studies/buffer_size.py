"""How many off-policy trajectories a question the Step-Trace Buffer needs.

    python -m experiments.study --study buffer_size --workdir runs/buffer_size

GRPO, and RAPO with the best 1, 2, 5 and 16 of 16 off-policy trajectories a
question: three families and five seeds, 75 runs of 20 updates, about a minute
each on two CPU cores with `--processes=2`.
"""

from experiments.arms import Arm, Study, grid
from experiments.configs import testbed
from experiments.flags import with_setting

SIZES = (1, 2, 5, 16)


def get_study() -> Study:
  config = testbed.get_config()
  reference = with_setting(config, "train.methods", ("grpo",))
  rapo = with_setting(config, "train.methods", ("rapo",))
  return Study(
    "buffer_size",
    "RAPO with more or fewer off-policy trajectories a question.",
    (
      Arm("reference", reference),
      *grid(rapo, {"buffer.top_k_trajectories": SIZES}),
    ),
  )
