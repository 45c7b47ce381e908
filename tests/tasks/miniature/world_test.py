"""Tests of the miniature world."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from rapo_jax.tasks.miniature import lexicon
from rapo_jax.tasks.miniature import world as world_lib

WORLD = world_lib.make_world(world_lib.WorldConfig())


class WorldTest(parameterized.TestCase):
  def test_same_config_gives_same_world(self):
    again = world_lib.make_world(world_lib.WorldConfig())
    self.assertEqual(again.train, WORLD.train)
    self.assertEqual(again.held_out, WORLD.held_out)
    self.assertEqual(again.page_texts(), WORLD.page_texts())

  def test_other_seed_gives_other_world(self):
    other = world_lib.make_world(world_lib.WorldConfig(seed=1))
    self.assertNotEqual(other.facts, WORLD.facts)

  def test_names_are_single_words_and_unique(self):
    self.assertLen(set(lexicon.NAMES), len(lexicon.NAMES))
    self.assertTrue(all(name.isalpha() for name in lexicon.NAMES))
    self.assertLen(WORLD.facts, WORLD.config.num_entities)

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_sizes_and_ids(self, family):
    train, held_out = WORLD.train[family], WORLD.held_out[family]
    self.assertLen(train, 128)
    self.assertLen(held_out, 256)
    ids = [q.query_id for q in (*train, *held_out)]
    self.assertLen(set(ids), len(ids))

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_no_question_is_in_both_splits(self, family):
    train = {q.question for q in WORLD.train[family]}
    held_out = {q.question for q in WORLD.held_out[family]}
    self.assertLen(train, 128)
    self.assertLen(held_out, 256)
    self.assertEmpty(train & held_out)

  @parameterized.parameters(
    ("multihop", {3: 64, 4: 64}),
    ("compute", {3: 64, 4: 64}),
    ("web", {2: 43, 3: 43, 4: 42}),
  )
  def test_hops_in_turn(self, family, expected):
    hops = [q.hops for q in WORLD.train[family]]
    self.assertEqual({h: hops.count(h) for h in set(hops)}, expected)

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_answering_early_is_never_right(self, family):
    chain = WORLD.chains[family]
    for question in (*WORLD.train[family], *WORLD.held_out[family]):
      state = question.start
      for number, move in enumerate(question.moves, 1):
        _, state = chain.act(state, move)
        early = chain.answer(state, question.target)
        self.assertEqual(
          early == question.ground_truth, number == len(question.moves)
        )

  def test_multihop_visits_nobody_twice(self):
    for question in WORLD.train["multihop"]:
      values = [s.observation.split()[-2] for s in question.steps]
      self.assertLen({question.start, *values}, question.hops + 1)
      self.assertEqual(values[-1], question.ground_truth)

  def test_compute_programs_run(self):
    for question in WORLD.train["compute"]:
      for step in question.steps:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
          exec(step.argument, {})
        self.assertEqual(printed.getvalue().strip(), step.observation)
      self.assertEqual(question.steps[-1].observation, question.ground_truth)

  def test_compute_runs_from_left_to_right(self):
    compute = world_lib.Compute()
    step, value = compute.act("34", "plus 57")
    self.assertEqual(step.argument, "print ( ( 34 + 57 ) % 97 )")
    self.assertEqual(value, "91")
    # 91 * 2 = 182 = 97 + 85
    self.assertEqual(compute.act("91", "times 2")[1], "85")
    # 5 - 12 = -7 = 90 (mod 97)
    self.assertEqual(compute.act("5", "minus 12")[1], "90")

  def test_web_solution_follows_links(self):
    for question in WORLD.train["web"]:
      search, *opens = question.steps
      self.assertEqual(search.observation.split()[-2], opens[0].argument)
      self.assertLen(opens, question.hops)
      for before, after, link in zip(
        opens, opens[1:], question.moves[2:], strict=False
      ):
        words = before.observation.split()
        self.assertEqual(words[words.index(link) + 1], after.argument)
      words = opens[-1].observation.split()
      answer = words[words.index(question.target) + 1]
      self.assertEqual(answer, question.ground_truth)

  def test_pages_are_short(self):
    longest = max(len(t.split()) for t in WORLD.page_texts().values())
    self.assertLessEqual(longest, 25)

  def test_documents_are_one_sentence_a_fact(self):
    self.assertLen(WORLD.documents("multihop"), 1500)
    self.assertLen(WORLD.documents("web"), 150)
    self.assertEmpty(WORLD.documents("compute"))
    for question in WORLD.train["multihop"]:
      for step in question.steps:
        self.assertIn(step.observation, WORLD.documents("multihop"))

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_wrong_moves_are_wrong_and_possible(self, family):
    chain = WORLD.chains[family]
    for question in WORLD.train[family][:8]:
      state = question.start
      for move in question.moves:
        if move != lexicon.PAGE:
          for wrong in chain.wrong_moves(state, move):
            self.assertNotEqual(wrong, move)
            chain.act(state, wrong)
        _, state = chain.act(state, move)
      self.assertNotEmpty(chain.wrong_moves(state, ""))

  def test_sparse_and_control_settings(self):
    config = world_lib.WorldConfig(multihop_hops=(4,), num_train=16)
    world = world_lib.make_world(config)
    self.assertEqual({q.hops for q in world.train["multihop"]}, {4})
    config = dataclasses.replace(config, multihop_hops=(2, 3, 4))
    world = world_lib.make_world(config)
    self.assertEqual({q.hops for q in world.train["multihop"]}, {2, 3, 4})

  @parameterized.parameters(
    ({"num_entities": 100}, "num_entities must lie between 150 and 200"),
    ({"num_links": 11}, "num_links must lie between 3 and 10"),
    ({"web_hops": (5,)}, "web_hops must hold numbers from 1 to 4"),
    ({"multihop_hops": ()}, "multihop_hops must hold"),
  )
  def test_bad_configs_name_the_remedy(self, fields, message):
    with pytest.raises(ValueError, match=message):
      world_lib.WorldConfig(**fields)

  def test_too_many_questions(self):
    with pytest.raises(ValueError, match="too few web questions of 1 hops"):
      world_lib.draw_questions(
        WORLD.chains["web"],
        "web",
        301,  # 150 pages with 2 fields each
        hops=(1,),
        rng=np.random.default_rng(0),
      )


if __name__ == "__main__":
  absltest.main()
