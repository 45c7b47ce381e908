"""Import and export of Hugging Face checkpoints, without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from rapo_jax.models.config import DecoderConfig
from rapo_jax.models.decoder import Decoder

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GENERATION_CONFIG = "generation_config.json"
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"

# Hugging Face's name inside a layer -> ours. Kernels are [out, in] there and
# [in, out] here.
_LAYER_TENSORS = {
  "input_layernorm.weight": "attention_norm.scale",
  "self_attn.q_proj.weight": "attention.query.kernel",
  "self_attn.k_proj.weight": "attention.key.kernel",
  "self_attn.v_proj.weight": "attention.value.kernel",
  "self_attn.o_proj.weight": "attention.out.kernel",
  "self_attn.o_proj.bias": "attention.out.bias",
  "self_attn.q_norm.weight": "attention.query_norm.scale",
  "self_attn.k_norm.weight": "attention.key_norm.scale",
  "self_attn.q_proj.bias": "attention.query.bias",
  "self_attn.k_proj.bias": "attention.key.bias",
  "self_attn.v_proj.bias": "attention.value.bias",
  "post_attention_layernorm.weight": "feed_forward_norm.scale",
  "mlp.gate_proj.weight": "feed_forward.gate.kernel",
  "mlp.up_proj.weight": "feed_forward.up.kernel",
  "mlp.down_proj.weight": "feed_forward.down.kernel",
}


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Where one of our parameters lies in a checkpoint.

  Attributes:
    path: our attribute path.
    names: Hugging Face's name, or one a layer if `stacked`.
    shape: shape of each named tensor.
    transposed: whether their last two axes are ours swapped.
    stacked: whether ours has a leading axis of layers.
  """

  path: str
  names: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool
  stacked: bool


def from_pretrained(
  path: str | os.PathLike[str], *, dtype: Any = jnp.float32
) -> Decoder:
  """Loads a decoder from a local Hugging Face folder.

  Args:
    path: folder with `config.json` and safetensors, in one file or sharded.
    dtype: dtype to hold the parameters in, whatever the file's.

  Returns:
    The decoder.

  Raises:
    FileNotFoundError: if the folder lacks the configuration or the weights.
    ValueError: if the configuration is not supported, or tensors are missing,
      unknown or of the wrong shape; all of them are named.
  """
  folder = pathlib.Path(path)
  if not (folder / _CONFIG).is_file():
    raise FileNotFoundError(
      f"A checkpoint folder holds {_CONFIG}, and {folder} does not; give a "
      "local folder, names on a hub are not resolved."
    )
  config = dataclasses.replace(
    DecoderConfig.from_hf(json.loads((folder / _CONFIG).read_text())),
    dtype=jnp.dtype(dtype).name,
  )
  abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  tensors = _tensors(abstract)
  with _open_weights(folder) as files:
    _check_tensors(folder, files, tensors, config)

    def read(tensor: _Tensor) -> jax.Array:
      parts = [files[name].get_tensor(name) for name in tensor.names]
      if tensor.transposed:
        parts = [part.T for part in parts]
      whole = np.stack(parts) if tensor.stacked else parts[0]
      return jnp.asarray(whole, dtype=config.dtype)

    by_path = {tensor.path: read(tensor) for tensor in tensors}
  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract)
  return jax.tree.unflatten(
    treedef, [by_path[_dotted(keys)] for keys, _ in leaves]
  )


def save_pretrained(
  model: Decoder, path: str | os.PathLike[str], *, tokenizer: Any = None
) -> None:
  """Writes a folder that transformers, vLLM and `from_pretrained` load.

  Everything is written beside `path` first and renamed at the end, so that a
  failure leaves an earlier export untouched.

  Args:
    model: the decoder. Parameters keep their dtype; tied embeddings are
      written once.
    path: folder to create or to replace.
    tokenizer: a transformers tokenizer to save along, chat template included.

  Raises:
    ValueError: if the configuration has no Hugging Face counterpart.
  """
  target = pathlib.Path(path)
  hf = model.config.to_hf()
  generation: dict[str, Any] = {"_from_model_config": True}
  for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
    token_id = getattr(tokenizer, name, None)
    if token_id is not None:
      hf[name] = generation[name] = token_id
  target.parent.mkdir(parents=True, exist_ok=True)
  suffix = uuid.uuid4().hex[:8]
  temporary = target.with_name(f".{target.name}.new-{suffix}")
  retired = target.with_name(f".{target.name}.old-{suffix}")
  temporary.mkdir()
  try:
    safetensors.numpy.save_file(
      _state_dict(model), temporary / _WEIGHTS, metadata={"format": "pt"}
    )
    _write_json(temporary / _CONFIG, hf)
    _write_json(temporary / _GENERATION_CONFIG, generation)
    if tokenizer is not None:
      tokenizer.save_pretrained(temporary)
    if target.exists():
      target.rename(retired)
    temporary.rename(target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  shutil.rmtree(retired, ignore_errors=True)


def _tensors(model: Decoder) -> list[_Tensor]:
  """Lists every parameter with its counterparts in a checkpoint."""
  config = model.config
  places = {
    ours: tuple(f"model.layers.{i}.{theirs}" for i in range(config.num_layers))
    for theirs, ours in _LAYER_TENSORS.items()
  }
  tensors = []
  for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
    path = _dotted(keys)
    stacked = path.startswith("layers.")
    shape = leaf.shape[1:] if stacked else leaf.shape
    transposed = path.endswith(".kernel")
    tensors.append(
      _Tensor(
        path=path,
        names={
          "embedding": (_EMBEDDING,),
          "final_norm.scale": ("model.norm.weight",),
          "head.kernel": (_HEAD,),
        }.get(path)
        or places[path.removeprefix("layers.")],
        shape=shape[::-1] if transposed else shape,
        transposed=transposed,
        stacked=stacked,
      )
    )
  return tensors


def _dotted(keys) -> str:
  """Returns `layers.attention.query.kernel` for a leaf's key path."""
  path = jax.tree_util.keystr(keys, simple=True, separator=".")
  return path.removesuffix(".value")


def _state_dict(model: Decoder) -> dict[str, np.ndarray]:
  """Returns the parameters under Hugging Face's names, in its layout."""
  state = {}
  for tensor in _tensors(model):
    value = np.asarray(operator.attrgetter(tensor.path)(model)[...])
    parts = value if tensor.stacked else value[None]
    for name, part in zip(tensor.names, parts, strict=True):
      # A view would be written in the order of its memory.
      state[name] = np.ascontiguousarray(part.T if tensor.transposed else part)
  return state


@contextlib.contextmanager
def _open_weights(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields, for each tensor's name, the open file that holds it."""
  if (folder / _INDEX).is_file():
    weight_map = json.loads((folder / _INDEX).read_text())["weight_map"]
    shards = sorted(set(weight_map.values()))
  elif (folder / _WEIGHTS).is_file():
    shards = [_WEIGHTS]
  else:
    raise FileNotFoundError(
      f"A checkpoint folder holds {_WEIGHTS} or {_INDEX}, and {folder} does "
      "not; convert other formats to safetensors first."
    )
  with contextlib.ExitStack() as stack:
    opened = [
      stack.enter_context(
        safetensors.safe_open(str(folder / shard), framework="numpy")
      )
      for shard in shards
    ]
    yield {name: file for file in opened for name in file.keys()}  # noqa: SIM118


def _check_tensors(
  folder: pathlib.Path,
  files: Mapping[str, Any],
  tensors: list[_Tensor],
  config: DecoderConfig,
) -> None:
  """Compares names and shapes with the configuration's, all at once."""
  expected = {name: tensor.shape for tensor in tensors for name in tensor.names}
  # Some writers store the tied head once more.
  ignored = {_HEAD} if config.tie_embeddings else set()
  problems = [
    f"{name} is missing" for name in sorted(expected.keys() - files.keys())
  ]
  problems += [
    f"{name} is unknown"
    for name in sorted(files.keys() - expected.keys() - ignored)
  ]
  for name in sorted(expected.keys() & files.keys()):
    shape = tuple(files[name].get_slice(name).get_shape())
    if shape != expected[name]:
      problems.append(f"{name} has shape {shape}, not {expected[name]}")
  if problems:
    raise ValueError(
      f"The tensors in {folder} must be those of its {_CONFIG}: "
      + "; ".join(problems)
      + "."
    )


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
