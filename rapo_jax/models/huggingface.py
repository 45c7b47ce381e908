"""Import of Hugging Face checkpoints, without torch."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.models import hub, sharding
from rapo_jax.models.checkpoint_layout import (
  ADAPTER_CONFIG,
  CONFIG,
  EMBEDDING,
  GENERATION_CONFIG,
  HEAD,
  TensorLayout,
  tensor_layouts,
)
from rapo_jax.models.config import DecoderConfig
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.tensor_files import (
  StoredTensor,
  name_some,
  stored_tensors,
)
from rapo_jax.text_files import read_object

_BLOCK_BYTES = 2**21
"""What is transposed at once; it should stay in the processor's cache."""
_MAX_READERS = 8
"""Most threads that fill a parameter, a layer each."""
_ALIGNMENT = 64
"""XLA on a CPU takes a host buffer over, uncopied, at multiples of this."""

_FINGERPRINT_BYTES = 2**14
"""Of each tensor that a fingerprint is taken of."""

# What older versions stored of the rotary embedding. It follows from the
# configuration, and transformers passes it over too.
_BUFFERS = re.compile(
  r"(?:.*\.)?rotary_emb\.(?:inv_freq|original_inv_freq|cos_cached|sin_cached)"
)

_Slices = tuple[slice, ...]


def from_pretrained(
  path_or_hub_id: str | os.PathLike[str],
  *,
  dtype: Any = jnp.float32,
  mesh: Mesh | None = None,
  rules: sharding.Rules | None = None,
) -> Decoder:
  """Loads a decoder from a folder in Hugging Face's format.

  Each device is given its own slice of every parameter, read from the files
  one after the other. Beyond the parameters themselves, host memory holds one
  tensor of the files at most.

  Args:
    path_or_hub_id: folder with `config.json` and safetensors, in one file or
      several; or a hub's name for one.
    dtype: dtype to hold the parameters in, whatever the file's.
    mesh: devices to lay the parameters on, as `sharding.make_mesh` makes it;
      None: the default device.
    rules: how they lie on the mesh, `TRAIN_RULES` if None.

  Returns:
    The decoder.

  Raises:
    MissingInputError: if the configuration or weights are not there, or the
      name is not a model's that can be reached.
    InputError: if the configuration is not supported; if a file is broken; if
      the folder holds two models; or if the mesh does not divide a dimension.
      Also if tensors are missing, unknown or of the wrong shape; it names the
      first of them.
  """
  folder = hub.local_folder(path_or_hub_id)
  config = dataclasses.replace(read_config(folder), dtype=jnp.dtype(dtype).name)
  abstract = _abstract(config)
  leaves, treedef = jax.tree.flatten(abstract)
  places: list[Sharding | None] = [None] * len(leaves)
  if mesh is not None:
    places = jax.tree.leaves(
      sharding.shardings(abstract, mesh, rules or sharding.TRAIN_RULES)
    )
  layouts = tensor_layouts(abstract)
  stored = _model_tensors(folder, config, layouts)
  return jax.tree.unflatten(
    treedef,
    [
      _load(layout, stored, leaf, place)
      for layout, leaf, place in zip(layouts, leaves, places, strict=True)
    ],
  )


def check_pretrained(folder: str | os.PathLike[str]) -> None:
  """Checks all that `from_pretrained` does, without loading the weights.

  Args:
    folder: with `config.json` and safetensors.

  Raises:
    MissingInputError, InputError: as `from_pretrained` says.
  """
  path = pathlib.Path(folder)
  config = read_config(path)
  _model_tensors(path, config, tensor_layouts(_abstract(config)))


def _abstract(config: DecoderConfig) -> Decoder:
  """A decoder that takes no memory."""
  return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))


def fingerprint(folder: str | os.PathLike[str]) -> str:
  """Sixteen hex digits that change when a model's folder holds another model.

  Of the configuration, and of each tensor's name, dtype, shape and first
  values. So it is cheap whatever the size, and does not depend on how tensors
  are spread over files.

  Args:
    folder: with `config.json` and safetensors.

  Raises:
    MissingInputError: if the configuration or weights are not there.
    InputError: if a file is broken.
  """
  path = pathlib.Path(folder)
  config = json.dumps(read_object(path / CONFIG), sort_keys=True)
  digest = hashlib.sha256(config.encode())
  for name, tensor in sorted(stored_tensors(path).items()):
    digest.update(f"{name} {tensor.dtype_name} {tensor.shape}".encode())
    with tensor.path.open("rb") as file:
      file.seek(tensor.offset)
      digest.update(file.read(min(tensor.num_bytes, _FINGERPRINT_BYTES)))
  return digest.hexdigest()[:16]


def read_config(folder: pathlib.Path) -> DecoderConfig:
  """Reads the configuration of a local checkpoint.

  Raises:
    MissingInputError: the folder has no `config.json`.
    InputError: it is not JSON, or not supported.
  """
  if not (folder / CONFIG).is_file():
    raise MissingInputError(
      f"A checkpoint folder holds {CONFIG}, and {folder} does not; give such "
      "a folder, or a hub's name for one."
    )
  try:
    return DecoderConfig.from_hf(read_object(folder / CONFIG))
  except ValueError as error:
    error.add_note(f"It is read from {folder / CONFIG}.")
    raise


def end_token_ids(folder: str | os.PathLike[str]) -> tuple[int, ...]:
  """Tokens that end what a model writes, by its own files.

  Args:
    folder: with `config.json`, `generation_config.json`, both or neither.

  Returns:
    The `eos_token_id` of both files, each one id or several; sorted.

  Raises:
    InputError: a file is broken, or names something that is no id.
  """
  ids: set[int] = set()
  for name in (CONFIG, GENERATION_CONFIG):
    path = pathlib.Path(folder) / name
    said = read_object(path).get("eos_token_id") if path.is_file() else None
    listed = said if isinstance(said, list) else [said]
    if said is not None and not all(type(i) is int and i >= 0 for i in listed):
      raise InputError(
        "eos_token_id must be the id of a token or a list of such ids, and in "
        f"{path} it is {said!r}; correct it."
      )
    ids |= set(listed) - {None}
  return tuple(sorted(ids))


def _model_tensors(
  folder: pathlib.Path, config: DecoderConfig, layouts: list[TensorLayout]
) -> dict[str, StoredTensor]:
  """The tensors of a folder that are the model's, each under one name.

  Raises:
    MissingInputError, InputError: as `from_pretrained` says.
  """
  if (folder / ADAPTER_CONFIG).is_file():
    raise InputError(
      f"A model folder must hold no adapters, and {folder} holds "
      f"{ADAPTER_CONFIG}, with which transformers computes another model; move "
      "the adapters into a folder of their own, or merge them."
    )
  stored = {
    name: tensor
    for name, tensor in stored_tensors(folder).items()
    if not _BUFFERS.fullmatch(name)
  }
  if config.tie_embeddings and HEAD in stored:
    # Some writers store the tied head once more, or it alone.
    head = stored.pop(HEAD)
    embedding = stored.setdefault(EMBEDDING, head)
    if embedding.readable and not _equal(head, embedding):
      raise InputError(
        f"{CONFIG} says tie_word_embeddings, so that {HEAD} must be "
        f"{EMBEDDING}, and in {folder} they differ: {head.dtype_name} "
        f"{head.shape} against {embedding.dtype_name} {embedding.shape}. "
        f"Delete {HEAD} from the file, or set tie_word_embeddings to false "
        "to compute with both."
      )
  _check_tensors(folder, stored, layouts)
  return stored


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
  """Whether two matrices hold the same, whatever their floats' dtypes.

  A head in a dtype that is not read differs: none can tell what it holds.
  """
  if one == other:
    return True
  if not one.readable or one.shape != other.shape or len(one.shape) != 2:
    return False
  ours, theirs = one.map(), other.map()
  rows = max(1, _BLOCK_BYTES // (4 * max(1, one.shape[1])))
  return all(
    np.array_equal(
      ours[start : start + rows].astype(np.float32),
      theirs[start : start + rows].astype(np.float32),
      equal_nan=True,
    )
    for start in range(0, one.shape[0], rows)
  )


def _check_tensors(
  folder: pathlib.Path,
  stored: Mapping[str, StoredTensor],
  layouts: list[TensorLayout],
) -> None:
  """Compares names and shapes with the configuration's, all at once."""
  expected = {name: layout.shape for layout in layouts for name in layout.names}
  problems = [
    f"{name} is missing" for name in sorted(expected.keys() - stored.keys())
  ]
  problems += [
    f"{name} is unknown" for name in sorted(stored.keys() - expected.keys())
  ]
  for name in sorted(expected.keys() & stored.keys()):
    tensor = stored[name]
    if tensor.shape != expected[name]:
      problems.append(f"{name} has shape {tensor.shape}, not {expected[name]}")
    if not tensor.readable:
      problems.append(f"{name} has dtype {tensor.dtype_name}, not a float's")
  if problems:
    raise InputError(
      f"The tensors in {folder} must be those of its {CONFIG}: "
      + name_some(problems, "; ")
      + f".{_prefix_hint(stored, expected)}"
    )


def _prefix_hint(
  stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> str:
  """Says so if only a prefix of all names is wrong, as wrappers leave one."""
  for name in stored:
    for wanted in expected:
      if name.endswith(f".{wanted}"):
        prefix = name.removesuffix(wanted)
        return f" Names begin with {prefix!r}: save the model without it."
  return ""


def _load(
  layout: TensorLayout,
  stored: Mapping[str, StoredTensor],
  leaf: jax.ShapeDtypeStruct,
  place: Sharding | None,
) -> jax.Array:
  """Reads one parameter, slice by slice, onto the devices."""
  if place is None:
    whole = tuple(slice(0, size) for size in leaf.shape)
    return _put(layout, stored, whole, leaf.dtype, None)
  shards: dict[tuple, jax.Array] = {}
  arrays = []
  for device, index in place.addressable_devices_indices_map(
    leaf.shape
  ).items():
    assert index is not None  # It never is for arrays.
    slices = tuple(
      slice(*part.indices(size)[:2])
      for part, size in zip(index, leaf.shape, strict=True)
    )
    key = tuple((part.start, part.stop) for part in slices)
    # A shard that several devices hold is read once and copied.
    shards[key] = (
      jax.device_put(shards[key], device)
      if key in shards
      else _put(layout, stored, slices, leaf.dtype, device)
    )
    arrays.append(shards[key])
  return jax.make_array_from_single_device_arrays(leaf.shape, place, arrays)


def _put(
  layout: TensorLayout,
  stored: Mapping[str, StoredTensor],
  slices: _Slices,
  dtype: np.dtype,
  device: jax.Device | None,
) -> jax.Array:
  """Reads a slice of a parameter onto one device, the default one if None."""
  views = _views(layout, stored, slices)
  if (device or jax.devices()[0]).platform != "cpu":
    return _put_by_layer(views, layout.stacked, dtype, device)
  # Here a device's memory is the host's: what is filled becomes the array.
  shape = tuple(part.stop - part.start for part in slices)
  buffer = _aligned_empty(shape, dtype)
  rows = buffer if layout.stacked else buffer[None]
  readers = min(_MAX_READERS, os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(readers) as pool:
    list(pool.map(_copy, rows, views))
  return jax.device_put(buffer, device)


def _put_by_layer(
  views: Iterator[np.ndarray],
  stacked: bool,
  dtype: np.dtype,
  device: jax.Device | None,
) -> jax.Array:
  """Stacks layers on the device, so that the host holds one at a time."""
  layers = []
  for view in views:
    layer = jax.device_put(view, device).astype(dtype)
    layers.append(jax.block_until_ready(layer))
  return jnp.stack(layers) if stacked else layers[0]


def _views(
  layout: TensorLayout, stored: Mapping[str, StoredTensor], slices: _Slices
) -> Iterator[np.ndarray]:
  """Maps a slice of each tensor that a parameter is made of, in our order."""
  names = layout.names
  if layout.stacked:
    names, slices = names[slices[0]], slices[1:]
  for name in names:
    tensor = stored[name].map()
    yield (tensor.T if layout.transposed else tensor)[slices]


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  num_bytes = math.prod(shape) * dtype.itemsize
  raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _copy(to: np.ndarray, view: np.ndarray) -> None:
  """Copies a view, transposed or not, of another dtype or not."""
  if view.ndim == 1 or view.flags.c_contiguous:
    to[...] = view
    return
  # XLA transposes in tiles, which is several times faster than NumPy.
  host = jax.local_devices(backend="cpu")[0]
  rows = max(1, _BLOCK_BYTES // (view.shape[1] * view.itemsize))
  for start in range(0, view.shape[0], rows):
    block = np.s_[start : start + rows]
    to[block] = np.asarray(jax.device_put(view[block], host))
