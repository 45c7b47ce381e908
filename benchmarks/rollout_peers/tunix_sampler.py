"""Generation by google-tunix's Sampler, from its Qwen2."""

from __future__ import annotations

import itertools
from importlib import metadata

import jax
import jax.numpy as jnp
from problem import Generate, Problem, serve
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import params

from benchmarks import tunix_qwen2

_NO_TOKEN = -1


class _IdsAsText:
  """The sampler takes text; this one's is ids in decimal."""

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # which adds none

  def eos_id(self) -> int:
    return _NO_TOKEN

  def pad_id(self) -> int:
    return 0


def make_generate(problem: Problem) -> Generate:
  shape = problem.shape
  config = tunix_qwen2.model_config(shape)
  model = params.create_model_from_safe_tensors(
    str(problem.model), config, mesh=None, dtype=jnp.float32
  )
  width = problem.prompts.shape[1]
  sampler = sampler_lib.Sampler(
    model,
    _IdsAsText(),
    sampler_lib.CacheConfig(
      cache_size=width + problem.new_tokens,
      num_layers=shape["num_layers"],
      num_kv_heads=shape["num_kv_heads"],
      head_dim=shape["head_dim"],
    ),
  )
  texts = [" ".join(map(str, row)) for row in problem.prompts.tolist()]
  seeds = itertools.count()

  def generate(greedy: bool) -> list[list[int]]:
    sampling = {} if greedy else {"temperature": 1.0, "top_p": 1.0}
    output = sampler(
      texts,
      max_generation_steps=problem.new_tokens,
      max_prompt_length=width,
      eos_tokens=[_NO_TOKEN],
      seed=next(seeds),
      **sampling,
    )
    return [row.tolist() for row in output.tokens]

  return generate


if __name__ == "__main__":
  serve(
    make_generate,
    {"jax": jax.__version__, "tunix": metadata.version("google-tunix")},
  )
