"""The word-level tokenizer of the miniature world.

A word is one token. Text that is no word of the world falls back to bytes, so
no text is lost. It is Qwen2's tokenizer with other words: byte-level BPE with
the 256 byte symbols and no merges. Every word, with its leading space, is an
added token. Added tokens come before everything else. So a reader gets the same
ids if it puts Qwen2's own splitting rules in place of those in
`tokenizer.json`. transformers 5 does so for every folder with a Qwen2
`config.json`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import pre_tokenizers

from rapo_jax.tasks.miniature import demonstrations, lexicon
from rapo_jax.tasks.miniature.world import FAMILIES, MODULUS, World

if TYPE_CHECKING:
  from transformers import Qwen2Tokenizer

PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
  " + '<|im_end|>\\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Qwen's, but without a system prompt where none is given."""

_WORDS = tokenizers.Regex(r" ?</?[a-z]+>| ?[^\s<]+| ?<|\s")
"""Tags, words, a lone `<`, white space; all but the last with their space."""


def train_tokenizer(corpus: Iterable[str]) -> Qwen2Tokenizer:
  """Gathers the words of `corpus` and makes the tokenizer.

  Args:
    corpus: texts whose words become tokens, with and without a leading space
      as they occur.

  Returns:
    The tokenizer. Ids follow frequency, ties the alphabet, so the same corpus
    gives the same ids.
  """
  splitter = pre_tokenizers.Split(_WORDS, "isolated")
  counts: collections.Counter[str] = collections.Counter()
  for text in corpus:
    counts.update(word for word, _ in splitter.pre_tokenize_str(text))
  words = sorted(
    (word for word in counts if len(word) > 1), key=lambda w: (-counts[w], w)
  )
  tokenizer = untrained_tokenizer()
  tokenizer.add_tokens(
    [tokenizers.AddedToken(word, normalized=False) for word in words]
  )
  return tokenizer


def untrained_tokenizer() -> Qwen2Tokenizer:
  """Qwen's tokenizer with the 256 bytes, special tokens and no merges."""
  # Here: importing transformers takes seconds.
  from transformers import Qwen2Tokenizer

  symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
  return Qwen2Tokenizer(
    vocab={symbol: i for i, symbol in enumerate(symbols)},
    merges=[],
    unk_token=PAD,
    pad_token=PAD,
    eos_token=TURN_END,
    extra_special_tokens=[TURN_START],
    chat_template=CHAT_TEMPLATE,
    clean_up_tokenization_spaces=False,
  )


def end_ids(tokenizer: Qwen2Tokenizer) -> tuple[int, ...]:
  """Tokens that end a turn: of a turn and of a text, as Qwen's models say."""
  return tokenizer.eos_token_id, tokenizer.pad_token_id


def corpus(world: World) -> Iterator[str]:
  """Texts with every word that agents and tools of the world write."""
  yield from ("user\n", "assistant\n")
  for family in FAMILIES:
    yield from world.documents(family)
    for question in world.train[family]:
      yield question.question
      for text in demonstrations.every_wording(question):
        yield from (text, f"<retrieve>{text}</retrieve>")
  yield from world.page_texts().values()
  # Words that chance may have kept out of the questions.
  for values in lexicon.FIELDS.values():
    yield from (f" {value}" for value in values)
  yield from (f" {number}" for number in range(MODULUS))
