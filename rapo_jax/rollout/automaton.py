"""Stop strings recognised on the device, byte by byte.

A stop string such as `</search>` can be cut into tokens in many ways. A token
can hold its end and more. Matching ids misses most of them; decoding on the
host after every token costs a round trip. So we build the Aho-Corasick
automaton (Aho and Corasick, 1975) over the bytes of all stop strings. Once, up
front, it reads the bytes of every vocabulary entry from every state. The
sampler then advances it with one table look-up a token.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rapo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class StopAutomaton:
  """Transition table over token ids.

  Attributes:
    table: next state, `[states, vocabulary]`, in the narrowest type that holds
      it. State 0 is the start; the last state means that a stop string has been
      completed, and is never left.
    stop_strings: what is recognised.
  """

  table: Int[np.ndarray, "states vocabulary"]
  stop_strings: tuple[str, ...]

  @property
  def matched_state(self) -> int:
    return self.table.shape[0] - 1

  @property
  def num_bytes(self) -> int:
    """Memory of the table, on the host as on the device."""
    return self.table.nbytes


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
  """Bytes that each token id stands for, special tokens included.

  They are what the tokenizer's own decoder makes of a token inside a text, not
  yet put together to characters. (Decoders of SentencePiece's kind drop one
  space at the beginning of a text, which is kept here.)

  Args:
    tokenizer: a Hugging Face tokenizer. It is byte-level as Qwen's and Llama
      3's, or has `▁` for spaces and `<0x0A>` for bytes as Llama 2's.
    vocab_size: rows of the model's output head; ids that the tokenizer does
      not know stand for no bytes.

  Raises:
    InputError: the tokenizer decodes in another way.
  """
  backend = tokenizer.backend_tokenizer
  read = _piece_reader(backend.decoder)
  pieces = (backend.id_to_token(token_id) for token_id in range(vocab_size))
  return [b"" if piece is None else read(piece) for piece in pieces]


def _piece_reader(decoder: Any) -> Callable[[str], bytes]:
  """What turns an entry of the vocabulary into bytes."""
  spec = json.loads(decoder.__getstate__()) if decoder else {"type": "none"}
  steps = spec.get("decoders", [spec])
  kinds = [step["type"] for step in steps]
  if kinds == ["ByteLevel"]:
    return _byte_level_piece
  known = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
  if not set(kinds) <= known or "Regex" in str(steps):
    raise InputError(
      "stop strings are found for tokenizers that decode by ByteLevel, or by "
      f"{', '.join(sorted(known))} without regular expressions, got "
      f"{', '.join(kinds)}: use another tokenizer, or teach token_bytes."
    )
  replaced = [
    (step["replacement"], " ")
    if step["type"] == "Metaspace"
    else (step["pattern"]["String"], step["content"])
    for step in steps
    if step["type"] in ("Replace", "Metaspace")
  ]
  return functools.partial(
    _sentence_piece, replaced=replaced, byte_fallback="ByteFallback" in kinds
  )


def _byte_level_piece(piece: str) -> bytes:
  byte_of = _byte_level_alphabet()
  if all(char in byte_of for char in piece):
    return bytes(byte_of[char] for char in piece)
  # An added token, which the decoder leaves as it is.
  return piece.encode()


def _sentence_piece(
  piece: str, *, replaced: list[tuple[str, str]], byte_fallback: bool
) -> bytes:
  for old, new in replaced:
    piece = piece.replace(old, new)
  if byte_fallback and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
    return bytes.fromhex(piece[3:5])
  return piece.encode()


def stop_automaton(
  stop_strings: Sequence[str], vocabulary: Sequence[bytes]
) -> StopAutomaton:
  """Builds the table for some stop strings over a vocabulary of byte strings.

  Args:
    stop_strings: non-empty strings; the first one completed wins.
    vocabulary: bytes of each token id.

  Raises:
    InputError: no stop string is given, or one is empty.
  """
  if not stop_strings or any(not s for s in stop_strings):
    raise InputError(
      "stop_strings must hold at least one string and no empty one, got "
      f"{list(stop_strings)!r}: name the closing tags that end a step."
    )
  transitions, matched = _byte_transitions([s.encode() for s in stop_strings])
  # Longest tokens first, so that those with a byte at some place come first.
  # Then only bytes that exist cost work.
  lengths = np.asarray([len(v) for v in vocabulary], np.int64)
  order = np.argsort(-lengths, kind="stable")
  text = np.frombuffer(b"".join(vocabulary), np.uint8)
  starts = (np.cumsum(lengths) - lengths)[order]
  states = np.empty((len(transitions), len(vocabulary)), transitions.dtype)
  states[:] = np.arange(len(transitions))[:, None]
  for place in range(max(lengths, default=0)):
    count = np.count_nonzero(lengths > place)
    read = text[starts[:count] + place]
    states[:, :count] = transitions[states[:, :count], read]
  assert matched == len(transitions) - 1
  table = np.empty_like(states)
  table[:, order] = states
  return StopAutomaton(table, tuple(stop_strings))


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
  return table.astype(np.min_scalar_type(-matched)), matched


@functools.cache
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
