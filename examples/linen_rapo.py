"""RAPO's objective in a plain training loop of flax.linen and optax.

    pip install flax optax chex
    python -m examples.linen_rapo

A small random transformer learns to count on (`examples/counting.py`). A step
is one token here. Seven lines name `objectives`, and in these the loop differs
from one of REINFORCE.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from examples import counting
from rapo_jax import objectives

RETRIEVED, WRITTEN = counting.RETRIEVED, counting.WRITTEN
LENGTH, WIDTH, EPOCHS = 1 + counting.STEPS, 32, 2


class Policy(nn.Module):
  """A transformer of one layer: tokens `[B, T]` to logits `[B, T, V]`."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(counting.DIGITS, WIDTH)(tokens)
    x += nn.Embed(LENGTH, WIDTH)(jnp.arange(tokens.shape[1]))
    mask = nn.make_causal_mask(tokens)
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    x += attention(nn.LayerNorm()(x), mask=mask)
    x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
    return nn.Dense(counting.DIGITS)(nn.LayerNorm()(x))


POLICY = Policy()
OPTIMIZER = optax.adam(3e-3)


def predict(params, tokens) -> Any:
  """Logits `[B, T, V]` of tokens `[B, T]`."""
  return POLICY.apply(params, tokens)


@jax.jit
def rollout(params, key):
  """Rolls out; returns tokens `[B, LENGTH]`, the first digit included."""
  retrieved, answers = jnp.asarray(RETRIEVED), jnp.asarray(counting.ANSWERS)

  def write(tokens, inputs):
    step, key = inputs
    logits = predict(params, tokens)[:, step]
    sampled = jax.random.categorical(key, logits)
    token = jnp.where(retrieved[:, step], answers[:, step], sampled)
    return tokens.at[:, step + 1].set(token), None

  tokens = jnp.zeros((counting.ROWS, LENGTH), int)
  tokens = tokens.at[:, 0].set(counting.START)
  keys = jax.random.split(key, counting.STEPS)
  return jax.lax.scan(write, tokens, (jnp.arange(counting.STEPS), keys))[0]


def score(params, tokens):
  """Log-probs `[B, STEPS]` of what was written, and the logits."""
  logits = predict(params, tokens)[:, :-1]
  log_probs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)
  return chosen[..., 0], logits


@jax.jit
def update(params, opt_state, tokens):
  """Trains on one batch of rollouts; returns their mean reward as well."""
  rewards = jnp.mean(
    tokens[:, 1:] == counting.ANSWERS, axis=1, where=~RETRIEVED
  )
  old_log_probs, logits = score(params, tokens)

  relative = functools.partial(
    objectives.group_advantages,
    group_ids=counting.START,
    num_groups=counting.DIGITS,
  )
  entropies = objectives.token_entropy(logits)
  worth = objectives.retrieval_reward(entropies, RETRIEVED, where=WRITTEN)
  advantages = objectives.rapo_advantages(relative(rewards), relative(worth))
  fraction = objectives.retrieved_fraction(RETRIEVED, where=WRITTEN)

  def loss(params):
    log_probs, _ = score(params, tokens)
    return objectives.rapo_loss(
      log_probs, old_log_probs, advantages, fraction, where=~RETRIEVED
    )

  for _ in range(EPOCHS):
    gradients = jax.grad(loss)(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
  return params, opt_state, jnp.mean(rewards)


def main(num_updates: int = 60) -> list[float]:
  """Trains; returns the mean reward of each update."""
  key = jax.random.key(0)
  params = POLICY.init(key, jnp.zeros((1, LENGTH), int))
  opt_state = OPTIMIZER.init(params)
  history = []
  for update_key in jax.random.split(key, num_updates):
    tokens = rollout(params, update_key)
    params, opt_state, reward = update(params, opt_state, tokens)
    history.append(float(reward))
  return history


if __name__ == "__main__":
  print(" ".join(f"{reward:.2f}" for reward in main()))
