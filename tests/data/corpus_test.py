from __future__ import annotations

import gzip
import pathlib

import pytest

from rapo_jax import data


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
  path = folder / "corpus.jsonl"
  path.write_text(text, encoding="utf-8")
  return path


def test_contents_in_order(tmp_path):
  path = write(
    tmp_path,
    '{"id": "7", "contents": "Zürich\\nA town."}\n\n'
    '{"id": 3, "contents": "Two.", "more": 1}\n',
  )
  assert data.load_corpus(path) == ["Zürich\nA town.", "Two."]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "corpus.jsonl:2: no JSON"),
    ("[1]", "corpus.jsonl:2: expected an object"),
    ('{"id": "1"}', "corpus.jsonl:2: expected"),
    ('{"contents": "x"}', "corpus.jsonl:2: expected"),
    ('{"id": "1", "contents": 5}', "corpus.jsonl:2: expected"),
    ('{"id": "0", "contents": "x"}', "corpus.jsonl:2: the id '0' is repeated"),
    ('{"id": 0, "contents": "x"}', "corpus.jsonl:2: the id '0' is repeated"),
    ('{"id": null, "contents": "x"}', "corpus.jsonl:2: expected"),
    ('{"id": [1], "contents": "x"}', "corpus.jsonl:2: .id. must be"),
    ('{"id": "1", "contents": "\\ud83d"}', "corpus.jsonl:2: .*U[+]D83D"),
    ('{"id": ' + "1" * 5000 + "}", "corpus.jsonl:2: .*too large"),
    ("[" * 99_999, "corpus.jsonl:2: .*nested too deeply"),
  ],
)
def test_errors_name_the_line(tmp_path, line: str, message: str):
  path = write(tmp_path, f'{{"id": "0", "contents": "first"}}\n{line}\n')
  with pytest.raises(ValueError, match=message):
    data.load_corpus(path)


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ("é".encode("latin-1"), "corpus.jsonl:2: no UTF-8"),
    (b"\0", "corpus.jsonl:2: .*NUL"),
  ],
)
def test_another_encoding_is_named_by_its_line(tmp_path, raw, message):
  path = tmp_path / "corpus.jsonl"
  path.write_bytes(
    b'{"id": 1, "contents": "a"}\n{"id": 2, "contents": "' + raw + b'"}\n'
  )
  with pytest.raises(ValueError, match=message):
    data.load_corpus(path)


def test_a_compressed_corpus_is_refused(tmp_path):
  path = tmp_path / "corpus.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"id": 1, "contents": "a"}\n'))
  with pytest.raises(ValueError, match=r"compressed .gzip.*gunzip"):
    data.load_corpus(path)


def test_a_byte_order_mark_and_a_line_separator(tmp_path):
  path = write(tmp_path, '\ufeff{"id": 1, "contents": "a\u2028b"}\n')
  assert data.load_corpus(path) == ["a\u2028b"]


def test_no_file_and_no_documents(tmp_path):
  with pytest.raises(FileNotFoundError):
    data.load_corpus(tmp_path / "none.jsonl")
  with pytest.raises(ValueError, match="no documents"):
    data.load_corpus(write(tmp_path, "\n"))


def test_sample(sample_data):
  documents = data.load_corpus(sample_data / "wiki_corpus" / "corpus.jsonl")
  assert len(documents) == 10
  assert documents[0].startswith('"Evan Morris"\n')
