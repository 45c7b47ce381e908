"""The warm start of a small experiment: sources, resume, evaluation, errors."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from experiments import checks, run
from experiments.config import (
  BufferConfig,
  DataConfig,
  EvaluationConfig,
  ExperimentConfig,
  LoggingConfig,
  PolicyConfig,
  TrainConfig,
  WarmStartConfig,
)
from experiments.stages import warm_start
from experiments.stop_signal import Stopped
from experiments.workdir import Workdir, read_json
from rapo_jax.errors import InputError
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import DataSetTask, PythonSpec
from rapo_jax.training import (
  OptimizerConfig,
  SupervisedConfig,
  SupervisedTrainer,
  UpdateConfig,
)
from tests.datasets import files

STEPS = 6
CONFIG_FILE = '''
"""A small experiment with a warm start."""
import pathlib
from tests.experiments.warm_start_test import small_config
def get_config():
  return small_config(pathlib.Path(__file__).parent)
'''


def write_questions(folder):
  rows = [
    {
      "question": f"What is {n} and {n}, less one?",
      "answer": f"It is {n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}.\n"
      f"Then {2 * n}-1 = <<{2 * n}-1={2 * n - 1}>>{2 * n - 1}\n#### {2 * n - 1}",
    }
    for n in range(1, 13)
  ]
  files.write(folder, "gsm8k/train.jsonl", rows)
  files.write(
    folder,
    "gsm8k/test.jsonl",
    [{"question": f"{n} times one?", "answer": f"#### {n}"} for n in (3, 4)],
  )


def small_config(folder) -> ExperimentConfig:
  return ExperimentConfig(
    name="test",
    tasks=(
      DataSetTask(
        "gsm8k",
        path=str(folder / "gsm8k"),
        data_dir=str(folder / "data"),
        tools=(PythonSpec(),),
      ),
    ),
    data=DataConfig(),
    policy=PolicyConfig(),
    warm_start=WarmStartConfig(
      training=SupervisedConfig(
        num_steps=STEPS,
        learning_rate=3e-3,
        warmup_steps=1,
        rows=2,
        row_length=2048,
      ),
      held_out=3,
      eval_every=2,
      checkpoint_every=2,
    ),
    retrieval=RetrievalConfig(min_reward=-2.0),
    rollout=RolloutConfig(
      max_prompt_tokens=1400,
      max_response_tokens=640,
      max_step_tokens=256,
      max_tool_tokens=64,
      max_tool_calls=2,
      num_generations=2,
      num_hybrid=0,
      num_slots=4,
      prefill_rows=2,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    update=UpdateConfig(
      queries_per_update=2,
      queries_per_minibatch=2,
      row_length=2048,
      rows_per_microbatch=2,
      remat="none",
    ),
    train=TrainConfig(
      methods=("grpo",), seeds=(0,), num_updates=1, eval_every=1
    ),
    evaluation=EvaluationConfig(num_samples=1),
    logging=LoggingConfig(tensorboard=False),
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("warm")
  write_questions(folder)
  (folder / "data").mkdir()
  (folder / "small.py").write_text(CONFIG_FILE, encoding="utf-8")
  return folder


def start(folder, name, *arguments):
  return run.main(
    ["--config", str(folder / "small.py"), "--workdir", str(folder / name)]
    + list(arguments)
  )


@pytest.fixture(scope="module")
def finished(folder):
  assert start(folder, "whole") == 0
  return Workdir(folder / "whole")


def test_x(finished):
  print(finished)
  done = read_json(finished.warm_start("gsm8k") / "done.json")
  print(done)
  print(open(finished.warm_start("gsm8k") / "metrics.jsonl").read())
