from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest

from rapo_jax import corpora
from rapo_jax.corpora import corpus as corpus_lib
from rapo_jax.corpora.retrievers import Dense
from rapo_jax.retrieval import ExactIndex
from rapo_jax.retrieval.index import kinds
from tests.corpora.stand_in import HashEncoder, built, write_rows

FILES = (
  "texts/contents.bin",
  "texts/contents.offsets",
  "texts/ids.bin",
  "index/vectors.npy",
  "index/index.json",
  "bm25/data.csc.index.npy",
  "bm25/indices.csc.index.npy",
  "bm25/words.bin",
  "bm25/word_ids.npy",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return built(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("mode", corpora.MODES)
def test_a_passage_is_found_by_itself(folder, mode):
  corpus = corpora.open_corpus(folder)
  retriever = corpus.retriever(mode, HashEncoder())
  assert len(corpus) == 30
  rows = retriever.search([corpus.documents[i] for i in (0, 17)], 2)
  assert rows[:, 0].tolist() == [0, 17]
  assert corpus.ids[17] == "p17"


def test_built_and_in_memory_find_the_same(folder):
  corpus = corpora.open_corpus(folder)
  documents = list(corpus.documents)
  queries = ["thing3 group5", "Title", "nothing"]
  for mode in corpora.MODES:
    in_memory = corpora.retriever_over(
      documents, mode, HashEncoder(), ExactIndex
    )
    np.testing.assert_array_equal(
      corpus.retriever(mode, HashEncoder()).search(queries, 3),
      in_memory.search(queries, 3),
    )


def test_nothing_is_embedded_again(folder):
  encoder = HashEncoder()
  corpora.open_corpus(folder).retriever("hybrid", encoder)
  assert encoder.num_embedded == 0


def test_another_encoder_is_refused(folder):
  corpus = corpora.open_corpus(folder)
  for mode in ("dense", "hybrid"):
    with pytest.raises(ValueError, match=r"embedded it, hashes .* got other"):
      corpus.retriever(mode, HashEncoder("other"))
    with pytest.raises(ValueError, match="needs the encoder hashes"):
      corpus.retriever(mode)
  corpus.retriever("bm25")


@pytest.mark.parametrize(
  ("built_for", "mode"),
  [("bm25", "dense"), ("bm25", "hybrid"), ("dense", "bm25")],
)
def test_a_mode_that_it_was_not_built_for(tmp_path, built_for, mode):
  corpus = corpora.open_corpus(built(tmp_path, mode=built_for))
  corpus.retriever(built_for, HashEncoder())
  with pytest.raises(ValueError, match="was built without"):
    corpus.retriever(mode, HashEncoder())


def test_what_is_no_corpus(tmp_path, folder):
  with pytest.raises(FileNotFoundError, match="no corpus at"):
    corpora.open_corpus(tmp_path / "none")
  with pytest.raises(ValueError, match=r"has no manifest.json"):
    corpora.open_corpus(tmp_path)
  for content, message in (
    ({"kind": "buffer"}, "of the kind 'corpus', got 'buffer'"),
    ([], "of the kind"),
    ({"kind": "corpus", "format_version": 99}, "format version 99"),
    ({"kind": "corpus", "format_version": 1}, "KeyError"),
  ):
    text = json.dumps(content)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
      corpora.open_corpus(tmp_path)


def test_a_path_outside_the_folder_is_refused(copy):
  path = copy / "manifest.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  content["files"]["../x"] = {"bytes": 0, "sha256": ""}
  path.write_text(json.dumps(content), encoding="utf-8")
  with pytest.raises(ValueError, match="is no path within the folder"):
    corpora.open_corpus(copy)


def test_a_whole_corpus_has_no_problems(folder):
  assert corpus_lib.check(folder) == []


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_at_opening(copy, name):
  path = copy / name
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f"{name} has .* bytes instead of"):
    corpora.open_corpus(copy)
  path.unlink()
  with pytest.raises(ValueError, match=f"{name} is missing"):
    corpora.open_corpus(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_by_check(copy, name):
  path = copy / name
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(bytes(raw))
  corpora.open_corpus(copy)
  assert corpus_lib.check(copy) == [f"{name} has another checksum"]


def test_an_index_that_this_machine_cannot_load_is_built_again(
  folder, monkeypatch, caplog
):
  def fail(path):
    raise RuntimeError("illegal instruction")

  monkeypatch.setattr(kinds, "load_index", fail)
  with caplog.at_level(logging.WARNING):
    retriever = corpora.open_corpus(folder).retriever("dense", HashEncoder())
  assert "built again in memory" in caplog.text
  assert isinstance(retriever, Dense)
  text = corpora.open_corpus(folder).documents[9]
  assert retriever.search([text], 1).tolist() == [[9]]


def test_documents_by_what_is_at_the_path(folder, tmp_path):
  assert isinstance(corpora.open_documents(folder), corpora.Corpus)
  path = write_rows(tmp_path / "rows.jsonl", 2)
  assert len(corpora.open_documents(path)) == 2
  with pytest.raises(FileNotFoundError):
    corpora.open_documents(tmp_path / "none")
