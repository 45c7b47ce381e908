"""Adapters in files of their own, in the format of PEFT."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rapo_jax import files
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.models.checkpoint_layout import (
  ADAPTER_CONFIG,
  TensorLayout,
  module_paths,
  peft_module,
  tensor_layouts,
)
from rapo_jax.models.config import LoraConfig, LoraTarget
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.export import space_noted, tensors_to_write
from rapo_jax.models.lora import add_adapters, trainable, with_trainable
from rapo_jax.models.tensor_files import (
  file_tensors,
  name_some,
  write_file,
  write_json,
)
from rapo_jax.ranges import MAX_FLOAT, MAX_INT
from rapo_jax.text_files import read_object

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Fields of PEFT's configuration that are read here, or that do not change the
# results of a trained adapter.
_READ = ("peft_type", "r", "lora_alpha", "target_modules")
_WITHOUT_EFFECT = (
  "arrow_config",
  "auto_mapping",
  "base_model_name_or_path",
  "corda_config",
  "eva_config",
  "inference_mode",
  "loftq_config",
  "lora_dropout",
  "megatron_core",
  "peft_version",
  "qalora_group_size",  # Read with use_qalora alone.
  "revision",
  "runtime_config",
  "task_type",
)
# Values of the other fields with which PEFT computes plain LoRA. Anything else,
# in these or in fields that are not known here, is refused.
_PLAIN: tuple[Any, ...] = (None, False, "none", [], {})
_PLAIN_VALUES = {
  # The others change the base weights too.
  "init_lora_weights": (*_PLAIN, True, "gaussian", "orthogonal", "eva"),
}


def save_adapters(
  model: Decoder,
  path: str | os.PathLike[str],
  *,
  base_model: str | os.PathLike[str],
  tokenizer: Any = None,
) -> None:
  """Writes the adapters alone, as PEFT and vLLM load them.

  Everything is written beside `path` first and renamed at the end, so that a
  failure leaves earlier adapters untouched.

  Args:
    model: a decoder with adapters, which keep their dtype.
    path: folder to create or to replace.
    base_model: folder or hub name of the model without them, which the
      configuration names.
    tokenizer: a transformers tokenizer to save along, chat template included.
      Servers take it in place of the base's.

  Raises:
    InputError: the model has no adapters, or they lie on devices of other
      processes.
    OSError: it cannot be written, as when the disk is full.
  """
  lora = model.config.lora
  if lora is None:
    raise InputError(
      "save_adapters takes a model with adapters, and this one has none: "
      "write it with save_pretrained."
    )
  target = pathlib.Path(path)
  tensors = list(tensors_to_write(model, _adapter_layouts(model)))
  with space_noted(target, tensors), files.replaced_folder(target) as temporary:
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
    if tokenizer is not None:
      tokenizer.save_pretrained(temporary)


def load_adapters(model: Decoder, path: str | os.PathLike[str]) -> Decoder:
  """Reads what `save_adapters` wrote.

  Args:
    model: the base, without adapters, on the default device.
    path: the adapters' folder.

  Returns:
    The base with the adapters, in float32.

  Raises:
    MissingInputError: there are no adapters.
    InputError: the file is broken, or its tensors are not those of the
      configuration and the base. Or the configuration asks for more than plain
      LoRA. Names them.
  """
  folder = pathlib.Path(path)
  if not (folder / ADAPTER_CONFIG).is_file():
    raise MissingInputError(
      f"An adapter folder holds {ADAPTER_CONFIG}, and {folder} does not; give "
      "a folder that save_adapters wrote."
    )
  lora = _read_config(folder / ADAPTER_CONFIG, model.config.num_layers)
  adapted = add_adapters(model, lora, rngs=nnx.Rngs(0))
  layouts = _adapter_layouts(adapted)
  if not (folder / ADAPTER_WEIGHTS).is_file():
    raise MissingInputError(
      f"An adapter folder holds {ADAPTER_WEIGHTS}, and {folder} does not; "
      "convert other formats to safetensors first."
    )
  stored = file_tensors(folder / ADAPTER_WEIGHTS)
  expected = {name: layout.shape for layout in layouts for name in layout.names}
  found = {n: t.shape for n, t in stored.items() if t.readable}
  if found != expected or len(found) < len(stored):
    wrong = {*dict(found.items() ^ expected.items()), *stored} - {
      name for name in found if found[name] == expected.get(name)
    }
    raise InputError(
      f"The tensors of {folder / ADAPTER_WEIGHTS} must be those of its "
      f"{ADAPTER_CONFIG} for this base, and these are missing, unknown, of "
      f"another shape or no floats: {name_some(sorted(wrong))}."
    )
  values = {
    layout.path: jnp.asarray(
      np.stack([stored[name].map().T for name in layout.names]), jnp.float32
    )
    for layout in layouts
  }
  broken = sorted(n for n, v in values.items() if not np.isfinite(v).all())
  if broken:
    raise InputError(
      f"The numbers of {folder / ADAPTER_WEIGHTS} must be finite, and those of "
      f"{name_some(broken)} are not; copy or download it again."
    )
  return with_trainable(
    adapted,
    {name: v.replace(values[name]) for name, v in trainable(adapted).items()},
  )


def _read_config(path: pathlib.Path, num_layers: int) -> LoraConfig:
  """Reads a configuration of PEFT's that asks for plain LoRA.

  Raises:
    InputError: it asks for something else; names the field.
  """
  content = read_object(path)
  if content.get("peft_type") != "LORA":
    raise InputError(
      f"Only LoRA adapters are read (peft_type 'LORA'), and {path} has "
      f"peft_type={content.get('peft_type')!r}; merge others into their base "
      "with PEFT first."
    )
  for name in sorted(content.keys() - {*_READ, *_WITHOUT_EFFECT}):
    value, plain = content[name], _PLAIN_VALUES.get(name, _PLAIN)
    # 0 is False by value, and may be the number of a layer.
    if type(value) is int or value not in plain:
      raise InputError(
        "Only plain LoRA is computed, the same rank and strength in every "
        f"layer, and {path} has {name}={value!r}; merge these adapters "
        "into their base with PEFT first."
      )
  rank: Any = content.get("r")
  alpha: Any = content.get("lora_alpha")
  if (
    type(rank) is not int
    or type(alpha) not in (int, float)
    or not (1 <= rank <= MAX_INT and 0 < alpha <= MAX_FLOAT)
  ):
    raise InputError(
      f"{path} must have an integer r of at least 1 and a finite lora_alpha "
      f"above 0, got r={rank!r:.30} and lora_alpha={alpha!r:.30}; copy or "
      "download it again."
    )
  return LoraConfig(
    rank, float(alpha), _read_targets(path, content, num_layers)
  )


def _read_targets(
  path: pathlib.Path, content: Mapping[str, Any], num_layers: int
) -> tuple[LoraTarget, ...]:
  """The projections that a configuration names, by PEFT's rules.

  A text is a regular expression over a module's whole name, or `all-linear`. A
  list holds names, or ends of names behind a point.
  """
  named: Any = content.get("target_modules")
  if named == "all-linear":
    return get_args(LoraTarget)
  if isinstance(named, list) and all(isinstance(n, str) for n in named):
    pattern = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, named))})"
  else:
    pattern = named
  try:
    ends = re.compile(pattern)
  except (TypeError, re.error, OverflowError, RecursionError) as error:
    raise InputError(
      f"{path} must name the projections under target_modules, in a list or "
      f"by a regular expression, got {named!r}; copy or download it again."
    ) from error
  targets = []
  for target in get_args(LoraTarget):
    modules = module_paths(target, num_layers)
    matched = [bool(ends.fullmatch(module)) for module in modules]
    if any(matched) and not all(matched):
      raise InputError(
        "A projection must have an adapter in every layer or in none, and "
        f"target_modules of {path} names {modules[matched.index(True)]} but "
        f"not {modules[matched.index(False)]}; merge these adapters into their "
        "base with PEFT first."
      )
    if all(matched):
      targets.append(target)
  if not targets:
    raise InputError(
      f"target_modules of {path} must name projections of this base, got "
      f"{named!r:.60}; give the adapters' own base."
    )
  return tuple(targets)


def _adapter_layouts(model: Decoder) -> list[TensorLayout]:
  paths = trainable(model).keys()
  return [layout for layout in tensor_layouts(model) if layout.path in paths]
