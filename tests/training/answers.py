"""An engine that knows the answers, for tests of what is done with them."""

from __future__ import annotations

import numpy as np

from rapo_jax.rollout import RolloutConfig, RolloutEngine, RolloutStats
from rapo_jax.rollout.tool_runner import ToolStats
from rapo_jax.training import UpdateConfig
from rapo_jax.trajectory import FinishReason, Trajectory
from tests.rollout import tag_world

TOKENIZER = tag_world.make_tokenizer()
QUERY = tag_world.make_queries()[0]
RIGHT = "<think>x</think><answer>\\boxed{a}</answer>"
WRONG = "<think>x</think><answer>\\boxed{zzz}</answer>"
ROLLOUT = RolloutConfig(
  num_generations=2,
  num_hybrid=0,
  num_slots=2,
  max_prompt_tokens=32,
  max_response_tokens=96,
  max_step_tokens=64,
)

UPDATE = UpdateConfig(
  queries_per_update=2,
  queries_per_minibatch=2,
  row_length=128,
  rows_per_microbatch=2,
)


class Engine(RolloutEngine):
  """Answers questions called "live" once right, others always right."""

  def __init__(self):
    self.max_length = 128
    self.calls = []

  def compile(self, model, *, seed):
    """There are no device programs."""

  def rollout(self, model, requests, *, seed, update):
    del model, seed
    self.calls.append([(r.query.query_id, r.index) for r in requests])
    stats = RolloutStats(seconds=1.0, tools={"search": ToolStats(retries=1)})
    return [self._answer(r, update) for r in requests], stats

  def _answer(self, request, update):
    dead = request.query.query_id.startswith("dead")
    text = RIGHT if dead or request.index % 2 == 0 else WRONG
    ids = TOKENIZER.encode(text)
    kinds = np.array([0] + [1] * len(ids), np.int8)
    return Trajectory(
      tokens=np.array([1, *ids], np.int32),
      kinds=kinds,
      step_ids=np.where(kinds == 0, -1, 0).astype(np.int32),
      log_probs=np.where(kinds == 0, 0, -3.0).astype(np.float32),
      entropies=np.zeros(len(kinds), np.float32),
      query_id=request.query.query_id,
      group_id=request.group_id,
      index=request.index,
      hybrid=request.hybrid,
      policy_version=update,
      finish_reason=FinishReason.ANSWER,
    )
