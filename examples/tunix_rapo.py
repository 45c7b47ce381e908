"""google-tunix's GRPO learner with RAPO's loss and advantages.

    pip install google-tunix chex
    python -m examples.tunix_rapo

A tiny random model learns to repeat a digit. Four lines are not tunix's own:
those that name `rapo`.
"""

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from rapo_jax.integrations import tunix as rapo

DIGITS = "0123456789"
PAD, BOS, EOS = 10, 11, 12
GROUP, QUESTIONS = 8, 8


class Tokenizer:
  """A token for each digit."""

  def encode(self, text, **_):
    return [DIGITS.index(c) for c in text if c in DIGITS]

  def decode(self, ids, **_):
    return "".join(DIGITS[i] for i in ids if i < len(DIGITS))

  def bos_id(self):
    return BOS

  def eos_id(self):
    return EOS

  def pad_id(self):
    return PAD


def main(num_updates: int = 30) -> list[float]:
  """Trains; returns the mean reward of each update."""
  history: list[float] = []

  def repeats(prompts, completions, answer, **_):
    pairs = zip(completions, map(str, answer), strict=True)
    scores = [float(text[:1] == digit) for text, digit in pairs]
    history.append(float(np.mean(scores)))
    return scores

  shape = qwen2.ModelConfig(
    num_layers=2,
    vocab_size=13,
    embed_dim=32,
    hidden_dim=64,
    num_heads=2,
    head_dim=16,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-6,
  )
  mesh = jax.sharding.Mesh(
    np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp")
  )
  roles = rl_cluster.Role
  cluster = rl_cluster.RLCluster(
    actor=qwen2.Qwen2(shape, rngs=nnx.Rngs(0)),
    tokenizer=Tokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(
        (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh
      ),
      rollout_engine="vanilla",
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adam(3e-3),
        eval_every_n_steps=num_updates + 1,
        max_steps=num_updates,
        mini_batch_size=QUESTIONS,
        train_micro_batch_size=QUESTIONS,
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=4, max_prompt_length=4, kv_cache_size=32
      ),
    ),
  )
  rapo.register("rapo")
  learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=[repeats],
    algo_config=grpo_learner.GRPOConfig(
      num_generations=GROUP,
      beta=0.0,
      advantage_estimator="rapo",
      policy_loss_fn="rapo",
    ),
  )
  rng = np.random.default_rng(0)
  batches = rng.choice([*DIGITS], (num_updates, QUESTIONS))
  # Arrays: of a list tunix repeats each element by itself.
  learner.train({"prompts": digits, "answer": digits} for digits in batches)
  return history


if __name__ == "__main__":
  print(" ".join(f"{reward:.2f}" for reward in main()))
