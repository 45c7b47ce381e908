"""Runs in an environment that has TRL: what the rollout hands over."""

import sys
import types

import accelerate
import transformers

from examples import counting, trl_buffer


def main(url: str) -> None:
  transformers.set_seed(0)
  tokenizer = trl_buffer.make_tokenizer()
  assert tokenizer("4\n")["input_ids"] == [4, trl_buffer.NEWLINE]
  assert tokenizer.decode([4, trl_buffer.NEWLINE]) == "4\n"
  trainer = types.SimpleNamespace(
    processing_class=tokenizer,
    model_wrapped=transformers.Qwen2ForCausalLM(trl_buffer.SHAPE),
    accelerator=accelerate.Accelerator(cpu=True),
    num_generations=counting.GROUP,
    args=types.SimpleNamespace(temperature=1.0),
  )
  roll_out = trl_buffer.HybridRollout(url, num_hybrid=counting.HYBRID)
  prompts = [f"{digit}\n" for digit in counting.START]
  output = roll_out(prompts, trainer)

  count = 0
  for row in range(counting.ROWS):
    ids, own = output["completion_ids"][row], output["env_mask"][row]
    texts, others = output["step_texts"][row], output["retrieved"][row]
    assert tokenizer.decode(ids) == "".join(texts)
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    pairs = list(zip(lengths, others, strict=True))
    assert own == [int(not other) for n, other in pairs for _ in range(n)]
    assert len(texts) == counting.STEPS
    assert not others[0]
    assert not any(others) or row % counting.GROUP < counting.HYBRID
    count += sum(others)
    # The first step alone is exact: the buffer has no step after a wrong one.
    if texts[0] == f"{counting.ANSWERS[row, 0]}\n" and others[1]:
      assert texts[1] == f"{counting.ANSWERS[row, 1]}\n", texts
  assert count, output["retrieved"]

  scores = trl_buffer.rewards(
    ["4\n", "9\n"],
    [["5\n", "6\n", "0\n", "8\n"], ["0\n", "1\n", "2\n", "3\n"]],
    [[False, True, False, False], [False, True, False, False]],
  )
  assert scores == [2 / 3, 1.0], scores


if __name__ == "__main__":
  main(sys.argv[1])
