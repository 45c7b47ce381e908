"""Tests of telling formats, and of reading our own logs."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from rapo_jax.retrieval import importers

LOGGED = {
  "question": "Q?",
  "query_id": "q0",
  "score": {"value": 0.5},
  "finish_reason": "answer",
  "segments": [
    {"kind": "prompt", "step_id": -1, "text": "Q?"},
    {"kind": "policy", "step_id": 0, "text": "<search> a </search>"},
    {"kind": "observation", "step_id": 0, "text": "<result> b </result>"},
    {"kind": "policy", "step_id": 1, "text": " <answer> c </answer>"},
  ],
}
EXAMPLES = {
  "trajectories": LOGGED,
  "authors": {"key": "Q?", "value": "v", "reward": 1},
  "messages": {
    "messages": [
      {"role": "user", "content": "Q?"},
      {"role": "assistant", "content": "a"},
    ],
    "reward": 1,
  },
}


class FormatsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "file.jsonl"

  def write(self, *records):
    self.path.write_text(
      "".join(json.dumps(r) + "\n" for r in records), encoding="utf-8"
    )

  def read(self, on_error="stop"):
    report = importers.ImportReport()
    found = importers.read_trajectories(
      self.path, "agent", report=report, on_error=on_error
    )
    return [trajectory for trajectory, _ in found], report

  @parameterized.parameters(*EXAMPLES)
  def test_told_from_the_file(self, name):
    self.write([1.0], EXAMPLES[name])
    self.assertEqual(importers.detect_format(self.path), name)
    (trajectory,), _ = self.read()
    self.assertEqual(trajectory.question, "Q?")
    self.assertEqual(trajectory.source, "agent")

  def test_none_is_known(self):
    self.write({"question": "Q?", "answer": "A"})
    with self.assertRaisesRegex(ValueError, "messages by messages.*--format"):
      self.read()

  def test_steps_of_our_log(self):
    self.write(LOGGED, {**LOGGED, "source": "other"})
    (first, second), _ = self.read()
    self.assertEqual(
      first.steps,
      ("<search> a </search><result> b </result>", "<answer> c </answer>"),
    )
    self.assertEqual((first.reward, first.query_id), (0.5, "q0"))
    self.assertEqual(first.extras, {"finish_reason": "answer"})
    self.assertEqual(second.source, "other")
    self.write({**LOGGED, "query_id": " "})
    (blank,), _ = self.read()
    self.assertTrue(blank.query_id.strip())

  @parameterized.parameters(
    ("score", None, "score.value must be a number"),
    ("query_id", 3, "query_id must be a text"),
    ("segments", None, "segments must be a list"),
    ("segments", [{"text": "t"}], "a step_id and a text"),
    ("segments", [], "there is no step"),
  )
  def test_a_record_of_ours_that_cannot_be_used(self, field, value, reason):
    self.write(LOGGED, {**LOGGED, field: value})
    trajectories, report = self.read("skip")
    self.assertLen(trajectories, 1)
    self.assertIn(reason, report.problems[0].reason)


if __name__ == "__main__":
  absltest.main()
