"""A task, a reward, a tool and a loss of one's own, in one config file.

    rapo run --config experiment.py --workdir runs/sums

The agent is tiny and random; --config.policy.base=<folder> takes a real one.
"""

import dataclasses
import pathlib
import re

import jax

from experiments import flags
from experiments.config import TrainConfig
from rapo_jax import rewards, tools
from rapo_jax.algorithms import Algorithm, TokenLoss, outcome_advantages
from rapo_jax.tasks import FileTask


@tools.tool(
  description="<calculator> 2 + 3 </calculator> adds, subtracts, multiplies.",
  example="<think> I add. </think><calculator> 2 + 3 </calculator>",
)
def calculator(text: str) -> str:
  if not (match := re.fullmatch(r"(\d{1,9}) ?([-+*]) ?(\d{1,9})", text)):
    raise ValueError("Write two whole numbers with +, - or * between them.")
  a, sign, b = int(match[1]), match[2], int(match[3])
  return str({"+": a + b, "-": a - b, "*": a * b}[sign])


@rewards.reward
def short_and_right(sample: rewards.Sample) -> rewards.Score:
  answer = rewards.last_boxed(sample.policy_text)
  right = answer in sample.query.ground_truth
  value = right - len(sample.policy_text) / 10_000
  return rewards.Score(value, "right" if right else "wrong", answer, right)


def cispo_loss(log_probs, columns, settings):
  """CISPO (arXiv 2506.13585): a clipped token keeps its gradient."""
  ratio = jax.numpy.exp(log_probs - columns["old_log_probs"])
  weight = jax.numpy.minimum(ratio, 1 + settings.clip_epsilon_high)
  return -jax.lax.stop_gradient(weight) * columns["advantages"] * log_probs


LOSS = TokenLoss(cispo_loss, vanishes=True)
OURS = Algorithm("ours", "Ours", "", outcome_advantages, LOSS, colour="#117733")


def get_config():
  data = str(pathlib.Path(__file__).with_name("questions.jsonl"))
  task = FileTask(
    "sums", path=data, held_out=8, tools=(calculator,), reward=short_and_right
  )
  return dataclasses.replace(
    flags.load_config("tool_star_smoke"),  # Shapes for a tiny model.
    name="sums",
    tasks=(task,),
    train=TrainConfig(methods=(OURS,), seeds=(0,), num_updates=4, eval_every=2),
  )
