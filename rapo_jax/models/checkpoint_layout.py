"""Which of our parameters is which tensor of a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses

import jax

from rapo_jax.models.config import LoraTarget
from rapo_jax.models.decoder import Decoder

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
MARKS = {CONFIG: "model_type", ADAPTER_CONFIG: "peft_type"}
"""Files that make a folder a model's or an adapter's, and a key in each."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Hugging Face's name inside a layer -> ours. Kernels are [out, in] there and
# [in, out] here.
_LAYER_TENSORS = {
  "input_layernorm.weight": "attention_norm.scale",
  "self_attn.q_proj.weight": "attention.query.kernel",
  "self_attn.k_proj.weight": "attention.key.kernel",
  "self_attn.v_proj.weight": "attention.value.kernel",
  "self_attn.o_proj.weight": "attention.out.kernel",
  "self_attn.q_proj.bias": "attention.query.bias",
  "self_attn.k_proj.bias": "attention.key.bias",
  "self_attn.v_proj.bias": "attention.value.bias",
  "self_attn.o_proj.bias": "attention.out.bias",
  "self_attn.q_norm.weight": "attention.query_norm.scale",
  "self_attn.k_norm.weight": "attention.key_norm.scale",
  "post_attention_layernorm.weight": "feed_forward_norm.scale",
  "mlp.gate_proj.weight": "feed_forward.gate.kernel",
  "mlp.up_proj.weight": "feed_forward.up.kernel",
  "mlp.down_proj.weight": "feed_forward.down.kernel",
}
# An adapter is named after the projection's tensor, as PEFT does it.
_PEFT_PREFIX = "base_model.model."
_LAYER_ADAPTERS = {
  f"{theirs.removesuffix('weight')}lora_{letter.upper()}.weight": (
    f"{ours.removesuffix('kernel')}lora_{letter}"
  )
  for theirs, ours in _LAYER_TENSORS.items()
  if ours.endswith(".kernel")
  for letter in "ab"
}
_TOP_TENSORS = {
  "embedding": EMBEDDING,
  "final_norm.scale": "model.norm.weight",
  "head.kernel": HEAD,
}


@dataclasses.dataclass(frozen=True)
class TensorLayout:
  """Where one of our parameters lies in a checkpoint.

  Attributes:
    path: our attribute path.
    names: Hugging Face's name, or one a layer if `stacked`.
    shape: shape of each named tensor.
    transposed: whether their two axes are ours swapped.
    stacked: whether ours has a leading axis of layers.
  """

  path: str
  names: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool
  stacked: bool


def peft_module(target: LoraTarget) -> str:
  """PEFT's name of a projection."""
  return module_paths(target, 1)[0].split(".")[-1]


def module_paths(target: LoraTarget, num_layers: int) -> list[str]:
  """Hugging Face's names of a projection's module, one a layer.

  Args:
    target: the projection.
    num_layers: of the model.

  Raises:
    KeyError: no layer has this projection.
  """
  for theirs, ours in _LAYER_TENSORS.items():
    if ours.endswith(f".{target}.kernel"):
      module = theirs.removesuffix(".weight")
      return [f"model.layers.{i}.{module}" for i in range(num_layers)]
  raise KeyError(target)


def tensor_layouts(model: Decoder) -> list[TensorLayout]:
  """Lists every parameter, in the order of the model's leaves.

  Adapters have the names that PEFT gives them, in a file of their own.

  Args:
    model: a decoder, concrete or abstract (`jax.eval_shape`).
  """
  num_layers = model.config.num_layers
  in_layers = {
    ours: tuple(f"model.layers.{i}.{theirs}" for i in range(num_layers))
    for theirs, ours in _LAYER_TENSORS.items()
  } | {
    ours: tuple(
      f"{_PEFT_PREFIX}model.layers.{i}.{theirs}" for i in range(num_layers)
    )
    for theirs, ours in _LAYER_ADAPTERS.items()
  }
  layouts = []
  for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator=".")
    path = path.removesuffix(".value")
    stacked = path.startswith("layers.")
    transposed = path.endswith((".kernel", ".lora_a", ".lora_b"))
    shape = leaf.shape[1:] if stacked else leaf.shape
    layouts.append(
      TensorLayout(
        path=path,
        names=in_layers[path.removeprefix("layers.")]
        if stacked
        else (_TOP_TENSORS[path],),
        shape=shape[::-1] if transposed else shape,
        transposed=transposed,
        stacked=stacked,
      )
    )
  return layouts
