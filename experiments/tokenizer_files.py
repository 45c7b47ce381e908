"""The tokenizer of an agent, read from its folder."""

from __future__ import annotations

import pathlib
from typing import Any

import transformers

from rapo_jax.errors import InputError
from rapo_jax.models import hub

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(path_or_hub_id: str | pathlib.Path) -> Any:
  """The tokenizer of a model.

  Args:
    path_or_hub_id: its folder, or a hub's name for one.

  Raises:
    InputError: the folder has no tokenizer, or its files are broken.
  """
  folder = pathlib.Path(path_or_hub_id)
  if not hub.is_hub_id(path_or_hub_id) and not any(
    (folder / name).is_file() for name in _VOCABULARIES
  ):
    # transformers would make one without a vocabulary.
    raise InputError(
      f"an agent's folder must hold its tokenizer and {folder} holds none of "
      f"{', '.join(_VOCABULARIES)}: copy it from the model that the agent was "
      "trained from."
    )
  try:
    return transformers.AutoTokenizer.from_pretrained(path_or_hub_id)
  except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
    raise _broken(path_or_hub_id, error) from error
  except Exception as error:
    # What is written in Rust raises nothing more precise.
    if type(error) is not Exception:
      raise
    raise _broken(path_or_hub_id, error) from error


def _broken(path_or_hub_id: str | pathlib.Path, error: Exception) -> InputError:
  reason = " ".join(str(error).split())
  return InputError(
    f"the tokenizer of {path_or_hub_id} cannot be read: {reason} "
    f"({type(error).__name__}): copy or download it again."
  )
