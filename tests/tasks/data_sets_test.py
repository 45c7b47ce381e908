"""The paper's data sets as tasks."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rapo_jax import rewards
from rapo_jax.datasets import DATA_SETS, prepare
from rapo_jax.errors import InputError
from rapo_jax.tasks import (
  TASKS,
  DataSetTask,
  MixedTask,
  PythonSpec,
  load_questions,
  load_solutions,
)
from tests.datasets import files


def test_every_data_set_is_a_task():
  assert {*DATA_SETS} <= {*TASKS}
  assert TASKS["aime2024"].reward == rewards.MATH
  assert TASKS["musique"].reward == rewards.QA
  assert TASKS["tool_star"].reward == rewards.OUTCOME


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_task_loads(name, tmp_path):
  files.write_all(tmp_path)
  path = tmp_path
  if name == "tool_star":
    path = files.write(
      tmp_path, "train.parquet", [files.verl(n) for n in range(40)]
    )
  task = dataclasses.replace(TASKS[name], path=str(path), held_out=0)
  if name in (
    "tool_star",
    "hard_search",
    "search_r1",
    "webdancer",
    "websailor",
  ):
    # Their files have no test set.
    with pytest.raises(InputError, match="at least one evaluation set"):
      load_questions(task)
    task = dataclasses.replace(task, held_out=1)
  train, evaluation = load_questions(task)
  queries = [*train, *(q for part in evaluation.values() for q in part)]
  assert queries
  assert queries[0].task == name
  assert "<search>" in queries[0].messages[0]["content"]
  assert "<python>" in queries[0].messages[0]["content"]


def test_a_file_in_which_every_question_stands_twice(tmp_path):
  rows = [files.verl(n % 20) for n in range(40)]
  path = str(files.write(tmp_path, "questions.parquet", rows))
  task = DataSetTask("tool_star", path=path, held_out=8)
  train, evaluation = load_questions(task)
  assert (len(train), len(evaluation["held_out"])) == (24, 8)
  texts = {q.question for q in evaluation["held_out"]}
  assert not {q.question for q in train} & texts
  with pytest.raises(InputError, match=r"questions \(20\), got 21"):
    load_questions(dataclasses.replace(task, held_out=21))
  assert len(load_questions(dataclasses.replace(task, limit=9))[0]) == 1


def test_what_is_not_prepared_is_found_before_it_is_read(tmp_path):
  task = DataSetTask("math500", data_dir=str(tmp_path))
  with pytest.raises(InputError, match="MATH500 must be prepared"):
    task.check()
  # GSM8K can be downloaded.
  DataSetTask("gsm8k", data_dir=str(tmp_path)).check()
  with pytest.raises(InputError, match="data_set must be one of gsm8k"):
    DataSetTask("mine")
  assert DataSetTask("mine", data_set="math500").set_name == "math500"


def test_further_data_sets_are_evaluation_sets(tmp_path):
  for name, row in (
    ("gsm8k/train.jsonl", {"question": "Q?", "answer": "#### 1"}),
    ("gsm8k/test.jsonl", {"question": "R?", "answer": "#### 2"}),
    ("math500/test.jsonl", {"problem": "S?", "answer": "3"}),
    ("tool_star/train_10k.parquet", files.verl(0)),
  ):
    files.write(tmp_path, name, [row])
  for name in ("math500", "tool_star"):
    prepare(name, tmp_path / name, tmp_path / "prepared")
  task = DataSetTask(
    "gsm8k",
    path=str(tmp_path / "gsm8k"),
    data_dir=str(tmp_path / "prepared"),
    evaluate_on=("math500",),
    tools=(PythonSpec(),),
  )
  task.check()
  train, evaluation = load_questions(task)
  assert [query.question for query in train] == ["Q?"]
  assert list(evaluation) == ["test", "math500"]
  # Without the prefix both sets would have a test-0.
  assert [q.query_id for q in evaluation["math500"]] == ["math500/test-0"]
  assert [q.query_id for q in evaluation["test"]] == ["test-0"]
  assert "<python>" in evaluation["math500"][0].messages[0]["content"]
  with pytest.raises(InputError, match="without one"):
    load_questions(dataclasses.replace(task, evaluate_on=("tool_star",)))
  with pytest.raises(InputError, match="MATH must be prepared"):
    dataclasses.replace(task, evaluate_on=("math",)).check()
  for named in (("gsm8k",), ("math500", "math500"), ("mine",)):
    with pytest.raises(InputError, match="evaluate_on may name"):
      dataclasses.replace(task, evaluate_on=named)


def test_the_real_files_load(sample_data, tmp_path):
  whole = sample_data / "gsm8k_full"
  if not whole.is_dir():
    pytest.skip("the whole of GSM8K is not there")
  task = DataSetTask("gsm8k", path=str(whole), data_dir=str(tmp_path))
  train, evaluation = load_questions(task)
  assert (len(train), len(evaluation["test"])) == (7473, 1319)
  assert train[0].ground_truth == ("72",)
  expected = sample_data / "browsecomp" / "expected.made_up.json"
  task = DataSetTask(
    "browsecomp", path=str(sample_data / "browsecomp"), data_dir=str(tmp_path)
  )
  plain = json.loads(expected.read_text(encoding="utf-8"))
  found = load_questions(task).evaluation["test"]
  assert [q.question for q in found] == [row["problem"] for row in plain]
  assert [q.ground_truth[0] for q in found] == [row["answer"] for row in plain]


def test_solutions_are_those_of_training_questions(tmp_path, caplog):
  answers = ("2 = <<1+1=2>>2\n#### 2", "#### 5", "3 = <<1+1=3>>3\n#### 3")
  files.write(
    tmp_path,
    "gsm8k/train.jsonl",
    [{"question": f"Q{i}?", "answer": a} for i, a in enumerate(answers)],
  )
  task = DataSetTask("gsm8k", path=str(tmp_path), data_dir=str(tmp_path))
  found = task.solutions()
  assert list(found) == ["train-0", "train-1"]
  assert found["train-1"] == (
    "<think> The answer is 5. </think><answer> \\boxed{5} </answer>",
  )
  assert "1 of 3 solutions cannot be used" in caplog.text
  held_out = dataclasses.replace(task, held_out=1)
  assert list(held_out.solutions()) == ["train-1"]
  wanted = [q for q in load_questions(held_out).train if q.question != "Q1?"]
  assert load_solutions(held_out, wanted) == {}
  mixed = MixedTask("both", tasks=(held_out, TASKS["compute"]))
  assert list(mixed.solutions()) == ["gsm8k/train-1"]


def test_data_sets_without_solutions_give_none(tmp_path):
  name = "musique/musique_ans_v1.0_dev.jsonl"
  files.write(tmp_path, name, files.FILES[name][1])
  task = dataclasses.replace(TASKS["musique"], path=str(tmp_path))
  assert task.solutions() == {}


@pytest.mark.parametrize("steps", ["one text", (), ("a", " "), (1,)])
def test_solutions_of_another_form_are_refused(steps, monkeypatch, tmp_path):
  task = DataSetTask("gsm8k", path=str(tmp_path))
  monkeypatch.setattr(DataSetTask, "solutions", lambda self: {"a": steps})
  with pytest.raises(InputError, match="task gsm8k must give the texts"):
    load_solutions(task, [])
