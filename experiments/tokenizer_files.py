"""The tokenizer of an agent, read from its folder."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from rapo_jax import text_files
from rapo_jax.data import template_of
from rapo_jax.errors import InputError
from rapo_jax.models import hub

_THINKING = "enable_thinking"
# Templates drop the line feed behind it (trim_blocks).
_SETS_THINKING = {
  value: f"{{% set {_THINKING} = {str(value).lower()} %}}\n"
  for value in (True, False)
}
_SENTENCEPIECE = "tokenizer.model"
_VOCABULARIES = ("tokenizer.json", "vocab.json", _SENTENCEPIECE)


def load_tokenizer(path_or_hub_id: str | pathlib.Path) -> Any:
  """The tokenizer of a model.

  Args:
    path_or_hub_id: its folder, or a hub's name for one.

  Raises:
    InputError: the folder has no tokenizer, or its files are broken.
  """
  folder = pathlib.Path(path_or_hub_id)
  there = [name for name in _VOCABULARIES if (folder / name).is_file()]
  if not there and not hub.is_hub_id(path_or_hub_id):
    # transformers would make one without a vocabulary.
    raise InputError(
      f"an agent's folder must hold its tokenizer and {folder} holds none of "
      f"{', '.join(_VOCABULARIES)}: copy it from the model that the agent was "
      "trained from."
    )
  if there == [_SENTENCEPIECE]:
    _check_sentencepiece(folder / _SENTENCEPIECE)
  try:
    return transformers.AutoTokenizer.from_pretrained(path_or_hub_id)
  # transformers reads config.json, too, and refuses some of its fields.
  except (
    *(AttributeError, LookupError, OSError, TypeError, ValueError),
    StrictDataclassError,
  ) as error:
    raise _broken(path_or_hub_id, error) from error
  except Exception as error:
    # What is written in Rust raises nothing more precise.
    if type(error) is not Exception:
      raise
    raise _broken(path_or_hub_id, error) from error


def _check_sentencepiece(file: pathlib.Path) -> None:
  """Refuses a SentencePiece model that nothing reads."""
  # transformers would take it for a file of tiktoken's.
  if importlib.util.find_spec("sentencepiece") is None:
    raise InputError(
      f"{file} needs the package sentencepiece, which is not installed: "
      "`pip install sentencepiece protobuf`, or copy the model's "
      "tokenizer.json."
    )


def _broken(path_or_hub_id: str | pathlib.Path, error: Exception) -> InputError:
  reason = " ".join(str(error).split())
  return InputError(
    f"the tokenizer of {path_or_hub_id} cannot be read: {reason} "
    f"({type(error).__name__}): copy or download it again."
  )


def set_chat_template(
  tokenizer: Any,
  file: str | None = None,
  *,
  enable_thinking: bool | None = None,
) -> None:
  """Gives a tokenizer another chat template, or another default of its own.

  Args:
    tokenizer: is changed.
    file: the template; None keeps that of the tokenizer.
    enable_thinking: value of the template's variable of this name; None keeps
      the template's default.

  Raises:
    InputError: the file is missing or no text, or the template has no such
      variable.
  """
  if file is not None:
    tokenizer.chat_template = text_files.whole_text(pathlib.Path(file))
  if enable_thinking is None:
    return
  template = template_of(tokenizer) or ""
  if _THINKING not in template:
    raise InputError(
      f"policy.{_THINKING} sets a variable of the chat template, and the "
      f"template of {tokenizer.name_or_path or file} has none of this name: "
      f"leave policy.{_THINKING} out, or set policy.chat_template."
    )
  for line in _SETS_THINKING.values():
    template = template.removeprefix(line)  # Of an agent that was trained so.
  tokenizer.chat_template = _SETS_THINKING[enable_thinking] + template
