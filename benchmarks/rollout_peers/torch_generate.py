"""Generation by transformers' `generate`, with its cache."""

from __future__ import annotations

import torch
import transformers
from problem import Generate, Problem, serve


def make_generate(problem: Problem) -> Generate:
  torch.set_num_threads(1)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    problem.model, dtype=torch.float32, attn_implementation="sdpa"
  ).eval()
  prompts = torch.from_numpy(problem.prompts).long()

  @torch.inference_mode()
  def generate(greedy: bool) -> list[list[int]]:
    # `top_k` is 50 by default, which would be another distribution.
    sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    tokens = model.generate(
      prompts,
      attention_mask=torch.ones_like(prompts),
      do_sample=not greedy,
      max_new_tokens=problem.new_tokens,
      eos_token_id=None,
      pad_token_id=0,
      use_cache=True,
      **sampling,
    )
    return tokens[:, prompts.shape[1] :].tolist()

  return generate


if __name__ == "__main__":
  serve(
    make_generate,
    {
      "torch": torch.__version__,
      "transformers": transformers.__version__,
    },
  )
