"""BERT in Flax, from Hugging Face folders.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", NAACL 2019; without its pooler and its heads.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rapo_jax.errors import InputError
from rapo_jax.ranges import check_multiple, check_numbers
from rapo_jax.text_files import read_object

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_PREFIX = "bert."
"""Of all names, where the weights were saved with a head on top."""
_NOT_READ = ("embeddings.position_ids", "pooler.", "cls.", "classifier.")
"""Beginnings of names of what the last hidden states do not depend on."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Shape of a BERT encoder, with the names of Hugging Face's config.json."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int
  type_vocab_size: int
  layer_norm_eps: float

  def __post_init__(self) -> None:
    names = [field.name for field in dataclasses.fields(self)]
    check_numbers(self, *names[:-1], at_least=1)
    check_numbers(self, "layer_norm_eps", at_least=0)
    check_multiple(
      self, "hidden_size", self.num_attention_heads, "num_attention_heads"
    )

  @classmethod
  def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
    """Reads a Hugging Face config.

    Args:
      config: the content of config.json.

    Returns:
      The fields that this encoder needs.

    Raises:
      InputError: if the model is not a BERT with exact GELU and absolute
        positions, which is all that is implemented here.
    """
    required = {
      "model_type": "bert",
      "hidden_act": "gelu",
      "position_embedding_type": "absolute",
    }
    for name, value in required.items():
      if config.get(name, value) != value:
        raise InputError(
          f"The sentence encoder needs {name}={value!r} in {CONFIG_FILE}, got"
          f" {config[name]!r}. Use a BERT model such as all-MiniLM-L6-v2,"
          " e5-base-v2 or bge-base-en-v1.5."
        )
    names = [field.name for field in dataclasses.fields(cls)]
    missing = [name for name in names if name not in config]
    if missing:
      raise InputError(
        f"The sentence encoder needs {', '.join(missing)} in {CONFIG_FILE}: "
        "take the file that was published with the weights."
      )
    return cls(**{name: config[name] for name in names})


class BertLayer(nnx.Module):
  """One post-norm transformer block."""

  def __init__(self, config: BertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
    size, inner_size = config.hidden_size, config.intermediate_size
    linear = functools.partial(
      nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs
    )
    # Means and variances are float32's in any case.
    norm = functools.partial(
      nnx.LayerNorm, size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
    )
    self.num_heads = config.num_attention_heads
    self.query = linear(size, size)
    self.key = linear(size, size)
    self.value = linear(size, size)
    self.attention_output = linear(size, size)
    self.attention_norm = norm()
    self.intermediate = linear(size, inner_size)
    self.output = linear(inner_size, size)
    self.output_norm = norm()

  def __call__(
    self, hidden: Float[Array, "B T D"], where: Bool[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    heads = (*hidden.shape[:2], self.num_heads, -1)
    attended = jax.nn.dot_product_attention(
      self.query(hidden).reshape(heads),
      self.key(hidden).reshape(heads),
      self.value(hidden).reshape(heads),
      mask=where[:, None, None, :],
    ).reshape(hidden.shape)
    hidden = self.attention_norm(hidden + self.attention_output(attended))
    inner = jax.nn.gelu(self.intermediate(hidden), approximate=False)
    return self.output_norm(hidden + self.output(inner))


class BertEncoder(nnx.Module):
  """BERT without its pooler; all tokens are of segment 0.

  Args:
    config: its shape.
    dtype: of its weights and activations, but for those of its norms.
    rngs: of its weights.
  """

  def __init__(
    self,
    config: BertConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    embed = functools.partial(
      nnx.Embed,
      features=config.hidden_size,
      dtype=dtype,
      param_dtype=dtype,
      rngs=rngs,
    )
    self.word_embeddings = embed(config.vocab_size)
    self.position_embeddings = embed(config.max_position_embeddings)
    self.token_type_embeddings = embed(config.type_vocab_size)
    self.embedding_norm = nnx.LayerNorm(
      config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
    )
    self.layers = nnx.List(
      [
        BertLayer(config, dtype=dtype, rngs=rngs)
        for _ in range(config.num_hidden_layers)
      ]
    )

  def __call__(
    self, tokens: Int[Array, "B T"], where: Bool[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    """Returns the last hidden states; `where` marks the real tokens."""
    positions = jnp.arange(tokens.shape[1])
    hidden = self.embedding_norm(
      self.word_embeddings(tokens)
      + self.position_embeddings(positions)
      + self.token_type_embeddings(jnp.zeros_like(positions))
    )
    for layer in self.layers:
      hidden = _apply(layer, hidden, where)
    return hidden


@jax.jit
def _apply(
  layer: BertLayer, hidden: Float[Array, "B T D"], where: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
  """One layer: a function of its own, which is traced once for all of them."""
  return layer(hidden, where)


def load_bert(
  path: pathlib.Path, *, dtype: DTypeLike = jnp.float32
) -> BertEncoder:
  """Builds a BERT encoder from a Hugging Face folder.

  Args:
    path: folder with config.json and model.safetensors.
    dtype: of the weights, whatever the file has, and of the computation.

  Returns:
    The encoder.

  Raises:
    InputError: if a weight is missing, unknown, not finite or of another shape
      than the config says. Or the file is broken.
  """
  config = BertConfig.from_hf(read_object(path / CONFIG_FILE))
  weights = _read_weights(path / WEIGHTS_FILE)
  abstract = nnx.eval_shape(
    lambda: BertEncoder(config, dtype=dtype, rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(abstract)

  def read(key_path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name, transposed = _hf_name([str(k.key) for k in key_path[:-1]])
    if name not in weights:
      raise InputError(
        f"{path / WEIGHTS_FILE} must have the weight {name!r}, and does not: "
        f"copy it and {CONFIG_FILE} again."
      )
    stored = weights.pop(name)
    value = stored.T if transposed else stored
    if value.shape != leaf.shape:
      raise InputError(
        f"{name!r} in {path / WEIGHTS_FILE} has shape {value.shape}, but"
        f" {CONFIG_FILE} says {leaf.shape}. The two are not of one model."
      )
    if not np.isfinite(value.astype(np.float32)).all():
      raise InputError(
        f"{name!r} in {path / WEIGHTS_FILE} must be finite, and holds NaN or "
        "infinity: copy or download it again."
      )
    return jnp.asarray(value, leaf.dtype)

  state = jax.tree_util.tree_map_with_path(read, state)
  if weights:
    raise InputError(
      f"The weights in {path / WEIGHTS_FILE} must be those of its "
      f"{CONFIG_FILE}, and {', '.join(sorted(weights)[:5])} are unknown: the "
      "model has more layers, adapters or another architecture."
    )
  return nnx.merge(graph, state)


def _read_weights(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The float weights of the encoder itself, without the prefix."""
  try:
    stored = safetensors.numpy.load_file(file)
  except (safetensors.SafetensorError, KeyError) as error:
    raise InputError(
      f"{file} must be a complete safetensors file of floats, and cannot be "
      f"read as one ({error!r}): copy or download it again."
    ) from error
  weights: dict[str, np.ndarray] = {}
  for full_name, value in stored.items():
    name = full_name.removeprefix(_PREFIX)
    if name.startswith(_NOT_READ):
      continue
    if name in weights:
      raise InputError(
        f"{file} must hold each weight once, and has {name!r} with and without "
        f"{_PREFIX!r} before it: delete one of the two sets."
      )
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise InputError(
        f"{name!r} in {file} must be of floats, and is {value.dtype}: take the "
        "weights that are not quantized."
      )
    weights[name] = value
  return weights


def _hf_name(path: Sequence[str]) -> tuple[str, bool]:
  """Returns a weight's Hugging Face name, and if it is stored transposed."""
  modules = {
    "embedding_norm": "LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
  }
  leaves = {"embedding": "weight", "scale": "weight", "kernel": "weight"}
  *prefix, module, leaf = path
  start = f"encoder.layer.{prefix[1]}" if prefix else "embeddings"
  name = f"{start}.{modules.get(module, module)}.{leaves.get(leaf, leaf)}"
  return name, leaf == "kernel"
