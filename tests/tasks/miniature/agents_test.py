"""Tests of the warm start, with agents too small and short to learn much."""

import dataclasses
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
from rapo_jax.training import SupervisedTrainer

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
      ["clean", "expert", "corrupted"],
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

  def test_a_weaker_off_policy_agent_leaves_the_base_agent_as_it_is(self):
    weights = {}
    for weaker in (None, 0.5):
      folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
      config = dataclasses.replace(TINY, off_policy_correct_prob=weaker)
      lib.train_agents(WORLD, "compute", config, folder)
      weights[weaker] = {
        name: (folder / name / "model.safetensors").read_bytes()
        for name in ("base", "off_policy")
      }
    self.assertEqual(weights[None]["base"], weights[0.5]["base"])
    self.assertNotEqual(weights[None]["off_policy"], weights[0.5]["off_policy"])
    self.assertNotEqual(weights[0.5]["off_policy"], weights[0.5]["base"])

  def test_same_seed_gives_the_same_parameters(self):
    def train():
      config = lib.supervised_config(TINY, PHASE)
      trainer = SupervisedTrainer(
        lib.initial_model(TINY, len(TOKENIZER)), config
      )
      examples = lib.demonstrate_forever(
        WORLD,
        "compute",
        TOKENIZER,
        demonstrations_lib.DemonstrationConfig(0.9),
        hops=(1, 2),
        rng=np.random.default_rng(3),
      )
      ((step, _),) = trainer.run(examples)
      self.assertEqual(step, 10)
      return jax.tree.leaves(trainer.model)

    for a, b in zip(train(), train(), strict=True):
      np.testing.assert_array_equal(a, b)

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
