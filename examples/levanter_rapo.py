"""Levanter's trainer with RAPO's loss.

    pip install --pre marin-levanter chex
    python -m examples.levanter_rapo

A tiny random Llama learns to count on (`examples/counting.py`). Levanter's
`Trainer` takes any loss of a model and a batch, so four lines are not its own:
those that name `objectives`.
"""

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import optax
from levanter.layers.attention import AttentionMask
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample
from levanter.tracker import NoopConfig
from levanter.trainer import Trainer, TrainerConfig

from examples import counting
from rapo_jax import objectives

Row = hax.Axis("batch", counting.ROWS)
Pos = hax.Axis("position", 1 + counting.STEPS)
Vocab = hax.Axis("vocab", counting.DIGITS)
SHAPE = LlamaConfig(
  max_seq_len=Pos.size,
  hidden_dim=32,
  intermediate_dim=64,
  num_layers=1,
  num_heads=2,
  num_kv_heads=2,
)


class Batch(eqx.Module):
  """Rollouts; what is of tokens, at the position before the token."""

  tokens: hax.NamedArray
  old_log_probs: hax.NamedArray
  advantages: hax.NamedArray
  fraction: hax.NamedArray


def token_log_probs(model, tokens, key=None):
  """Log-prob of each next token `[Row, Pos]`, by Levanter's fused head."""
  example = LmExample(tokens, loss_weight=hax.ones((Row, Pos)))
  loss = model.compute_next_token_loss(example, reduction=None, key=key)
  return -loss.rearrange((Row, Pos))


def loss(model, batch: Batch, *, key=None):
  """What Levanter minimises."""
  return objectives.rapo_loss(
    token_log_probs(model, batch.tokens, key).array[:, :-1],
    batch.old_log_probs.array[:, :-1],
    batch.advantages.array,
    batch.fraction.array,
    where=~counting.RETRIEVED,
  )


@eqx.filter_jit
def rollout(model, key):
  """Rolls out: tokens `[Row, Pos]`, the first digit included."""
  tokens = jnp.zeros((Row.size, Pos.size), int).at[:, 0].set(counting.START)
  for step, key_of_step in enumerate(jax.random.split(key, counting.STEPS)):
    logits = model(hax.named(tokens, (Row, Pos)), AttentionMask.causal())
    logits = logits.rearrange((Row, Pos, Vocab)).array[:, step]
    token = jnp.where(
      counting.RETRIEVED[:, step],
      counting.ANSWERS[:, step],
      jax.random.categorical(key_of_step, logits),
    )
    tokens = tokens.at[:, step + 1].set(token)
  return hax.named(tokens, (Row, Pos))


def make_batch(model, tokens) -> tuple[Batch, float]:
  """A batch for the loss, and the mean reward of its rollouts."""
  own = ~counting.RETRIEVED
  correct = tokens.array[:, 1:] == counting.ANSWERS
  rewards = jnp.mean(correct, axis=1, where=own)
  advantages = objectives.group_advantages(
    rewards, counting.START, num_groups=counting.DIGITS
  )
  fraction = objectives.retrieved_fraction(
    counting.RETRIEVED, where=counting.WRITTEN
  )
  return Batch(
    tokens,
    eqx.filter_jit(token_log_probs)(model, tokens),
    hax.named(advantages, Row),
    hax.named(fraction, Row),
  ), float(rewards.mean())


def main(num_updates: int = 60) -> list[float]:
  """Trains; returns the mean reward of each update."""
  config = TrainerConfig(
    id="counting",
    tracker=NoopConfig(),
    train_batch_size=Row.size,
    num_train_steps=num_updates,
    require_accelerator=False,
    load_checkpoint=False,
    log_jaxprs=False,
    log_xla_hlo=False,
  )
  config.initialize()
  # Levanter takes the first for its own, and deletes it.
  train_key, model_key, rollout_key = jax.random.split(jax.random.key(0), 3)
  history = []
  with Trainer(
    config, optax.adam(3e-3), loss, add_default_hooks=False
  ) as trainer:
    state = trainer.initial_state(
      train_key, model_init=lambda: SHAPE.build(Vocab, key=model_key)
    )
    for update_key in jax.random.split(rollout_key, num_updates):
      tokens = rollout(state.model, update_key)
      batch, reward = make_batch(state.model, tokens)
      state = trainer.train_step(state, batch).state
      history.append(reward)
  return history


if __name__ == "__main__":
  print(" ".join(f"{reward:.2f}" for reward in main()))
