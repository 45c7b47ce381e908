"""Tasks of an experiment: enough questions, tools that keep the protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types

import pytest

from experiments import tasks
from experiments.config import DataConfig, ExperimentConfig, UpdateConfig
from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.retrieval import SentenceEncoder
from rapo_jax.tasks import FileTask
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.world import WorldConfig
from tests.hosts import loopback


def test_fewer_questions_than_an_update_takes():
  config = ExperimentConfig(
    name="t",
    tasks=(MiniatureTask("web", world=WorldConfig(num_train=3)),),
    update=UpdateConfig(queries_per_update=4, queries_per_minibatch=2),
  )
  train = config.task("web").questions().train
  with pytest.raises(InputError, match=r"web must have .* \(4\) .* has 3"):
    tasks.check_train_questions(config, "web", train)
  tasks.check_train_questions(config, "web", [*train, train[0]])


def test_the_tools_of_a_task_run_over_its_documents():
  config = ExperimentConfig(name="t")
  encoder = SentenceEncoder.from_pretrained()
  with tasks.running_tools(config, "multihop", encoder) as tools:
    (document,) = {d for d in _facts(config) if d.startswith(_facts(config)[0])}
    entity, _, rest = document.partition(" : ")
    query = rest.rpartition(" ")[0].rpartition(" ")[0]
    assert tools["search"].call(query).text.startswith(entity)


def _facts(config):
  (spec,) = config.task("multihop").tool_specs()
  services = types.SimpleNamespace(search=lambda documents: documents)
  return spec.start(services)


def test_an_object_that_is_no_tool_is_refused():
  broken = types.SimpleNamespace(name="lookup", description="d", example="e")
  task = dataclasses.replace(FileTask("t"), tools=(broken,))
  config = ExperimentConfig(name="t", tasks=(task,))
  encoder = SentenceEncoder.from_pretrained()
  with (
    pytest.raises(InputError, match=r"'lookup' .* lacks batched, call"),
    tasks.running_tools(config, "t", encoder),
  ):
    raise AssertionError


CLOSED = []


@hosts.led
def open_counting(config):
  """Tools of one host, of which one counts and another does not."""
  stack = contextlib.ExitStack()
  stack.callback(CLOSED.append, hosts.share_of(2))
  counting = types.SimpleNamespace(numbers=lambda: {"cost": 1.5})
  tools = {"search": counting, "open": types.SimpleNamespace()}
  return tasks.Equipment(tools, {}, stack)


def test_every_host_has_tools_of_its_own(monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], "CLOSED", [])
  config = ExperimentConfig(name="t")
  with loopback.two_hosts(config) as follower:
    equipment = open_counting(config)
    [other] = loopback.held(follower, tasks.Equipment)
    assert other.tools is not equipment.tools
    assert equipment.numbers() == {"search": {"cost": 3.0}}
    assert CLOSED == []
    equipment.close()
  assert CLOSED == [1, 1]
  # A host that is alone counts its own.
  assert open_counting(config).numbers() == {"search": {"cost": 1.5}}


@pytest.mark.parametrize("leaks", ["warn", "drop", "refuse"])
def test_leaks_between_the_files_of_a_task(leaks, tmp_path, caplog):
  for name, texts in (("train", "abcd"), ("test", "Bx")):
    rows = [f'{{"question": "{text}?", "answer": "1"}}\n' for text in texts]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(rows), encoding="utf-8")
  task = FileTask(
    "t",
    path=str(tmp_path / "train.jsonl"),
    evaluation=(str(tmp_path / "test.jsonl"),),
  )
  config = ExperimentConfig(
    name="t", tasks=(task,), data=DataConfig(leaks=leaks)
  )
  if leaks == "refuse":
    with pytest.raises(InputError, match="1 of 4 training questions of t"):
      tasks.questions_of(config, "t")
    return
  questions = tasks.questions_of(config, "t")
  assert len(questions.train) == (3 if leaks == "drop" else 4)
  assert len(questions.evaluation["test"]) == 2
  assert "1 of 4 training questions of t stand in" in caplog.text
  assert "(1 in test)" in caplog.text
