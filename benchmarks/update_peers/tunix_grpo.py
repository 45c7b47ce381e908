"""One update by google-tunix: its Qwen2, its GRPO loss, its train step."""

from __future__ import annotations

from importlib import metadata

import jax
import jax.numpy as jnp
import optax
from problem import Problem, serve
from tunix.models.qwen2 import params
from tunix.rl import algo_core, common
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer

from benchmarks import tunix_qwen2


def make_update(problem: Problem):
  settings, shape = problem.settings, problem.settings["shape"]
  model = params.create_model_from_safe_tensors(
    str(problem.model),
    tunix_qwen2.model_config(shape),
    mesh=None,
    dtype=jnp.float32,
  )
  algorithm = grpo_learner.GRPOConfig(
    beta=0.0, epsilon=settings["clip_epsilon_low"]
  )
  algorithm.epsilon_high = settings["clip_epsilon_high"]
  algorithm.temperature = 1.0
  trainer = peft_trainer.PeftTrainer(
    model,
    optax.chain(
      optax.clip_by_global_norm(settings["max_gradient_norm"]),
      optax.adamw(
        settings["learning_rate"], weight_decay=settings["weight_decay"]
      ),
    ),
    peft_trainer.TrainingConfig(eval_every_n_steps=1000, max_steps=1000),
  )
  trainer.with_loss_fn(
    lambda model, example: algo_core.grpo_loss_fn(
      model, example, algorithm, pad_id=0, eos_id=1
    ),
    has_aux=True,
  ).with_gen_model_input_fn(lambda example: {"example": example})
  step, _ = trainer.jit_train_and_eval_step()
  example = _example(problem)

  def update() -> tuple[float, float]:
    loss, _, norm = step(example)
    jax.block_until_ready(jax.tree.leaves(trainer.model))
    return float(loss), float(norm)

  return update


def _example(problem: Problem) -> common.TrainExample:
  return common.TrainExample(
    prompt_ids=jnp.asarray(problem.prompts),
    prompt_mask=jnp.ones(problem.prompts.shape, jnp.int32),
    completion_ids=jnp.asarray(problem.completions),
    completion_mask=jnp.ones(problem.completions.shape, jnp.int32),
    advantages=jnp.asarray(problem.advantages),
    ref_per_token_logps=None,
    old_per_token_logps=jnp.asarray(problem.old_log_probs),
  )


if __name__ == "__main__":
  serve(
    make_update,
    {"jax": jax.__version__, "tunix": metadata.version("google-tunix")},
  )
