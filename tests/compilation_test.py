"""Compilations are heard, those in other threads too, and only while asked."""

import threading

import jax
import jax.numpy as jnp

from rapo_jax.compilation import compilations


def _function():
  def a_new_function(x):
    return x * 2 + 1

  return jax.jit(a_new_function)


def test_lists_what_is_compiled_and_nothing_that_is_not():
  function = _function()
  x = jnp.ones(3)
  with compilations() as first:
    function(x)
  with compilations() as second:
    function(x)
  assert [c.name for c in first] == ["jit(a_new_function)"]
  assert first[0].seconds > 0
  assert second == []


def test_hears_other_threads_and_nested_listeners():
  function = _function()
  x, y = jnp.ones(3), jnp.ones(4)
  with compilations() as outer:
    with compilations() as inner:
      thread = threading.Thread(target=function, args=(x,))
      thread.start()
      thread.join()
    function(y)
  assert len(inner) == 1
  assert len(outer) == 2
