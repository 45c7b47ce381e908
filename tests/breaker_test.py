"""When a breaker opens and closes."""

from rapo_jax.breaker import Breaker


class Calls:
  """A breaker of two failures in three calls, and a clock that is moved."""

  def __init__(self):
    self.now = 0.0
    self.breaker = Breaker(lambda: self.now)

  def __call__(self, failed):
    return self.breaker.count(failed, window=3, failures=2, cooldown_s=60)


def test_it_opens_once_and_closes_once():
  calls = Calls()
  assert [calls(failed) for failed in (True, False, True)] == ["", "", "opened"]
  assert calls.breaker.is_open
  assert (calls.breaker.num_failed, calls.breaker.num_calls) == (2, 3)
  calls.now = 60.0
  assert not calls.breaker.is_open
  # One failure is enough now.
  assert calls(True) == ""
  assert calls.breaker.is_open
  calls.now = 120.0
  assert calls(False) == "closed"
  assert not calls.breaker.is_open
  assert calls(True) == ""
  assert not calls.breaker.is_open


def test_failures_far_apart_do_not_open_it():
  calls = Calls()
  assert [calls(f) for f in (True, False, False, True)] == [""] * 4
