"""Small GGUF files, as llama.cpp's converter writes them."""

import pathlib
import tempfile

import gguf
import numpy as np
import safetensors.numpy

from rapo_jax import models
from tests.tiny_decoder import tiny_decoder

TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = ("t h", "th e", "1 2")
# Printable bytes are themselves, the others the characters from U+0100 on.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_ALPHABET = (*map(chr, _PRINTABLE), *(chr(256 + i) for i in range(68)))
TOKENS = (*_SPECIAL, *_ALPHABET, "th", "the", "12", "<call>", "[PAD]", "[PAD2]")
TYPES = (3, 3, 3, *(1,) * 256, 1, 1, 1, 4, 5, 5)
NUM_UNUSED = 2
# A head of 8 rows in the file: the pairs that are turned lie side by side.
ROW_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)

FAMILIES = {
  "llama": {"qkv_bias": False, "tie_embeddings": False},
  "qwen2": {},
  "qwen3": {"qkv_bias": False, "qk_norm": True, "tie_embeddings": False},
}


def decoder(family: str = "llama", **changes) -> models.Decoder:
  """A model of a family that a GGUF file can hold, biases drawn too."""
  return tiny_decoder(
    **{
      "model_type": family,
      "vocab_size": len(TOKENS),
      "hidden_size": 32,
      "initializer_range": 0.02,  # GGUF does not tell it.
      "rms_norm_eps": 1e-5,
      "max_position_embeddings": 64,
      **FAMILIES[family],
      **changes,
    }
  )


def tensors(model: models.Decoder) -> dict[str, np.ndarray]:
  """The model's tensors under GGUF's names and in its order of rows."""
  config = model.config
  with tempfile.TemporaryDirectory() as folder:
    models.save_pretrained(model, folder)
    theirs = safetensors.numpy.load_file(f"{folder}/model.safetensors")
  arch = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
  names = gguf.get_tensor_name_map(arch, config.num_layers)
  found = {}
  for name, values in theirs.items():
    ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
    turned = ours.endswith(("attn_q.weight", "attn_k.weight"))
    if config.model_type == "llama" and turned:
      heads = values.reshape(-1, 8, values.shape[-1])
      values = heads[:, list(ROW_ORDER)].reshape(values.shape)
    found[ours] = values
  return found


def metadata(model: models.Decoder) -> dict:
  """What the file says beside its tensors; None leaves a field out."""
  config, family = model.config, model.config.model_type
  return {
    f"{family}.block_count": config.num_layers,
    f"{family}.context_length": config.max_position_embeddings,
    f"{family}.embedding_length": config.hidden_size,
    f"{family}.feed_forward_length": config.intermediate_size,
    f"{family}.attention.head_count": config.num_heads,
    f"{family}.attention.head_count_kv": config.num_kv_heads,
    f"{family}.attention.key_length": config.head_dim,
    f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    f"{family}.rope.freq_base": config.rope.theta,
    "general.name": "Tiny",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm" if family == "llama" else "qwen2",
    "tokenizer.ggml.tokens": list(TOKENS),
    "tokenizer.ggml.token_type": list(TYPES),
    "tokenizer.ggml.merges": list(_MERGES),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
  }


def write(
  path: pathlib.Path,
  model: models.Decoder,
  *,
  fields: dict | None = None,
  changed: dict | None = None,
  kinds: dict | None = None,
) -> pathlib.Path:
  """Writes a file.

  Args:
    path: where to.
    model: what it holds.
    fields: metadata in place of `metadata`'s.
    changed: tensors in place of the model's, by GGUF's name.
    kinds: quantisations of tensors that are not stored in float32.
  """
  said = metadata(model) | (fields or {})
  family = said.pop("general.architecture", model.config.model_type)
  writer = gguf.GGUFWriter(path, family)
  for name, value in said.items():
    add = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
      list: writer.add_array,
    }.get(type(value))
    if add is not None:
      add(name, value)
  for name, values in (tensors(model) | (changed or {})).items():
    if values is None:
      continue
    kind = (kinds or {}).get(name)
    if kind is not None:
      writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
