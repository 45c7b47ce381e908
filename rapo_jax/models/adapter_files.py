"""Adapters in files of their own, in the format of PEFT."""

from __future__ import annotations

import os
import pathlib
from typing import get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rapo_jax.models.checkpoint_layout import (
  TensorLayout,
  peft_module,
  tensor_layouts,
)
from rapo_jax.models.config import LoraConfig, LoraTarget
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.export import space_noted, tensors_to_write
from rapo_jax.models.folder import replaced_folder
from rapo_jax.models.lora import add_adapters, trainable, with_trainable
from rapo_jax.models.tensor_files import (
  file_tensors,
  read_json,
  write_file,
  write_json,
)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_adapters(
  model: Decoder,
  path: str | os.PathLike[str],
  *,
  base_model: str | os.PathLike[str],
) -> None:
  """Writes the adapters alone, as PEFT and vLLM load them.

  Everything is written beside `path` first and renamed at the end, so that a
  failure leaves earlier adapters untouched.

  Args:
    model: a decoder with adapters, which keep their dtype.
    path: folder to create or to replace.
    base_model: folder or hub name of the model without them, which the
      configuration names.

  Raises:
    ValueError: the model has no adapters, or they lie on devices of other
      processes.
    OSError: it cannot be written, as when the disk is full.
  """
  lora = model.config.lora
  if lora is None:
    raise ValueError(
      "save_adapters takes a model with adapters, and this one has none: "
      "write it with save_pretrained."
    )
  target = pathlib.Path(path)
  tensors = list(tensors_to_write(model, _adapter_layouts(model)))
  with space_noted(target, tensors), replaced_folder(target) as temporary:
    write_file(temporary / ADAPTER_WEIGHTS, tensors)
    write_json(
      temporary / ADAPTER_CONFIG,
      {
        "base_model_name_or_path": os.fspath(base_model),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": [peft_module(name) for name in lora.targets],
        "task_type": "CAUSAL_LM",
      },
    )


def load_adapters(model: Decoder, path: str | os.PathLike[str]) -> Decoder:
  """Reads what `save_adapters` wrote.

  Args:
    model: the base, without adapters, on the default device.
    path: the adapters' folder.

  Returns:
    The base with the adapters, in float32.

  Raises:
    FileNotFoundError: there are no adapters.
    ValueError: the file is broken, or its tensors are not those of the
      configuration and the base; names them.
  """
  folder = pathlib.Path(path)
  if not (folder / ADAPTER_CONFIG).is_file():
    raise FileNotFoundError(
      f"An adapter folder holds {ADAPTER_CONFIG}, and {folder} does not; give "
      "a folder that save_adapters wrote."
    )
  content = read_json(folder / ADAPTER_CONFIG)
  targets = tuple(
    name
    for name in get_args(LoraTarget)
    if peft_module(name) in content["target_modules"]
  )
  lora = LoraConfig(content["r"], float(content["lora_alpha"]), targets)
  adapted = add_adapters(model, lora, rngs=nnx.Rngs(0))
  layouts = _adapter_layouts(adapted)
  stored = file_tensors(folder / ADAPTER_WEIGHTS)
  expected = {name: layout.shape for layout in layouts for name in layout.names}
  found = {name: tensor.shape for name, tensor in stored.items()}
  if found != expected:
    wrong = sorted(dict(found.items() ^ expected.items()))
    raise ValueError(
      f"The tensors of {folder / ADAPTER_WEIGHTS} must be those of its "
      f"{ADAPTER_CONFIG} for this base, and these are missing, unknown or of "
      f"another shape: {', '.join(wrong)}."
    )
  values = {
    layout.path: jnp.asarray(
      np.stack([stored[name].map().T for name in layout.names]), jnp.float32
    )
    for layout in layouts
  }
  return with_trainable(
    adapted,
    {name: v.replace(values[name]) for name, v in trainable(adapted).items()},
  )


def _adapter_layouts(model: Decoder) -> list[TensorLayout]:
  paths = trainable(model).keys()
  return [layout for layout in tensor_layouts(model) if layout.path in paths]
