"""Runs of methods that carry something, killed and started again."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from experiments import health
from experiments.config import ExperimentConfig, TrainConfig
from experiments.metrics import read_metrics
from experiments.stages import train
from experiments.stages.runs import Run
from experiments.stop_signal import StopSignal
from experiments.workdir import Workdir
from rapo_jax import rewards
from rapo_jax.training import OptimizerConfig, Trainer
from rapo_jax.training.agent_rows import AgentEncoder, AgentRows
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import (
  QUERY,
  RIGHT,
  ROLLOUT,
  TOKENIZER,
  UPDATE,
  WRONG,
  Engine,
)

METHODS = ("dapo", "rollout_replay", "luffy", "sft", "rapo_dead_share")
CONFIG = ExperimentConfig(
  name="test",
  rollout=ROLLOUT,
  update=UPDATE,
  optimizer=OptimizerConfig(learning_rate=1e-2),
  train=TrainConfig(
    methods=METHODS,
    num_updates=4,
    checkpoint_every=2,
    log_trajectories_every=1,
    # Log-probs of the engine are made up.
    stop_mismatch=100.0,
  ),
)
# Two of three questions teach nothing, so that an update takes several rounds.
NAMES = [f"{'live' if i % 3 == 0 else 'dead'}{i}" for i in range(12)]


class Killed(BaseException):
  """Stands for the end of the process."""


class Mortal(Engine):
  """An engine that ends the process in a round of an update."""

  def __init__(self, dies_in=None, round_=0):
    super().__init__()
    self.dies_in, self.round, self.updates = dies_in, round_, []

  def rollout(self, model, requests, *, seed, update):
    if update == self.dies_in and self.updates.count(update) == self.round:
      raise Killed
    self.updates.append(update)
    return super().rollout(model, requests, seed=seed, update=update)


@pytest.fixture
def start(monkeypatch):
  """Trains in a folder; returns the engine and the last parameters."""
  task = types.SimpleNamespace(
    start_path=None,
    tokenizer=TOKENIZER,
    prompt_date=None,
    train=[dataclasses.replace(QUERY, query_id=name) for name in NAMES],
    prompt=lambda query: np.array([1]),
  )
  ended = {}
  for name, value in {
    "load_policy": lambda *_, **__: tiny_decoder(vocab_size=len(TOKENIZER)),
    "model_digest": lambda path: "digest",
    "describe_policy": lambda *_, **__: {},
    "prompt_hash": lambda *_, **__: "hash",
    "curve_point": lambda *_, **__: {},
    "write_end": lambda model, *_: ended.update(model=model),
  }.items():
    monkeypatch.setattr(train, name, value)

  def run(
    folder, method, dies_in=None, round_=0, *, engine=None, config=CONFIG
  ):
    engine = engine or Mortal(dies_in, round_)
    trainer = Trainer(
      engine,
      TOKENIZER,
      rollout=ROLLOUT,
      objective=CONFIG.objective,
      optimizer=CONFIG.optimizer,
      update=UPDATE,
      seed=0,
      algorithm=CONFIG.train.algorithm(method),
      agent_rows=AgentRows(
        {name: [(RIGHT,), (WRONG,)] for name in NAMES[::2]},
        AgentEncoder(
          TOKENIZER,
          rewards.RECIPE_TAGS,
          max_response_tokens=ROLLOUT.max_response_tokens,
          max_steps=ROLLOUT.max_steps,
        ),
      ),
    )
    monkeypatch.setattr(train, "make_trainer", lambda *_: trainer)
    train.train(
      config,
      Workdir(folder),
      task,
      Run("answers", method, 0),
      None,
      lambda share, text, *, earlier=False: None,
      StopSignal("go on"),
      lambda text: None,
    )
    return engine, jax.device_get(jax.tree.leaves(ended["model"]))

  return run


class Overflowing(Mortal):
  """An engine whose log-probs of some updates are not finite."""

  def __init__(self, broken):
    super().__init__()
    self.broken = broken

  def _answer(self, request, update):
    answer = super()._answer(request, update)
    if update in self.broken:
      answer.log_probs[-1] = np.nan
    return answer


def _column(folder, method, name):
  run = Run("answers", method, 0)
  rows = read_metrics(Workdir(folder).run(run.task, run.name))
  return [row[name] for row in rows if row["update"]]


def _same(parameters, expected):
  for actual, wanted in zip(parameters, expected, strict=True):
    np.testing.assert_array_equal(actual, wanted)


def _asked(engine, updates):
  """Questions of each rollout of these updates."""
  return [
    call
    for call, update in zip(engine.calls, engine.updates, strict=True)
    if update in updates
  ]


def test_resampling_goes_on_where_it_was_killed(start, tmp_path):
  whole, expected = start(tmp_path / "whole", "dapo")
  rounds = _column(tmp_path / "whole", "dapo", "rollout/rounds")
  assert len(rounds) == 4
  # A guard: what was asked before the checkpoint has to be counted, and the
  # fourth update has a second round to be killed in.
  assert max(rounds[:2]) > 1
  assert rounds[3] > 1
  with pytest.raises(Killed):
    start(tmp_path / "killed", "dapo", dies_in=3, round_=1)
  resumed, parameters = start(tmp_path / "killed", "dapo")
  # Updates 3 and 4 again, after the checkpoint of update 2.
  assert _asked(resumed, {2, 3}) == _asked(whole, {2, 3})
  assert _column(tmp_path / "killed", "dapo", "rollout/rounds") == rounds
  _same(parameters, expected)


def test_replay_goes_on_with_the_groups_that_it_had(start, tmp_path):
  method = "rollout_replay"
  whole, expected = start(tmp_path / "whole", method)
  replayed = _column(tmp_path / "whole", method, "groups/replayed")
  # A guard: the store has something in it at the checkpoint of update 2.
  assert replayed[2:] == [1, 1]
  with pytest.raises(Killed):
    start(tmp_path / "killed", method, dies_in=3)
  resumed, parameters = start(tmp_path / "killed", method)
  assert _asked(resumed, {2, 3}) == _asked(whole, {2, 3})
  assert _column(tmp_path / "killed", method, "groups/replayed") == replayed
  _same(parameters, expected)
  # Questions come in one order, whether groups are replayed or not.
  asked = [name for u in range(4) for c in _asked(whole, {u}) for name, _ in c]
  assert len(asked[::2]) == len(set(asked)) == 8 - sum(replayed)


def test_the_same_rows_of_an_agent_are_drawn_again(start, tmp_path):
  _, expected = start(tmp_path / "whole", "luffy")
  rows = _column(tmp_path / "whole", "luffy", "groups/agent_rows")
  # A guard: some questions have a trajectory, and some have none.
  assert 0 < sum(rows) < 8
  with pytest.raises(Killed):
    start(tmp_path / "killed", "luffy", dies_in=3)
  _, parameters = start(tmp_path / "killed", "luffy")
  assert _column(tmp_path / "killed", "luffy", "groups/agent_rows") == rows
  _same(parameters, expected)


def test_questions_without_rows_of_the_agent_are_passed_over(start, tmp_path):
  whole, _ = start(tmp_path / "whole", "sft")
  assert whole.calls == []
  assert _column(tmp_path / "whole", "sft", "groups/agent_rows") == [4] * 4
  # Two epochs of 12 questions, of which every second one has rows.
  assert _column(tmp_path / "whole", "sft", "data/epoch") == [0, 0, 0, 1]


def test_a_rule_by_share_goes_on_with_the_share_that_it_had(start, tmp_path):
  method = "rapo_dead_share"
  _, expected = start(tmp_path / "whole", method)
  given = _column(tmp_path / "whole", method, "guidance/given")
  needed = _column(tmp_path / "whole", method, "guidance/needed")
  assert given == [1.0, *needed[:-1]]
  # A guard: the share at the checkpoint of update 2 is not the first one.
  assert given[2] < 1.0
  with pytest.raises(Killed):
    start(tmp_path / "killed", method, dies_in=2)
  _, parameters = start(tmp_path / "killed", method)
  assert _column(tmp_path / "killed", method, "guidance/given") == given
  _same(parameters, expected)


def _skipping(health, **train_changes):
  changed = dataclasses.replace(
    CONFIG.train,
    health=dataclasses.replace(CONFIG.train.health, **health),
    **train_changes,
  )
  return dataclasses.replace(CONFIG, train=changed)


def test_an_update_that_is_not_finite_is_skipped_and_kept(start, tmp_path):
  config = _skipping({"not_finite": "save"}, checkpoint_every=4)
  engine = Overflowing({1})
  _, parameters = start(tmp_path, "dapo", engine=engine, config=config)
  assert all(np.isfinite(array).all() for array in parameters)
  assert _column(tmp_path, "dapo", "update/skipped") == [0, 1, 0, 0]
  losses = _column(tmp_path, "dapo", "loss")
  assert np.isfinite(losses).tolist() == [True, False, True, True]
  folder = Workdir(tmp_path).run("answers", "dapo-seed0")
  (kept,) = (folder / train.SKIPPED_FOLDER).iterdir()
  assert kept.name == "update-000002-0.npz"
  with np.load(kept) as arrays:
    assert np.isnan(arrays["old_log_probs"]).any()
    assert arrays["tokens"].shape == arrays["where"].shape
  # "save" has kept the policy as it was then.
  assert (folder / "checkpoints" / "2").is_dir()


def test_updates_that_are_not_finite_in_a_row_stop_the_run(start, tmp_path):
  config = _skipping({"skipped_updates": 2})
  with pytest.raises(health.HealthStop, match="were skipped") as stopped:
    start(tmp_path, "dapo", engine=Overflowing({1, 2, 3}), config=config)
  assert "update 3" in str(stopped.value)
  assert "train.health.not_finite=warn" in str(stopped.value)
  assert _column(tmp_path, "dapo", "update/skipped") == [0, 1, 1]
