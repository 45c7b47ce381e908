"""Tests of reading JSON lines of foreign files."""

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

  def test_all_are_counted_and_the_first_are_shown(self):
    _, report = read(b"{\n" * 1000)
    self.assertEqual(report.num_broken, 1000)
    self.assertEqual([p.line for p in report.problems], [*range(1, 21)])


if __name__ == "__main__":
  absltest.main()
