"""Whole updates by TRL's GRPOTrainer with transformers' `generate`."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import trl
from problem import Clock, Problem, Turns, reward, serve


class _TimedTrainer(trl.GRPOTrainer):
  """Adds up the time of its parts; all else is TRL's."""

  clock: Clock
  generated_tokens = 0

  def _generate(self, prompts: list) -> Any:
    outputs = self.clock.timed("rollout", super()._generate)(prompts)
    self.generated_tokens = sum(map(len, outputs[1]))
    return outputs


class _OneAtATime(transformers.TrainerCallback):
  """Stands still between updates, and hands over what is logged."""

  def __init__(self) -> None:
    self.turns: Turns | None = None

  def on_step_begin(self, *_: Any, **__: Any) -> None:
    assert self.turns
    self.turns.wait()

  def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
    # The loop logs its own end as well.
    if self.turns and "grad_norm" in logs:
      self.turns.finish(logs)


class TrlWorker:
  """GRPO by TRL."""

  def __init__(self, problem: Problem):
    sizes = problem.settings
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
      torch.set_num_threads(sizes["num_cores"])
    self._clock = Clock()
    self._first: dict[str, float] = {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(problem.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
      problem.model, dtype=torch.float32, attn_implementation="sdpa"
    )
    rollouts = sizes["questions"] * sizes["rollouts"]
    arguments = trl.GRPOConfig(
      output_dir=tempfile.mkdtemp(),
      use_cpu=on_cpu,
      bf16=False,
      report_to="none",
      logging_steps=1,
      save_strategy="no",
      disable_tqdm=True,
      # Its default recomputes activations, which memory does not ask for.
      gradient_checkpointing=sizes["remat"] != "none",
      max_steps=problem.num_updates,
      per_device_train_batch_size=sizes["microbatch"],
      gradient_accumulation_steps=rollouts // sizes["microbatch"],
      num_generations=sizes["rollouts"],
      max_completion_length=sizes["new_tokens"],
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      shuffle_dataset=False,
      beta=0.0,
      epsilon=sizes["clip_epsilon"],
      loss_type="grpo",
      scale_rewards="group",
      learning_rate=sizes["learning_rate"],
      lr_scheduler_type="constant",
      weight_decay=0.0,
      max_grad_norm=sizes["max_gradient_norm"],
      optim="adamw_torch_fused",
    )

    def rewards_of(
      completions: list[str], answer: list[str], **_: Any
    ) -> list[float]:
      return [reward(*pair) for pair in zip(completions, answer, strict=True)]

    callback = _OneAtATime()
    self._trainer = _TimedTrainer(
      model,
      reward_funcs=self._clock.timed("reward", rewards_of),
      args=arguments,
      train_dataset=datasets.Dataset.from_dict(
        {"prompt": problem.prompts, "answer": problem.answers}
      ),
      processing_class=tokenizer,
      callbacks=[callback],
    )
    self._trainer.clock = self._clock
    self._turns = callback.turns = Turns(self._trainer.train)

  def update(self) -> dict[str, float]:
    logs = self._clock.timed("whole", self._turns.update)()
    if not self._first:
      self._first = {
        "loss": logs["loss"],
        "gradient_norm": logs["grad_norm"],
      }
    parts = self._clock.take()
    whole = parts.pop("whole")
    return {
      **parts,
      # All that is left: forward, backward, clipping, AdamW.
      "update": whole - sum(parts.values()),
      "generated_tokens": self._trainer.generated_tokens,
      "mean_reward": logs["reward"],
    }

  def norm_weights(self) -> np.ndarray:
    return self._trainer.model.model.norm.weight.detach().cpu().numpy()

  def first_step(self) -> dict[str, float]:
    return self._first


if __name__ == "__main__":
  serve(
    TrlWorker,
    {
      "trl": trl.__version__,
      "transformers": transformers.__version__,
      "torch": torch.__version__,
    },
    (
      "GRPOTrainer, transformers' generate on all rollouts at once, SDPA",
      "chunked log-prob head, no old log-probs (one step a rollout)",
      "fused AdamW, no gradient checkpointing unless a remat is asked for",
    ),
  )
