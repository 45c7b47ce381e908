"""The stop automaton against a plain search of the decoded bytes."""

import functools
import json

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

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


_CORPUS = [
  "<think> Où est née l’auteure de « Ça » ? </think>",
  "<search>who wrote the book</search><result> 東京 is the 東京 </result>",
  "<python>print(17 * 23)\n</python><answer> 🙂 naïve café 1234 </answer>",
] * 3
_QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
_LLAMA = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def _byte_level(pattern, special_tokens, *, normalizer=None, ignore_merges):
  backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
  if normalizer is not None:
    backend.normalizer = normalizer
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    _CORPUS,
    trainers.BpeTrainer(
      vocab_size=420,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  backend.add_special_tokens(special_tokens)
  # Words that are added whole, as some agents do with their tags.
  backend.add_tokens([" <search>", "</answer>", "東京"])
  return backend


def _sentence_piece():
  """`▁` for spaces, and bytes of rare characters as `<0x0A>`."""
  trained = tokenizers.Tokenizer(models.BPE())
  trained.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  trained.train_from_iterator(
    _CORPUS,
    trainers.BpeTrainer(vocab_size=160, limit_alphabet=50, show_progress=False),
  )
  model = json.loads(trained.to_str())["model"]
  words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
  words += sorted(model["vocab"], key=model["vocab"].get)
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={word: i for i, word in enumerate(words)},
      merges=[tuple(pair) for pair in model["merges"]],
      unk_token="<unk>",
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  backend.normalizer = trained.normalizer
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  backend.add_special_tokens(["<unk>", "<s>", "</s>"])
  return backend


@functools.cache
def _tokenizer(kind):
  """A tokenizer, the bytes of its ids, and ids by their bytes."""
  backend = {
    "qwen": lambda: _byte_level(
      _QWEN,
      ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
      normalizer=normalizers.NFC(),
      ignore_merges=False,
    ),
    "llama 3": lambda: _byte_level(
      _LLAMA, ["<|begin_of_text|>", "<|eot_id|>"], ignore_merges=True
    ),
    "sentence piece": _sentence_piece,
  }[kind]()
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  vocabulary = automaton.token_bytes(tokenizer, len(tokenizer))
  by_bytes = {}
  for token_id, value in enumerate(vocabulary):
    by_bytes.setdefault(value, []).append(token_id)
  return tokenizer, vocabulary, by_bytes


def _split(text, vocabulary, by_bytes, draw):
  """Ids for a text, cut anywhere, inside characters and tags, too."""
  ids, rest = [], text.encode()
  while rest:
    options = [
      token_id
      for size in range(1, len(rest) + 1)
      for token_id in by_bytes.get(rest[:size], [])
    ]
    ids.append(draw(st.sampled_from(options)))
    rest = rest[len(vocabulary[ids[-1]]) :]
  return ids


@functools.cache
def _automaton(kind, stops):
  return automaton.stop_automaton(stops, _tokenizer(kind)[1])


def _text(tokenizer, ids):
  return tokenizer.decode(
    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def _decoded(kind, text):
  """What ids of these bytes decode to: SentencePiece drops the first space."""
  return text.removeprefix(" ") if kind == "sentence piece" else text


_kinds = pytest.mark.parametrize("kind", ["qwen", "llama 3", "sentence piece"])
_WORDS = st.sampled_from(
  ["</search>", "</python>", "</answer>", "</sea", "<", "/", ">", "é", "東京"]
)
_TEXTS = st.lists(
  st.one_of(_WORDS, st.text(max_size=3)), min_size=1, max_size=8
).map("".join)


@_kinds
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_split_of_a_text_decodes_to_it_and_stops_where_it_stops(kind, data):
  tokenizer, vocabulary, by_bytes = _tokenizer(kind)
  text = data.draw(_TEXTS)
  ids = _split(text, vocabulary, by_bytes, data.draw)
  assert _text(tokenizer, ids) == _decoded(kind, text)
  stops = [*_STOPS, "é<", "京"]
  at = _run(_automaton(kind, tuple(stops)), ids)
  assert at == _first_end(stops, [vocabulary[i] for i in ids])
  if at is None:
    assert not any(stop in text for stop in stops)
  else:
    # The text that is kept holds a stop string, and did not a token earlier.
    kept, before = (_text(tokenizer, ids[:end]) for end in (at + 1, at))
    assert any(stop in kept for stop in stops)
    assert not any(stop in before for stop in stops)


@_kinds
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_their_bytes_and_stop_where_these_do(kind, data):
  tokenizer, vocabulary, by_bytes = _tokenizer(kind)
  tags = [i for i, v in enumerate(vocabulary) if set(v) & set(b"<>/")]
  ids = data.draw(
    st.lists(
      st.one_of(
        st.integers(0, len(vocabulary) - 1),
        st.sampled_from(tags),
        _WORDS.map(lambda word: _split(word, vocabulary, by_bytes, data.draw)),
      ),
      max_size=12,
    )
  )
  ids = [i for x in ids for i in (x if isinstance(x, list) else [x])]
  tokens = [vocabulary[i] for i in ids]
  whole = b"".join(tokens)
  text = whole.decode(errors="replace")
  # A run of `<0x..>` that is no text decodes to as many signs as it has bytes.
  if kind != "sentence piece" or "\ufffd" not in text:
    assert _text(tokenizer, ids) == _decoded(kind, text)
  at = _run(_automaton(kind, tuple(_STOPS)), ids)
  assert at == _first_end(_STOPS, tokens)


@_kinds
def test_ids_of_a_text_have_its_bytes(kind):
  tokenizer, vocabulary, _ = _tokenizer(kind)
  for text in [*_CORPUS, "Ωmega\n\tx", "<0x41>"]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(vocabulary[i] for i in ids).decode()
    assert joined.removeprefix(" ") == text


def test_bytes_of_single_pieces():
  _, vocabulary, by_bytes = _tokenizer("sentence piece")
  # One byte each, and not the six characters that write it.
  assert all(bytes([i]) in by_bytes for i in range(256))
  assert b"<0x0A>" not in by_bytes
  # "é" would be the byte E9 in a byte-level vocabulary.
  assert "é".encode() in by_bytes
  assert b" " in by_bytes
  tokenizer, vocabulary, _ = _tokenizer("qwen")
  assert vocabulary[tokenizer.convert_tokens_to_ids("東京")] == "東京".encode()
  assert (
    vocabulary[tokenizer.convert_tokens_to_ids(" <search>")] == b" <search>"
  )


def test_token_bytes_refuses_what_it_cannot_read():
  backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  with pytest.raises(ValueError, match=r"decode by ByteLevel.* got none"):
    automaton.token_bytes(tokenizer, 1)


def test_states_take_the_narrowest_type():
  # A start, `</`, three times seven bytes after it, and the matched state.
  states = 1 + 2 + 21 + 1
  built = automaton.stop_automaton(_STOPS, [b"<"] * 9)
  assert built.num_bytes == states * 9
  many = automaton.stop_automaton(["a" * 127, "b"], [b"a", b"b"])
  assert many.table.dtype == np.int16
  assert _run(many, [0] * 126 + [1]) == 126
  assert _run(many, [0] * 127) == 126


def test_token_bytes_of_a_byte_level_tokenizer(tag_tokenizer):
  vocabulary = automaton.token_bytes(tag_tokenizer, len(tag_tokenizer) + 2)
  ids = tag_tokenizer.encode("a </search>é", add_special_tokens=False)
  assert b"".join(vocabulary[i] for i in ids) == "a </search>é".encode()
  end = tag_tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert vocabulary[end] == b"<|im_end|>"
  # Rows of the output head beyond the tokenizer stand for nothing.
  assert vocabulary[-2:] == [b"", b""]
