"""Tests of the warm start, with agents too small and short to learn much."""

import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
import transformers
from absl.testing import absltest, parameterized

from rapo_jax import models
from rapo_jax.tasks.miniature import agents as lib
from rapo_jax.tasks.miniature import demonstrations as demonstrations_lib
from rapo_jax.tasks.miniature import tokenizer as tokenizer_lib
from rapo_jax.tasks.miniature import world as world_lib

WORLD = world_lib.make_world(world_lib.WorldConfig())
TOKENIZER = tokenizer_lib.train_tokenizer(tokenizer_lib.corpus(WORLD))
PHASE = lib.PhaseConfig(10, 5e-3)
TINY = lib.AgentsConfig(
  hidden_size=16,
  intermediate_size=16,
  num_layers=1,
  num_heads=2,
  rows=2,
  clean=PHASE,
  expert=PHASE,
  corrupted=PHASE,
)


def demonstration(length, token=1):
  return demonstrations_lib.TokenizedDemonstration(
    np.full(length, token, np.int32), np.arange(length) >= 2
  )


class AgentsTest(parameterized.TestCase):
  def test_writes_agents_that_load(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    reports = []
    lib.train_agents(
      WORLD,
      "multihop",
      TINY,
      folder,
      report=lambda share, text: reports.append((share, text)),
    )
    shares = [share for share, _ in reports]
    self.assertEqual(shares, sorted(shares))
    self.assertEqual(shares[-1], 1.0)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    self.assertEqual(
      [json.loads(line)["phase"] for line in lines],
      ["clean", "off_policy", "base"],
    )
    parameters = []
    for name in ("base", "off_policy"):
      tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
      self.assertEqual(tokenizer.get_vocab(), TOKENIZER.get_vocab())
      # Rollouts stop at the end of a turn and at the end of a text.
      ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
      self.assertEqual(models.end_token_ids(folder / name), tuple(sorted(ends)))
      model = models.from_pretrained(folder / name)
      self.assertEqual(model.config.vocab_size, len(tokenizer))
      parameters.append(np.asarray(model.embedding[...]))
    self.assertGreater(np.abs(parameters[0] - parameters[1]).max(), 0)

  def test_same_seed_gives_the_same_parameters(self):
    def train():
      batches = lib.pack(
        lib.demonstrate_forever(
          WORLD,
          "compute",
          TOKENIZER,
          demonstrations_lib.DemonstrationConfig(0.9),
          hops=(1, 2),
          rng=np.random.default_rng(3),
        ),
        num_steps=10,
        rows=2,
        row_length=192,
      )
      model = lib.initial_model(TINY, len(TOKENIZER))
      ((model, _, _),) = lib.train(model, batches, PHASE, weight_decay=0.01)
      return jax.tree.leaves(model)

    for a, b in zip(train(), train(), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_loss_falls(self):
    stream = (demonstration(20, token) for token in [5, 6] * 2000)
    batches = lib.pack(stream, num_steps=50, rows=2, row_length=64)
    losses = [
      loss
      for _, _, loss in lib.train(
        lib.initial_model(TINY, 32),
        batches,
        lib.PhaseConfig(50, 1e-2),
        weight_decay=0.0,
      )
    ]
    self.assertLess(losses[-1], 0.5 * losses[0])

  def test_loss_reads_policy_tokens_only(self):
    model = lib.initial_model(TINY, 32)
    # The second demonstration does not fit and ends the only step.
    stream = iter([demonstration(10), demonstration(60)])
    batches = lib.pack(stream, num_steps=1, rows=1, row_length=64)
    batch = lib.Batches(*(x[0] for x in batches))
    loss = lib._loss(model, batch)
    # A target that is not in the loss: padding after the demonstration.
    tokens = batch.tokens.copy()
    tokens[0, 10:] = 7
    self.assertEqual(lib._loss(model, batch._replace(tokens=tokens)), loss)

  def test_packing(self):
    stream = iter(
      [demonstration(n, n) for n in (30, 40, 20, 40, 64)]  # rows of 64
    )
    batches = lib.pack(stream, num_steps=1, rows=2, row_length=64)
    # 30 and 20 share row 0, 40 is alone in row 1, the next 40 ends the step.
    self.assertEqual(
      batches.segment_ids[0, 0].tolist(), [1] * 30 + [2] * 20 + [0] * 14
    )
    self.assertEqual(batches.tokens[0, 1].tolist(), [40] * 40 + [0] * 24)
    self.assertFalse(batches.where[0, 0, 30:32].any())
    self.assertTrue(batches.where[0, 0, 32:50].all())

  def test_packing_refuses_what_does_not_fit(self):
    with pytest.raises(ValueError, match="raise row_length or lower hops"):
      lib.pack(iter([demonstration(65)]), num_steps=1, rows=1, row_length=64)
    with pytest.raises(ValueError, match="ended in step 1 of 2"):
      lib.pack(iter([demonstration(5)]), num_steps=2, rows=1, row_length=64)

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_questions_are_fresh(self, family):
    known = {
      TOKENIZER.decode(d.tokens)
      for d in demonstrations_lib.tokenize(
        TOKENIZER,
        [
          (q.question, [])
          for q in (*WORLD.train[family], *WORLD.held_out[family])
        ],
      )
    }
    stream = lib.demonstrate_forever(
      WORLD,
      family,
      TOKENIZER,
      demonstrations_lib.DemonstrationConfig(1.0),
      hops=WORLD.config.hops(family),
      rng=np.random.default_rng(0),
    )
    for _ in range(512):
      shown = next(stream)
      prompt = TOKENIZER.decode(shown.tokens[: np.argmax(shown.where)])
      self.assertNotIn(prompt, known)

  def test_steps_are_whole_calls(self):
    with pytest.raises(ValueError, match="multiple of 10, got 15"):
      lib.PhaseConfig(15, 1e-3)


if __name__ == "__main__":
  absltest.main()
