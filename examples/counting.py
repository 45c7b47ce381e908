r"""The small world of the examples for other trainers: to count on.

After 4 comes 5, then 6, 7 and 8. A step is one number, and what the policy
itself wrote is rewarded. In half of each group a teacher writes the second
step, as one that was retrieved. A buffer of the teacher's steps, for trainers
that retrieve them from a server, is made and served by

    python -m examples.counting > counting.jsonl
    python -m experiments.buffer import --output buffers/counting \
      counting=counting.jsonl
    python -m experiments.serve_index --buffer buffers/counting \
      --min_similarity 0.5
"""

import json

import numpy as np

DIGITS, STEPS, GROUP, HYBRID = 10, 4, 16, 8
ROWS = DIGITS * GROUP
START = np.arange(DIGITS).repeat(GROUP)
"""First digit of each rollout `[ROWS]`, group by group."""
ANSWERS = (START[:, None] + 1 + np.arange(STEPS)) % DIGITS
"""What comes after it, `[ROWS, STEPS]`."""
WRITTEN = np.ones((ROWS, STEPS), bool)
RETRIEVED = np.zeros_like(WRITTEN)
RETRIEVED[np.arange(ROWS) % GROUP < HYBRID, 1] = True


def main() -> None:
  """Prints the steps of a teacher, as the code of RAPO's authors keeps them."""
  for start, answers in zip(START[::GROUP], ANSWERS[::GROUP], strict=True):
    key = f"<|im_start|>user\n{start}<|im_end|>\n<|im_start|>assistant\n"
    for answer in answers:
      print(json.dumps({"key": key, "value": f"{answer}", "reward": 1.0}))
      key += f"{answer}\n"


if __name__ == "__main__":
  main()
