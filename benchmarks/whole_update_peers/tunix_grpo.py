"""Whole updates by google-tunix's GRPOLearner with its own sampler."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problem import Clock, Problem, Turns, reward, serve
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

_KINDS = {
  "llama": (llama, llama_params, "weight_tying"),
  "qwen2": (qwen2, qwen2_params, "use_tied_embedding"),
}


def load_model(folder: pathlib.Path, remat: str) -> Any:
  """A Hugging Face folder as one of its models."""
  hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
  module, params, tied = _KINDS[hf["model_type"]]
  heads = hf["num_attention_heads"]
  config = module.ModelConfig(
    num_layers=hf["num_hidden_layers"],
    vocab_size=hf["vocab_size"],
    embed_dim=hf["hidden_size"],
    hidden_dim=hf["intermediate_size"],
    num_heads=heads,
    head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
    num_kv_heads=hf["num_key_value_heads"],
    rope_theta=int(hf["rope_theta"]),
    norm_eps=hf["rms_norm_eps"],
    remat_config=(
      module.RematConfig.NONE if remat == "none" else module.RematConfig.DECODER
    ),
    **{tied: hf["tie_word_embeddings"]},
  )
  return params.create_model_from_safe_tensors(
    str(folder), config, mesh=None, dtype=jnp.float32
  )


class TunixWorker:
  """GRPO by tunix."""

  def __init__(self, problem: Problem):
    sizes = problem.settings
    self._problem, self._clock = problem, Clock()
    mesh = jax.sharding.Mesh(
      np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp")
    )
    model = load_model(problem.model, sizes["remat"])
    questions, prompt = sizes["questions"], sizes["prompt_tokens"]
    roles = (
      rl_cluster.Role.ACTOR,
      rl_cluster.Role.REFERENCE,
      rl_cluster.Role.ROLLOUT,
    )
    self._cluster = rl_cluster.RLCluster(
      actor=model,
      tokenizer=AutoTokenizer.from_pretrained(problem.model),
      cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
          actor_optimizer=optax.chain(
            optax.clip_by_global_norm(sizes["max_gradient_norm"]),
            optax.adamw(sizes["learning_rate"], weight_decay=0.0),
          ),
          eval_every_n_steps=10**6,
          max_steps=problem.num_updates,
          mini_batch_size=questions,
          # In questions; it repeats each for its rollouts.
          train_micro_batch_size=sizes["microbatch"] // sizes["rollouts"],
          rollout_micro_batch_size=questions,
          compute_logps_micro_batch_size=questions,
        ),
        rollout_config=base_rollout.RolloutConfig(
          max_tokens_to_generate=sizes["new_tokens"],
          max_prompt_length=prompt,
          kv_cache_size=prompt + sizes["new_tokens"],
          temperature=1.0,
          top_p=1.0,
          top_k=None,
        ),
      ),
    )
    self._generated_tokens = 0
    self._rewards: list[float] = []

    def rewards_of(
      prompts: list[str], completions: list[str], answer: Any, **_: Any
    ) -> list[float]:
      pairs = zip(completions, answer, strict=True)
      self._rewards = [reward(text, str(right)) for text, right in pairs]
      return self._rewards

    generate = self._clock.timed("rollout", self._cluster.generate)

    def counted(*arguments: Any, **named: Any) -> Any:
      output = generate(*arguments, **named)
      self._generated_tokens = sum(map(len, output.tokens))
      return output

    self._cluster.generate = counted
    learner = grpo_learner.GRPOLearner(
      rl_cluster=self._cluster,
      algo_config=grpo_learner.GRPOConfig(
        num_generations=sizes["rollouts"],
        num_iterations=1,
        beta=0.0,
        epsilon=sizes["clip_epsilon"],
      ),
      reward_fns=[self._clock.timed("reward", rewards_of)],
    )
    self._turns = Turns(lambda: learner.train(self._batches()))

  def update(self) -> dict[str, float]:
    self._clock.timed("whole", self._turns.update)()
    parts = self._clock.take()
    whole = parts.pop("whole")
    return {
      **parts,
      "update": whole - sum(parts.values()),
      "generated_tokens": self._generated_tokens,
      "mean_reward": float(np.mean(self._rewards)),
    }

  def norm_weights(self) -> np.ndarray:
    return np.asarray(self._cluster.actor_trainer.model.final_norm.w[...])

  def first_step(self) -> dict[str, float]:
    # It writes an update's metrics behind the next one.
    history = self._cluster.actor_trainer.metrics_logger.get_metric_history
    return {
      name: float(history("actor", metric, "train")[0])
      for name, metric in (("loss", "loss"), ("gradient_norm", "grad_norm"))
    }

  def _batches(self) -> Iterator[dict[str, Any]]:
    """The questions of each update, which is asked for first."""
    count = self._problem.settings["questions"]
    for start in range(0, len(self._problem.prompts), count):
      self._turns.wait()
      yield {
        "prompts": self._problem.prompts[start : start + count],
        "answer": self._problem.answers[start : start + count],
      }
      # It comes back for more when the update is done.
      jax.block_until_ready(
        jax.tree.leaves(jax.tree.map(jnp.asarray, self.norm_weights()))
      )
      self._turns.finish(None)


if __name__ == "__main__":
  serve(
    TunixWorker,
    {"tunix": metadata.version("google-tunix"), "jax": jax.__version__},
    (
      "GRPOLearner, its vanilla sampler on all rollouts at once",
      "no old log-probs (one step a rollout), no reference",
      "gradients over micro-batches by optax.MultiSteps",
    ),
  )
