"""Small files in the layouts of the publishers."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def encrypted(text: str, canary: str) -> str:
  """BrowseComp's scheme, the other way round."""
  key = hashlib.sha256(canary.encode()).digest()
  data = text.encode()
  mixed = bytes(b ^ key[i % len(key)] for i, b in enumerate(data))
  return base64.b64encode(mixed).decode()


def verl(index: int, truth: Any = "4", **changes: Any) -> dict[str, Any]:
  return {
    "prompt": [
      {"role": "system", "content": "theirs"},
      {"role": "user", "content": f"Q{index}?"},
    ],
    "ability": "math",
    "reward_model": {"ground_truth": truth, "style": "rule"},
    "extra_info": {"index": index, "question": f"Q{index}?"},
    **changes,
  }


CANARY = "a canary"
FILES: dict[str, tuple[str, list[dict[str, Any]]]] = {
  "gsm8k/train.jsonl": (
    "gsm8k",
    [{"question": "Q?", "answer": "2 * 2 = <<2*2=4>>4\n#### 1,004"}],
  ),
  "arpo_eval/gsm8k/test.jsonl": (
    "gsm8k",
    [{"question": "Q?", "answer": "#### -4", "idx": 1}],
  ),
  "svamp/SVAMP.json": (
    "svamp",
    [
      {
        "ID": "chal-1",
        "Body": "A pack costs 76 dollars. If there is a discount of 25",
        "Question": "What do you pay?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": 51.0,
        "Type": "Subtraction",
      }
    ],
  ),
  "math/test.jsonl": (
    "math",
    [{"problem": "Q?", "solution": "so \\boxed{\\frac{1}{2}}.", "idx": 2}],
  ),
  "math/MATH/test/algebra/7.json": (
    "math",
    [{"problem": "Q?", "solution": "it is $\\boxed 7$.", "level": "Level 1"}],
  ),
  "math500/test.jsonl": (
    "math500",
    [
      {
        "problem": "Q?",
        "answer": "p - q",
        "solution": "\\boxed{p - q}",
        "unique_id": "test/algebra/1.json",
      }
    ],
  ),
  "aime2024/test.jsonl": (
    "aime2024",
    [{"id": 63, "problem": "Q?", "question": "Q?", "answer": "025"}],
  ),
  "arpo_eval/aime25/test.jsonl": (
    "aime2025",
    [{"id": "3", "problem": "Q?", "answer": 117}],
  ),
  "hotpotqa/hotpot_dev_distractor_v1.json": (
    "hotpotqa",
    [{"_id": "5a", "question": "Q?", "answer": "yes", "level": "hard"}],
  ),
  "arpo_eval/2wiki/test.jsonl": (
    "2wikimultihopqa",
    [{"question": "Q?", "answer": ["Nanjing", "Nanking"]}],
  ),
  "2wikimultihopqa/dev.json": (
    "2wikimultihopqa",
    [{"_id": "w", "question": "Q?", "answer": "A", "evidences": []}],
  ),
  "musique/musique_ans_v1.0_dev.jsonl": (
    "musique",
    [{"id": "2hop", "question": "Q?", "answer": "A", "answer_aliases": ["B"]}],
  ),
  "bamboogle/bamboogle.json": (
    "bamboogle",
    [{"Question": "Q?", "id": "bamboogle_1", "answer": ["A"]}],
  ),
  "webwalkerqa/test.json": (
    "webwalkerqa",
    [{"Question": "Q?", "answer": "A", "root_url": "https://x"}],
  ),
  "webwalkerqa/webwalker_main.json": (
    "webwalkerqa",
    [{"question": "Q?", "answer": "A", "info": {"Level": "easy"}}],
  ),
  "arpo_eval/webwalker/test.jsonl": (
    "webwalker",
    [{"question": "Q?", "answer": "A"}],
  ),
  "simpleqa/simple_qa_test_set.csv": (
    "simpleqa",
    [{"metadata": "{'topic': 'x'}", "problem": "Q?", "answer": "A"}],
  ),
  "gaia/metadata.jsonl": (
    "gaia",
    [{"task_id": "0-1", "Question": "Q?", "Level": 1, "Final answer": "A"}],
  ),
  "arpo_eval/gaia/test.jsonl": (
    "gaia",
    [{"id": 0, "task_id": "0-1", "Question": "Q?", "answer": "A"}],
  ),
  "gaia/gaia_test.parquet": ("gaia", [verl(0, ability=None)]),
  "browsecomp/browse_comp_test_set.csv": (
    "browsecomp",
    [
      {
        "problem": encrypted("A secret question?", CANARY),
        "answer": encrypted("Gold", CANARY),
        "problem_topic": "Science",
        "canary": CANARY,
      }
    ],
  ),
  "rl_train/train_10k.parquet": (
    "tool_star",
    [verl(0), verl(1, " "), verl(2)],
  ),
  "rl_train/hard_search_1k.parquet": ("hard_search", [verl(0)]),
  "nq_search/train.parquet": (
    "search_r1",
    [verl(0, {"target": ["A", "B"]})],
  ),
  "webdancer/sample_qa.jsonl": (
    "webdancer",
    [{"question": "Q?", "answer": "A", "tag": "e2hqa"}],
  ),
  "webdancer/sample_traj.jsonl": (
    "webdancer",
    [
      {
        "messages": [
          {"role": "system", "content": "s"},
          {"role": "user", "content": "Tools …\n\nUser: Q?"},
        ],
        "answer": [["A"]],
      }
    ],
  ),
  "websailor/sailorfog-QA.jsonl": (
    "websailor",
    [{"question": "Q?", "answer": "A"}],
  ),
}
"""Data set and rows of each file."""


def write(folder: pathlib.Path, name: str, rows: list[Any]) -> pathlib.Path:
  """Writes rows as the suffix of the name says."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), path)
  elif path.suffix == ".jsonl":
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")
  elif path.suffix == ".json":
    content = rows[0] if "MATH/" in name else rows
    path.write_text(json.dumps(content), encoding="utf-8")
  else:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
  return path


def write_all(folder: pathlib.Path) -> None:
  for name, (_, rows) in FILES.items():
    write(folder, name, rows)
