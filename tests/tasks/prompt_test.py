"""A system prompt of one's own, from a file."""

from __future__ import annotations

import dataclasses

import pytest

from rapo_jax import data
from rapo_jax.errors import InputError
from rapo_jax.tasks import FileTask, PythonSpec, load_questions
from rapo_jax.tasks.miniature import MiniatureTask


@pytest.fixture
def task(tmp_path):
  questions = tmp_path / "sums.csv"
  questions.write_text("question,answer\n1+1,2\n2+2,4\n", encoding="utf-8")
  return FileTask(
    "sums", path=str(questions), held_out=1, tools=(PythonSpec(),)
  )


def with_prompt(task, tmp_path, text: str):
  path = tmp_path / "prompt.txt"
  path.write_text(text, encoding="utf-8")
  return dataclasses.replace(task, prompt=str(path))


def test_it_stands_before_every_question(task, tmp_path):
  own = with_prompt(task, tmp_path, "Use {tools}\nLike {example}\n\\boxed{x}\n")
  train, evaluation = load_questions(own)
  for query in (*train, *evaluation["held_out"]):
    system, user = query.messages
    assert system["role"] == "system"
    assert system["content"].startswith("Use - <python> a program </python>")
    assert "<python> print(1932 - 1889) </python>" in system["content"]
    assert system["content"].endswith("\\boxed{x}")
    assert user == {"role": "user", "content": query.question}


def test_a_question_without_a_system_prompt_gets_one(tmp_path):
  plain = MiniatureTask("compute")
  own = with_prompt(plain, tmp_path, "Think.")
  before = load_questions(plain).train[0]
  after = load_questions(own).train[0]
  others = [m for m in before.messages if m["role"] != "system"]
  assert [*after.messages] == [{"role": "system", "content": "Think."}, *others]


def test_without_marks_it_stays_as_it_is():
  text = "Answer in {braces}."
  assert data.fill_system_prompt(text, ()) == text


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b" \n", "the prompt of the task sums: .* is blank"),
    (b"caf\xe9", "no UTF-8"),
  ],
)
def test_files_that_are_no_prompt(task, tmp_path, content, message):
  own = with_prompt(task, tmp_path, "x")
  (tmp_path / "prompt.txt").write_bytes(content)
  with pytest.raises(InputError, match=message):
    load_questions(own)


def test_a_missing_file(task):
  with pytest.raises(InputError, match="nowhere"):
    load_questions(dataclasses.replace(task, prompt="nowhere.txt"))
  assert {*task.paths} >= {"prompt", "path", "evaluation"}
