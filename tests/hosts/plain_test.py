"""What hosts send each other arrives as it was, and nothing else is sent."""

import dataclasses
import enum
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import hosts
from rapo_jax.errors import InputError


@hosts.travels
@dataclasses.dataclass(frozen=True)
class Settings:
  rate: float = 0.5
  limits: tuple[tuple[str, int], ...] = ()


@hosts.travels
class Batch(NamedTuple):
  tokens: np.ndarray
  columns: dict


@hosts.travels
class Kind(enum.StrEnum):
  ONE = "one"


class Stranger:
  """Of a class that is not sent."""


def back(value, **options):
  return hosts.decode(hosts.encode(value), **options)


@pytest.mark.parametrize(
  "value",
  [
    None,
    True,
    -3,
    1e-7,
    "é <tag>",
    [1, (2, "a"), []],
    {"a": {"b": ()}},
    pathlib.Path("/a/b c"),
    Settings(1e-5, (("python", 3),)),
    Kind.ONE,
  ],
)
def test_plain_values_come_back(value):
  assert back(value) == value
  assert type(back(value)) is type(value)


@pytest.mark.parametrize(
  "array",
  [
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.zeros((0, 4), np.float32),
    np.array(7, np.uint32),
    np.array([True, False]),
    np.array([1.5, np.nan], np.float64),
  ],
)
def test_arrays_come_back_whole(array):
  found = back([array, 1, array])[2]
  assert found.dtype == array.dtype
  assert found.shape == array.shape
  np.testing.assert_array_equal(found, array)
  found.fill(0)  # Its own memory.


def test_bfloat16_and_device_arrays_become_numpy():
  found = back(Batch(jnp.arange(3), {"x": jnp.ones(2, jnp.bfloat16)}))
  assert isinstance(found, Batch)
  assert found.tokens.tolist() == [0, 1, 2]
  assert found.columns["x"].dtype == jnp.bfloat16


def test_what_every_host_has_goes_by_its_number():
  thing = Stranger()
  content = hosts.encode(
    {"policy": thing}, lambda value: 4 if value is thing else None
  )
  assert hosts.decode(content, {4: "mine"}.get) == {"policy": "mine"}


@pytest.mark.parametrize(
  "value", [Stranger(), {1: 2}, lambda: 0, np.array([Stranger()]), {3}, b"x"]
)
def test_all_else_is_refused(value):
  with pytest.raises(InputError, match=r"plain values|hold numbers"):
    hosts.encode([value])


@pytest.mark.parametrize(
  "content", [b"", b"\0\0\0\x09{}", b"\0\0\0\x02{}", b"\0\0\0\x03[1,"]
)
def test_a_broken_message_is_an_input_error(content):
  with pytest.raises(InputError, match="same code"):
    hosts.decode(content)


def test_a_class_that_is_not_known_here_is_not_looked_for():
  text = b'{"class": "os:system", "fields": {"command": "true"}}'
  with pytest.raises(InputError, match="os:system"):
    hosts.decode(len(text).to_bytes(4, "big") + text)
