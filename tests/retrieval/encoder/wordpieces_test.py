import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.retrieval.encoder import wordpieces as wordpieces_lib

# Letters, marks that combine, controls, ideographs and all kinds of spaces.
TEXTS = st.text(
  st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("ab .,-\t\r\n\u00a0\u2028\u0085\x1c\u0301水é[SEP]"),
  ),
  max_size=60,
)


def words_of(tokenizer, text):
  """Start and number of the word of each wordpiece, by the tokenizer."""
  encoding = tokenizer.encode(text, add_special_tokens=False)
  starts = [start for start, _ in encoding.offsets]
  return list(zip(starts, encoding.word_ids, strict=True))


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_counts_as_the_tokenizer(encoder, texts):
  expected = [len(words_of(encoder._tokenizer, text)) for text in texts]
  assert encoder.wordpieces.count(texts) == expected


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, max_pieces=st.integers(1, 12))
def test_last_words_are_whole_and_as_many_as_fit(encoder, text, max_pieces):
  pieces = words_of(encoder._tokenizer, text)
  last = encoder.wordpieces.last_words(text, max_pieces)
  assert text.endswith(last)
  # The first of the last pieces with which a word begins, if any does.
  begins = [
    start
    for i, (start, word) in enumerate(pieces)
    if i >= len(pieces) - max_pieces and (i == 0 or word != pieces[i - 1][1])
  ]
  expected = text[begins[0] :] if begins else ""
  # What is left out of words, such as controls, may come before the first.
  assert last.endswith(expected)
  assert len(words_of(encoder._tokenizer, last)) == len(
    words_of(encoder._tokenizer, expected)
  )


@pytest.mark.parametrize(
  ("text", "max_pieces", "expected"),
  [
    ("city river bridge", 2, "river bridge"),
    ("city (river) bridge", 3, "river) bridge"),  # Marks are words.
    ("city unbelievability", 2, ""),  # Of more than two wordpieces.
    ("city", 5, "city"),
    ("", 5, ""),
  ],
)
def test_last_words(encoder, text, max_pieces, expected):
  assert encoder.wordpieces.last_words(text, max_pieces) == expected


def test_chunks_are_forgotten_when_there_are_too_many(encoder, monkeypatch):
  monkeypatch.setattr(wordpieces_lib, "MAX_CHUNKS", 2)
  counter = wordpieces_lib.Wordpieces(encoder._tokenizer)
  assert counter.count(["a b c"]) == [3]
  assert counter.count(["d"]) == [1]
  assert counter._counts.keys() == {"d"}
