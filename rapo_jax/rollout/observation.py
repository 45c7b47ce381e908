"""A tool's text as the tokens that the policy reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rapo_jax.errors import InputError
from rapo_jax.tools import tags
from rapo_jax.trajectory import decode

_START = "<result>"
_END = " </result>"
_CUT_END = " [cut] </result>"
# Text has some four characters a token: twice that is nearly always enough to
# see that a text is too long, without encoding all of it.
_CHARS_PER_TOKEN = 8


class ObservationEncoder:
  """Writes tool results within their tags and within a budget.

  Text is escaped, and one that is too long keeps its beginning and says
  `[cut]`. The budget, not the text, bounds how much is encoded: the text may be
  of any size.

  Args:
    tag_set: tags of the agent, which no text may forge.
    encode: ids of a text, in which nothing becomes a special token.
    tokenizer: decodes such ids.
    max_tokens: of an observation, tags included.
    longest_token: most characters that one token stands for.

  Raises:
    InputError: `max_tokens` leaves no room for the tags of a cut result.
  """

  def __init__(
    self,
    tag_set: tags.TagSet,
    encode: Callable[[str], list[int]],
    tokenizer: Any,
    *,
    max_tokens: int,
    longest_token: int,
  ):
    self._escape = tag_set.escape
    self._encode = encode
    self._tokenizer = tokenizer
    self._max_tokens = max_tokens
    self._max_chars = max_tokens * max(longest_token, _CHARS_PER_TOKEN)
    self._cut_end = encode(_CUT_END)
    least = len(encode(_START)) + len(self._cut_end)
    if max_tokens < least:
      raise InputError(
        "max_tool_tokens counts the tags of a result and the mark of a cut "
        f"too and must be at least {least}, got {max_tokens}: raise it."
      )

  @property
  def num_chars_read(self) -> int:
    """Characters of a text that count; what comes after them changes nothing.

    One more than can be shown, by which a cut text is known.
    """
    return self._max_chars + 1

  def __call__(self, text: str) -> list[int]:
    """Ids of a result in its tags, `max_tokens` of them at most."""
    num_chars = self._max_tokens * _CHARS_PER_TOKEN
    while True:
      num_chars = min(num_chars, self._max_chars)
      start = f"{_START} {self._escape(text[:num_chars])}"
      ids = self._encode(start + _END)
      if len(ids) > self._max_tokens or num_chars == self._max_chars:
        break
      if num_chars >= len(text):
        break
      num_chars *= 4
    if len(ids) <= self._max_tokens and num_chars >= len(text):
      return ids
    ids = self._encode(start)[: self._max_tokens - len(self._cut_end)]
    return self._whole_characters(ids) + self._cut_end

  def _whole_characters(self, ids: list[int]) -> list[int]:
    """Drops what a cut has left of a character, at most three bytes."""
    for count in range(min(4, len(ids))):
      kept = ids[: len(ids) - count]
      if not decode(self._tokenizer, kept[-4:]).endswith("\ufffd"):
        return kept
    return ids
