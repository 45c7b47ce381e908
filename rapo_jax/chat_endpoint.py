"""Clients of endpoints that speak OpenAI's protocol."""

from __future__ import annotations

import os
import re
from typing import Any

from rapo_jax import extras
from rapo_jax.errors import InputError

KEY_VARIABLE = "OPENAI_API_KEY"
"""Variable of the environment that holds the key of an endpoint."""
_NO_KEY = "none"
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


def endpoint_key() -> str:
  """The key; a word for it where none is set, which local servers take."""
  return os.environ.get(KEY_VARIABLE) or _NO_KEY


def open_client(
  url: str, what: str, *, timeout_s: float, max_retries: int
) -> Any:
  """Opens a client, which several threads may use; to be closed.

  Args:
    url: of the endpoint, up to `/v1`.
    what: is asked, such as "a judge", for the message.
    timeout_s: of a request, in seconds.
    max_retries: times that a failed request is made again.

  Returns:
    An `openai.OpenAI`.

  Raises:
    InputError: the package openai is not installed.
  """
  try:
    import openai
  except ModuleNotFoundError as error:
    raise InputError(
      f"{what} is asked by openai, which is not installed: "
      f"{extras.install_command('buffer')}."
    ) from error
  return openai.OpenAI(
    base_url=url,
    api_key=endpoint_key(),
    timeout=timeout_s,
    max_retries=max_retries,
  )


def without_thoughts(text: str) -> str:
  """A reply without the thoughts that stand in it between tags."""
  return _THOUGHT.sub("", text)
