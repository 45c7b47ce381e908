"""What a newcomer writes: a task of own questions, a tool and a reward."""

import dataclasses
import pathlib
import re

from experiments import flags
from experiments.config import TrainConfig
from rapo_jax import rewards, tools
from rapo_jax.tasks import FileTask

METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0, "km": 1000.0}


@tools.tool(
  description="<convert> 3 km to m </convert> converts lengths.",
  example="<think> I convert. </think><convert> 3 km to m </convert>",
)
def convert(text: str) -> str:
  if not (match := re.fullmatch(r"(\d{1,9}) (\w+) to (\w+)", text)):
    raise ValueError("Write a whole number, a unit, 'to' and a unit.")
  if not {match[2], match[3]} <= {*METRES}:
    raise ValueError(f"Units are {', '.join(METRES)}.")
  return f"{int(match[1]) * METRES[match[2]] / METRES[match[3]]:g}"


@rewards.reward
def right_unit(sample: rewards.Sample) -> float:
  return float(
    rewards.last_boxed(sample.policy_text) in sample.query.ground_truth
  )


def get_config():
  data = str(pathlib.Path(__file__).with_name("lengths.jsonl"))
  return dataclasses.replace(
    flags.load_config("tool_star_smoke"),
    tasks=(
      FileTask(
        "lengths", path=data, held_out=8, tools=(convert,), reward=right_unit
      ),
    ),
    train=TrainConfig(
      methods=("grpo",), seeds=(0,), num_updates=4, eval_every=2
    ),
  )
