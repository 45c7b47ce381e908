"""Tests of what a study is: arms, grids, files."""

import dataclasses

import pytest

from experiments import arms, flags
from experiments.arms import Arm, Study
from experiments.config import BufferConfig, ExperimentConfig, TrainConfig
from rapo_jax.errors import InputError
from rapo_jax.tasks import TASKS

CONFIG = ExperimentConfig(name="t")


@pytest.mark.parametrize("name", sorted(arms.packaged_studies()))
def test_every_study_loads(name):
  study = arms.load_study(name)
  assert study.name == name
  assert study.description
  for arm in study.arms:
    assert arm.config.train.algorithms
  methods = {m for arm in study.arms for m in arm.config.train.algorithms}
  assert study.reference in methods


def test_a_grid_has_every_combination():
  settings = {
    "buffer.top_k_trajectories": (1, 5),
    "optimizer.learning_rate": (1e-4, 1e-3, 1e-2),
  }
  found = arms.grid(CONFIG, settings)
  assert [arm.name for arm in found][:2] == [
    "top_k_trajectories_1_learning_rate_0_0001",
    "top_k_trajectories_1_learning_rate_0_001",
  ]
  assert found[0].label == "top_k_trajectories 1, learning_rate 0.0001"
  pairs = {
    (a.config.buffer.top_k_trajectories, a.config.optimizer.learning_rate)
    for a in found
  }
  assert len(pairs) == 6
  # What is not named stays.
  assert all(arm.config.rollout == CONFIG.rollout for arm in found)


def test_a_grid_takes_what_an_override_takes():
  # A section that is not set, and one of several tasks.
  config = dataclasses.replace(CONFIG, tasks=(TASKS["multihop"],))
  ranks = arms.grid(config, {"policy.lora.rank": (4, 8)})
  assert [arm.config.policy.lora.rank for arm in ranks] == [4, 8]
  path = "tasks.multihop.world.num_train"
  sizes = arms.grid(config, {path: (10, 20)})
  assert [arm.config.tasks[0].world.num_train for arm in sizes] == [10, 20]
  assert config.tasks[0].world.num_train not in (10, 20)


def test_a_grid_tells_signs_apart():
  values = (-0.5, 0.5, 1e-5)
  found = arms.grid(CONFIG, {"retrieval.min_reward": values})
  assert [arm.name for arm in found] == [
    "min_reward_minus_0_5",
    "min_reward_0_5",
    "min_reward_1e_05",
  ]


def test_a_reference_is_a_method_of_the_study():
  config = dataclasses.replace(CONFIG, train=TrainConfig(methods=("rapo",)))
  arm = Arm("a", config, "x")
  assert Study("s", "d", (arm,), "rapo_a").reference == "rapo_a"
  with pytest.raises(InputError, match=r"\(rapo_a\), got 'rapo': correct"):
    Study("s", "d", (arm,), "rapo")


def test_a_wrong_setting_names_its_dataclass():
  with pytest.raises(InputError, match=r"field 'buffer\.top_k'.*Did you mean"):
    flags.with_setting(CONFIG, "buffer.top_k", 1)
  with pytest.raises(InputError, match="num_trajectories"):
    arms.grid(CONFIG, {"buffer.num_trajectories": (0,)})


def test_arms_are_told_apart():
  with pytest.raises(InputError, match="a name of its own"):
    Study("s", "d", (Arm("a", CONFIG, "x"), Arm("a", CONFIG, "y")))
  # Two references would have the same methods.
  with pytest.raises(InputError, match="a label of its own"):
    Study("s", "d", (Arm("a", CONFIG), Arm("b", CONFIG)))
  with pytest.raises(InputError, match="lower case"):
    Arm("A/b", CONFIG)


def test_buffers_are_joined_from_arms_that_fill_one():
  first, second = Arm("a", CONFIG, "a"), Arm("b", CONFIG, "b", ("a",))
  assert Study("s", "d", (first, second)).arm("b").buffers_of == ("a",)
  with pytest.raises(InputError, match="fill a buffer"):
    Study("s", "d", (first, second, Arm("c", CONFIG, "c", ("b",))))
  named = dataclasses.replace(CONFIG, buffer=BufferConfig(path="somewhere"))
  with pytest.raises(InputError, match="names a buffer"):
    Arm("c", named, "c", ("a",))


def test_seeds_are_those_of_all_arms_in_order():
  configs = [
    dataclasses.replace(CONFIG, train=TrainConfig(seeds=seeds))
    for seeds in ((0, 1), (1, 5))
  ]
  study = Study(
    "s", "d", tuple(Arm(f"a{i}", c, f"{i}") for i, c in enumerate(configs))
  )
  assert study.seeds() == [0, 1, 5]


def _write(tmp_path, body, docstring='"""A study."""'):
  path = tmp_path / "mine.py"
  path.write_text(f"{docstring}\n{body}\n", encoding="utf-8")
  return str(path)


def test_a_file_without_a_study_is_refused(tmp_path):
  path = _write(tmp_path, "def get_study(): return 3")
  with pytest.raises(flags.ConfigError, match=r"returned a int: return an"):
    arms.load_study(path)
  with pytest.raises(flags.ConfigError, match=r"no get_study\(\)"):
    arms.load_study(_write(tmp_path, ""))
  with pytest.raises(flags.ConfigError, match="a study says what"):
    arms.load_study(_write(tmp_path, "", docstring=""))
  with pytest.raises(flags.ConfigError, match="Did you mean noise"):
    arms.load_study("noises")


def test_overrides_reach_every_arm():
  study = arms.load_study("noise", ["--config.train.seeds=3"])
  assert [arm.config.train.seeds for arm in study.arms] == [(3,)]
  with pytest.raises(flags.ConfigError, match="Did you mean"):
    arms.load_study("noise", ["--config.train.seed=3"])
