"""The stop automaton against a plain search of the decoded bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.rollout import automaton

_STOPS = ["</search>", "</python>", "</answer>"]
_PIECES = st.sampled_from(
  [b"<", b"/", b"</", b"</s", b"search", b">", b"ear", b"ch>", b"</answer>x"]
)


def _first_end(stops, tokens):
  """Index of the token in which a stop string is first completed."""
  text = b""
  for index, token in enumerate(tokens):
    text += token
    if any(stop.encode() in text for stop in stops):
      return index
  return None


def _run(built, tokens):
  state = 0
  for index, token in enumerate(tokens):
    state = built.table[state, token]
    if state == built.matched_state:
      return index
  return None


@settings(max_examples=200, deadline=None)
@given(
  stops=st.lists(
    st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4
  ),
  tokens=st.lists(
    st.text("ab<", min_size=0, max_size=3).map(str.encode), max_size=12
  ),
)
def test_equals_plain_search_for_overlapping_stop_strings(stops, tokens):
  built = automaton.stop_automaton(stops, tokens or [b"a"])
  assert _run(built, range(len(tokens))) == _first_end(stops, tokens)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(_PIECES, min_size=1, max_size=20))
def test_recognises_tags_however_they_are_split(tokens):
  built = automaton.stop_automaton(_STOPS, tokens)
  assert _run(built, range(len(tokens))) == _first_end(_STOPS, tokens)


def test_matched_state_is_never_left():
  built = automaton.stop_automaton(["ab"], [b"a", b"b", b"c"])
  assert np.all(built.table[built.matched_state] == built.matched_state)


@pytest.mark.parametrize("stops", [[], ["a", ""]])
def test_refuses_stop_strings_that_always_match(stops):
  with pytest.raises(ValueError, match="no empty one"):
    automaton.stop_automaton(stops, [b"a"])


def test_stop_string_may_end_inside_a_multi_byte_character():
  # "é" is C3 A9; a token may hold the first byte only.
  built = automaton.stop_automaton(["é"], [b"\xc3", b"\xa9", b"x"])
  assert _run(built, [0, 1]) == 1
  assert _run(built, [0, 2, 1]) is None


def test_token_bytes_of_a_byte_level_tokenizer(tag_tokenizer):
  vocabulary = automaton.token_bytes(tag_tokenizer, len(tag_tokenizer) + 2)
  ids = tag_tokenizer.encode("a </search>é", add_special_tokens=False)
  assert b"".join(vocabulary[i] for i in ids) == "a </search>é".encode()
  end = tag_tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert vocabulary[end] == b"<|im_end|>"
  # Rows of the output head beyond the tokenizer stand for nothing.
  assert vocabulary[-2:] == [b"", b""]
