"""The table of index kinds: what a config builds, and what reads it again."""

import json
import logging

import numpy as np
import pytest

from rapo_jax.errors import InputError
from rapo_jax.retrieval import ExactIndex
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds, scann_index
from rapo_jax.retrieval.index.kinds import IndexConfig

VECTORS = np.eye(4, dtype=np.float32)


class ReversedIndex(ExactIndex):
  """An index of a user's own, which counts what it was asked to build."""

  kind = "reversed"
  margins: list[float] = []  # noqa: RUF012

  @classmethod
  def build(cls, vectors, *, encoder_sha256=None, margin=0.0):
    cls.margins.append(margin)
    return cls(vectors, encoder_sha256=encoder_sha256)


@pytest.fixture
def with_reversed(monkeypatch):
  monkeypatch.setitem(kinds.INDEXES, "reversed", ReversedIndex)
  ReversedIndex.margins.clear()


def test_without_scann_the_default_is_exact(monkeypatch, caplog):
  assert kinds.index_class() is scann_index.ScannIndex
  monkeypatch.setattr(scann_index, "is_scann_installed", lambda: False)
  with caplog.at_level(logging.WARNING):
    assert kinds.index_class() is ExactIndex
  assert "searching exactly instead" in caplog.text


@pytest.mark.parametrize(
  ("kind", "cls"), [("exact", ExactIndex), ("scann", scann_index.ScannIndex)]
)
def test_a_config_names_the_kind(kind, cls):
  built = kinds.index_class(IndexConfig(kind)).build(VECTORS)
  assert type(built) is cls
  assert built.search(VECTORS, 1).ids[:, 0].tolist() == [0, 1, 2, 3]


def test_parameters_reach_the_build():
  config = IndexConfig("scann", (("recall_target", 0.5),))
  assert len(kinds.index_class(config).build(VECTORS)) == 4


def test_a_kind_of_a_users_own_is_built_by_config(with_reversed):
  config = IndexConfig("reversed", (("margin", 2.0),))
  built = kinds.index_class(config).build(VECTORS, encoder_sha256="a" * 64)
  assert type(built) is ReversedIndex
  assert built.encoder_sha256 == "a" * 64
  assert ReversedIndex.margins == [2.0]


def test_a_kind_of_a_users_own_is_read_again(with_reversed, tmp_path):
  kinds.index_class(IndexConfig("reversed")).build(VECTORS).save(tmp_path / "i")
  meta = json.loads(
    (tmp_path / "i" / index_lib.META_FILE).read_text(encoding="utf-8")
  )
  assert meta["kind"] == "reversed"
  assert type(kinds.load_index(tmp_path / "i")) is ReversedIndex


RECALL = (("recall_target", 0.9),)


@pytest.mark.parametrize(
  ("kind", "parameters", "message"),
  [
    (
      "hnsw",
      (),
      "kind must be auto or one of exact, mapped, scann, got 'hnsw'",
    ),
    (
      "exact",
      (("recall_target", 0.9),),
      r"each of \(\) once for the kind 'exac",
    ),
    (
      "auto",
      (("recall_target", 0.9),),
      r"each of \(\) once for the kind 'auto",
    ),
    (
      "scann",
      (("recall", 0.9),),
      r"\(recall_target, max_shard_vectors, neighbors, query_cosine\) once",
    ),
    ("scann", RECALL * 2, "once"),
  ],
)
def test_what_is_no_kind_or_parameter_is_refused(kind, parameters, message):
  with pytest.raises(InputError, match=message):
    IndexConfig(kind, parameters)


def test_load_index_picks_the_class_that_saved(tmp_path, monkeypatch):
  for index_cls in (ExactIndex, scann_index.ScannIndex):
    index_cls.build(VECTORS).save(tmp_path / "index")
    assert type(kinds.load_index(tmp_path / "index")) is index_cls
  monkeypatch.setattr(scann_index, "is_scann_installed", lambda: False)
  moved_to_a_mac = kinds.load_index(tmp_path / "index")
  assert isinstance(moved_to_a_mac, ExactIndex)
  assert moved_to_a_mac.search(VECTORS[:1], 1).ids[0, 0] == 0


def test_load_index_refuses_an_unknown_kind(tmp_path):
  meta = {"kind": "hnsw", "encoder_sha256": None}
  (tmp_path / index_lib.META_FILE).write_text(
    json.dumps(meta), encoding="utf-8"
  )
  with pytest.raises(ValueError, match="kind 'hnsw'; known are"):
    kinds.load_index(tmp_path)
