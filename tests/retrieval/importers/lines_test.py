"""Tests of reading JSON lines of foreign files."""

import gzip
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from rapo_jax.retrieval import importers


def read(data: bytes, on_error="skip"):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "file.jsonl"
    path.write_bytes(data)
    report = importers.ImportReport()
    lines = list(importers.JsonLines(path, report, on_error))
  return [(line.number, line.content) for line in lines], report


class JsonLinesTest(parameterized.TestCase):
  def test_objects_with_their_numbers(self):
    lines, report = read(b'{"a": 1}\n\n[0.5, 1]\n{"a": 2}')
    self.assertEqual(lines, [(1, {"a": 1}), (4, {"a": 2})])
    self.assertEqual(
      (report.num_lines, report.num_blank, report.num_number_lists), (4, 1, 1)
    )
    self.assertEqual(report.num_broken, 0)

  @parameterized.named_parameters(
    ("no JSON", b'{"a": \n', "no JSON: "),
    ("no UTF-8", b'{"a": "\xff"}\n', "no UTF-8"),
    ("no object", b'"text"\n', "expected an object, got str"),
    ("list of texts", b'["text"]\n', "expected an object, got list"),
    ("too deep", b"[" * 200_000 + b"\n", "nested too deeply"),
    ("deep", b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}\n", "nested too deeply"),
    ("UTF-16", '{"a": 2}'.encode("utf-16-le") + b"\n", "as UTF-16 does"),
    ("half a character", b'{"a": "\\ud83d"}\n', "U+D83D"),
    ("half a name", b'{"\\ud83d": 1}\n', "U+D83D"),
    ("NUL", b'{"a": "\\u0000"}\n', "U+0000"),
    ("twice", b'{"a": 1, "b": 2, "a": 3}\n', "holds the name 'a' twice"),
    ("twice within", b'{"b": [{"a": 1, "a": 1}]}\n', "the name 'a' twice"),
    ("NaN", b'{"a": NaN}\n', "NaN is not a number"),
    ("infinity", b'{"a": [-Infinity]}\n', "-Infinity is not a number"),
    ("1e999", b'{"a": 1e999}\n', "number that is too large"),
    ("400 digits", b'{"a": 1' + b"0" * 400 + b"}\n", "too large"),
    ("5000 digits", b'{"a": ' + b"1" * 5000 + b"}\n", "too large"),
  )
  def test_a_broken_line(self, line, reason):
    data = b'{"a": 1}\n' + line + b'{"a": 3}\n'
    lines, report = read(data)
    self.assertEqual(lines, [(1, {"a": 1}), (3, {"a": 3})])
    self.assertEqual(report.num_broken, 1)
    (problem,) = report.problems
    self.assertEqual(problem.line, 2)
    self.assertIn(reason, problem.reason)
    with self.assertRaisesRegex(ValueError, r"file.jsonl:2: .*on_error skip"):
      read(data, "stop")

  def test_a_byte_order_mark_is_left_out(self):
    lines, report = read(b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": 2}\r\n')
    self.assertEqual(lines, [(1, {"a": 1}), (2, {"a": 2})])
    self.assertEqual(report.num_broken, 0)

  def test_a_line_separator_in_a_text_ends_no_line(self):
    text = "a\u2028b\u0085c\x0cd"
    raw = json.dumps({"a": text}, ensure_ascii=False).encode()
    lines, _ = read(raw + b"\n")
    self.assertEqual(lines, [(1, {"a": text})])

  @parameterized.named_parameters(
    ("gzip", gzip.compress(b'{"a": 1}\n'), "compressed .gzip.*gunzip"),
    ("UTF-16", '{"a": 1}\n'.encode("utf-16"), "UTF-16. Save"),
  )
  def test_a_file_that_is_no_text_is_refused_whole(self, data, reason):
    with self.assertRaisesRegex(ValueError, reason):
      read(data, "skip")

  def test_all_are_counted_and_the_first_are_shown(self):
    _, report = read(b"{\n" * 1000)
    self.assertEqual(report.num_broken, 1000)
    self.assertEqual([p.line for p in report.problems], [*range(1, 21)])


if __name__ == "__main__":
  absltest.main()
