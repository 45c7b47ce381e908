"""Supervised learning on a mesh of eight fake devices, for supervised_test.

Prints one JSON line: how far losses are from those of one device.
"""

import dataclasses
import json
import sys

import jax

from rapo_jax.errors import InputError
from rapo_jax.models import sharding
from rapo_jax.training import SupervisedTrainer
from tests.training.supervised_test import CONFIG, tiny_decoder, train

SHAPE = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 4}


def main() -> None:
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
  report = {"losses": 0.0}
  for head in ("whole", "chunked"):
    config = dataclasses.replace(CONFIG, head=head, rows_per_microbatch=2)
    _, alone = train(config, tiny_decoder(**SHAPE))
    placed = sharding.place(
      tiny_decoder(**SHAPE), mesh=mesh, rules=sharding.TRAIN_RULES
    )
    trainer, there = train(config, placed, mesh=mesh)
    gaps = [abs(a - b) for a, b in zip(alone, there, strict=True)]
    report["losses"] = max(report["losses"], *gaps)
  layout = sharding.shardings(trainer.model, mesh, sharding.TRAIN_RULES)
  report["placed"] = jax.tree.all(
    jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim),
      trainer.model,
      layout,
    )
  )
  try:
    SupervisedTrainer(
      tiny_decoder(),
      dataclasses.replace(CONFIG, rows_per_microbatch=1),
      mesh=mesh,
    )
  except InputError as error:
    report["refused"] = str(error)
  sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
  main()
