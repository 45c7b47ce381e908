"""Whole updates by rapo_jax's trainer."""

from __future__ import annotations

import jax
import numpy as np
from problem import Clock, Problem, reward, serve
from transformers import AutoTokenizer

from rapo_jax import models, rewards
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.data import Query
from rapo_jax.rollout import RolloutConfig, RolloutEngine
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  Trainer,
  UpdateConfig,
  init_train_state,
)

_TRAJECTORIES_PER_ROW = 4
_HOUR_S = 3600.0
"""No trajectory may end by the clock, not even while programs compile."""


class OurWorker:
  """GRPO by `training.Trainer`."""

  def __init__(self, problem: Problem):
    sizes = problem.settings
    group, prompt = sizes["rollouts"], sizes["prompt_tokens"]
    new = sizes["new_tokens"]
    self._problem, self._clock, self._update = problem, Clock(), 0
    self._first: dict[str, float] = {}
    tokenizer = AutoTokenizer.from_pretrained(problem.model)
    self._prompts = [
      np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)
      for text in problem.prompts
    ]
    model = models.from_pretrained(problem.model)
    rollout = RolloutConfig(
      num_generations=group,
      num_hybrid=0,
      num_slots=sizes["questions"] * group,
      prefill_rows=sizes["questions"],
      max_prompt_tokens=prompt,
      max_response_tokens=new,
      max_step_tokens=new,
      trajectory_timeout_s=_HOUR_S,
    )
    optimizer = OptimizerConfig(
      learning_rate=sizes["learning_rate"],
      max_gradient_norm=sizes["max_gradient_norm"],
    )
    engine = RolloutEngine(
      rollout,
      tokenizer,
      vocab_size=model.config.vocab_size,
      tools={},
      end_ids=(),
    )
    # A micro-batch holds as many trajectories as a peer's, side by side in
    # rows, behind the prompt that they share. Each has the prompt's last token.
    per_row = min(_TRAJECTORIES_PER_ROW, sizes["microbatch"])
    self._trainer = Trainer(
      engine,
      tokenizer,
      rollout=rollout,
      objective=ObjectiveConfig(
        clip_epsilon_low=sizes["clip_epsilon"],
        clip_epsilon_high=sizes["clip_epsilon"],
      ),
      optimizer=optimizer,
      update=UpdateConfig(
        queries_per_update=sizes["questions"],
        queries_per_minibatch=sizes["questions"],
        row_length=prompt + per_row * (new + 1),
        rows_per_microbatch=sizes["microbatch"] // per_row,
        remat=sizes["remat"],
      ),
      seed=0,
      reward=rewards.FunctionReward(
        self._clock.timed(
          "reward",
          lambda sample: reward(
            sample.policy_text, sample.query.ground_truth[0]
          ),
        )
      ),
      algorithm=ALGORITHMS["grpo"],
    )
    self._state = init_train_state(model, optimizer)

  def update(self) -> dict[str, float]:
    count = self._problem.settings["questions"]
    chosen = range(self._update * count, (self._update + 1) * count)
    texts, answers = self._problem.prompts, self._problem.answers
    queries = [
      Query(
        f"q{i}",
        texts[i],
        (answers[i],),
        ({"role": "user", "content": texts[i]},),
        "benchmark",
      )
      for i in chosen
    ]
    self._state, _, report = self._trainer.step(
      self._state, queries, [self._prompts[i] for i in chosen], self._update
    )
    jax.block_until_ready(self._state)
    self._update += 1
    if not self._first:
      self._first = {n: report[n] for n in ("loss", "gradient_norm")}
    return {
      "rollout": report["rollout/seconds"],
      **self._clock.take(),
      "update": report["update/seconds"],
      "generated_tokens": report["rollout/generated_tokens"],
      "mean_reward": report["reward/mean"],
    }

  def norm_weights(self) -> np.ndarray:
    return np.asarray(self._state.model.final_norm.scale[...])

  def first_step(self) -> dict[str, float]:
    return self._first


if __name__ == "__main__":
  serve(
    OurWorker,
    {"jax": jax.__version__},
    (
      "training.Trainer, algorithm grpo, as experiments.run uses it",
      f"{_TRAJECTORIES_PER_ROW} trajectories in a full row, which holds their "
      "prompt once",
      "stop automaton of the answer's tag, log-probs and entropies kept",
    ),
  )
