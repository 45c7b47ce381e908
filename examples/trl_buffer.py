"""TRL's GRPOTrainer with steps from a Step-Trace Buffer.

    pip install trl torch
    python -m examples.trl_buffer --url http://127.0.0.1:8000

A tiny random Qwen2 learns to count on (`examples/counting.py`, which says how
its buffer is made and served). Half of each group may take a step of the
buffer in place of its own. TRL leaves inserted tokens out of the loss.
"""

import argparse
import random
import tempfile

import datasets
import tokenizers
import torch
import transformers
import trl
from trl.models import unwrap_model_for_generation

from examples import counting, step_client

STEP_TOKENS = 2  # A digit and the end of the line.
VOCABULARY = [*"0123456789", "\n", "<pad>", "<eos>"]
NEWLINE, PAD, EOS = 10, 11, 12
SHAPE = transformers.Qwen2Config(
  vocab_size=len(VOCABULARY),
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
  initializer_range=0.2,
  pad_token_id=PAD,
  eos_token_id=EOS,
  bos_token_id=None,
)


class HybridRollout:
  """A `rollout_func` in which the first of each group retrieve.

  Args:
    url: of the server of the buffer.
    num_hybrid: trajectories of a group that retrieve.
    retrieve_prob: with which they do before each step but the first.
  """

  def __init__(self, url: str, *, num_hybrid: int, retrieve_prob: float = 0.5):
    self._url = url
    self._num_hybrid = num_hybrid
    self._retrieve_prob = retrieve_prob
    self._random = random.Random(0)

  def __call__(self, prompts: list[str], trainer: trl.GRPOTrainer) -> dict:
    """Rolls out one trajectory a prompt.

    Returns:
      What TRL asks for. `env_mask` is 1 for the policy's own tokens;
      `step_texts` and `retrieved` (of each step) are for reward functions.
    """
    tokenizer = trainer.processing_class
    prompt_ids = tokenizer(prompts)["input_ids"]
    ids: list[list[int]] = [[] for _ in prompts]
    own: list[list[int]] = [[] for _ in prompts]
    texts: list[list[str]] = [[] for _ in prompts]
    retrieved: list[list[bool]] = [[] for _ in prompts]
    for step in range(counting.STEPS):
      inserted = self._retrieve(prompts, texts, trainer) if step else {}
      rows = [row for row in range(len(prompts)) if row not in inserted]
      contexts = [prompt_ids[row] + ids[row] for row in rows]
      written = dict(zip(rows, generate_step(contexts, trainer), strict=True))
      for row in range(len(prompts)):
        by_other = row in inserted
        new = inserted[row] if by_other else written[row]
        ids[row] += new
        own[row] += [0 if by_other else 1] * len(new)
        texts[row].append(tokenizer.decode(new))
        retrieved[row].append(by_other)
    return {
      "prompt_ids": prompt_ids,
      "completion_ids": ids,
      "logprobs": None,  # One update a rollout: the ratio is 1.
      "env_mask": own,
      "step_texts": texts,
      "retrieved": retrieved,
    }

  def _retrieve(self, prompts, texts, trainer) -> dict[int, list[int]]:
    """Tokens to insert, by row."""
    rows = [
      row
      for row in range(len(prompts))
      if row % trainer.num_generations < self._num_hybrid
      and self._random.random() < self._retrieve_prob
    ]
    steps = step_client.next_steps(
      self._url,
      [prompts[row].strip() for row in rows],
      [[text.strip() for text in texts[row]] for row in rows],
    )
    encode = trainer.processing_class.encode
    pairs = zip(rows, steps, strict=True)
    return {row: encode(f"{step}\n") for row, step in pairs if step is not None}


def generate_step(
  contexts: list[list[int]], trainer: trl.GRPOTrainer
) -> list[list[int]]:
  """Tokens of one more step of each context, up to the end of its line."""
  longest = max(map(len, contexts))
  padding = [longest - len(context) for context in contexts]
  pairs = list(zip(padding, contexts, strict=True))
  inputs = torch.tensor([[PAD] * n + context for n, context in pairs])
  mask = torch.tensor([[0] * n + [1] * len(context) for n, context in pairs])
  with (
    torch.no_grad(),
    unwrap_model_for_generation(
      trainer.model_wrapped, trainer.accelerator
    ) as model,
  ):
    outputs = model.generate(
      input_ids=inputs.to(model.device),
      attention_mask=mask.to(model.device),
      max_new_tokens=STEP_TOKENS,
      do_sample=True,
      temperature=trainer.args.temperature,
      top_k=0,
      eos_token_id=NEWLINE,
      pad_token_id=PAD,
    )
  steps = outputs[:, longest:].tolist()
  # After the end of a line there is padding.
  return [
    step[: step.index(NEWLINE) + 1] if NEWLINE in step else step
    for step in steps
  ]


def rewards(prompts, step_texts, retrieved, **_) -> list[float]:
  """Share of a trajectory's own steps that begin with the right digit."""
  scores = []
  for prompt, texts, others in zip(prompts, step_texts, retrieved, strict=True):
    right = [
      text[:1] == str((int(prompt) + 1 + step) % 10)
      for step, (text, other) in enumerate(zip(texts, others, strict=True))
      if not other
    ]
    scores.append(sum(right) / len(right))
  return scores


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """A token for each digit and for the end of a line."""
  words = {word: number for number, word in enumerate(VOCABULARY)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(words, unk_token="<pad>")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex(r"\d|\n"), "isolated"
  )
  tokenizer.decoder = tokenizers.decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
  )


def main(url: str, num_updates: int = 30) -> list[float]:
  """Trains; returns the mean reward of each update."""
  transformers.set_seed(0)
  settings = trl.GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    use_cpu=not torch.cuda.is_available(),
    bf16=False,
    report_to="none",
    save_strategy="no",
    logging_steps=1,
    disable_tqdm=True,
    gradient_checkpointing=False,
    max_steps=num_updates,
    per_device_train_batch_size=counting.ROWS,
    num_generations=counting.GROUP,
    max_completion_length=counting.STEPS * STEP_TOKENS,
    beta=0.0,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
  )
  prompts = [f"{digit}\n" for digit in range(counting.DIGITS)]
  trainer = trl.GRPOTrainer(
    transformers.Qwen2ForCausalLM(SHAPE),
    reward_funcs=rewards,
    args=settings,
    train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
    processing_class=make_tokenizer(),
    rollout_func=HybridRollout(url, num_hybrid=counting.HYBRID),
  )
  trainer.train()
  logs = trainer.state.log_history
  return [log["reward"] for log in logs if "reward" in log]


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--url", required=True, help="of `rapo serve`")
  history = main(parser.parse_args().url)
  print(" ".join(f"{reward:.2f}" for reward in history))
