"""The tags that an agent and its tools speak in, read and defended.

A policy step is `<think> … </think>` and then either one tool call, such as
`<search> … </search>`, or `<answer> … </answer>`. The engine writes
`<result>` and `<retrieve>`; nobody else may. So text that comes from outside
passes through `escape` before it is put beside the policy's own words.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import NamedTuple

from rapo_jax.errors import InputError

THINK = "think"
ANSWER = "answer"
SEARCH = "search"
PYTHON = "python"
OPEN = "open"
RESULT = "result"
RETRIEVE = "retrieve"

TOOL_TAGS = (SEARCH, PYTHON, OPEN)
ENGINE_TAGS = (RESULT, RETRIEVE)
ALL_TAGS = (THINK, ANSWER, *TOOL_TAGS, *ENGINE_TAGS)

# Added tokens of common tokenizers that do not look like `<|…|>`.
_SPECIAL_NAMES = (
  "s|pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn"
  "|tool_call|tool_response"
)
# What a tokenizer's normaliser may drop or fold: white space, control and
# zero-width characters, full-width and small forms of `<`, `|` and `/`.
_LESS_THAN = "[<＜﹤]"
_IGNORABLE = r"[\s\x00-\x1f\x7f\u200b-\u200f\u2060\ufeff/／]*+"
_FORGEABLE = re.compile(
  rf"{_LESS_THAN}(?={_IGNORABLE}(?:"
  rf"(?:{'|'.join(ALL_TAGS)})(?![A-Za-z0-9_])"
  rf"|(?:{_SPECIAL_NAMES}){_IGNORABLE}[>＞﹥]"
  r"|[|｜]))",
  re.IGNORECASE,
)
_TAG = re.compile(rf"<(/?)({'|'.join(ALL_TAGS)})>")
_TAG_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What ends a turn, or its header, in the chat templates of common models.
_CONTROL_TOKEN = re.compile(
  r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|\[/INST\]|</s>"
  r"|<(?:start|end)_of_turn>"
)
_NEWLINES = ("\r\n", "\n")


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


def find_tags(text: str) -> list[Tag]:
  """Every tag of ours in `text`, in order; exact spelling only."""
  return [
    Tag(m.group(2), bool(m.group(1)), m.start(), m.end())
    for m in _TAG.finditer(text)
  ]


def opens_thought(prompt: str) -> bool:
  """Whether a prompt ends inside a thought, as Qwen3-Thinking's template does.

  Only the header of the last turn counts: what follows the last control token.
  A question that names `<think>` opens no thought. A prompt without control
  tokens opens one only if it ends with the tag.

  Args:
    prompt: the text that the policy goes on from.
  """
  end = 0
  for match in _CONTROL_TOKEN.finditer(prompt):
    end = match.end()
  if not end:
    return prompt.rstrip().endswith(f"<{THINK}>")
  thoughts = [t for t in find_tags(prompt[end:]) if t.name == THINK]
  return bool(thoughts) and not thoughts[-1].closing


def leaves_thought_open(text: str, *, opened: bool = False) -> bool:
  """Whether a thought is open at the end of a text.

  Args:
    text: any text.
    opened: whether one is open at its beginning.
  """
  thoughts = [t for t in find_tags(text) if t.name == THINK]
  return not thoughts[-1].closing if thoughts else opened


def with_opened_thought(text: str) -> str:
  """Gives a text the opening tag that a template wrote before it.

  A text whose first think tag is a closing one began inside a thought. Any
  other text stays as it is.
  """
  first = next((t for t in find_tags(text) if t.name == THINK), None)
  return f"<{THINK}>{text}" if first is not None and first.closing else text


def check_tool_names(names: Collection[str]) -> None:
  """Checks that each name is a tag that calls are read by.

  Raises:
    InputError: a name cannot be a tag, is a tag with another meaning, or is
      not known to the parser. Every call of such a tool would be malformed.
  """
  for name in names:
    if not _TAG_NAME.fullmatch(name):
      fault = "cannot be a tag (a small letter, then letters, digits and _)"
    elif name in ALL_TAGS and name not in TOOL_TAGS:
      fault = f"is the tag <{name}>, which has another meaning"
    elif name not in TOOL_TAGS:
      fault = "is no tag that the parser reads"
    else:
      continue
    raise InputError(
      f"a tool's name must be one of {', '.join(TOOL_TAGS)}, and {name!r} "
      f"{fault}: rename the tool, or add its tag to rapo_jax/tools/tags.py."
    )


def parse_call(
  step_text: str, tool_names: Collection[str]
) -> ToolCall | MalformedCall:
  """Reads the tool call that a policy step ends with.

  The call ends at the first closing tag of a tool, which is where the engine
  stops sampling; what a token may have brought along after it is ignored.
  It starts at the last opening tag of the same tool before that, so a thought
  may name `<search>` without calling it. An argument that holds another of
  our tags is refused: it is either nested or a tag that was never closed.

  White space has a meaning in programs. Only one newline beside each tag is
  not part of the argument; a tool strips what means nothing to it.

  Args:
    step_text: text of one policy step.
    tool_names: names of the tools that this agent has.

  Returns:
    The call, or why there is none. Never raises, whatever the text.
  """
  tags = find_tags(step_text)
  close = next((t for t in tags if t.closing and t.name in TOOL_TAGS), None)
  if close is None:
    return MalformedCall("no tool call: no closing tool tag was written")
  name = close.name
  if name not in tool_names:
    have = ", ".join(sorted(tool_names)) or "none"
    return MalformedCall(f"there is no tool {name!r}; tools: {have}")
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


def escape(text: str) -> str:
  """Makes outside text unable to forge our tags or special tokens.

  The `<` of anything that is, or that a tokenizer could fold into, one of our
  tags or a special token (`<|…|>`, `<s>`, …) becomes `&lt;`; all other text,
  `a < b` and HTML included, stays as it is. Lone surrogates, which no
  tokenizer accepts, become `?`.

  Args:
    text: tool output or other text that the policy did not write.

  Returns:
    Text without any tag of ours and without any special token.
  """
  valid = text.encode("utf-8", errors="replace").decode("utf-8")
  return _FORGEABLE.sub("&lt;", valid)
