"""Generation by rapo_jax's rollout engine, with a real stop table."""

from __future__ import annotations

import itertools

import jax
import numpy as np
from problem import Generate, Problem, serve

from benchmarks import rollout_setup as setup
from rapo_jax import models
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests


def make_generate(problem: Problem) -> Generate:
  rows, width = problem.prompts.shape
  config = RolloutConfig(
    num_generations=1,
    num_hybrid=0,
    num_slots=rows,
    prefill_rows=min(rows, setup.PREFILL_ROWS),
    max_prompt_tokens=width,
    max_response_tokens=problem.new_tokens,
    max_step_tokens=problem.new_tokens,
  )
  engine = RolloutEngine(
    config,
    setup.spelling_tokenizer(),
    vocab_size=problem.shape["vocab_size"],
    tools={n: setup.WordsTool(name=n) for n in ("search", "python", "open")},
  )
  model = models.from_pretrained(problem.model)
  requests = group_requests(
    setup.queries(rows),
    list(problem.prompts),
    num_generations=1,
    num_hybrid=0,
  )
  updates = itertools.count()

  def generate(greedy: bool) -> list[np.ndarray]:
    trajectories, _ = engine.rollout(
      model, requests, seed=0, update=next(updates), greedy=greedy
    )
    return [trajectory.tokens[width:] for trajectory in trajectories]

  return generate


if __name__ == "__main__":
  serve(make_generate, {"jax": jax.__version__})
