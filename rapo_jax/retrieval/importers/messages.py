"""Trajectories as chat messages: one conversation a line.

Calls may stand in the text: `<tool_call>` and `<tool_response>`, as in Qwen's
template and WebDancer. They may also stand beside it: `tool_calls` and messages
of role `tool`, as in OpenAI's protocol. Or they stand in tags of our kind, with
`<result>` or `<information>` behind them, as in Tool-Star and Search-R1.
Messages may have ShareGPT's names, `from` and `value`.

A step is the assistant's text up to a call, with the result that follows. Parts
for which we have a tag are put into it (`tools.tags`). The rest stays text, in
which nothing looks like a tag of ours or a special token. Of several turns of
the assistant in a row the last is the answer; those before it are thoughts.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rapo_jax import text_files
from rapo_jax.dataset_rows import accepted_answers
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.agent_trajectory import (
  AgentTrajectory,
  question_id,
)
from rapo_jax.retrieval.importers.lines import (
  ImportReport,
  JsonLines,
  OnError,
  one_a_line,
)
from rapo_jax.tools import tags

Reward = Callable[[str, Sequence[str]], float]

TOOL_NAMES = {
  "search": ("search", ("query", "queries", "query_list", "q")),
  "web_search": ("search", ("query", "queries", "query_list", "q")),
  "google_search": ("search", ("query", "queries", "query_list", "q")),
  "wiki_search": ("search", ("query", "queries", "query_list", "q")),
  "python": ("python", ("code",)),
  "pythoninterpreter": ("python", ("code",)),
  "python_interpreter": ("python", ("code",)),
  "code_interpreter": ("python", ("code",)),
  "open": ("open", ("id", "url")),
  "visit": ("open", ("url",)),
  "browse": ("open", ("url",)),
}
"""By a tool's name, small: our tag for it, and the names of the argument that
goes first in it; without one of these the first text does. Other arguments
follow as `name: value`, a line each."""

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TAGS = tags.TagSet(tuple({tag: None for tag, _ in TOOL_NAMES.values()}))
# Tool-Star and Search-R1 write calls in our tags, and results behind them.
_OWN_CALL = re.compile(rf"</(?:{'|'.join(_TAGS.tool_names)})>\s*\Z")
_INLINE = re.compile(
  rf"(?<=</)({'|'.join(_TAGS.tool_names)})>\s*"
  r"<(result|information)>(.*?)</\2>",
  re.DOTALL,
)
_WRAPPED = re.compile(r"\s*<(result|information)>(.*)</\1>\s*", re.DOTALL)
# Prompts that show the whole task end with the question.
_QUESTION = re.compile(r"(?:\A|\n)\s*(?:User|Question)\s*:")
_TOOL_ROLES = ("tool", "function", "ipython", "observation")
_FIELDS = ("messages", "conversations", "question", "reward", "score", "answer")
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant"}
"""Of ShareGPT, in our words; its other roles have the same names."""
_REASONING = ("reasoning_content", "reasoning", "thinking")


def read_messages(
  path: pathlib.Path,
  source: str,
  *,
  report: ImportReport,
  on_error: OnError = "stop",
  reward: Reward | None = None,
) -> Iterator[tuple[AgentTrajectory, int]]:
  """Reads trajectories from a file of conversations.

  A line has `messages`. It may have `question`; else the end of the first
  user's message is taken. It may have `query_id`, `reward` or `score`, and
  `answer`, the accepted answers. What else it has, descriptions of tools left
  out, are extras.

  Args:
    path: the JSONL file.
    source: name of the agent that wrote the trajectories.
    report: counts what is read.
    on_error: "stop" raises at the first broken line; "skip" leaves it out.
    reward: computes the reward of lines that have none. It takes the final
      answer and the accepted answers, which are empty where the line has none.
      None: such lines are broken.

  Yields:
    Each trajectory, and the bytes of the file read until then.

  Raises:
    InputError: for a broken line, named by its number, if it is to stop.
  """
  yield from one_a_line(
    JsonLines(path, report, on_error),
    lambda line: _trajectory(
      line.content, source, f"{source}/{path.name}:{line.number}", reward
    ),
  )


def _trajectory(
  record: Mapping[str, Any], source: str, name: str, reward: Reward | None
) -> AgentTrajectory:
  """Raises ValueError, with the reason, for a record that cannot be used."""
  messages = _messages(record.get("messages", record.get("conversations")))
  first = next(
    (i for i, m in enumerate(messages) if m.get("role") == "user"), None
  )
  if first is None:
    raise InputError("there is no message of role user")
  question = record.get("question")
  if question in (None, ""):
    question = _question(_text(messages[first], first))
  if not isinstance(question, str):
    raise InputError(f"question must be a text, got {question!a:.60}")
  steps = _steps(messages, first + 1)
  known = {*_FIELDS, "query_id", "functions", "tools"}
  return AgentTrajectory(
    question=question.strip(),
    steps=tuple(steps),
    reward=_reward(record, steps, reward),
    source=source,
    query_id=_query_id(record.get("query_id"), question),
    trajectory_id=name,
    extras={
      k: v for k, v in record.items() if k not in known and v not in _EMPTY
    },
  )


def _messages(listed: Any) -> list[Mapping[str, Any]]:
  """The messages of a conversation, in the words of OpenAI's protocol.

  ShareGPT's have `from` and `value`. Older ones have one `function_call`. A
  text that holds results, too, becomes several messages.
  """
  if not isinstance(listed, list) or not all(
    isinstance(message, dict) for message in listed
  ):
    raise InputError("messages must be a list of objects")
  messages: list[Mapping[str, Any]] = []
  for given in listed:
    message = given
    if "role" not in given and "from" in given:
      role, text = given["from"], given.get("value")
      if role == "function_call":
        text = f"<tool_call>{text}</tool_call>"
      message = {"role": _ROLES.get(str(role), role), "content": text}
    if message.get("function_call") and not message.get("tool_calls"):
      message = {**message, "tool_calls": [message["function_call"]]}
    messages += _apart(message)
  return messages


def _apart(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
  """An assistant's message, cut where its text holds a result of a call."""
  text = message.get("content")
  if message.get("role") == "assistant" and isinstance(text, str):
    at = 0
    for found in _INLINE.finditer(text):
      cut = text[at : found.end(1) + 1]
      yield {**_without(message, "tool_calls"), "content": cut}
      yield {"role": "tool", "content": found[3]}
      message = _without(message, *_REASONING)
      at = found.end()
    message = {**message, "content": text[at:]}
  yield message


def _without(message: Mapping[str, Any], *names: str) -> dict[str, Any]:
  return {name: v for name, v in message.items() if name not in names}


# A table's columns that say nothing of a row; 0 and false do.
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def _question(text: str) -> str:
  """The question of a first message, which may show the whole task first."""
  return _QUESTION.split(text)[-1].strip()


def _query_id(value: Any, question: str) -> str:
  if value is None or (isinstance(value, str) and not value.strip()):
    return question_id(question)
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise InputError(
      f"query_id must be a text or a whole number, got {value!a:.60}"
    )
  return str(value)


def _reward(
  record: Mapping[str, Any], steps: Sequence[str], reward: Reward | None
) -> float:
  for name in ("reward", "score"):
    value = record.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
      return float(value)
    if value is not None:
      raise InputError(f"{name} must be a number, got {value!a:.60}")
  if reward is None:
    raise InputError(
      "the trajectory has no reward: give one to all (--reward 1), or have "
      "it computed from the answer (--reward f1)"
    )
  start = steps[-1].rfind(f"<{tags.ANSWER}>")
  answer = steps[-1][start + len(tags.ANSWER) + 2 :] if start >= 0 else ""
  answer = answer.partition(f"</{tags.ANSWER}>")[0].strip()
  given = record.get("answer")
  accepted = [] if given is None else [*accepted_answers(given, "answer")]
  return reward(answer, accepted)


def _steps(messages: Sequence[Mapping[str, Any]], first: int) -> list[str]:
  """Cuts a conversation after each result of a tool."""
  steps: list[str] = []
  text = ""
  # Ids of the last message's calls that have no result yet; None for calls in
  # its text.
  waiting: list[str | None] = []
  calls: list[str] = []
  for number, message in enumerate(messages[first:], first):
    role = message.get("role")
    if role == "assistant":
      if waiting:
        raise InputError(f"message {number} comes before a tool's result")
      said, calls = _said(message, number)
      if said.strip() or calls:
        text = _thought_before(text) + said
      num_calls = len(_CALL.findall(_text(message, number)))
      if not num_calls and _OWN_CALL.search(said):
        num_calls = 1
      waiting = [None] * num_calls
      if calls:
        listed = message["tool_calls"]
        waiting = [_call_id(call.get("id"), number) for call in listed]
      if not waiting:
        continue
    elif role in _TOOL_ROLES or (
      role == "user" and _tagged_results(_text(message, number))
    ):
      if not waiting:
        raise InputError(f"message {number} is a result that no call waits for")
      result = _result(_text(message, number))
      if calls:
        # Calls beside each other become steps after each other, as ours are.
        call_id = _call_id(message.get("tool_call_id"), number)
        at = waiting.index(call_id) if call_id in waiting else 0
        del waiting[at]
        steps.append(f"{text}{calls.pop(at)}{result}".strip())
      else:
        waiting = []
        steps.append(f"{text}{result}".strip())
      text = ""
    elif role == "user":
      raise InputError(f"message {number} is a second question of the user")
    elif role != "system":
      raise InputError(f"message {number} has the unknown role {role!a:.30}")
  if waiting:
    raise InputError("the last call has no result")
  if not text.strip():
    raise InputError("the conversation ends without an answer")
  return [*steps, _final(text.strip())]


def _tagged_results(text: str) -> list[str]:
  """What stands in the tags of results; none in a text without them."""
  whole = _WRAPPED.fullmatch(text)
  return _RESPONSE.findall(text) or ([whole[2]] if whole else [])


def _thought_before(text: str) -> str:
  """What was said in a turn before this one: thoughts, which go on."""
  if not text.strip() or f"<{tags.ANSWER}>" in text:
    return text
  end = f"</{tags.THINK}>"
  thought, found, rest = text.rpartition(end)
  if rest.strip():
    rest = f"\n<{tags.THINK}> {rest.strip()} {end}"
  return f"{thought}{found}{rest}\n".lstrip()


def _call_id(value: Any, number: int) -> str | None:
  if value is not None and not isinstance(value, str):
    raise InputError(
      f"message {number} has a call's id that is no text: {value!a:.60}"
    )
  return value


def _said(message: Mapping[str, Any], number: int) -> tuple[str, list[str]]:
  """What an assistant's message says, and its calls beside the text."""
  text = _text(message, number)
  parts = []
  at = 0
  for match in _CALL.finditer(text):
    parts.append(_own(text[at : match.start()]))
    parts.append(_call_in_text(match.group(1), number))
    at = match.end()
  parts.append(_own(text[at:]))
  # A chat template that opens the thought leaves only its end in the text.
  said = tags.with_opened_thought("".join(parts))
  listed = message.get("tool_calls") or []
  if not isinstance(listed, list):
    raise InputError(
      f"message {number} has tool_calls that are no list: {listed!a:.60}"
    )
  calls = [_call_beside(call, number) for call in listed]
  thought = next((message[n] for n in _REASONING if message.get(n)), "")
  if not isinstance(thought, str):
    raise InputError(
      f"message {number} has reasoning that is no text: {thought!a:.60}"
    )
  if calls and said.strip() and f"<{tags.THINK}>" not in said:
    thought, said = f"{thought}\n{said}".strip(), ""
  thought = thought.strip().removeprefix(f"<{tags.THINK}>")
  thought = thought.removesuffix(f"</{tags.THINK}>").strip()
  if thought:
    said = f"<{tags.THINK}> {thought} </{tags.THINK}>\n{said}"
  return said, calls


def _final(text: str) -> str:
  """A last step; its text outside of thoughts is its answer."""
  if f"<{tags.ANSWER}>" in text:
    return text
  end = f"</{tags.THINK}>"
  thought, found, answer = text.rpartition(end)
  if not answer.strip() or tags.leaves_thought_open(text):
    raise InputError("the conversation ends without an answer")
  answer = f"<{tags.ANSWER}> {answer.strip()} </{tags.ANSWER}>"
  return f"{thought}{found}\n{answer}".strip()


def _own(text: str) -> str:
  """The assistant's text: its thoughts, calls and answer keep their tags."""
  parts = []
  at = 0
  for tag in _TAGS.find_tags(text):
    if tag.name not in tags.ENGINE_TAGS:
      parts += [_TAGS.escape(text[at : tag.start]), text[tag.start : tag.end]]
      at = tag.end
  return "".join([*parts, _TAGS.escape(text[at:])])


def _result(text: str) -> str:
  found = _tagged_results(text) or [text]
  body = _TAGS.escape("\n\n".join(part.strip("\n") for part in found).rstrip())
  return f"\n<{tags.RESULT}> {body} </{tags.RESULT}>"


def _call_in_text(text: str, number: int) -> str:
  try:
    call = text_files.parse_json(text)
  except text_files.TextError as error:
    raise InputError(
      f"message {number} holds a tool_call that cannot be read: {error}"
    ) from None
  if not isinstance(call, dict):
    raise InputError(f"message {number} holds a tool_call that is no object")
  return _call(call, number)


def _call_beside(call: Any, number: int) -> str:
  function = call.get("function", call) if isinstance(call, dict) else None
  if not isinstance(function, dict):
    raise InputError(f"message {number} holds a tool call that is no object")
  return _call(function, number)


def _call(call: Mapping[str, Any], number: int) -> str:
  """A call in our tags, or as text where we have no tag for its tool."""
  name, arguments = call.get("name"), call.get("arguments")
  if isinstance(arguments, str):
    try:
      arguments = text_files.parse_json(arguments or "{}")
    except text_files.SyntaxTextError:
      arguments = {"": arguments}
    except text_files.TextError as error:
      raise InputError(
        f"message {number} holds arguments that cannot be read: {error}"
      ) from None
  arguments = {} if arguments is None else arguments
  if not isinstance(name, str) or not isinstance(arguments, dict):
    raise InputError(
      f"message {number} holds a call without a name or without arguments"
    )
  tag, firsts = TOOL_NAMES.get(name.lower(), (None, ()))
  if tag is None:
    shown = json.dumps(arguments, ensure_ascii=False)
    return _TAGS.escape(f"{name}({shown})")
  rest = dict(arguments)
  main = next((n for n in (*firsts, "", *_texts(rest)) if n in rest), None)
  first = "" if main is None else rest.pop(main)
  rows = [*_values(first)]
  rows += [f"{n}: {', '.join(_values(v))}" for n, v in rest.items()]
  body = _TAGS.escape("\n".join(rows)).strip("\n")
  if tag == "python" and body[:1] in (" ", "\t"):
    # The indentation of a program's first line has a meaning.
    return f"<{tag}>\n{body}\n</{tag}>"
  return f"<{tag}> {body.strip()} </{tag}>"


def _texts(arguments: Mapping[str, Any]) -> list[str]:
  """Names of the arguments that are texts, or lists of texts."""
  return [
    name
    for name, value in arguments.items()
    if isinstance(value, str)
    or (isinstance(value, list) and all(isinstance(v, str) for v in value))
  ]


def _values(value: Any) -> list[str]:
  if isinstance(value, list):
    return [text for item in value for text in _values(item)]
  return [value if isinstance(value, str) else json.dumps(value)]


def _text(message: Mapping[str, Any], number: int) -> str:
  """The text of a message, which may come in parts."""
  content = message.get("content")
  if content is None:
    return ""
  if isinstance(content, str):
    return content
  if isinstance(content, list):
    parts = [p.get("text") for p in content if isinstance(p, dict)]
    if len(parts) == len(content) and all(isinstance(p, str) for p in parts):
      return "".join(str(part) for part in parts)
  raise InputError(f"message {number} has content that is no text")
