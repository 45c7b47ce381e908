"""Conversations as text and as token ids, by a tokenizer's chat template.

A template is a program from outside. It may fail, read the clock, or put what
users wrote beside its control tokens. Here it renders on a fixed date, and an
error is one line. No text of a user becomes a control token.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2

from rapo_jax.errors import InputError
from rapo_jax.tools import tags

PROMPT_DATE = datetime.date(2024, 7, 26)
"""Day that templates write where none is given: Llama 3.2's own fallback."""

_CLOCK = "strftime_now"
# A macro of that name stands before the clock that transformers gives to
# templates. The line feed is dropped (trim_blocks), so that the template itself
# begins a line, as it does without the macro.
_FIXED_CLOCK = (
  "{%- macro strftime_now(format) -%}"
  "{%- set fixed = namespace(text=format) -%}"
  "{%- for directive, value in date_parts.items() -%}"
  "{%- set fixed.text = fixed.text.replace(directive, value) -%}"
  "{%- endfor -%}{{- fixed.text -}}{%- endmacro %}\n"
)
# `%d`, and glibc's `%-d` and `%_d`, which templates use.
_DIRECTIVE = re.compile(r"%[-_0^#]?\d*[EO]?[A-Za-z]")
# In place of `%%` until all others are replaced.
_PERCENT = "\U000f0000"

# A template is a program of somebody else's: these are its own mistakes.
_TEMPLATE_ERRORS = (
  jinja2.TemplateError,
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)
_REMEDY = (
  "put one that works into the model's folder as chat_template.jinja, or use "
  "the tokenizer of an instruction-tuned model"
)

_SAMPLE_QUESTION = "QUESTION2c8e"
_SAMPLE_REPLY = "REPLY7f3a"
_PROTOCOL = tags.TagSet()
_DELIMITED = re.compile(r"[<\[].+[>\]]", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ControlTokens:
  """Tokens that structure a conversation, which only a template may write.

  These are the special tokens; other added tokens that a tool's result may not
  hold (`<|fim_prefix|>`, see `TagSet.escape`); and added tokens in brackets
  that the chat template writes. Tags of the agent are text.

  Attributes:
    by_text: the tokens, as the tokenizer describes them.
    ids: their ids.
    pattern: finds them in a text, the longest first.
    joined: finds those of them that `split_special_tokens` does not split.
  """

  by_text: Mapping[str, Any]
  ids: Mapping[str, int]
  pattern: re.Pattern[str]
  joined: re.Pattern[str]


class TextEncoder:
  """Encodes text from outside; nothing in it becomes a control token.

  Args:
    tokenizer: a Hugging Face tokenizer.
    tag_set: tags of the agent, which are text.
  """

  def __init__(self, tokenizer: Any, tag_set: tags.TagSet = _PROTOCOL):
    self._tokenizer = tokenizer
    self._joined = control_tokens(tokenizer, tag_set).joined

  def __call__(self, text: str) -> list[int]:
    """Ids of a text, without tokens before or behind it."""
    ids: list[int] = []
    at = 0
    for found in self._joined.finditer(text):
      # Encoded in two parts, it is no token any more.
      ids += self._encode(text[at : found.start() + 1])
      at = found.start() + 1
    return ids + self._encode(text[at:])

  def _encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(
      text, add_special_tokens=False, split_special_tokens=True
    )


def template_of(tokenizer: Any) -> str | None:
  """Source of the chat template that renders prompts; None without one.

  Raises:
    InputError: there are several templates and none is called `default`, or
      it is no text.
  """
  template = tokenizer.chat_template
  if isinstance(template, list):
    template = {entry["name"]: entry["template"] for entry in template}
  if isinstance(template, Mapping):
    if "default" not in template:
      raise InputError(
        "one of several chat templates must be called 'default', got "
        f"{', '.join(sorted(template))}: set tokenizer.chat_template to the "
        f"one to use, or {_REMEDY}."
      )
    template = template["default"]
  if template is not None and not isinstance(template, str):
    raise InputError(
      f"a chat template must be a text, got {template!r:.80}: {_REMEDY}."
    )
  return template


def render(
  tokenizer: Any,
  messages: Iterable[Mapping[str, str]],
  *,
  add_generation_prompt: bool,
  date: datetime.date = PROMPT_DATE,
) -> str:
  """Text of a conversation.

  Args:
    tokenizer: a Hugging Face tokenizer with a chat template.
    messages: the turns, each with `role` and `content`.
    add_generation_prompt: whether a reply of the assistant is begun.
    date: that a template which asks for the date is given.

  Raises:
    InputError: there is no template, or it fails on these turns.
  """
  template = template_of(tokenizer)
  if template is None:
    raise InputError(
      "a chat template must write the prompts, and this tokenizer has no "
      f"template: {_REMEDY}."
    )
  turns = [dict(message) for message in messages]
  options: dict[str, Any] = {}
  if _CLOCK in template:
    template = _FIXED_CLOCK + template
    options["date_parts"] = _date_parts(template, date)
  try:
    text: str = tokenizer.apply_chat_template(
      turns,
      chat_template=template,
      add_generation_prompt=add_generation_prompt,
      tokenize=False,
      **options,
    )
  except _TEMPLATE_ERRORS as error:
    roles = ", ".join(turn.get("role", "no role") for turn in turns)
    reason = " ".join(str(error).split())
    raise InputError(
      f"the chat template must render the turns ({roles}) of a prompt, and "
      f"fails: {reason} ({type(error).__name__}): {_REMEDY}."
    ) from error
  return text


def encode_chat(
  tokenizer: Any,
  messages: Sequence[Mapping[str, str]],
  *,
  add_generation_prompt: bool,
  date: datetime.date = PROMPT_DATE,
) -> list[int]:
  """Token ids of a conversation; only the template writes control tokens.

  Where no message holds the text of a control token these are the ids that
  `apply_chat_template` gives.

  Args and errors: as for `render`.
  """
  controls = control_tokens(tokenizer)
  options: dict[str, Any] = {
    "add_generation_prompt": add_generation_prompt,
    "date": date,
  }
  values = [value for message in messages for value in message.values()]
  if not any(controls.pattern.search(value) for value in values):
    text = render(tokenizer, messages, **options)
    return tokenizer.encode(text, add_special_tokens=False)
  # A mark inside them tells those of the messages from the template's own.
  mark = _unused_character(values)
  marked = [
    {
      key: controls.pattern.sub(
        lambda found: found[0][0] + mark + found[0][1:], value
      )
      for key, value in message.items()
    }
    for message in messages
  ]
  text = render(tokenizer, marked, **options)
  return _encode_around(tokenizer, controls, text, mark)


def _encode_around(
  tokenizer: Any, controls: ControlTokens, text: str, mark: str
) -> list[int]:
  """Encodes what lies between control tokens as text, its marks removed."""
  first, later = TextEncoder(tokenizer), _later_encoder(tokenizer, controls)
  ids: list[int] = []
  at, swallows = 0, False
  for found in [*controls.pattern.finditer(text), None]:
    run = text[at : found.start() if found else len(text)]
    token = controls.by_text[found[0]] if found else None
    # Some control tokens swallow the white space beside them.
    run = run.lstrip() if swallows else run
    run = run.rstrip() if token is not None and token.lstrip else run
    if run:
      ids += (later if at else first)(run.replace(mark, ""))
    if found is not None and token is not None:
      ids.append(controls.ids[found[0]])
      at, swallows = found.end(), token.rstrip
  return ids


def _later_encoder(
  tokenizer: Any, controls: ControlTokens
) -> Callable[[str], list[int]]:
  """Encodes text that comes after a control token, as the tokenizer does there.

  Tokenizers of SentencePiece's kind put a space before a text, some of them
  before the first text alone.
  """
  encode = TextEncoder(tokenizer)
  known = next(iter(controls.ids), "")
  both = tokenizer.encode(f"{known}a", add_special_tokens=False)
  if both[bool(known) :] == encode("a"):
    return encode
  lead = encode("\n")

  def encode_later(text: str) -> list[int]:
    ids = encode(f"\n{text}")
    # Unless the line feed has become one token with what follows.
    return ids[len(lead) :] if ids[: len(lead)] == lead else encode(text)

  return encode_later


def control_tokens(
  tokenizer: Any, tag_set: tags.TagSet = _PROTOCOL
) -> ControlTokens:
  """The tokens that only a template may write.

  Args:
    tokenizer: a Hugging Face tokenizer.
    tag_set: tags of the agent, which are text.

  Raises:
    InputError: there are several templates and none is called `default`, or
      it is no text.
  """
  template = template_of(tokenizer)
  return _control_tokens(tokenizer, template, len(tokenizer), tag_set)


@functools.lru_cache(maxsize=8)
def _control_tokens(
  tokenizer: Any, template: str | None, _size: int, tag_set: tags.TagSet
) -> ControlTokens:
  """Cached for a tokenizer as it is: vocabularies can be large."""
  names = {f"<{slash}{name}>" for name in tag_set.names for slash in ("", "/")}
  by_text, ids = {}, {}
  for token_id, token in tokenizer.added_tokens_decoder.items():
    text = token.content
    written = (
      template is not None and text in template and _DELIMITED.fullmatch(text)
    )
    reserved = written or tag_set.escape(text) != text
    # Tokenizers may hold a tag of ours with the space before it.
    if text and (token.special or (reserved and text.strip() not in names)):
      by_text[text], ids[text] = token, token_id
  joined = [text for text, token in by_text.items() if not token.special]
  return ControlTokens(by_text, ids, _any_of(by_text), _any_of(joined))


def end_ids(tokenizer: Any) -> tuple[int, ...]:
  """Tokens that end a turn: the tokenizer's end, and its chat template's.

  Raises:
    InputError: as for `turn_end`.
  """
  ids = {tokenizer.eos_token_id, turn_end(tokenizer)} - {None}
  return tuple(sorted(ids))


def turn_end(tokenizer: Any) -> int | None:
  """The token that a chat template ends an assistant's reply with.

  Where it writes nothing behind the last reply, it is the one between a reply
  and the next turn.

  Returns:
    Its id; None if there is no template. Also None if it writes no control
    token behind a last reply and none before the next turn.

  Raises:
    InputError: the template fails, leaves the question or the reply out, or
      ends the reply with text in which there is no control token. A policy
      would write on behind it.
  """
  if template_of(tokenizer) is None:
    return None
  behind = _behind_reply(tokenizer)
  if not behind.strip():
    behind = _behind_reply(
      tokenizer, {"role": "user", "content": _SAMPLE_QUESTION}
    )
    found = control_tokens(tokenizer).pattern.search(behind)
    return control_tokens(tokenizer).ids[found[0]] if found else None
  controls = control_tokens(tokenizer)
  end = controls.pattern.search(behind)
  if end is None:
    raise InputError(
      "a chat template must end an assistant's turn with a special token of "
      f"the tokenizer, and this one ends it with the text {behind!r}: add the "
      "token to the tokenizer as a special one, or end the turn with "
      "eos_token in the template."
    )
  return controls.ids[end[0]]


def _behind_reply(tokenizer: Any, *later: Mapping[str, str]) -> str:
  """What a template writes behind a reply, with later turns or without."""
  turns = (
    {"role": "user", "content": _SAMPLE_QUESTION},
    {"role": "assistant", "content": _SAMPLE_REPLY},
    *later,
  )
  text = render(tokenizer, turns, add_generation_prompt=False)
  before, found, behind = text.rpartition(_SAMPLE_REPLY)
  if not found:
    raise InputError(
      "a chat template must write the assistant's reply, and this one leaves "
      f"it out: {_REMEDY}."
    )
  if _SAMPLE_QUESTION not in before:
    raise InputError(
      "a chat template must write the user's question, and this one leaves it "
      f"out: {_REMEDY}."
    )
  return behind


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
  """Checks that a model has a row for every token of its tokenizer.

  Args:
    tokenizer: a Hugging Face tokenizer.
    vocab_size: rows of the model's embedding. It may have more of them.

  Raises:
    InputError: naming tokens that have none.
  """
  beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= vocab_size}
  if not beyond:
    return
  shown = ", ".join(f"{beyond[i]!r} ({i})" for i in sorted(beyond)[:5])
  more = ", …" if len(beyond) > 5 else ""
  raise InputError(
    "the embedding must have a row for every token of the tokenizer, and with "
    f"{vocab_size} rows it has none for {len(beyond)} of them: {shown}{more}; "
    "resize the embedding (resize_token_embeddings in transformers), or use "
    "the tokenizer that the model was trained with."
  )


def _date_parts(template: str, date: datetime.date) -> dict[str, str]:
  """What each directive of `strftime` in a template stands for.

  The clock stands at the start of the day, in UTC. They are in the order in
  which they can be replaced.
  """
  start = datetime.datetime.combine(date, datetime.time(), datetime.UTC)
  found = sorted(set(_DIRECTIVE.findall(template)), key=len, reverse=True)
  parts = {each: start.strftime(each) for each in found}
  # Of no zone, as that of a template; the seconds since 1970 are UTC's.
  parts |= {each: "" for each in found if each[-1] in "zZ"}
  parts |= {each: f"{start.timestamp():.0f}" for each in found if each == "%s"}
  return {"%%": _PERCENT, **parts, _PERCENT: "%"}


def _unused_character(texts: Iterable[str]) -> str:
  """A character that is in none of the texts, and in no template."""
  used = set("".join(texts))
  # For private use: no template or tokenizer gives them a meaning.
  return next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
  """Finds any of some texts, the longest first."""
  longest_first = sorted(texts, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
