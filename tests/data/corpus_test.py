from __future__ import annotations

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
  ],
)
def test_errors_name_the_line(tmp_path, line: str, message: str):
  path = write(tmp_path, f'{{"id": "0", "contents": "first"}}\n{line}\n')
  with pytest.raises(ValueError, match=message):
    data.load_corpus(path)


def test_no_file_and_no_documents(tmp_path):
  with pytest.raises(FileNotFoundError):
    data.load_corpus(tmp_path / "none.jsonl")
  with pytest.raises(ValueError, match="no documents"):
    data.load_corpus(write(tmp_path, "\n"))


def test_sample(sample_data):
  documents = data.load_corpus(sample_data / "wiki_corpus" / "corpus.jsonl")
  assert len(documents) == 10
  assert documents[0].startswith('"Evan Morris"\n')
