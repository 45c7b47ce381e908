"""Supervised learning: the loss by hand, heads, micro-batches, resuming."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax import models
from rapo_jax.errors import InputError
from rapo_jax.training import (
  Checkpoints,
  Example,
  SupervisedConfig,
  SupervisedTrainer,
  from_chat,
  pack_examples,
  repeat_examples,
)
from rapo_jax.training.supervised import _make_optimizer, batch_loss
from tests import fake_devices
from tests.data.chat_test import make_tokenizer
from tests.tiny_decoder import tiny_decoder

CONFIG = SupervisedConfig(
  6,
  learning_rate=1e-2,
  warmup_steps=1,
  rows=4,
  row_length=24,
  steps_per_call=2,
)


def make_examples(count=12, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Example(
      rng.integers(0, 40, length).astype(np.int32), np.arange(length) >= 3
    )
    for length in rng.integers(6, 14, count)
  ]


def train(config=CONFIG, model=None, examples=None, **options):
  trainer = SupervisedTrainer(model or tiny_decoder(), config, **options)
  stream = repeat_examples(examples or make_examples(), seed=0)
  return trainer, [loss for _, loss in trainer.run(stream)]


def leaves(model):
  return [np.asarray(x) for x in jax.tree.leaves(model)]


def changed(**fields):
  return SupervisedConfig(**{**vars(CONFIG), **fields})


@pytest.mark.parametrize("head", ["whole", "chunked"])
def test_the_loss_is_the_mean_of_each_example_by_itself(head):
  model, examples = tiny_decoder(), make_examples(5)
  (batch,) = pack_examples(examples, rows=4, row_length=24)
  log_probs = []
  for example in examples:
    logits = model(jnp.asarray(example.tokens)[None])[0, :-1]
    chosen = jax.nn.log_softmax(logits)[
      np.arange(len(logits)), example.tokens[1:]
    ]
    log_probs += np.asarray(chosen)[example.where[1:]].tolist()
  # In two parts, as micro-batches are.
  config = changed(head=head, head_chunk=7)
  loss = sum(
    batch_loss(
      model,
      jax.tree.map(lambda x, s=start: jnp.asarray(x[s : s + 2]), batch),
      config,
      len(log_probs),
    )
    for start in (0, 2)
  )
  assert loss == pytest.approx(-np.mean(log_probs), rel=1e-5)


@pytest.mark.parametrize(
  "fields", [{"head": "chunked", "head_chunk": 5}, {"rows_per_microbatch": 2}]
)
def test_head_and_micro_batches_change_nothing_but_rounding(fields):
  trainer, losses = train()
  other, others = train(changed(**fields))
  assert losses[-1] < losses[0]
  np.testing.assert_allclose(others, losses, rtol=1e-4)
  for a, b in zip(leaves(trainer.model), leaves(other.model), strict=True):
    # Adam divides by roots of second moments, which enlarges rounding.
    np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("lora", [None, models.LoraConfig(2, 4.0, ("query",))])
def test_a_resumed_training_is_bit_equal_to_one_without_a_stop(tmp_path, lora):
  def make_model():
    model = tiny_decoder()
    return (
      model
      if lora is None
      else models.add_adapters(model, lora, rngs=nnx.Rngs(1))
    )

  whole, losses = train(model=make_model())
  kept = Checkpoints(tmp_path)
  first = SupervisedTrainer(
    make_model(), CONFIG, checkpoints=kept, checkpoint_every=2
  )
  stream = first.run(repeat_examples(make_examples(), seed=0))
  # The third call is never made.
  assert [step for step, _ in itertools.islice(stream, 2)] == [2, 4]
  kept.close()
  kept = Checkpoints(tmp_path)
  second, rest = train(model=make_model(), checkpoints=kept)
  assert rest == losses[2:]
  for a, b in zip(leaves(whole.model), leaves(second.model), strict=True):
    np.testing.assert_array_equal(a, b)
  kept.close()
  kept = Checkpoints(tmp_path)
  done, rest = train(model=make_model(), checkpoints=kept)
  assert (done.step, rest) == (6, [])
  with pytest.raises(InputError, match="differ: learning_rate: set"):
    train(changed(learning_rate=1.0), make_model(), checkpoints=kept)
  with pytest.raises(InputError, match="first 6 steps differ"):
    train(model=make_model(), examples=make_examples(seed=1), checkpoints=kept)
  kept.close()


def test_adapters_alone_are_trained():
  lora = models.LoraConfig(2, 4.0, ("query", "down"))
  model = models.add_adapters(tiny_decoder(), lora, rngs=nnx.Rngs(1))
  trainer, losses = train(changed(learning_rate=5e-2), model)
  assert losses[-1] < losses[0]
  base = models.merge_adapters(
    models.add_adapters(tiny_decoder(), lora, rngs=nnx.Rngs(1))
  )
  frozen = np.asarray(trainer.model.embedding[...])
  np.testing.assert_array_equal(frozen, np.asarray(base.embedding[...]))


def test_a_decoder_learns_a_conversation():
  tokenizer = make_tokenizer()
  examples = [
    from_chat(
      tokenizer,
      [
        {"role": "user", "content": f"How high is {place}?"},
        {"role": "assistant", "content": height},
      ],
    )
    for place, height in (("the bridge", "Ten."), ("the tower", "Ninety."))
  ]
  config = SupervisedConfig(
    40, 1e-2, warmup_steps=4, rows=2, row_length=64, steps_per_call=10
  )
  _, losses = train(config, tiny_decoder(vocab_size=len(tokenizer)), examples)
  assert losses[-1] < 0.5 * losses[0]


def test_examples_that_end_too_early_are_refused():
  trainer = SupervisedTrainer(tiny_decoder(), CONFIG)
  with pytest.raises(InputError, match=r"fill 6 steps .* end after 1:"):
    list(trainer.run(make_examples(4)))


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"warmup_steps": 6}, r"below num_steps \(6\), got 6"),
    ({"rows_per_microbatch": 3}, r"divide rows \(4\), got 3"),
    ({"head": "half"}, "one of auto, whole, chunked, got 'half'"),
  ],
)
def test_a_config_that_cannot_be_is_refused(fields, match):
  with pytest.raises(InputError, match=match):
    changed(**fields)


def test_a_mesh_changes_nothing_but_rounding():
  there = json.loads(
    fake_devices.run_python("-m", "tests.training.supervised_on_eight_devices")
  )
  assert there["losses"] <= 1e-5
  assert there["placed"], "the state must stay where the rules put it"
  assert "rows_per_microbatch must be a multiple" in there["refused"]


@pytest.mark.parametrize("rows_per_microbatch", [None, 2])
def test_a_loss_is_measured_without_training(rows_per_microbatch):
  config = changed(rows_per_microbatch=rows_per_microbatch)
  trainer = SupervisedTrainer(tiny_decoder(), config)
  before, examples = leaves(trainer.model), make_examples(9)
  batches = list(pack_examples(examples, rows=4, row_length=24))
  count = sum(int(batch.where.sum()) for batch in batches)
  expected = sum(
    float(batch_loss(trainer.model, batch, config, count)) for batch in batches
  )
  assert trainer.loss(examples) == pytest.approx(expected, rel=1e-5)
  assert all(map(np.array_equal, leaves(trainer.model), before))
  with pytest.raises(InputError, match="at least one example"):
    trainer.loss([])


def test_a_state_between_two_checkpoints_can_be_saved(tmp_path):
  whole, _ = train()
  checkpoints = Checkpoints(tmp_path)
  first = SupervisedTrainer(tiny_decoder(), CONFIG, checkpoints=checkpoints)
  stream = repeat_examples(make_examples(), seed=0)
  assert next(first.run(stream)).step == 2
  first.save()
  first.save()
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.updates() == [2]
  resumed, losses = train(checkpoints=checkpoints)
  checkpoints.close()
  assert len(losses) == 2
  assert all(map(np.array_equal, leaves(resumed.model), leaves(whole.model)))


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_first_step_learns(warmup):
  config = SupervisedConfig(
    10, learning_rate=0.1, warmup_steps=warmup, weight_decay=0.0
  )
  optimizer = _make_optimizer(config)
  state, rates = optimizer.init(jnp.zeros(())), []
  for _ in range(10):
    # Of a gradient that stays the same, Adam's step is the learning rate.
    step, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
    rates.append(-float(step) / 0.1)
  rising = [(i + 1) / max(warmup, 1) for i in range(max(warmup, 1))]
  np.testing.assert_allclose(rates[: len(rising)], rising, rtol=1e-4)
  falling = rates[len(rising) - 1 :]
  assert all(a > b > 0 for a, b in itertools.pairwise(falling))
