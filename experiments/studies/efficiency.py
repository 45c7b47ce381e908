"""What an update of each method costs at a matched policy: nothing is learned.

    python -m experiments.study --study efficiency --workdir runs/efficiency

A policy that answers early is cheap, so whole runs of two methods compare two
policies. Here the learning rate is 0: all methods roll out the base agent on
the same questions for 20 updates, and tokens, tool calls and seconds compare
like with like (the report's section on cost). Three families and two seeds.
Seconds mean something with `--processes=1` on an idle machine. Those of
`hybrid` are too few even there: it asks what `rapo` has asked, and the runs of
a process share the embeddings of texts that return.
"""

import dataclasses

from experiments.arms import Arm, Study
from experiments.configs import testbed
from experiments.flags import with_setting

METHODS = ("grpo", "rapo", "hybrid", "dapo", "arpo", "tree_grpo", "luffy")


def get_study() -> Study:
  config = with_setting(testbed.get_config(), "train.methods", METHODS)
  config = with_setting(config, "optimizer.learning_rate", 0.0)
  train = dataclasses.replace(
    config.train, seeds=(0, 1), eval_every=config.train.num_updates
  )
  return Study(
    "efficiency",
    "Tokens, tool calls and seconds of an update while the policy stays as it "
    "is.",
    (Arm("all", dataclasses.replace(config, name="efficiency", train=train)),),
  )
