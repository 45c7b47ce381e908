"""Export of decoders in Hugging Face's format, without torch."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import operator
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rapo_jax import files, hosts
from rapo_jax.errors import InputError
from rapo_jax.models import hub, sharding
from rapo_jax.models.checkpoint_layout import (
  CONFIG,
  GENERATION_CONFIG,
  TensorLayout,
  tensor_layouts,
)
from rapo_jax.models.config import DecoderConfig
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.huggingface import end_token_ids, read_config
from rapo_jax.models.tensor_files import (
  TensorToWrite,
  write_json,
  write_weights,
)
from rapo_jax.text_files import read_object

MAX_SHARD_BYTES = 5_000_000_000
"""Size of a weight file from which on another one is begun."""
_TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)


def gather(model: Decoder) -> Decoder:
  """A model whose parameters can be written by this process.

  Args:
    model: the decoder. One on devices of several processes is copied to the
      memory of the host that leads, one parameter at a time.
  """
  leaves, treedef = jax.tree.flatten(model)
  if all(leaf.is_fully_addressable for leaf in leaves):
    return model
  return jax.tree.unflatten(treedef, _gathered(model))


@hosts.led
def _gathered(model: Decoder) -> list[np.ndarray]:
  """Whole parameters; none of them in processes that do not write."""
  whole = map(sharding.gathered, jax.tree.leaves(model))
  if jax.process_index():
    collections.deque(whole, maxlen=0)
    return []
  return list(whole)


def save_pretrained(
  model: Decoder,
  path: str | os.PathLike[str],
  *,
  tokenizer: Any = None,
  source: str | os.PathLike[str] | None = None,
  end_ids: Collection[int] = (),
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes a folder that transformers, vLLM and `from_pretrained` load.

  Everything is written beside `path` first and renamed at the end, so that a
  failure leaves an earlier export untouched. Sharded parameters are gathered
  one tensor of the files at a time.

  Args:
    model: the decoder. Parameters keep their dtype; tied embeddings are
      written once.
    path: folder to create or to replace.
    tokenizer: a transformers tokenizer to save along, chat template included.
    source: the model that this one was trained from, a folder or a hub's
      name. What it has and a `Decoder` does not is carried over: other keys
      of its configuration, its generation configuration and, unless
      `tokenizer` is given, its tokenizer and chat template.
    end_ids: tokens that end a turn of the model. The generation configuration
      names them, those of `source` and that of the tokenizer, so that
      generation stops at each.
    max_shard_bytes: most bytes of weights in a file; above it there are
      several and an index. A larger tensor has a file of its own.

  Raises:
    InputError: if the model has adapters, or if parameters lie on devices of
      other processes (see `gather`). Or if the configuration has no Hugging
      Face counterpart or is not that of `source`.
    OSError: if it cannot be written, as when the disk is full.
  """
  if model.config.lora is not None:
    raise InputError(
      "save_pretrained writes plain weights, and this model has LoRA adapters "
      f"of rank {model.config.lora.rank}: merge them with merge_adapters, or "
      "write them alone with save_adapters."
    )
  target = pathlib.Path(path)
  origin = None if source is None else hub.local_folder(source)
  config, generation = _configurations(model.config, tokenizer, origin, end_ids)
  tensors = list(tensors_to_write(model, tensor_layouts(model)))
  with space_noted(target, tensors), files.replaced_folder(target) as temporary:
    write_weights(temporary, tensors, max_shard_bytes)
    write_json(temporary / CONFIG, config)
    write_json(temporary / GENERATION_CONFIG, generation)
    if tokenizer is not None:
      tokenizer.save_pretrained(temporary)
    elif origin is not None:
      copy_tokenizer(origin, temporary)


def copy_tokenizer(
  source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> None:
  """Copies the files of a tokenizer, its chat template among them.

  Args:
    source: the model that has it, a folder or a hub's name.
    target: a folder that is there.
  """
  for path in _tokenizer_files(source):
    shutil.copyfile(path, pathlib.Path(target) / path.name)


def tokenizer_digest(source: str | os.PathLike[str]) -> str:
  """SHA-256 of what `copy_tokenizer` copies, names and bytes.

  Args:
    source: the model that has it, a folder or a hub's name.
  """
  return files.digest(_tokenizer_files(source))


def _tokenizer_files(source: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The files of a tokenizer that a model's folder has."""
  origin = hub.local_folder(source)
  paths = (origin / name for name in _TOKENIZER_FILES)
  return [path for path in paths if path.is_file()]


@contextlib.contextmanager
def space_noted(
  target: pathlib.Path, tensors: Sequence[TensorToWrite]
) -> Iterator[None]:
  """Tells what a full disk would have to hold."""
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      needed = sum(tensor.num_bytes for tensor in tensors)
      error.add_note(
        f"{target} needs {needed:,} bytes and a little more beside an earlier "
        "export, which is untouched; free some space, or give another path."
      )
    raise


def _configurations(
  config: DecoderConfig,
  tokenizer: Any,
  origin: pathlib.Path | None,
  end_ids: Collection[int],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the content of the two configuration files."""
  content = config.to_hf()
  generation: dict[str, Any] = {"_from_model_config": True}
  ends = set(end_ids)
  if tokenizer is not None and tokenizer.eos_token_id is not None:
    ends.add(tokenizer.eos_token_id)
  if origin is not None:
    # Fields that say nothing of what the weights compute may differ.
    theirs = dataclasses.replace(
      read_config(origin),
      dtype=config.dtype,
      attention=config.attention,
      initializer_range=config.initializer_range,
    )
    different = [
      f"{field.name} {getattr(config, field.name)} and "
      f"{getattr(theirs, field.name)}"
      for field in dataclasses.fields(config)
      if getattr(config, field.name) != getattr(theirs, field.name)
    ]
    if different:
      raise InputError(
        f"source must be what the model was trained from, and {origin} "
        f"differs from it in {'; '.join(different)}."
      )
    content = read_object(origin / CONFIG) | content
    if (origin / GENERATION_CONFIG).is_file():
      generation = read_object(origin / GENERATION_CONFIG)
    ends |= set(end_token_ids(origin))
  if ends:
    # One id alone is written as such, which every reader knows.
    generation["eos_token_id"] = sorted(ends) if len(ends) > 1 else min(ends)
  for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
    token_id = getattr(tokenizer, name, None)
    if token_id is not None:
      for filled in (content, generation):
        # A source's list of end tokens says more than the tokenizer's one.
        if filled.get(name) is None:
          filled[name] = token_id
  return content, generation


def tensors_to_write(
  model: Decoder, layouts: Sequence[TensorLayout]
) -> Iterator[TensorToWrite]:
  """Lists tensors under Hugging Face's names: by layer, then the rest.

  Args:
    model: the decoder.
    layouts: of the parameters to write.

  Raises:
    InputError: if parameters lie on devices of other processes.
  """
  depth = model.config.num_layers
  for layer in range(depth):
    for layout in layouts:
      if layout.stacked:
        yield _tensor_to_write(model, layout, layer)
  for layout in layouts:
    if not layout.stacked:
      yield _tensor_to_write(model, layout, 0)


def _tensor_to_write(
  model: Decoder, layout: TensorLayout, layer: int
) -> TensorToWrite:
  array = operator.attrgetter(layout.path)(model)[...]
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    raise InputError(
      f"Parameters must lie on this process's devices to be written, and "
      f"{layout.path} does not: take `gather` of the model, or export from a "
      "checkpoint."
    )
  return TensorToWrite(
    layout.names[layer],
    np.dtype(array.dtype),
    layout.shape,
    functools.partial(_fetch, array, layout, layer),
  )


def _fetch(array: jax.Array, layout: TensorLayout, layer: int) -> np.ndarray:
  if layout.stacked:
    array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
  return np.asarray(array).T if layout.transposed else np.asarray(array)
