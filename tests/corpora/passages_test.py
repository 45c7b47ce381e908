from __future__ import annotations

import gzip
import json
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax import corpora
from rapo_jax.corpora.passages import read_sample


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
  assert corpora.load_corpus(path) == ["Zürich\nA town.", "Two."]


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
    corpora.load_corpus(path)


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
    corpora.load_corpus(path)


ROWS = b'{"id": 1, "contents": "a"}\n{"id": 2, "contents": "\xc3\xa9"}\n'


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.jsonl"])
def test_gzip_by_its_first_bytes(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(gzip.compress(ROWS))
  assert corpora.load_corpus(path) == ["a", "é"]


def test_a_broken_gzip_file_is_refused(tmp_path):
  path = tmp_path / "corpus.jsonl.gz"
  whole = gzip.compress(ROWS * 100, mtime=0)
  damaged = bytearray(whole)
  damaged[len(whole) // 2] ^= 0xFF
  for raw in (whole[:-9], whole[: len(whole) // 2], bytes(damaged)):
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"corpus.jsonl.gz must be a whole"):
      list(corpora.read_passages(path))
  path.write_bytes(ROWS)
  with pytest.raises(ValueError, match="compressed by gzip, as its name says"):
    corpora.load_corpus(path)


def test_gzip_of_another_encoding_is_named_by_its_line(tmp_path):
  path = tmp_path / "corpus.jsonl.gz"
  path.write_bytes(gzip.compress(ROWS.replace(b"\xc3\xa9", b"\xe9")))
  with pytest.raises(ValueError, match=r"corpus.jsonl.gz:2: no UTF-8"):
    corpora.load_corpus(path)
  path.write_bytes(gzip.compress(ROWS.decode().encode("utf-16")))
  with pytest.raises(ValueError, match=r"corpus.jsonl.gz:1: .*NUL"):
    corpora.load_corpus(path)


def test_tables(tmp_path):
  path = tmp_path / "corpus.csv"
  path.write_text('id,contents\n7,"a\nb"\n8,c\n', encoding="utf-8")
  assert corpora.load_corpus(path) == ["a\nb", "c"]
  path = tmp_path / "corpus.parquet"
  pq.write_table(pa.table({"id": [1, 2], "contents": ["x", "y"]}), path)
  assert corpora.load_corpus(path) == ["x", "y"]
  pq.write_table(pa.table({"id": [1, 2], "text": ["x", "y"]}), path)
  with pytest.raises(ValueError, match="row 0: expected"):
    corpora.load_corpus(path)


class TestChunks:
  def cut(self, contents, **chunking):
    passage = corpora.Passage("p", contents)
    chunks = corpora.Chunking(**chunking).chunks(passage)
    return [(c.passage_id, c.contents) for c in chunks]

  def test_a_short_passage_stays_as_it_is(self):
    assert self.cut('"T"\na b', words=2) == [("p", '"T"\na b')]
    assert self.cut('"T"\na b c') == [("p", '"T"\na b c')]

  def test_each_chunk_has_the_title_and_the_overlap(self):
    assert self.cut('"T"\na b  c d e', words=3, overlap=1) == [
      ("p#0", '"T"\na b  c'),
      ("p#1", '"T"\nc d e'),
    ]

  def test_a_first_line_without_quotes_is_text(self):
    assert self.cut("one two\nthree", words=2) == [
      ("p#0", "one two"),
      ("p#1", "three"),
    ]

  def test_no_chunk_repeats_the_one_before_it(self):
    assert self.cut("a b c d", words=3, overlap=2) == [
      ("p#0", "a b c"),
      ("p#1", "b c d"),
    ]

  @pytest.mark.parametrize(("words", "overlap"), [(0, 0), (2, 2), (None, 1)])
  def test_what_cannot_be(self, words, overlap):
    with pytest.raises(ValueError, match="correct it"):
      corpora.Chunking(words, overlap)


class TestSample:
  def test_a_small_file_is_counted(self, tmp_path):
    path = write(tmp_path, '{"id": 1, "contents": "a"}\n' * 3)
    sample = read_sample(path, 3)
    assert [p.contents for p in sample.passages] == ["a"] * 3
    assert sample.total == 3

  @pytest.mark.parametrize("compressed", [False, True])
  def test_a_large_file_is_estimated(self, tmp_path, compressed):
    rng = random.Random(0)
    rows = [
      json.dumps({"id": i, "contents": rng.randbytes(300).hex()})
      for i in range(3000)
    ]
    raw = "\n".join(rows).encode()
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    assert read_sample(path, 1000).total == pytest.approx(3000, rel=0.1)


def test_a_byte_order_mark_and_a_line_separator(tmp_path):
  path = write(tmp_path, '\ufeff{"id": 1, "contents": "a\u2028b"}\n')
  assert corpora.load_corpus(path) == ["a\u2028b"]


def test_no_file_and_no_documents(tmp_path):
  with pytest.raises(FileNotFoundError):
    corpora.load_corpus(tmp_path / "none.jsonl")
  with pytest.raises(ValueError, match="no documents"):
    corpora.load_corpus(write(tmp_path, "\n"))


def test_sample(sample_data):
  documents = corpora.load_corpus(sample_data / "wiki_corpus" / "corpus.jsonl")
  assert len(documents) == 10
  assert documents[0].startswith('"Evan Morris"\n')
