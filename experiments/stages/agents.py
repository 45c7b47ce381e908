"""Stage agents: the base agent and the off-policy agent of a task."""

from __future__ import annotations

from flax import nnx
from transformers import Qwen2Tokenizer

from experiments.config import ExperimentConfig, RandomModelConfig
from experiments.policy_shape import random_shape
from experiments.progress import Report
from experiments.tasks import agent_paths, questions_of
from experiments.workdir import Workdir
from rapo_jax import models
from rapo_jax.errors import InputError
from rapo_jax.tasks.miniature.tokenizer import end_ids, untrained_tokenizer


def make_agents(
  config: ExperimentConfig, workdir: Workdir, task: str, report: Report
) -> None:
  """Makes the agents of a task that the config does not name.

  Args:
    config: the experiment.
    workdir: where the agents are written.
    task: name of the task.
    report: called with the share done, 0 to 1, and a word on it.
  """
  paths = agent_paths(config, workdir, task)
  missing = [
    path for path in paths.values() if not (path / "config.json").exists()
  ]
  if not missing:
    report(1.0, "finished before", earlier=True)
    return
  if config.policy.base or config.policy.off_policy:
    raise InputError(
      "an agent that is named must be a folder with a config.json, and "
      f"{' and '.join(map(str, missing))} has none: correct policy.base or "
      "policy.off_policy."
    )
  own = config.task(task).own_agents()
  if own is not None:
    own.train(workdir.agent(task, "base").parent, report=report)
    return
  questions = questions_of(config, task)
  texts = [query.question for query in questions.train]
  tokenizer = train_byte_level_tokenizer(texts, config.policy.random.vocab_size)
  for number, path in enumerate(paths.values()):
    if path in missing:
      model = random_model(config.policy.random, seed_offset=number)
      models.save_pretrained(
        model, path, tokenizer=tokenizer, end_ids=end_ids(tokenizer)
      )
    report((number + 1) / 2, f"wrote {path.name}")


def train_byte_level_tokenizer(
  texts: list[str], vocab_size: int
) -> Qwen2Tokenizer:
  """Qwen's byte-level BPE with merges of its own, chat template included.

  Args:
    texts: what merges are learned from.
    vocab_size: entries, special tokens included.
  """
  return untrained_tokenizer().train_new_from_iterator(
    texts, vocab_size, show_progress=False
  )


def random_model(
  config: RandomModelConfig, *, seed_offset: int = 0
) -> models.Decoder:
  """A Qwen2 model with random weights."""
  return models.Decoder(
    random_shape(config), rngs=nnx.Rngs(config.seed + seed_offset)
  )
