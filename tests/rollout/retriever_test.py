"""Histories that are looked up in a thread."""

import contextlib
import threading

import pytest

from rapo_jax.retrieval import Failed, GuardedBuffer, Miss, RetrievalConfig
from rapo_jax.rollout.retriever import Question, Retriever
from rapo_jax.rollout.tool_runner import wait_for_news

_SOON_S = 10.0  # How long a test waits for what comes at once.


class FakeBuffer(GuardedBuffer):
  """Misses, telling the history; one search hangs until it is released."""

  def __init__(self, error=None):
    self.error = error
    self.searches = []
    self.begun = threading.Semaphore(0)
    self.released = threading.Event()

  def retrieve(self, questions, histories, *, config, keys=None):
    self.searches.append(list(questions))
    assert keys == [(ord(question[-1]),) for question in questions]
    self.begun.release()
    assert self.released.wait(_SOON_S)
    if self.error is not None:
      raise self.error
    return [Miss(" ".join(history)) for history in histories]


@contextlib.contextmanager
def retriever_of(buffer, clock=lambda: 0.0):
  retriever = Retriever(buffer, RetrievalConfig(), threading.Condition(), clock)
  with contextlib.closing(retriever):
    yield retriever
  buffer.released.set()


def ask(owner, deadline=100.0):
  return Question(
    owner, f"question {owner}", (owner, "b"), (ord(owner),), deadline
  )


def answers_of(retriever, count):
  answers = []
  while len(answers) < count:
    assert retriever.open or retriever.has_news
    wait_for_news(retriever._changed, [retriever], _SOON_S)
    answers += retriever.take()
  return answers


def test_what_comes_during_a_search_waits_for_the_next_one():
  buffer = FakeBuffer()
  with retriever_of(buffer) as retriever:
    retriever.submit([ask("a")])
    assert buffer.begun.acquire(timeout=_SOON_S)
    retriever.submit([ask("b")])
    retriever.submit([ask("c")])
    assert retriever.take() == []
    buffer.released.set()
    answers = answers_of(retriever, 3)
  assert answers == [("a", Miss("a b")), ("b", Miss("b b")), ("c", Miss("c b"))]
  assert buffer.searches == [["question a"], ["question b", "question c"]]
  assert not retriever.open
  assert retriever.busy_seconds > 0


def test_a_thread_starts_again_after_it_has_ended():
  buffer = FakeBuffer()
  buffer.released.set()
  with retriever_of(buffer) as retriever:
    for owner in "abc":
      retriever.submit([ask(owner)])
      assert answers_of(retriever, 1) == [(owner, Miss(f"{owner} b"))]


def test_a_bug_is_raised_where_answers_are_taken():
  buffer = FakeBuffer(error=KeyError("no such trace"))
  buffer.released.set()
  with retriever_of(buffer) as retriever:
    retriever.submit([ask("a")])
    with pytest.raises(KeyError, match="no such trace"):
      answers_of(retriever, 1)


def test_a_search_that_hangs_fails_at_the_deadline():
  now = [0.0]
  buffer = FakeBuffer()
  with retriever_of(buffer, clock=lambda: now[0]) as retriever:
    retriever.submit([ask("a", deadline=5.0), ask("b", deadline=50.0)])
    assert retriever.left_s() == 5.0
    now[0] = 5.1
    [(owner, outcome)] = retriever.take()
    assert (owner, type(outcome)) == ("a", Failed)
    buffer.released.set()
    assert answers_of(retriever, 1) == [("b", Miss("b b"))]
