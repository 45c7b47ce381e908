"""The agent's instructions, and the token ids that start a trajectory."""

from __future__ import annotations

import bisect
import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from rapo_jax.data import chat
from rapo_jax.data.queries import Query
from rapo_jax.errors import InputError
from rapo_jax.tools import (
  Described,
  OpenTool,
  PythonTool,
  SearchTool,
  TagSet,
)

_ANSWER_EXAMPLE = (
  r"<think> That settles it. </think><answer> \boxed{43} </answer>"
)
# Qwen-like agents think in tags; a template that rewrites them is caught too.
_SAMPLE_THOUGHT = "<think> Let me see. </think>"
_SAMPLE_ANSWER = r"<answer> \boxed{42} </answer>"
# One that draws one of two texts is caught in all but 2^-31 of the checks.
_RENDERINGS = 32
# A prompt's last word: a thought that is open, or one that is empty. It always
# matches, in the end with nothing.
_OPENED_THOUGHT = re.compile(r"(?:<think>\s*(?:</think>\s*)?)?\Z")
# Templates may drop the reply's own thought, and write an empty one before it.
_THOUGHTS = re.compile(
  r"\s*(?:<think>\s*(?:</think>\s*)?)?"
  r"(?:<think>\s*(?:Let me see\.\s*)?</think>\s*)?"
)


READY_TOOLS: Mapping[str, Described] = {
  tool.name: tool for tool in (SearchTool, OpenTool, PythonTool)
}
"""The tools that come along, by name."""


def system_prompt(tools: Iterable[Described | str]) -> str:
  """Tells the agent how to think, call the given tools and answer.

  The wording is ours; the protocol is the recipe's (method: tags of RAPO).

  Args:
    tools: the agent's tools, their classes, or names of `READY_TOOLS`; may be
      empty. No others are mentioned.

  Raises:
    InputError: two tools have one name, or a name cannot be a tag. Or only the
      name is given of a tool that is not ready-made.
  """
  named = _all_described(tools)
  lines = [
    "Answer the user's question. Work in steps, and begin each step with your "
    "thoughts between <think> and </think>."
  ]
  if named:
    lines += [
      "",
      "A step may end with one tool call. Stop after it: the result will be "
      "given to you between <result> and </result>, and the next step follows. "
      "Never write a result yourself. Your tools:",
      _tool_lines(named),
    ]
  lines += [
    "",
    "Between steps, extra context may be given to you between <retrieve> and "
    "</retrieve>. Use it if it is helpful, and never write these tags "
    "yourself.",
    "",
    "The last step ends with your answer between <answer> and </answer>, "
    r"given once. In it, put the exact final answer into \boxed{}, as short "
    "as it can be.",
    "",
    "For example:",
    _example(named),
  ]
  return "\n".join(lines)


def fill_system_prompt(text: str, tools: Iterable[Described | str]) -> str:
  """A system prompt of one's own, with what it says of the tools.

  Args:
    text: the prompt. `{tools}` in it becomes a line for each tool, and
      `{example}` an example that calls each of them and answers. Other braces
      stay.
    tools: as for `system_prompt`.

  Raises:
    InputError: as for `system_prompt`; or the text is blank.
  """
  named = _all_described(tools)
  if not text.strip():
    raise InputError(
      "a system prompt must say how to answer, and this one is blank: write "
      "it, or leave it out for the one that comes along."
    )
  filled = text.strip().replace("{tools}", _tool_lines(named))
  return filled.replace("{example}", _example(named))


def _all_described(tools: Iterable[Described | str]) -> tuple[Described, ...]:
  named = tuple(_described(tool) for tool in tools)
  TagSet(tuple(tool.name for tool in named))
  return named


def _tool_lines(tools: Iterable[Described]) -> str:
  return "\n".join(f"- {tool.description}" for tool in tools)


def _example(tools: Iterable[Described]) -> str:
  return "".join([*(tool.example for tool in tools), _ANSWER_EXAMPLE])


def _described(tool: Described | str) -> Described:
  if not isinstance(tool, str):
    return tool
  if tool not in READY_TOOLS:
    raise InputError(
      f"a tool that is given by name must be one of {', '.join(READY_TOOLS)}, "
      f"got {tool!r}: hand in the tool itself."
    )
  return READY_TOOLS[tool]


def chat_messages(
  question: str, tools: Iterable[Described | str]
) -> tuple[Mapping[str, str], ...]:
  """System prompt for the tools, then the question."""
  return (
    {"role": "system", "content": system_prompt(tools)},
    {"role": "user", "content": question},
  )


def encode_prompt(
  tokenizer: Any,
  query: Query,
  max_prompt_tokens: int,
  *,
  date: datetime.date = chat.PROMPT_DATE,
) -> Int[np.ndarray, " P"]:
  """Token ids of a query's prompt, up to where the agent starts to write.

  Only the chat template writes control tokens: `<|im_end|>` in a question is
  text, as it is in a tool's result.

  Args:
    tokenizer: a Hugging Face tokenizer with a chat template.
    query: the question.
    max_prompt_tokens: most tokens a prompt may have, template included.
    date: that a template which asks for the date is given.

  Returns:
    int32 ids.

  Raises:
    InputError: if the template cannot render the prompt, or if the prompt is
      longer. It is never cut, because a cut prompt is another question.
  """
  ids = _prompt_ids(tokenizer, query, date)
  if len(ids) > max_prompt_tokens:
    raise InputError(
      f"the prompt of query {query.query_id} has {len(ids)} tokens, over "
      f"max_prompt_tokens={max_prompt_tokens}; raise the limit or drop the "
      f"question: {query.question[:80]!r}"
    )
  return np.asarray(ids, dtype=np.int32)


def prompt_hash(
  tokenizer: Any, query: Query, date: datetime.date = chat.PROMPT_DATE
) -> str:
  """Sixteen hex digits that change when prompts are written otherwise.

  Args:
    tokenizer: a Hugging Face tokenizer with a chat template.
    query: the same one every time.
    date: that a template which asks for the date is given.

  Returns:
    Hash of the chat template and of the ids that it gives for the query.
  """
  ids = _prompt_ids(tokenizer, query, date)
  text = f"{chat.template_of(tokenizer)}\0{ids}"
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_prefix_preservation(
  tokenizer: Any, query: Query, *, date: datetime.date = chat.PROMPT_DATE
) -> None:
  """Checks that the chat template only ever appends, and leaves nothing out.

  The agent's text is put after the prompt's ids. The template may render the
  prompt otherwise once a reply follows. Then the agent is trained on prompts
  that it is never given. A thought that the prompt opens (`<think>`), or opens
  and closes, is no part of this. Templates drop thoughts of earlier turns, and
  our prompts have no earlier turn of the agent.

  Args:
    tokenizer: a Hugging Face tokenizer with a chat template.
    query: any query.
    date: that a template which asks for the date is given.

  Raises:
    InputError: naming the first token that differs; or the template cannot
      render the prompt, or renders it otherwise another time. Or it changes or
      leaves out a turn, or what begins the turn of the agent.
  """
  text = _prompt_text(tokenizer, query, date)
  again = (_prompt_text(tokenizer, query, date) for _ in range(1, _RENDERINGS))
  if any(other != text for other in again):
    raise InputError(
      "the chat template must write the same prompt every time, and writes "
      f"that of query {query.query_id} in two ways: take what is random out "
      "of it"
    )
  for message in query.messages:
    _check_turn(message, text)
  text = _OPENED_THOUGHT.sub("", text)
  reply = {"role": "assistant", "content": _SAMPLE_THOUGHT + _SAMPLE_ANSWER}
  answered = chat.render(
    tokenizer,
    (*query.messages, reply),
    add_generation_prompt=False,
    date=date,
  )
  prompt, whole = _encode(tokenizer, text), _encode(tokenizer, answered)
  if whole[: len(prompt)] == prompt:
    _check_generation_prompt(answered.removeprefix(text))
    return
  pairs = zip(prompt, whole, strict=False)
  shared = min(len(prompt), len(whole))
  at = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
  now = repr(tokenizer.decode(prompt[at])) if at < len(prompt) else "the end"
  then = repr(tokenizer.decode(whole[at])) if at < len(whole) else "the end"
  raise InputError(
    "the chat template does not preserve the prompt: with a reply behind it, "
    f"token {at} of query {query.query_id} is {then} in place of {now}; use a "
    "template that only appends"
  )


def _prompt_ids(tokenizer: Any, query: Query, date: datetime.date) -> list[int]:
  return chat.encode_chat(
    tokenizer, query.messages, add_generation_prompt=True, date=date
  )


def _prompt_text(tokenizer: Any, query: Query, date: datetime.date) -> str:
  return chat.render(
    tokenizer, query.messages, add_generation_prompt=True, date=date
  )


def _encode(tokenizer: Any, text: str) -> list[int]:
  return tokenizer.encode(text, add_special_tokens=False)


def _check_turn(message: Mapping[str, str], rendered: str) -> None:
  """Refuses a template that changes what a turn says, or leaves it out.

  Some drop `/think` or a thought's tags from it, which our prompts name.

  Raises:
    InputError: it does; names the first character that is missing.
  """
  content = message["content"].strip()
  if content in rendered:
    return
  kept = bisect.bisect_left(
    range(len(content)), True, key=lambda n: content[: n + 1] not in rendered
  )
  raise InputError(
    f"the chat template must write the {message['role']} turn as it is, and "
    f"leaves out or changes it from {content[kept : kept + 40]!r} on: take "
    "another template, or put the instructions into the question"
  )


def _check_generation_prompt(behind: str) -> None:
  """Refuses a template whose prompt lacks what begins the agent's turn.

  Args:
    behind: what the template writes behind the prompt once a reply is there.

  Raises:
    InputError: there is more than thoughts before the reply's answer.
  """
  between, found, _ = behind.partition(_SAMPLE_ANSWER)
  if found and not _THOUGHTS.fullmatch(between):
    raise InputError(
      "the chat template must begin the agent's turn where "
      f"add_generation_prompt is true, and leaves out {between!r}: write it "
      "there"
    )
