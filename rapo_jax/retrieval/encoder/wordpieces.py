"""Counts wordpieces, and cuts texts at them, fast.

A buffer of the paper's size has 15 million wordpieces to count before
embedding. The tokenizer takes a minute for them. But words never span white
space. So the wordpieces of a text are those of its chunks between spaces, and
most chunks occurred before.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import tokenizers

MAX_CHUNKS = 500_000
"""Chunks remembered; some 50 MB. Then all are forgotten."""

_CHUNK = re.compile(r"[^ \t\r\n]+")


class Wordpieces:
  """Wordpieces of texts, without what frames a text. Threads may share it.

  Args:
    tokenizer: of an encoder; one that does not split at white space is asked
      for whole texts.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer = tokenizer
    splits = type(tokenizer.pre_tokenizer).__name__
    self._pattern = (
      _CHUNK if splits == "BertPreTokenizer" else re.compile(r".+", re.DOTALL)
    )
    self._counts: dict[str, int] = {}

  def count(self, texts: Sequence[str]) -> list[int]:
    """The number of wordpieces of each text."""
    chunks = [self._pattern.findall(text) for text in texts]
    counts = self._counts_of(chunks)
    return [sum(map(counts.__getitem__, parts)) for parts in chunks]

  def _counts_of(self, chunks: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of wordpieces of all these chunks, and of others."""
    counts = self._counts
    new = set(itertools.chain.from_iterable(chunks)).difference(counts)
    if new:
      if len(counts) > MAX_CHUNKS:
        counts = self._counts = {}
        new = set(itertools.chain.from_iterable(chunks))
      encodings = self._tokenizer.encode_batch_fast(
        list(new), add_special_tokens=False
      )
      counts.update(zip(new, map(len, encodings), strict=True))
    return counts

  def last_words(self, text: str, max_pieces: int) -> str:
    """The last whole words of at most `max_pieces`; "" if none fits.

    A punctuation mark or an ideograph is a word of its own.
    """
    chunks = list(self._pattern.finditer(text))
    counts = self._counts_of([[chunk.group() for chunk in chunks]])
    start = len(text)
    room = max_pieces
    for chunk in reversed(chunks):
      count = counts[chunk.group()]
      if count > room:
        pieces = self._tokenizer.encode(chunk.group(), add_special_tokens=False)
        for first in range(count - room, count):
          if pieces.token_to_word(first) != pieces.token_to_word(first - 1):
            span = pieces.token_to_chars(first)
            assert span is not None  # Every wordpiece is of some characters.
            start = chunk.start() + span[0]
            break
        break
      if count:
        start = chunk.start()
      room -= count
    return text[start:]
