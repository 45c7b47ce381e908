"""The client of the standard library, against the server over loopback."""

import json
import urllib.error

import pytest

from examples import step_client
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.retrieval.serving import server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.retrieval import loopback


@pytest.fixture
def serve():
  """Serves a source in a `with`; gives the URL."""

  def start(source, **retrieval):
    config = ServerConfig(retrieval=RetrievalConfig(**retrieval))
    return loopback.serving(server.make_app(source, None, config=config))

  return start


def test_it_gives_the_step_that_a_rollout_would_take(serve):
  source = loopback.FakeSource()
  with serve(source) as url:
    steps = step_client.next_steps(url, ["a", "b"], [[], ["one", "two"]])
  # Of the three nearest the last has the highest reward.
  assert steps == ["step 2 of a", "step 2 of b"]
  assert [list(history) for history in source.histories] == [
    [],
    ["one", "two"],
  ]


def test_nothing_is_near_enough(serve):
  with serve(loopback.FakeSource(), min_similarity=1.0, min_reward=0.5) as url:
    assert step_client.next_steps(url, ["a"], [[]]) == [None]


def test_nothing_is_asked(serve):
  with serve(loopback.FakeSource()) as url:
    assert step_client.next_steps(url, [], []) == []


def test_a_refusal_says_why(serve):
  with (
    serve(loopback.FakeSource()) as url,
    pytest.raises(urllib.error.HTTPError) as caught,
  ):
    step_client.next_steps(url, ["a"], [[], []])
  assert caught.value.code == 422
  assert "one history" in json.load(caught.value)["error"]
