"""Tests of reading questions."""

import base64
import csv
import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax.retrieval.importers.question_files import read_questions


def write(path, rows):
  match path.suffix:
    case ".jsonl":
      path.write_text(
        "\n".join(json.dumps(row) for row in rows), encoding="utf-8"
      )
    case ".json":
      path.write_text(json.dumps(rows), encoding="utf-8")
    case ".csv":
      with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    case ".parquet":
      pq.write_table(pa.Table.from_pylist(rows), path)
  return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file(tmp_path, suffix):
  rows = [
    {"question": "Who, me?", "answer": "a"},
    {"question": "é", "answer": ""},
  ]
  path = write(tmp_path / f"set{suffix}", rows)
  assert read_questions(path) == ["Who, me?", "é"]


@pytest.mark.parametrize(
  ("row", "field"),
  [
    ({"Question": "Q?", "answer": "a"}, None),
    ({"problem": "Q?"}, None),
    ({"extra_info": {"question": "Q?"}, "prompt": []}, None),
    ({"prompt": [{"role": "system", "content": "S"},
                 {"role": "user", "content": "Q?"}]}, None),
    ({"a": {"b": "Q?"}, "question": "R?"}, "a.b"),
    # Columns of JSON texts, a message in parts, a prompt that is a text.
    ({"extra_info": '{"question": "Q?"}', "prompt": "R?"}, None),
    ({"prompt": '[{"role": "user", "content": "Q?"}]'}, None),
    ({"prompt": [{"role": "user",
                  "content": [{"type": "text", "text": "Q?"}]}]}, None),
    ({"prompt": "Q?"}, None),
  ],
)  # fmt: skip
def test_where_the_question_stands(tmp_path, row, field):
  assert read_questions(write(tmp_path / "set.jsonl", [row]), field) == ["Q?"]


def test_browsecomp_is_decrypted(tmp_path):
  canary = "canary"
  key = hashlib.sha256(canary.encode()).digest()
  text = b"A question longer than the thirty-two bytes of the key?"
  data = bytes(a ^ key[i % 32] for i, a in enumerate(text))
  row = {"problem": base64.b64encode(data).decode(), "canary": canary}
  path = write(tmp_path / "set.csv", [row])
  assert read_questions(path) == [text.decode()]


@pytest.mark.parametrize(
  "column",
  [
    pa.Array.from_buffers(
      pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers()
    ),
    pa.array([2**62], pa.timestamp("us")),
  ],
)
def test_a_value_that_python_cannot_hold(tmp_path, column):
  path = tmp_path / "a.parquet"
  pq.write_table(
    pa.table({"question": pa.array(["Q?"]), "other": column}), path
  )
  # Nobody needs this column.
  assert read_questions(path) == ["Q?"]
  pq.write_table(pa.table({"question": column}), path)
  with pytest.raises(ValueError, match=r"a.parquet: the column 'question', of"):
    read_questions(path)


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("a.jsonl", '{"answer": "a"}', r"jsonl:1: no question in .*\['answer'\]"),
    ("a.jsonl", '{"question": " "}', "jsonl:1: no question"),
    ("a.jsonl", "[1]", "jsonl:1: no question .*it has list"),
    ("a.jsonl", '{"question": "Q?"}\n\n{"question', "jsonl:3: no JSON"),
    ("a.jsonl", "[" * 99_999, "jsonl:1: .*nested too deeply"),
    ("a.jsonl", '{"question": "\\ud83d"}', "jsonl:1: .*U[+]D83D"),
    ("a.json", "{", "a.json must be JSON"),
    ("a.json", '[1,\n{"a":]', "a.json must be JSON: .*line 2"),
    ("a.json", '{"data": [{"paragraphs": []}]}', "row 0: no question"),
    ("a.json", "[]", "has no questions"),
    ("a.csv", "", "has no questions"),
    ("a.csv", "question\n", "has no questions"),
    ("a.csv", "question\nQ?\nWh\0o?\n", "csv:3: .*NUL"),
    ("a.csv", "question\nQ?, or R?\n", "csv:2: 2 fields .*Quote"),
    ("a.csv", 'question\n"Q?\nR?\n', "csv:3: unexpected end of data"),
    ("a.csv", 'question\n"Q" or R?\n', "csv:2: .*expected after"),
    ("a.csv", "question,a,question\nQ?,1,R?\n", "2 fields have the name"),
    ("a.jsonl", '{"question": "Q?", "question": "R?"}', "jsonl:1: .*twice"),
    ("a.csv", "id;text\n1;Q?\n", r"csv:2: no question .*id;text"),
    ("a.csv", b"question\nQ?\nWo ist K\xf6ln?\n", "csv:3: no UTF-8.*Save"),
    ("a.csv", "question\nQ?\n".encode("utf-16"), "is UTF-16. Save"),
    ("a.jsonl", gzip.compress(b"{}", mtime=0), "is compressed .gzip.*gunzip"),
    ("a.parquet", "abc", "must be a Parquet file"),
    ("a.csv", b"question,answer\rQ?,1\r", "csv:1: new-line character.*Fix"),
    ("a.txt", "Q?", "ends in '.txt': convert it"),
    ("a.csv", "problem,canary\n?!,c\n", "no base64"),
  ],
)
def test_a_file_that_cannot_be_used(tmp_path, name, content, reason):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ValueError, match=reason):
    read_questions(path)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.csv", b"\xef\xbb\xbfquestion,answer\r\nWho?,x\r\n"),
    ("a.csv", b"id;question\n1;Who?\n"),
    ("a.csv", b"id\tquestion\n1\tWho?\n"),
    ("a.csv", b" QUESTION ,answer\nWho?,x\n"),
    ("a.csv", b"question,context\nWho?," + b"x" * 200_000 + b"\n"),
    ("a.tsv", b"id\tquestion\n1\tWho?\n"),
    ("a.jsonl", b'\xef\xbb\xbf{"question": "Who?"}\n'),
    ("a.json", b'\xef\xbb\xbf[{"question": "Who?"}]'),
    ("a.json", b'{"version": 1, "data": [{"question": "Who?"}]}'),
  ],
)
def test_as_editors_and_spreadsheets_write_them(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  limit = csv.field_size_limit()
  assert read_questions(path) == ["Who?"]
  assert csv.field_size_limit() == limit


def test_lines_within_a_field(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('question\n"Who\u2028is\nit?"\n', encoding="utf-8")
  assert read_questions(path) == ["Who\u2028is\nit?"]


def test_no_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file of questions"):
    read_questions(tmp_path / "set.jsonl")


def test_every_sample(sample_data):
  for path in (
    "arpo_eval/hotpotqa/test.jsonl",
    "simpleqa/simple_qa_test_set.csv",
    "bamboogle/bamboogle.json",
    "rl_train/valid.parquet",
    "aime2025/test.jsonl",
    "webwalkerqa/test.json",
  ):
    assert len(set(read_questions(sample_data / path))) > 10
  questions = read_questions(
    sample_data / "browsecomp" / "browse_comp_test_set.made_up.csv"
  )
  expected = json.loads(
    (sample_data / "browsecomp" / "expected.made_up.json").read_text(
      encoding="utf-8"
    )
  )
  assert questions == [row["problem"] for row in expected]
