"""The contract of `Index`, for one whose vectors lie with a server."""

import contextlib
import json

import httpx2
import numpy as np
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import protocol, remote, server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.retrieval import loopback

# All of the contract but what reads the files of an index elsewhere than its
# class does, since there are none here.
from tests.retrieval.index.base_test import (
  test_a_query_does_not_depend_on_its_batch,
  test_a_vector_finds_itself,
  test_all_equal_vectors,
  test_build_refuses_what_is_not_finite,
  test_finds_the_nearest,
  test_is_an_index_and_its_class_makes_them,
  test_load_refuses_a_folder_without_an_index,
  test_more_neighbors_than_vectors_are_padded,
  test_no_queries,
  test_save_replaces_an_older_index,
  test_saved_moved_and_loaded_it_finds_the_same,
  test_search_refuses_what_does_not_fit,
  test_ties_go_to_the_lower_id,
  unit_vectors,
)

__all__ = [
  "test_a_query_does_not_depend_on_its_batch",
  "test_a_vector_finds_itself",
  "test_all_equal_vectors",
  "test_build_refuses_what_is_not_finite",
  "test_finds_the_nearest",
  "test_is_an_index_and_its_class_makes_them",
  "test_load_refuses_a_folder_without_an_index",
  "test_more_neighbors_than_vectors_are_padded",
  "test_no_queries",
  "test_save_replaces_an_older_index",
  "test_saved_moved_and_loaded_it_finds_the_same",
  "test_search_refuses_what_does_not_fit",
  "test_ties_go_to_the_lower_id",
]

CONFIG = ServerConfig(
  limits=protocol.Limits(max_queries=16, max_topk=30_000), max_wait_s=0.0
)


class ServedIndex(remote.RemoteIndex):
  """One that starts the server of what it is built from."""

  servers: contextlib.ExitStack

  @classmethod
  def build(cls, vectors, *, encoder_sha256=None):
    index = retrieval.ExactIndex.build(vectors, encoder_sha256=encoder_sha256)
    app = server.index_app(index, CONFIG, dimension=vectors.shape[1])
    url = cls.servers.enter_context(loopback.serving(app))
    opened = remote.RemoteIndex(url)
    cls.servers.callback(opened.close)
    return opened


pytestmark = pytest.mark.parametrize(
  "index_cls", [ServedIndex], ids=lambda cls: cls.kind
)


@pytest.fixture(autouse=True, scope="module")
def end_servers():
  """Ends them with the module: tests of the contract share some indexes."""
  with contextlib.ExitStack() as servers:
    ServedIndex.servers = servers
    yield


def test_another_encoder_is_refused(index_cls, tmp_path):
  index = index_cls.build(unit_vectors(5), encoder_sha256="a" * 64)
  assert index.encoder_sha256 == "a" * 64
  index.save(tmp_path / "index")
  for wanted in (None, "a" * 64):
    loaded = index_cls.load(tmp_path / "index", encoder_sha256=wanted)
    assert loaded.encoder_sha256 == "a" * 64
  with pytest.raises(ValueError, match=r"another encoder \(aaaaaaaaaaaa\)"):
    index_cls.load(tmp_path / "index", encoder_sha256="b" * 64)


def test_it_says_where_it_is(index_cls):
  parameters = index_cls.build(unit_vectors(5)).parameters
  assert parameters["url"].startswith("http://127.0.0.1:")
  assert parameters["recall"] == 1


def test_more_than_the_server_gives_is_refused(index_cls):
  index = index_cls.build(unit_vectors(5))
  with pytest.raises(ValueError, match="between 1 and 30000, got 30001"):
    index.search(unit_vectors(1), 30_001)


def test_a_dead_server_is_a_failed_search(index_cls, monkeypatch):
  monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
  built = retrieval.ExactIndex.build(unit_vectors(5))
  with loopback.serving(server.index_app(built, CONFIG, dimension=24)) as url:
    index = index_cls(url)
  with (
    contextlib.closing(index),
    pytest.raises(RuntimeError, match="ConnectError"),
  ):
    index.search(unit_vectors(1), 1)


def test_rows_of_others_are_refused(index_cls, monkeypatch):
  index = index_cls.build(unit_vectors(5))
  answer = json.dumps({"result": [[{"document": {}, "score": 1}]]})
  http = httpx2.Client(
    transport=httpx2.MockTransport(lambda _: httpx2.Response(200, text=answer))
  )
  monkeypatch.setattr(index._client, "_http", http)
  with pytest.raises(ValueError, match="id is a row's number"):
    index.search(np.ones((1, 24), np.float32), 1)
