"""A policy that has diverged is never saved, and the remedy works."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.config import ExperimentConfig
from experiments.dependencies import DIVERGED_FILE
from experiments.stages.divergence import Diverged, Watch
from experiments.workdir import Workdir
from rapo_jax.training import Checkpoints, OptimizerConfig, init_train_state
from tests.tiny_decoder import tiny_decoder

ROW = {"gradient_norm": 0.5}
CONFIG = ExperimentConfig("test", optimizer=OptimizerConfig(learning_rate=10.0))


@pytest.fixture(scope="module")
def state():
  return init_train_state(tiny_decoder(seed=0), CONFIG.optimizer)


@pytest.fixture
def folder(tmp_path):
  folder = Workdir(tmp_path / "w").run("multihop", "rapo-seed0")
  folder.mkdir(parents=True)
  return folder


def _check(folder, state, start, config=CONFIG):
  watch = Watch(config, Workdir(folder.parents[2]), folder, start.model)
  checkpoints = Checkpoints(folder / "checkpoints")
  try:
    watch.check(7, ROW, state, checkpoints)
  finally:
    checkpoints.close()


def _with_embedding(state, change):
  model = jax.tree.map(lambda x: x, state.model)
  model.embedding[...] = change(model.embedding[...])
  return state._replace(model=model)


def test_a_sound_policy_goes_on(folder, state):
  _check(folder, state, state)
  _check(folder, _with_embedding(state, lambda x: 2 * x), state)
  assert not (folder / DIVERGED_FILE).exists()


def _broken(state):
  return _with_embedding(state, lambda x: x * jnp.nan)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: x.at[3, 2].set(jnp.nan), "NaN or infinity is in embedding"),
    (lambda x: x.at[0, 0].set(jnp.inf), "NaN or infinity is in embedding"),
    (lambda x: x + 1e37, "norm is inf, at the start|norm is 2.5.e\\+38"),
    (lambda x: x.at[0, 0].set(1e9), r"norm is 1e\+09, at the start it was"),
  ],
)
def test_a_diverged_policy_is_named(change, message, folder, state):
  with pytest.raises(Diverged, match=message) as error:
    _check(folder, _with_embedding(state, change), state)
  text = str(error.value)
  assert "multihop rapo-seed0 has diverged: after update 7" in text
  assert "optimizer.learning_rate is 10" in text
  assert "gradient norm 0.5" in text
  assert "Start again with --config.optimizer.learning_rate=0.0001" in text
  assert "goes on from the start" in text
  assert (
    json.loads((folder / DIVERGED_FILE).read_text(encoding="utf-8"))["update"]
    == 7
  )


def test_moments_that_are_not_finite_are_named(folder, state):
  broken = state._replace(
    opt_state=jax.tree.map(
      lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, state.opt_state
    )
  )
  with pytest.raises(Diverged, match="the optimizer's moments are not finite"):
    _check(folder, broken, state)


def test_the_bound_is_a_setting(folder, state):
  grown = _with_embedding(state, lambda x: x + 1.0)
  _check(folder, grown, state)
  train = dataclasses.replace(CONFIG.train, stop_parameter_growth=1.5)
  config = dataclasses.replace(CONFIG, train=train)
  with pytest.raises(Diverged, match=r"it may grow 1.5 times"):
    _check(folder, grown, state, config=config)


def test_the_remedy_names_the_newest_checkpoint(folder, state):
  (folder / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(Diverged, match="goes on from the policy of update 5"):
    _check(folder, _broken(state), state)


def test_the_remedy_spares_runs_that_went_well(folder, state):
  other = folder.with_name("grpo-seed0")
  other.mkdir()
  (other / "done.json").write_text("{}", encoding="utf-8")
  with pytest.raises(Diverged, match=r"grpo-seed0 went well .* another --work"):
    _check(folder, _broken(state), state)
  (other / DIVERGED_FILE).write_text("{}", encoding="utf-8")
  with pytest.raises(Diverged, match="Start again with --config"):
    _check(folder, _broken(state), state)
