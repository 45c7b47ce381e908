"""Runs in an environment that has Levanter: what its example hands over."""

import equinox as eqx
import jax
import numpy as np
from levanter.layers.attention import AttentionMask

from examples import counting
from examples.levanter_rapo import (
  SHAPE,
  Pos,
  Row,
  Vocab,
  loss,
  make_batch,
  rollout,
  token_log_probs,
)


def main() -> None:
  model = SHAPE.build(Vocab, key=jax.random.key(1))
  tokens = rollout(model, jax.random.key(2))
  written = np.asarray(tokens.array)[:, 1:]
  where = counting.RETRIEVED
  np.testing.assert_array_equal(written[where], counting.ANSWERS[where])

  logits = model(tokens, AttentionMask.causal()).rearrange((Row, Pos, Vocab))
  expected = jax.nn.log_softmax(logits.array[:, :-1])
  expected = np.take_along_axis(expected, written[..., None], -1)[..., 0]
  found = token_log_probs(model, tokens).array[:, :-1]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  # Ratios of 1: the loss is 0, up to the shaping of retrieved steps.
  batch, _ = make_batch(model, tokens)
  value, gradient = eqx.filter_value_and_grad(loss)(model, batch)
  assert abs(value) < 0.05, value
  assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


if __name__ == "__main__":
  main()
