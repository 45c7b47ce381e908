"""The tags that an agent and its tools speak in, read and defended.

A policy step is `<think> … </think>` and then either one tool call, such as
`<search> … </search>`, or `<answer> … </answer>`. The engine writes
`<result>` and `<retrieve>`; nobody else may. So text that comes from outside
passes through `TagSet.escape` before it is put beside the policy's own words.

The protocol has the names `think`, `answer`, `result` and `retrieve`. All
others are names of tools, which a `TagSet` holds.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

from rapo_jax.errors import InputError

THINK = "think"
ANSWER = "answer"
RESULT = "result"
RETRIEVE = "retrieve"

ENGINE_TAGS = (RESULT, RETRIEVE)
PROTOCOL_TAGS = (THINK, ANSWER, *ENGINE_TAGS)
ANSWER_END = f"</{ANSWER}>"

# Added tokens of common tokenizers that do not look like `<|…|>`.
_SPECIAL_NAMES = (
  "s|pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn"
  "|tool_call|tool_response"
)
# What a tokenizer's normaliser may drop or fold: white space, control and
# zero-width characters, full-width and small forms of `<`, `|` and `/`.
_LESS_THAN = "[<＜﹤]"
_IGNORABLE = r"[\s\x00-\x1f\x7f\u200b-\u200f\u2060\ufeff/／]*+"
_TAG_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ANSWERED_CALL = re.compile(rf"</([a-z][a-z0-9_]*)>\s*<{RESULT}>")
_THINK_TAG = re.compile(rf"<(/?){THINK}>")
_NEWLINES = ("\r\n", "\n")
_SPACE = " \t\r\n"


class Tag(NamedTuple):
  """One tag in a text: `text[start:end]`."""

  name: str
  closing: bool
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """A call that can be run; the argument is as written, see `parse_call`."""

  name: str
  argument: str


@dataclasses.dataclass(frozen=True)
class MalformedCall:
  """A call that cannot be run; `reason` is written for the agent to read."""

  reason: str


def opens_thought(prompt: str) -> bool:
  """Whether a prompt ends inside a thought, as Qwen3-Thinking's template does.

  Only its end counts: a question that names `<think>` opens no thought. What a
  template writes behind the tag is refused before a run
  (`check_prefix_preservation`).

  Args:
    prompt: the text that the policy goes on from.
  """
  return prompt.rstrip().endswith(f"<{THINK}>")


def leaves_thought_open(text: str, *, opened: bool = False) -> bool:
  """Whether a thought is open at the end of a text.

  Args:
    text: any text.
    opened: whether one is open at its beginning.
  """
  slashes = _THINK_TAG.findall(text)
  return not slashes[-1] if slashes else opened


def with_opened_thought(text: str) -> str:
  """Gives a text the opening tag that a template wrote before it.

  A text whose first think tag is a closing one began inside a thought. Any
  other text stays as it is.
  """
  first = _THINK_TAG.search(text)
  return f"<{THINK}>{text}" if first is not None and first.group(1) else text


def answered_tools(text: str) -> list[str]:
  """Names of the tools that a text calls, a name for each answered call.

  The closing tag right before a `<result>` is the end of a call. So the tools
  of a trajectory can be read from its text.
  """
  names = _ANSWERED_CALL.findall(text)
  return [name for name in names if not _fault(name)]


@dataclasses.dataclass(frozen=True)
class TagSet:
  """The tags of an agent: those of the protocol, and one for each tool.

  Attributes:
    tool_names: names of the agent's tools. Each is the tag that calls it.

  Raises:
    InputError: a name cannot be a tag, has another meaning, or comes twice.
  """

  tool_names: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    object.__setattr__(self, "tool_names", tuple(self.tool_names))
    for name in self.tool_names:
      fault = _fault(name)
      if not fault and self.tool_names.count(name) > 1:
        fault = "is the name of two tools"
      if fault:
        raise InputError(
          "each tool must have a name of its own that can be a tag, and "
          f"{name!r} {fault}: rename the tool."
        )

  @classmethod
  def of_text(cls, text: str) -> TagSet:
    """Infers the tools from the calls that a text shows with their results."""
    return cls(tuple(dict.fromkeys(answered_tools(text))))

  @property
  def names(self) -> tuple[str, ...]:
    """All names: of the protocol and of the tools."""
    return (THINK, ANSWER, *self.tool_names, *ENGINE_TAGS)

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """The strings that end a policy step."""
    return (*(f"</{name}>" for name in self.tool_names), ANSWER_END)

  def find_tags(self, text: str) -> list[Tag]:
    """Every tag of the set in `text`, in order; exact spelling only."""
    return [
      Tag(m.group(2), bool(m.group(1)), m.start(), m.end())
      for m in _tag_pattern(self.names).finditer(text)
    ]

  def remove_tags(self, text: str) -> str:
    """The text without its tags: trimmed, with a space where a tag was."""
    first, *others = _bare_tag_pattern(self.names).split(text)
    if not others:
      return text.strip(_SPACE)
    parts = (part.strip() for part in (first, *others))
    return " ".join(part for part in parts if part)

  def parse_call(self, step_text: str) -> ToolCall | MalformedCall:
    """Reads the tool call that a policy step ends with.

    The call ends at the first closing tag of a tool, which is where the engine
    stops sampling. Text that the last token brought behind it is ignored. The
    call starts at the last opening tag of the same tool before that. So a
    thought may name `<search>` without calling it. An argument that holds
    another tag of the set is refused: it is nested, or was never closed.

    White space has a meaning in programs. Only one newline beside each tag is
    not part of the argument. A tool strips what means nothing to it.

    Args:
      step_text: text of one policy step.

    Returns:
      The call, or why the text has no call. Never raises, whatever the text.
    """
    tags = self.find_tags(step_text)
    close = next(
      (t for t in tags if t.closing and t.name in self.tool_names), None
    )
    if close is None:
      return MalformedCall("no tool call: no closing tool tag was written")
    name = close.name
    before = [t for t in tags if t.end <= close.start]
    opening = next(
      (t for t in reversed(before) if t.name == name and not t.closing), None
    )
    if opening is None:
      return MalformedCall(
        f"the closing {name} tag has no opening {name} tag before it"
      )
    inside = next((t for t in before if t.start >= opening.end), None)
    if inside is not None:
      slash = "/" if inside.closing else ""
      return MalformedCall(
        f"the argument of {name} holds the tag {slash}{inside.name}; "
        "close one call before the next tag"
      )
    return ToolCall(name, _between_tags(step_text[opening.end : close.start]))

  def split_step(self, step: str) -> tuple[str, str]:
    """Splits a whole step into what the agent wrote, and what follows.

    The agent's part goes through the first stop string. A step without one is
    the agent's.
    """
    found = [
      (at, at + len(stop))
      for stop in self.stop_strings
      if (at := step.find(stop)) >= 0
    ]
    end = min(found)[1] if found else len(step)
    return step[:end], step[end:]

  def escape(self, text: str) -> str:
    """Makes outside text unable to forge tags or special tokens.

    The `<` of each tag of the set and of each special token (`<|…|>`, `<s>`, …)
    becomes `&lt;`. So does the `<` of text which a tokenizer could fold into
    one. All other text, `a < b` and HTML included, stays as it is. Lone
    surrogates, which no tokenizer accepts, become `?`.

    Args:
      text: tool output or other text that the policy did not write.

    Returns:
      Text without any tag of the set and without any special token.
    """
    valid = text.encode("utf-8", errors="replace").decode("utf-8")
    return _forgeable_pattern(self.names).sub("&lt;", valid)


def check_call(name: str, example: str) -> None:
  """Checks that an example shows a call of a tool.

  Raises:
    InputError: the tool's name cannot be a tag, or the example has no call.
  """
  call = TagSet((name,)).parse_call(example)
  if isinstance(call, MalformedCall):
    raise InputError(
      f"the example of the tool {name!r} must show a call, "
      f"<{name}> … </{name}>, got {example!r:.80}: correct the example."
    )


def _fault(name: object) -> str:
  """Why a name can be the tag of no tool; "" if it can."""
  if not isinstance(name, str) or not _TAG_NAME.fullmatch(name):
    return "cannot be a tag (a small letter, then small letters, digits and _)"
  if name in PROTOCOL_TAGS:
    return f"is the tag <{name}>, which has another meaning"
  if re.fullmatch(_SPECIAL_NAMES, name):
    return f"is <{name}>, a special token of common tokenizers"
  return ""


@functools.cache
def _tag_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
  return re.compile(rf"<(/?)({'|'.join(names)})>")


@functools.cache
def _bare_tag_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
  return re.compile(rf"</?(?:{'|'.join(names)})>")


@functools.cache
def _forgeable_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
  return re.compile(
    rf"{_LESS_THAN}(?={_IGNORABLE}(?:"
    rf"(?:{'|'.join(names)})(?![A-Za-z0-9_])"
    rf"|(?:{_SPECIAL_NAMES}){_IGNORABLE}[>＞﹥]"
    r"|[|｜]))",
    re.IGNORECASE,
  )


def _between_tags(text: str) -> str:
  """The text without one newline at each end."""
  for newline in _NEWLINES:
    if text.startswith(newline):
      text = text[len(newline) :]
      break
  for newline in _NEWLINES:
    if text.endswith(newline):
      return text[: -len(newline)]
  return text
