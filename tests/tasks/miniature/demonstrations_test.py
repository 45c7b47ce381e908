"""Tests of the demonstrations."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from rapo_jax import rewards
from rapo_jax.tasks.miniature import demonstrations as lib
from rapo_jax.tasks.miniature import tokenizer as tokenizer_lib
from rapo_jax.tasks.miniature import world as world_lib
from rapo_jax.tools import TagSet
from rapo_jax.trajectory import TokenKind

WORLD = world_lib.make_world(world_lib.WorldConfig())
TOKENIZER = tokenizer_lib.train_tokenizer(tokenizer_lib.corpus(WORLD))
EXPERT = lib.DemonstrationConfig(correct_prob=1.0)


def demonstrate(family, config, count=256, seed=0):
  rng = np.random.default_rng(seed)
  questions = (WORLD.train[family] * 8)[:count]
  chain = WORLD.chains[family]
  return [(q, lib.demonstrate(chain, q, config, rng)) for q in questions]


def success(demonstrations):
  scores = [rewards.score(s, q.ground_truth) for q, s in demonstrations]
  return np.mean([score.f1 == 1.0 for score in scores])


class DemonstrationsTest(parameterized.TestCase):
  @parameterized.parameters(*world_lib.FAMILIES)
  def test_expert_is_always_right(self, family):
    demonstrations = demonstrate(family, EXPERT, 128)
    self.assertEqual(success(demonstrations), 1.0)
    for question, segments in demonstrations:
      texts = [text for kind, text in segments if kind == TokenKind.POLICY]
      calls = [
        TagSet(("search", "python", "open")).parse_call(text)
        for text in texts[:-1]
      ]
      self.assertEqual(
        [(c.name, c.argument.strip()) for c in calls],
        [(s.tool, s.argument) for s in question.steps],
      )
      observed = [t for kind, t in segments if kind == TokenKind.OBSERVATION]
      self.assertEqual(
        observed,
        [f"<result> {s.observation} </result>" for s in question.steps],
      )

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_corrupted_is_seldom_right(self, family):
    config = lib.DemonstrationConfig(correct_prob=0.15)
    # At least two boundaries have to go right: 0.15^2 = 0.0225.
    self.assertLess(success(demonstrate(family, config, 1024)), 0.05)

  def test_wrong_is_mostly_an_early_answer(self):
    config = lib.DemonstrationConfig(correct_prob=0.0)
    demonstrations = demonstrate("multihop", config, 1024)
    early = np.mean([len(segments) == 3 for _, segments in demonstrations])
    self.assertAlmostEqual(early, 0.85, delta=0.04)
    for question, segments in demonstrations:
      if len(segments) == 3:
        # The current value is the last but one word of the first document.
        value = question.steps[0].observation.split()[-2]
        self.assertIn(f"\\boxed{{ {value} }}", segments[-1][1])

  def test_first_step_is_always_right(self):
    config = lib.DemonstrationConfig(correct_prob=0.0)
    for question, segments in demonstrate("web", config):
      self.assertIn(question.steps[0].argument, segments[0][1])

  def test_retrieved_steps_are_right_and_gone_on_from(self):
    config = dataclasses.replace(
      EXPERT, retrieved_share=1.0, retrieved_prob=1.0
    )
    demonstrations = demonstrate("multihop", config, 64)
    self.assertEqual(success(demonstrations), 1.0)
    for question, segments in demonstrations:
      kinds = [kind for kind, _ in segments]
      self.assertEqual(kinds[2], TokenKind.RETRIEVED)
      text = segments[2][1]
      self.assertStartsWith(text, "<retrieve><think> ")
      self.assertEndsWith(text, "</retrieve>")
      self.assertIn(f"<search> {question.steps[1].argument} </search>", text)
      self.assertIn(question.steps[1].observation, text)
      # The next policy step is the third one of the solution.
      self.assertIn(question.steps[2].argument, segments[3][1])

  def test_share_and_probability_of_retrieved_steps(self):
    config = lib.DemonstrationConfig(
      1.0, retrieved_share=0.5, retrieved_prob=0.4
    )
    with_retrieved = [
      any(kind == TokenKind.RETRIEVED for kind, _ in segments)
      for question, segments in demonstrate("multihop", config, 1024)
      if question.hops == 3
    ]
    # Without a retrieval there are three boundaries: .5 * (1 - .6^3) = .39.
    self.assertAlmostEqual(np.mean(with_retrieved), 0.39, delta=0.07)

  def test_all_wordings_occur(self):
    thoughts = {
      segments[0][1].split("<search>")[0].split()[1]
      for _, segments in demonstrate("multihop", EXPERT, 64)
    }
    self.assertEqual(thoughts, {"Next", "Now", "Then", "So"})

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_tokens_and_loss_mask(self, family):
    config = lib.DemonstrationConfig(0.9, retrieved_share=1.0)
    demonstrations = demonstrate(family, config, 16)
    tokenized = lib.tokenize(
      TOKENIZER, [(q.question, s) for q, s in demonstrations]
    )
    for (question, segments), arrays in zip(
      demonstrations, tokenized, strict=True
    ):
      prompt = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question.question}],
        add_generation_prompt=True,
        tokenize=False,
      )
      self.assertEqual(
        TOKENIZER.decode(arrays.tokens),
        prompt + "".join(text for _, text in segments),
      )
      self.assertEqual(
        TOKENIZER.decode(arrays.tokens[arrays.where]),
        "".join(t for kind, t in segments if kind == TokenKind.POLICY),
      )

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_expert_demonstrations_are_short(self, family):
    demonstrations = demonstrate(family, EXPERT, 128)
    tokenized = lib.tokenize(
      TOKENIZER, [(q.question, s) for q, s in demonstrations]
    )
    self.assertLessEqual(max(len(t.tokens) for t in tokenized), 160)


if __name__ == "__main__":
  absltest.main()
