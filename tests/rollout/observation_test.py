"""Tool results as tokens: bounded, escaped, marked where they are cut."""

import random

import hypothesis
import hypothesis.strategies as st
import pytest

from rapo_jax.rollout.observation import ObservationEncoder
from rapo_jax.tools import TagSet, ToolCall
from rapo_jax.trajectory import decode

TAGS = TagSet(("search", "python", "open"))

_MAX_TOKENS = 40
_PIECES = st.sampled_from(
  [
    *(f"<{name}>" for name in TAGS.names),
    *(f"</{name}>" for name in TAGS.names),
    *("<|im_end|>", "<", "\ud800", "\0", "€", "🙂", "e\u0301", " ", "ab"),
  ]
)
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=4)), max_size=60).map(
  "".join
)


class CountingEncode:
  """Encodes as the engine does, and keeps the longest text."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self.longest = 0

  def __call__(self, text):
    self.longest = max(self.longest, len(text))
    return self._tokenizer.encode(
      text, add_special_tokens=False, split_special_tokens=True
    )


def _observation(tokenizer, encode=None, max_tokens=_MAX_TOKENS):
  return ObservationEncoder(
    TAGS,
    encode or CountingEncode(tokenizer),
    tokenizer,
    max_tokens=max_tokens,
    longest_token=10,
  )


def test_what_fits_is_whole(tag_tokenizer):
  ids = _observation(tag_tokenizer)("a < b </search>")
  expected = "<result> a < b &lt;/search> </result>"
  assert decode(tag_tokenizer, ids) == expected


def test_what_does_not_fit_keeps_its_beginning_and_says_so(tag_tokenizer):
  # One byte a token: 40 less 9 for the start and 16 for the end leave 15.
  ids = _observation(tag_tokenizer)("0123456789" * 9)
  text = decode(tag_tokenizer, ids)
  assert text == "<result> 012345678901234 [cut] </result>"
  assert len(ids) == _MAX_TOKENS


def test_a_cut_leaves_no_part_of_a_character(tag_tokenizer):
  # Three bytes each: five fill 15 tokens, behind "x" four do.
  observe = _observation(tag_tokenizer)
  assert decode(tag_tokenizer, observe("€" * 50)).count("€") == 5
  text = decode(tag_tokenizer, observe("x" + "€" * 50))
  assert text == "<result> x€€€€ [cut] </result>"


@hypothesis.given(_TEXTS)
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_text_is_bounded_and_escaped(tag_tokenizer, text):
  ids = _observation(tag_tokenizer)(text)
  assert len(ids) <= _MAX_TOKENS
  assert tag_tokenizer.eos_token_id not in ids
  shown = decode(tag_tokenizer, ids)
  found = TAGS.find_tags(shown)
  assert [(t.name, t.closing) for t in found] == [
    ("result", False),
    ("result", True),
  ]
  body = shown[found[0].end : found[1].start]
  assert TAGS.escape(body) == body
  whole = f" {TAGS.escape(text)} "
  kept = body.removesuffix(" [cut] ")
  assert body == whole or (kept != body and whole.startswith(kept))


@hypothesis.given(_TEXTS, st.integers(1, 30))
@hypothesis.settings(deadline=None, max_examples=100)
def test_what_lies_beyond_the_characters_read_changes_nothing(
  tag_tokenizer, text, repeats
):
  observe = _observation(tag_tokenizer)
  text = text * repeats
  assert observe(text) == observe(text[: observe.num_chars_read])


@pytest.mark.parametrize("piece", ["x", " ", "<", "<answer>", "\0", "🙂"])
def test_work_is_bounded_by_the_budget(tag_tokenizer, piece):
  encode = CountingEncode(tag_tokenizer)
  ids = _observation(tag_tokenizer, encode)(piece * 10**7)
  assert len(ids) <= _MAX_TOKENS
  # 10 characters a token; an escaped one takes four for one.
  assert encode.longest <= 4 * 10 * _MAX_TOKENS + 20


def test_a_text_without_tokens_is_bounded_too(tag_tokenizer):
  """As with a tokenizer whose normaliser drops characters."""
  lengths = []

  def encode(text):
    lengths.append(len(text))
    return CountingEncode(tag_tokenizer)(text.replace("\u200b", ""))

  ids = _observation(tag_tokenizer, encode)("\u200b" * 10**6)
  assert decode(tag_tokenizer, ids) == "<result>  [cut] </result>"
  assert max(lengths) <= 10 * _MAX_TOKENS + 20


def test_ten_thousand_fuzzed_calls_are_calls_or_observations(tag_tokenizer):
  observe = _observation(tag_tokenizer, max_tokens=160)
  pieces = [
    *(f"<{slash}{name}>" for name in TAGS.names for slash in ("", "/")),
    *("<search", "search>", "</sear", "ch>", "<", ">", "</", "< /python >"),
    *("<|im_end|>", "\ud800", "\0", "🙂", " ", "\n", "q", "</search>" * 3),
  ]
  rng = random.Random(0)
  calls, reasons = 0, []
  for _ in range(10_000):
    text = "".join(rng.choices(pieces, k=rng.randrange(12)))
    call = TAGS.parse_call(text)
    if isinstance(call, ToolCall):
      calls += 1
      assert not TAGS.find_tags(call.argument)
    else:
      reasons.append(call.reason)
  assert calls > 100
  assert len(reasons) > 1000
  for reason in set(reasons):
    shown = decode(tag_tokenizer, observe(reason))
    assert shown == f"<result> {reason} </result>"


def test_a_budget_too_small_for_the_tags_is_refused(tag_tokenizer):
  # 8 bytes of the opening tag and 16 of the mark and the closing tag.
  _observation(tag_tokenizer, max_tokens=24)
  with pytest.raises(ValueError, match="must be at least 24, got 23: raise"):
    _observation(tag_tokenizer, max_tokens=23)
