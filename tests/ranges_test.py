"""Every number of every config has a range, and what is outside is refused."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from experiments import flags
from experiments.buffers.imports import ImportConfig
from experiments.config import ExperimentConfig
from experiments.planner.programs import Workload
from rapo_jax import ranges
from rapo_jax.models import LoraConfig, RopeConfig
from rapo_jax.retrieval.encoder.bert import BertConfig
from rapo_jax.retrieval.serving.config import ServerConfig
from rapo_jax.rollout.endpoint import EndpointConfig
from rapo_jax.tasks import TASKS, FileTask
from rapo_jax.tasks.miniature.demonstrations import DemonstrationConfig
from rapo_jax.training.supervised import SupervisedConfig
from tests.tiny_decoder import tiny_config

# A reward, and a bound on one, may be any number.
_ANY_NUMBER = {"min_reward", "reward"}
# A cosine.
_SIGNED = {"min_similarity"}
_CONFIGS = (
  ExperimentConfig(
    name="test",
    tasks=(TASKS["multihop"], TASKS["tool_star"], FileTask("t")),
  ),
  ServerConfig(),
  ImportConfig(),
  DemonstrationConfig(0.5),
  EndpointConfig("http://127.0.0.1/v1", "model"),
  LoraConfig(),
  tiny_config(),
  RopeConfig(
    rope_type="llama3",
    factor=8.0,
    original_max_position_embeddings=8192,
    attention_factor=None,
  ),
  RopeConfig(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=8192
  ),
  BertConfig(100, 8, 1, 2, 16, 64, 2, 1e-12),
  Workload(100, 1.0, 10, 200),
  SupervisedConfig(100, warmup_steps=10, rows_per_microbatch=4),
)


def _nested(config) -> Iterator:
  """A config and all configs in it, set or not; values of a tuple, too."""
  yield config
  hints = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    if isinstance(getattr(config, field.name), tuple):
      for value in filter(
        dataclasses.is_dataclass, getattr(config, field.name)
      ):
        yield from _nested(value)
      continue
    for option in typing.get_args(hints[field.name]) or (hints[field.name],):
      if dataclasses.is_dataclass(option):
        value = getattr(config, field.name)
        yield from _nested(option() if value is None else value)


def _numeric(annotation) -> type | None:
  """int or float where an annotation is a number or a tuple of them."""
  for option in _leaves(annotation):
    if option in (int, float):
      return option
  return None


def _leaves(annotation) -> Iterator:
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType, tuple):
    for argument in typing.get_args(annotation):
      yield from _leaves(argument)
  else:
    yield annotation


def _cases():
  for root in _CONFIGS:
    for config in _nested(root):
      hints = typing.get_type_hints(type(config))
      for field in dataclasses.fields(config):
        kind = _numeric(hints[field.name])
        if kind is None:
          continue
        wrong = [math.nan, math.inf, -math.inf] if kind is float else []
        # Beyond an int32, an int64, a float32.
        wrong.append(10**20 if kind is int else 1e39)
        if field.name not in _ANY_NUMBER:
          wrong.append(kind(-10_000))
        for value in wrong:
          yield pytest.param(
            config,
            field.name,
            hints[field.name],
            value,
            id=f"{type(config).__name__}.{field.name}={value}",
          )


def _as(annotation, value):
  """The value in the tuples that the annotation asks for."""
  if typing.get_origin(annotation) is not tuple:
    return value
  inner = typing.get_args(annotation)[0]
  if typing.get_origin(inner) is tuple:
    return (("search", value),)
  return (value,)


@pytest.mark.parametrize(("config", "name", "annotation", "value"), [*_cases()])
def test_what_is_out_of_range_is_refused_by_name(
  config, name, annotation, value
):
  with pytest.raises(ValueError, match=name) as error:
    dataclasses.replace(config, **{name: _as(annotation, value)})
  assert f"{value}" in str(error.value)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    (
      "optimizer.learning_rate=-1",
      "--config.optimizer.learning_rate must be at least 0, got -1.0: raise",
    ),
    (
      "optimizer.learning_rate=1e400",
      "--config.optimizer.learning_rate must be at least 0 and be finite, got "
      "inf: give a finite number.",
    ),
    ("train.seeds=0,-1", "seeds must lie in [0, 2147483647], got -1: raise"),
    ("train.seeds=2147483648", "got 2147483648: lower it"),
    (
      f"tasks.multihop.world.num_train=-{10**400}",
      "num_train must be at least 1, got -1000",
    ),
    ("policy.random.num_heads=3", "hidden_size must be a multiple of 2 * num"),
    ("policy.random.hidden_size=68", "(8), got 68: set it to 72"),
    (
      "tasks.multihop.agents.hops=5",
      "hops must lie in [1, 4], got 5: lower it",
    ),
    ("objective.clip_epsilon_low=1.5", "must lie in [0, 1], got 1.5: lower"),
  ],
)
def test_an_override_says_rule_value_and_remedy(override, message):
  with pytest.raises(flags.ConfigError) as error:
    flags.apply_overrides(_CONFIGS[0], [f"--config.{override}"])
  assert message in str(error.value)


@dataclasses.dataclass(frozen=True)
class _Numbers:
  value: float | tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Whole:
  value: Any = None
  sizes: Any = ()


# Under the tests' type checks a class that says so would refuse it first.
_Whole.__dataclass_fields__["value"].type = "int | None"
_Whole.__dataclass_fields__["sizes"].type = "tuple[int, ...]"


@pytest.mark.parametrize("value", [2.5, 2.0])
def test_a_field_of_integers_takes_no_other_number(value):
  ranges.check_numbers(_Whole(2, (2, 3)), "value", "sizes", at_least=1)
  for config, name in (
    (_Whole(value), "value"),
    (_Whole(1, (value,)), "sizes"),
  ):
    with pytest.raises(ValueError, match=f"{name} must be an integer, got 2"):
      ranges.check_numbers(config, "value", "sizes", at_least=1)


@pytest.mark.parametrize(
  ("bounds", "inside", "outside", "rule"),
  [
    ({"at_least": 1}, 1, 0, "be at least 1"),
    ({"above": 0}, 1e-300, 0, "be > 0"),
    ({"at_most": 1}, 1, 1.5, "be at most 1"),
    ({"below": 1}, 0.9, 1, "be < 1"),
    ({"at_least": 0, "below": 1}, 0, 1, r"lie in \[0, 1\)"),
    ({"above": 0, "at_most": 1}, 1, 0, r"lie in \(0, 1\]"),
    ({}, -1e38, math.inf, "be a number and be finite"),
    ({"at_most": 2**63 - 1}, 2**31, 2**63, "be at most 92"),
  ],
)
def test_bounds(bounds, inside, outside, rule):
  for value in (inside, (inside, inside), None):
    ranges.check_numbers(_Numbers(value), "value", **bounds)
  for value in (outside, (inside, outside), math.nan):
    with pytest.raises(ValueError, match=f"value must {rule}"):
      ranges.check_numbers(_Numbers(value), "value", **bounds)


@pytest.mark.parametrize(
  ("value", "rule"),
  [
    (2**31, r"\[-2147483647, 2147483647\], as an int32 does, got 2147483648"),
    (-(10**400), ".*as an int32 does, got -1000"),
    (-1e39, r"\[-3\.4.*e\+38, 3\.4.*\], as a float32 does, got -1e\+39"),
  ],
)
def test_a_program_can_hold_every_number(value, rule):
  with pytest.raises(ValueError, match=f"value must lie in {rule}.*magnitude"):
    ranges.check_numbers(_Numbers(value), "value")
  ranges.check_numbers(_Numbers(2**31 - 1), "value")
  # A bound of its own takes the place of it.
  ranges.check_numbers(_Numbers(2**62), "value", at_most=2**63 - 1)


@pytest.mark.parametrize("value", ["3e-4", True, [1.0]])
def test_what_is_no_number_is_named(value):
  with pytest.raises(ValueError, match="value must be a number, got"):
    ranges.check_numbers(_Numbers(value), "value", above=0)
