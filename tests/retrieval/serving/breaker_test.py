"""When searches fail, are left alone, and are tried again."""

import logging

import pytest

from rapo_jax import retrieval

_CONFIG = retrieval.RetrievalConfig(
  breaker_failures=2, breaker_window=3, breaker_cooldown_s=60.0
)


class FakeBuffer(retrieval.StepTraceBuffer):
  """Fails when it is told to, and counts."""

  def __init__(self):
    self.version = 3
    self.works = True
    self.num_searches = 0

  def retrieve(self, questions, histories, *, config, keys=None):
    self.num_searches += 1
    outcome = (
      retrieval.Miss("empty buffer") if self.works else retrieval.Failed("gone")
    )
    return [outcome] * len(questions)


class Searches:
  """A guarded buffer, and a clock that stands still until it is moved."""

  def __init__(self):
    self.now = 0.0
    self.buffer = FakeBuffer()
    self.guarded = retrieval.GuardedBuffer(self.buffer, lambda: self.now)

  def __call__(self, works):
    """What becomes of one search for two histories."""
    self.buffer.works = works
    before = self.buffer.num_searches
    outcomes = self.guarded.retrieve(["q"] * 2, [()] * 2, config=_CONFIG)
    assert len(outcomes) == 2
    assert outcomes[0] == outcomes[1]
    if isinstance(outcomes[0], retrieval.Miss):
      return "miss"
    assert outcomes[0].attempted == (self.buffer.num_searches > before)
    return "failed" if outcomes[0].attempted else "open"


def test_it_has_the_version_of_its_buffer():
  assert retrieval.GuardedBuffer(FakeBuffer()).version == 3


@pytest.fixture
def search():
  return Searches()


def test_it_opens_at_so_many_failures_of_the_last_searches(search):
  # Two failures of the last three; the first of these three is out by then.
  works = [False, True, True, False, True, False, True]
  outcomes = [search(w) for w in works]
  assert " ".join(outcomes) == "failed miss miss failed miss failed open"
  assert search.buffer.num_searches == 6


def test_after_the_cooldown_one_search_decides(search):
  assert [search(False) for _ in range(3)] == ["failed", "failed", "open"]
  search.now = 59.0
  assert search(True) == "open"
  search.now = 60.0
  assert [search(False), search(True)] == ["failed", "open"]
  search.now = 120.0
  # Closed again, and the old failures are forgotten.
  assert [search(True), search(False), search(True)] == [
    *("miss", "failed", "miss")
  ]


def test_a_search_for_nobody_counts_as_none(search):
  search(False)
  assert search.guarded.retrieve([], [], config=_CONFIG) == []
  assert search(False) == "failed"
  assert search(False) == "open"


def test_it_is_logged_when_it_opens_and_closes(search, caplog):
  with caplog.at_level(logging.INFO):
    for now in (0.0, 0.0, 0.0, 60.0, 120.0):
      search.now = now
      search(False)
    search.now = 180.0
    search(True)
  first, last = (record.getMessage() for record in caplog.records)
  assert "2 of the last 2 searches" in first
  assert "gone" in first
  assert last == "Retrieval works again."
