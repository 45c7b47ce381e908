"""One update by torch: transformers' Qwen2, GRPO's loss, fused AdamW."""

from __future__ import annotations

import torch
import transformers
from problem import Problem, serve


def make_update(problem: Problem):
  torch.set_num_threads(1)
  settings = problem.settings
  model = transformers.AutoModelForCausalLM.from_pretrained(
    problem.model, dtype=torch.float32, attn_implementation="sdpa"
  )
  model.train()
  model.config.use_cache = False
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=settings["learning_rate"],
    weight_decay=settings["weight_decay"],
    fused=True,
  )
  tokens = torch.from_numpy(problem.tokens).long()
  targets = tokens[:, -problem.completion :, None]
  old_log_probs = torch.from_numpy(problem.old_log_probs)
  advantages = torch.from_numpy(problem.advantages)[:, None]
  low = 1 - settings["clip_epsilon_low"]
  high = 1 + settings["clip_epsilon_high"]

  def update() -> tuple[float, float]:
    # Logits of the completion alone, which transformers offers.
    logits = model(tokens, logits_to_keep=problem.completion + 1).logits
    logits = logits[:, :-1]
    picked = logits.gather(-1, targets)[..., 0]
    log_probs = picked - logits.logsumexp(-1)
    ratio = torch.exp(log_probs - old_log_probs)
    surrogate = torch.minimum(
      ratio * advantages, ratio.clamp(low, high) * advantages
    )
    loss = -surrogate.mean(dim=1).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(
      model.parameters(), settings["max_gradient_norm"]
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm)

  return update


if __name__ == "__main__":
  serve(
    make_update,
    {
      "torch": torch.__version__,
      "transformers": transformers.__version__,
    },
  )
