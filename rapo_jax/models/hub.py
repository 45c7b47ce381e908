"""Model folders, on this disk or on the Hugging Face hub."""

from __future__ import annotations

import os
import pathlib
import re

import huggingface_hub
from huggingface_hub import errors

from rapo_jax.errors import InputError, MissingInputError

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(path_or_hub_id: str | os.PathLike[str]) -> bool:
  """Whether this names a hub's model; a folder of that name is preferred."""
  return (
    isinstance(path_or_hub_id, str)
    and _HUB_ID.fullmatch(path_or_hub_id) is not None
    and _may_be_on_hub(path_or_hub_id)
    and not pathlib.Path(path_or_hub_id).exists()
  )


def _may_be_on_hub(name: str) -> bool:
  """Whether a hub would take the name: no `--`, no `..`, no `.git`."""
  try:
    huggingface_hub.utils.validate_repo_id(name)
  except errors.HFValidationError:
    return False
  return True


def cached_folder(
  path_or_hub_id: str | os.PathLike[str],
) -> pathlib.Path | None:
  """The folder of a model as far as it is on this disk; downloads nothing.

  Args:
    path_or_hub_id: as for `local_folder`.

  Returns:
    None for a hub's model whose configuration is not in the cache.
  """
  if not is_hub_id(path_or_hub_id):
    return pathlib.Path(path_or_hub_id)
  config = huggingface_hub.try_to_load_from_cache(
    str(path_or_hub_id), "config.json"
  )
  return pathlib.Path(config).parent if isinstance(config, str) else None


def local_folder(path_or_hub_id: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of a model, downloading it if it is a hub's.

  Of a hub's files only configurations, safetensors and the tokenizer's are
  downloaded. They are downloaded once, into the cache that `huggingface_hub`
  keeps.

  Args:
    path_or_hub_id: a folder, or a name such as `Qwen/Qwen2.5-7B-Instruct`. A
      folder of that name is preferred.

  Raises:
    MissingInputError: it is neither a folder nor in the cache, and the hub
      cannot be reached or does not show it.
    InputError: it is a file.
  """
  if not is_hub_id(path_or_hub_id):
    path = pathlib.Path(path_or_hub_id)
    if path.is_file():
      raise InputError(
        f"A model must be a folder or a hub's model, and {path} is a file; "
        "give the path of the folder that it is in."
      )
    return path
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        str(path_or_hub_id),
        allow_patterns=list(_FILES),
        # Llama's folders hold the weights once more in Meta's own format.
        ignore_patterns=["original/*"],
      )
    )
  except errors.RepositoryNotFoundError as error:
    raise MissingInputError(
      f"A model must be a local folder or a hub's model that you may read, "
      f"and {path_or_hub_id} is neither; check the name, accept its licence "
      "on its page, and log in with `hf auth login`."
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise MissingInputError(
      f"A model must be a local folder, in the hub's cache, or within reach, "
      f"and {path_or_hub_id} is none of them; run `hf download "
      f"{path_or_hub_id}` with a network and without HF_HUB_OFFLINE, or give "
      "the path of a folder."
    ) from error
