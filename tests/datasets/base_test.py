"""Rows of the data sets, in the layouts of their publishers."""

from __future__ import annotations

import pytest

from rapo_jax.datasets import DATA_SETS, prepare
from rapo_jax.errors import InputError, MissingInputError
from tests.datasets import files

ANSWERS = {
  "gsm8k/train.jsonl": ("1004",),
  "arpo_eval/gsm8k/test.jsonl": ("-4",),
  "math/test.jsonl": ("\\frac{1}{2}",),
  "math/MATH/test/algebra/7.json": ("7",),
  "math500/test.jsonl": ("p - q",),
  "aime2024/test.jsonl": ("025",),
  "arpo_eval/aime25/test.jsonl": ("117",),
  "hotpotqa/hotpot_dev_distractor_v1.json": ("yes",),
  "arpo_eval/2wiki/test.jsonl": ("Nanjing", "Nanking"),
  "musique/musique_ans_v1.0_dev.jsonl": ("A", "B"),
  "gaia/gaia_test.parquet": ("4",),
  "rl_train/train_10k.parquet": ("4",),
  "rl_train/hard_search_1k.parquet": ("4",),
  "nq_search/train.parquet": ("A", "B"),
}
IDS = {
  "svamp/SVAMP.json": "chal-1",
  "math/MATH/test/algebra/7.json": "algebra/7",
  "math500/test.jsonl": "test/algebra/1.json",
  "aime2024/test.jsonl": "63",
  "hotpotqa/hotpot_dev_distractor_v1.json": "5a",
  "2wikimultihopqa/dev.json": "w",
  "musique/musique_ans_v1.0_dev.jsonl": "2hop",
  "bamboogle/bamboogle.json": "bamboogle_1",
  "gaia/metadata.jsonl": "0-1",
  "arpo_eval/gaia/test.jsonl": "0-1",
}


@pytest.mark.parametrize("name", files.FILES)
def test_a_row_of_each_layout(tmp_path, name):
  data_set, rows = files.FILES[name]
  found, left_out = DATA_SETS[data_set].read(files.write(tmp_path, name, rows))
  # One row of the training file has a blank answer.
  assert len(found) + left_out == len(rows)
  assert left_out == (name == "rl_train/train_10k.parquet")
  row = found[0]
  if data_set == "svamp":
    assert row.question == (
      "A pack costs 76 dollars. If there is a discount of 25, What do you pay?"
    )
    assert row.answers == ("51",)
  elif data_set != "browsecomp":
    assert row.question in ("Q?", "Q0?")
    assert row.answers == ANSWERS.get(name, ("A",))
  split = (
    "train"
    if DATA_SETS[data_set].layout(tmp_path / name).split == ("train")
    else "test"
  )
  assert row.row_id == IDS.get(name, row.row_id)
  if name not in IDS and "aime25" not in name:
    assert row.row_id == f"{split}-0"


def test_what_a_row_says_beside_is_kept(tmp_path):
  def extra(name):
    data_set, rows = files.FILES[name]
    path = files.write(tmp_path, name, rows)
    return DATA_SETS[data_set].read(path)[0][0].extra

  assert extra("webwalkerqa/test.json") == {"root_url": "https://x"}
  assert extra("webwalkerqa/webwalker_main.json") == {
    "difficulty_level": "easy"
  }
  assert extra("gaia/metadata.jsonl") == {"level": 1}
  assert extra("math/MATH/test/algebra/7.json") == {"level": "Level 1"}


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    ("gsm8k/test.jsonl", {"question": "Q?", "answer": "4"}, "end with ####"),
    ("gsm8k/test.jsonl", {"question": 4, "answer": "#### 4"}, "question must"),
    (
      "svamp/SVAMP.json",
      {"Body": "A.", "Question": "Q?", "Answer": "4"},
      "must be a number",
    ),
    ("svamp/SVAMP.json", {"Question": "Q?", "Answer": 4.0}, "body must"),
    ("math/test.jsonl", {"problem": "Q?", "solution": "4"}, r"\\boxed"),
    ("math500/test.jsonl", {"problem": " ", "answer": "4"}, "not blank"),
    ("bamboogle/bamboogle.json", {"Question": "Q?"}, "needs an answer"),
    ("bamboogle/bamboogle.json", "Q?", "a row must be an object"),
    (
      "simpleqa/simple_qa_test_set.csv",
      {"problem": "Q?", "metadata": "x"},
      "needs an answer",
    ),
    (
      "browsecomp/browse_comp_test_set.csv",
      {
        "problem": files.encrypted("A question of some length?", "one"),
        "answer": files.encrypted("An answer of some length", "one"),
        "canary": "another",
      },
      "by the row's canary",
    ),
    (
      "rl_train/train_10k.parquet",
      files.verl(0, reward_model=None),
      "reward_model",
    ),
  ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, row, message):
  data_set = next(
    one for one in DATA_SETS.values() if one.layout(tmp_path / name)
  )
  path = files.write(tmp_path, name, [row])
  with pytest.raises(InputError, match=message) as error:
    data_set.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("name", files.FILES)
def test_a_file_that_is_cut_is_refused(tmp_path, name):
  data_set, rows = files.FILES[name]
  path = files.write(tmp_path, name, rows)
  content = path.read_bytes()
  # A table keeps its first line.
  end = content.index(b"\n") + 1 if path.suffix == ".csv" else len(content) // 2
  path.write_bytes(content[:end])
  with pytest.raises(InputError, match=str(path)):
    DATA_SETS[data_set].read(path)


def test_a_folder_without_files_says_where_to_get_them(tmp_path):
  files.write(tmp_path, "other/test.jsonl", [{}])
  with pytest.raises(MissingInputError, match="grade-school-math"):
    DATA_SETS["gsm8k"].files(tmp_path)


def test_the_first_layout_of_a_split_counts(tmp_path):
  for name in ("bamboogle/bamboogle.json", "arpo_eval/bamboogle/test.jsonl"):
    files.write(tmp_path, name, files.FILES["bamboogle/bamboogle.json"][1])
  found = DATA_SETS["bamboogle"].files(tmp_path)
  assert [path.name for path in found["test"]] == ["bamboogle.json"]


def test_aliases_of_an_answer_lie_beside(tmp_path):
  row = {"_id": "w", "question": "Q?", "answer": "A", "answer_id": "Q7"}
  path = files.write(tmp_path, "2wikimultihopqa/dev.json", [row])
  data_set = DATA_SETS["2wikimultihopqa"]
  assert data_set.read(path)[0][0].answers == ("A",)
  prepare("2wikimultihopqa", path, tmp_path / "prepared")
  beside = path.with_name("id_aliases.json")
  beside.write_text(
    '{"Q_id": "Q7", "aliases": ["B", "A"], "demonyms": ["C"]}\n'
    '{"Q_id": "Q8", "aliases": ["D"]}\n',
    encoding="utf-8",
  )
  assert data_set.read(path)[0][0].answers == ("A", "B", "C")
  # What lies beside is a part of what is prepared.
  prepared = prepare("2wikimultihopqa", path, tmp_path / "prepared")
  assert prepared.rows("test")[0].answers == ("A", "B", "C")
  beside.write_text('{"Q_id": "Q7", "aliases": "B"}\n', encoding="utf-8")
  with pytest.raises(InputError, match=r"id_aliases.json:1: .* lists of texts"):
    data_set.read(path)
