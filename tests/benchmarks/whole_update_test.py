"""The parts of the benchmarks of real models that need no model."""

import pytest

from benchmarks import mismatch, whole_update
from benchmarks.whole_update_peers import problem


def test_the_reward_is_the_last_number_and_a_little_for_each():
  assert problem.reward("48 and 24 make 72", "72") == pytest.approx(1.03)
  assert problem.reward("no 72, but 1,000.", "1000") == pytest.approx(1.02)
  assert problem.reward("72 or 71", "72") == pytest.approx(0.02)
  assert problem.reward("many", "72") == 0.0


def test_a_clock_adds_up_parts_and_begins_anew():
  clock = problem.Clock()
  clock.add("rollout", 2.0)
  clock.add("rollout", 1.0)
  assert clock.timed("reward", max)(3, 4) == 4
  taken = clock.take()
  assert taken["rollout"] == 3.0
  assert taken["reward"] >= 0.0
  assert clock.take() == {}


def test_a_loop_runs_an_update_at_a_time_and_hands_over_errors():
  done = []

  def train():
    for update in range(2):
      turns.wait()
      done.append(update)
      turns.finish(update)
    raise LookupError("no more")

  turns = problem.Turns(train)
  assert turns.update() == 0
  assert done == [0]
  assert turns.update() == 1
  with pytest.raises(LookupError, match="no more"):
    turns.update()


def test_the_slope_of_a_line_has_no_error():
  assert mismatch.slope([1.0, 2.0]) is None
  found = mismatch.slope([1.0, 1.5, 2.0, 2.5])
  assert found["per_update"] == pytest.approx(0.5)
  assert found["standard_error"] == pytest.approx(0.0, abs=1e-12)
  # Around the mean 2: slope (-1 * 1 + 1 * 1) / 2 = 0, rest 1, -2, 1.
  bent = mismatch.slope([3.0, 0.0, 3.0])
  assert bent == {"per_update": 0.0, "standard_error": pytest.approx(3**0.5)}


def test_the_better_peer_is_compared_by_medians():
  found = whole_update.ratios({"ours": 2.0, "trl": 5.0, "tunix": 4.0})
  assert found["ours_over"] == {"trl": 2.5, "tunix": 2.0}
  assert whole_update.ratios({"trl": 5.0})["ours_over"] == {}
