"""Examples of supervised learning: masks, order and packing."""

import itertools

import numpy as np
import pytest

from rapo_jax.errors import InputError
from rapo_jax.training import (
  Example,
  from_chat,
  from_trajectory,
  pack_examples,
  repeat_examples,
)
from tests.data.chat_test import CHATML, DEEPSEEK, LLAMA, make_tokenizer
from tests.training.packing_test import make_trajectory

TALK = [
  {"role": "user", "content": "How high?"},
  {"role": "assistant", "content": "Ten."},
  {"role": "user", "content": "Sure?"},
  {"role": "assistant", "content": "Yes <|im_end|>"},
]


def example(length, token=1):
  return Example(np.full(length, token, np.int32), np.arange(length) >= 2)


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_replies_and_their_ends_are_in_the_loss(template):
  tokenizer = make_tokenizer(template)
  made = from_chat(tokenizer, TALK)
  runs = [
    tokenizer.decode(made.tokens[[index for index, _ in run]])
    for inside, run in itertools.groupby(
      enumerate(made.where), lambda pair: pair[1]
    )
    if inside
  ]
  # The second text holds an end of its own, which is text.
  assert runs == ["Ten.<|im_end|>", "Yes <|im_end|><|im_end|>"]


def test_refuses_a_conversation_without_a_stable_reply():
  with pytest.raises(InputError, match="hold a reply of the assistant"):
    from_chat(make_tokenizer(), TALK[:1])
  # The template begins a reply with a thought that it then leaves out.
  with pytest.raises(InputError, match=r"turn 2 of 4 changes: give one"):
    from_chat(make_tokenizer(DEEPSEEK), TALK)


def test_a_trajectory_has_the_tokens_of_the_policy_in_the_loss():
  made = from_trajectory(make_trajectory(3, 4, 2))
  assert made.where.sum() == 4
  assert not made.where[:3].any()
  assert len(made.tokens) == 9


def test_epochs_hold_each_example_once_in_an_order_of_their_own():
  examples = [example(5, token) for token in range(8)]
  stream = repeat_examples(examples, seed=1)
  epochs = [[int(next(stream).tokens[0]) for _ in range(8)] for _ in range(2)]
  assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
  assert epochs[0] != epochs[1]
  again = repeat_examples(examples, seed=1)
  assert [int(next(again).tokens[0]) for _ in range(8)] == epochs[0]
  with pytest.raises(InputError, match="at least one, got 0"):
    next(repeat_examples([], seed=1))


def test_packing():
  stream = (example(n, n) for n in (30, 40, 20, 40, 64))
  first, second = pack_examples(stream, rows=2, row_length=64)
  # 30 and 20 share row 0, 40 is alone in row 1, the next 40 ends the batch.
  assert first.segment_ids[0].tolist() == [1] * 30 + [2] * 20 + [0] * 14
  assert first.tokens[1].tolist() == [40] * 40 + [0] * 24
  assert not first.where[0, 30:32].any()
  assert first.where[0, 32:50].all()
  # What is left over makes a batch too.
  assert second.tokens[:, 0].tolist() == [40, 64]


def test_a_first_token_is_never_in_the_loss():
  whole = Example(np.arange(4, dtype=np.int32), np.ones(4, bool))
  (batch,) = pack_examples([whole, whole], rows=1, row_length=8)
  assert batch.where[0].tolist() == [False, True, True, True] * 2


@pytest.mark.parametrize(
  ("bad", "match"),
  [
    (example(65), "example 1 has 65: raise row_length"),
    (Example(np.zeros(4, np.int32), np.ones(3, bool)), "1 has 3: correct"),
    (
      Example(np.zeros(4, np.int32), np.arange(4) == 0),
      "1 has none: correct its mask",
    ),
  ],
)
def test_packing_refuses_what_does_not_fit(bad, match):
  with pytest.raises(InputError, match=match):
    list(pack_examples([example(5), bad], rows=1, row_length=64))
