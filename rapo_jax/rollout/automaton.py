"""Stop strings recognised on the device, byte by byte.

A stop string such as `</search>` can be cut into tokens in many ways, and a
token can hold its end and more. Matching ids misses most of them; decoding on
the host after every token costs a round trip. So the Aho-Corasick automaton
(Aho and Corasick, 1975) over the bytes of all stop strings is run over the
bytes of every vocabulary entry from every state once, up front, and the
sampler advances it with one table look-up a token.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class StopAutomaton:
  """Transition table over token ids.

  Attributes:
    table: next state, `[states, vocabulary]`. State 0 is the start; the last
      state means that a stop string has been completed, and is never left.
    stop_strings: what is recognised.
  """

  table: Int[np.ndarray, "states vocabulary"]
  stop_strings: tuple[str, ...]

  @property
  def matched_state(self) -> int:
    return self.table.shape[0] - 1


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
  """Bytes that each token id stands for, special tokens included.

  Args:
    tokenizer: a Hugging Face tokenizer with a byte-level or word-level
      vocabulary.
    vocab_size: rows of the model's output head; ids that the tokenizer does
      not know stand for no bytes.
  """
  byte_of = _byte_level_alphabet()
  added = {int(i): t.content for i, t in tokenizer.added_tokens_decoder.items()}
  pieces = tokenizer.convert_ids_to_tokens(
    list(range(min(vocab_size, len(tokenizer))))
  )
  result = []
  for token_id, piece in enumerate(pieces):
    if token_id in added:
      result.append(added[token_id].encode())
    elif piece is None:
      result.append(b"")
    elif all(char in byte_of for char in piece):
      result.append(bytes(byte_of[char] for char in piece))
    else:
      result.append(piece.replace("\u2581", " ").encode())
  return result + [b""] * (vocab_size - len(result))


def stop_automaton(
  stop_strings: Sequence[str], vocabulary: Sequence[bytes]
) -> StopAutomaton:
  """Builds the table for some stop strings over a vocabulary of byte strings.

  Args:
    stop_strings: non-empty strings; the first one completed wins.
    vocabulary: bytes of each token id.

  Raises:
    ValueError: no stop string is given, or one is empty.
  """
  if not stop_strings or any(not s for s in stop_strings):
    raise ValueError(
      "stop_strings must hold at least one string and no empty one, got "
      f"{list(stop_strings)!r}: name the closing tags that end a step."
    )
  transitions, matched = _byte_transitions([s.encode() for s in stop_strings])
  num_states = transitions.shape[0]
  longest = max(map(len, vocabulary), default=0)
  padded = np.zeros((len(vocabulary), longest), np.uint8)
  lengths = np.asarray([len(v) for v in vocabulary])
  for row, value in zip(padded, vocabulary, strict=True):
    row[: len(value)] = np.frombuffer(value, np.uint8)
  states = np.repeat(
    np.arange(num_states, dtype=np.int32)[:, None], len(vocabulary), axis=1
  )
  for column in range(longest):
    advanced = transitions[states, padded[None, :, column]]
    states = np.where(column < lengths[None, :], advanced, states)
  assert matched == num_states - 1
  return StopAutomaton(states.astype(np.int32), tuple(stop_strings))


def _byte_transitions(patterns: list[bytes]) -> tuple[np.ndarray, int]:
  """`[states, 256]` automaton whose last state is absorbing: "matched"."""
  goto: list[dict[int, int]] = [{}]
  ends: set[int] = set()
  for pattern in patterns:
    state = 0
    for byte in pattern:
      if byte not in goto[state]:
        goto[state][byte] = len(goto)
        goto.append({})
      state = goto[state][byte]
    ends.add(state)
  matched = len(goto)
  table = np.zeros((matched + 1, 256), np.int32)
  fail = [0] * len(goto)
  queue: collections.deque[int] = collections.deque([0])
  while queue:
    state = queue.popleft()
    for byte in range(256):
      if byte in goto[state]:
        child = goto[state][byte]
        fail[child] = int(table[fail[state], byte]) if state else 0
        if fail[child] in ends or fail[child] == matched:
          ends.add(child)
        table[state, byte] = child
        queue.append(child)
      elif state:
        table[state, byte] = table[fail[state], byte]
  for end in ends:
    table[table == end] = matched
    table[end] = matched
  table[matched] = matched
  return table, matched


def _byte_level_alphabet() -> dict[str, int]:
  """Characters that byte-level BPE vocabularies write for each byte.

  Printable bytes stand for themselves; the others, in order, are written as
  the characters from U+0100 on (Radford et al., 2019).
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  alphabet = {chr(b): b for b in printable}
  others = [b for b in range(256) if b not in set(printable)]
  alphabet.update({chr(256 + i): b for i, b in enumerate(others)})
  return alphabet
