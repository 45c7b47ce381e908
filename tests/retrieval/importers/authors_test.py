"""Tests of reading the authors' buffer file."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from rapo_jax.retrieval import importers
from rapo_jax.retrieval.importers import authors as lib

PROMPT = "system\nYou are helpful.\nuser\nWho wrote Emma?\nassistant\n"
SEARCH = "<think> Look. </think><search> Emma </search> <result>\nA.\n</result>"
ANSWER = r"<think> So. </think><answer> \boxed{Austen} </answer>"


def row(key, value, reward=1.0, **extras):
  return {"key": key, "value": value, "reward": reward, **extras}


def read(rows, on_error="stop"):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "buffer.jsonl"
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    report = importers.ImportReport()
    found = list(
      importers.read_authors(path, "teacher", report=report, on_error=on_error)
    )
    size = path.stat().st_size
  return [t for t, _ in found], report, [n for _, n in found], size


class ReadAuthorsTest(parameterized.TestCase):
  def test_lines_of_one_trajectory_are_put_together(self):
    other = SEARCH.replace("Look", "See")
    trajectories, report, read_bytes, size = read(
      [
        row(PROMPT, SEARCH, f1=1.0),
        row(PROMPT + SEARCH, ANSWER, f1=1.0),
        row(PROMPT, other, 0.5),
        row(PROMPT + other, ANSWER, 0.5),
      ]
    )
    first, second = trajectories
    self.assertEqual(first.question, "Who wrote Emma?")
    self.assertEqual(first.steps, (SEARCH, ANSWER))
    self.assertEqual(first.history, ())
    self.assertEqual(first.extras, {"f1": 1.0})
    self.assertEqual(first.trajectory_id, "teacher/buffer.jsonl:1")
    self.assertEqual((second.steps, second.reward), ((other, ANSWER), 0.5))
    self.assertEqual(first.query_id, second.query_id)
    self.assertEqual((report.num_used, report.num_steps), (4, 4))
    self.assertEqual(read_bytes[-1], size)

  def test_a_branch_starts_with_the_history_it_shares(self):
    trajectories, *_ = read(
      [
        row(PROMPT, SEARCH),
        row(PROMPT + SEARCH, ANSWER),
        row(PROMPT + SEARCH, ANSWER.replace("So", "Then"), 0.2),
      ]
    )
    self.assertLen(trajectories, 2)
    self.assertEqual(trajectories[1].history, (SEARCH,))

  @parameterized.parameters(
    ("system\nS\nuser\nQ?\nassistant\n" + SEARCH * 2, (SEARCH, SEARCH)),
    ("<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n" + SEARCH,
     (SEARCH,)),
    ("Suser\n\nQ?assistant\n\n" + SEARCH + " and", (SEARCH, "and")),
    ("Q? " + SEARCH, (SEARCH,)),
    ("Q?", ()),
  )  # fmt: skip
  def test_split_key(self, key, history):
    self.assertEqual(lib.split_key(key), ("Q?", history))

  @parameterized.named_parameters(
    ("no reward", {"key": PROMPT, "value": "v"}, "reward are missing"),
    ("blank value", row(PROMPT, " "), "value must be a text"),
    ("text as reward", row(PROMPT, "v", "1"), "reward must be a number"),
    ("truth as reward", row(PROMPT, "v", True), "reward must be a number"),
    ("NaN", row(PROMPT, "v", float("nan")), "NaN is not a number of JSON"),
    ("no question", row("S\nuser\n \nassistant\n", "v"), "no question"),
    ("no key", row(None, "v"), "key must be a text"),
  )
  def test_a_line_that_cannot_be_used(self, bad, reason):
    good = row(PROMPT, SEARCH)
    trajectories, report, *_ = read([good, bad], "skip")
    self.assertLen(trajectories, 1)
    self.assertEqual(report.num_lines, report.num_used + report.num_broken)
    self.assertIn(reason, report.problems[0].reason)
    with self.assertRaisesRegex(ValueError, f"jsonl:2: .*{reason}"):
      read([good, bad])

  def test_lists_of_rewards_between_the_lines(self):
    trajectories, report, *_ = read(
      [row(PROMPT, SEARCH), [1.0, 0.5], row(PROMPT + SEARCH, ANSWER), [0.9]]
    )
    (trajectory,) = trajectories
    self.assertEqual(trajectory.steps, (SEARCH, ANSWER))
    self.assertEqual(report.num_number_lists, 2)


if __name__ == "__main__":
  absltest.main()
