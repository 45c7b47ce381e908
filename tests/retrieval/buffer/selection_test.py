"""Tests of choosing trajectories and steps."""

import random

from absl.testing import absltest, parameterized

from rapo_jax.retrieval.buffer import selection as lib
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory

CALL = "<search> who wrote Emma in the year 1815 and where </search>"
ANSWER = "<answer> Jane Austen, in Chawton in Hampshire, in 1815 </answer>"


def trajectory(number, *, reward=1.0, steps=(CALL, ANSWER), **kwargs):
  return AgentTrajectory(
    question=kwargs.pop("question", "Q?"),
    steps=tuple(steps),
    reward=reward,
    source=kwargs.pop("source", "a"),
    query_id=kwargs.pop("query_id", "q0"),
    trajectory_id=f"t{number}",
    **kwargs,
  )


def traces(trajectories, **kwargs):
  counts = lib.TraceCounts()
  found = lib.select_traces(trajectories, lib.Selection(**kwargs), counts)
  return list(found), counts


class SelectTrajectoriesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, "124567"),  # A reward must be above 0.
    ({"min_reward": None}, "01234567"),
    ({"min_reward": 0.5}, "2467"),
    ({"top_k": 1}, "257"),
    ({"top_k": 2}, "24567"),
    ({"num_trajectories": 2}, "1567"),
    ({"num_trajectories": 2, "top_k": 1}, "157"),
    ({"top_k": 1, "min_reward": 0.8}, "2"),
  )
  def test_which(self, selection, kept):
    # Agent a on q0 and q1, agent b on q0.
    trajectories = [
      trajectory(0, reward=0.0),
      trajectory(1, reward=0.4),
      trajectory(2, reward=0.9),
      trajectory(3, reward=-1.0),
      trajectory(4, reward=0.8),
      trajectory(5, reward=0.5, query_id="q1"),
      trajectory(6, reward=0.6, source="b"),
      trajectory(7, reward=0.7, source="b"),
    ]
    found = lib.select_trajectories(trajectories, lib.Selection(**selection))
    expected = set(kept)
    self.assertEqual({t.trajectory_id[1:] for t in found}, expected)

  def test_questions_of_one_id_are_several(self):
    trajectories = [
      trajectory(n, question=question, reward=reward)
      for n, question, reward in ((0, "A?", 0.9), (1, "B?", 0.5), (2, "B?", 1))
    ]
    (first, second) = lib.select_trajectories(
      trajectories, lib.Selection(top_k=1)
    )
    self.assertEqual((first, second), (trajectories[0], trajectories[2]))

  def test_none(self):
    self.assertEqual(lib.select_trajectories([], lib.Selection(top_k=5)), [])

  @parameterized.parameters(
    {"num_trajectories": 0},
    {"top_k": 0},
    {"near_duplicates": 0.0},
    {"near_duplicates": 1.5},
  )
  def test_out_of_range(self, **kwargs):
    with self.assertRaisesRegex(ValueError, "must"):
      lib.Selection(**kwargs)


class SelectTracesTest(parameterized.TestCase):
  def test_steps_with_their_histories(self):
    found, counts = traces([trajectory(0, extras={"f1": 1.0})])
    self.assertEqual([t.history for t in found], [(), (CALL,)])
    self.assertEqual([t.answers for t in found], [False, True])
    self.assertEqual({t.trajectory_id for t in found}, {"t0"})
    self.assertEqual(found[0].extras, {"f1": 1.0})
    self.assertEqual(counts, lib.TraceCounts(num_traces=2))

  def test_a_shared_history_gives_no_traces(self):
    found, _ = traces([trajectory(0, steps=[ANSWER], history=(CALL,))])
    (trace,) = found
    self.assertEqual((trace.history, trace.step_index), ((CALL,), 1))

  def test_a_step_of_retrieval_tags_alone_is_left_out(self):
    tags = "<retrieve> </retrieve>"
    found, counts = traces(
      [trajectory(0, steps=(CALL, tags, ANSWER), history=(tags,))]
    )
    self.assertEqual([t.step for t in found], [CALL, ANSWER])
    self.assertEqual([t.step_index for t in found], [1, 3])
    self.assertEqual(counts.num_traces, 2)

  def test_answers_are_left_out(self):
    found, counts = traces([trajectory(0)], exclude_answers=True)
    self.assertEqual([t.step for t in found], [CALL])
    self.assertEqual(counts.num_answers, 1)

  def test_exact_copies_are_left_out(self):
    other = (CALL, ANSWER.replace("Jane", "J."))
    found, counts = traces(
      [
        trajectory(0),
        trajectory(1, source="b"),
        trajectory(2, steps=other),
        trajectory(3, question="R?"),
      ]
    )
    # The second is a copy; the third shares its first step.
    self.assertEqual([t.trace_id for t in found], [0, 1, 5, 6, 7])
    self.assertEqual(counts, lib.TraceCounts(num_traces=5, num_exact=3))

  @parameterized.named_parameters(
    # 10 words are 8 triples. One word more at the end makes 9: 8/9 in common.
    ("a word more", (f"{CALL} now", ANSWER), {}, 1),
    ("other words", ("<search> Emma </search>", ANSWER), {}, 0),
    # The last step is the same, but what leads to it is not.
    ("another history", (CALL[::-1], ANSWER), {}, 0),
    ("another question", (f"{CALL} now", ANSWER), {"query_id": "q1"}, 0),
  )
  def test_near_copies_are_left_out(self, steps, kwargs, num_first):
    other = trajectory(1, steps=steps, question="Q? ", **kwargs)
    found, counts = traces([trajectory(0), other], near_duplicates=0.7)
    # With the first step its successor goes, whose history is near as well.
    self.assertEqual(counts.num_near, 2 * num_first)
    self.assertLen(found, 4 - 2 * num_first)

  def test_near_copies_among_many(self):
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    steps = [" ".join(rng.choices(words, k=40)) for _ in range(200)]
    first = [trajectory(i, steps=[step]) for i, step in enumerate(steps)]
    # A word more at the end of 40: 38 of 39 triples in common.
    again = [
      trajectory(f"n{i}", steps=[f"{step} more"])
      for i, step in enumerate(steps)
    ]
    found, counts = traces([*first, *again], near_duplicates=0.8)
    # MinHash may miss a few, and takes none that is not near.
    self.assertGreater(counts.num_near, 190)
    self.assertEqual(len(found) + counts.num_near, 400)
    self.assertTrue(
      {t.trajectory_id for t in first} <= {t.trajectory_id for t in found}
    )

  def test_near_copies_stay_without_being_asked_for(self):
    other = trajectory(1, steps=[f"{CALL} now", ANSWER])
    found, _ = traces([trajectory(0), other])
    self.assertLen(found, 4)


if __name__ == "__main__":
  absltest.main()
