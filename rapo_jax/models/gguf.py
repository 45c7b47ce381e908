"""GGUF files of llama.cpp as folders in Hugging Face's format.

A GGUF file holds a whole model: sizes, tensors under other names, in blocks of
few bits, and the tokenizer with its chat template. The library `gguf` reads the
file and decodes the blocks. What is written is what `from_pretrained` and
transformers load: float weights, so a run can train them.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

import jax
import ml_dtypes
import numpy as np
import tokenizers
from flax import nnx
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models

from rapo_jax import extras
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.models.checkpoint_layout import (
  CONFIG,
  EMBEDDING,
  GENERATION_CONFIG,
  HEAD,
  tensor_layouts,
)
from rapo_jax.models.config import DecoderConfig
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.export import MAX_SHARD_BYTES
from rapo_jax.models.tensor_files import (
  TensorToWrite,
  name_some,
  write_json,
  write_weights,
)

_T = TypeVar("_T")

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Values of `general.architecture` that are read."""
PRE_TOKENIZERS = ("qwen2", "smollm")
"""Values of `tokenizer.ggml.pre` that are read."""

# Hugging Face's name of a module -> that of GGUF.
_IN_LAYER = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}
_ON_TOP = {
  EMBEDDING: "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  HEAD: "output.weight",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")

_SAME_ROW = 0.3
"""Two quantisations of one row differ by less, as a part of its norm.

Five bits differ by 0.03, two bits by 0.2, two rows by more than 1.
"""
_COMPARED_ROWS = 1024

# What `tokenizer.ggml.token_type` says of a token.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

# Qwen2's own, from its tokenizer.json.
_QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class GgufModel:
  """A model in a GGUF file; its tensors are decoded when they are written.

  Attributes:
    path: the file.
    config: of the decoder, in float32.
    tokenizer: the transformers tokenizer, chat template included. Each token
      has the id that it has in the file.
    name: what the file calls the model; empty if it does not.
    licence: what the file says of the weights' licence; None if nothing.
    tensors: as the library reads them, by Hugging Face's name; their data is
      mapped from the file.
    quantisations: how many of the file's tensors are stored in which type.
  """

  path: pathlib.Path
  config: DecoderConfig
  tokenizer: Any
  name: str
  licence: str | None
  tensors: Mapping[str, Any] = dataclasses.field(repr=False)
  quantisations: Mapping[str, int]


def check_installed() -> None:
  """Refuses to read GGUF files without the library.

  Raises:
    InputError: says how to install it.
  """
  if importlib.util.find_spec("gguf") is None:
    raise InputError(
      "GGUF files are read by the package gguf, which is not installed: "
      f"{extras.install_command('gguf')}, or give a folder in Hugging Face's "
      "format."
    )


def read_gguf(path: str | os.PathLike[str]) -> GgufModel:
  """Reads all of a GGUF file but the values of its tensors.

  Args:
    path: the file. Its architecture is one of `ARCHITECTURES`, its tokenizer
      byte-level BPE with one of `PRE_TOKENIZERS`.

  Returns:
    The model, ready for `write_folder`.

  Raises:
    MissingInputError: there is no such file.
    InputError: the library is not installed; the file is broken; or it holds a
      tensor, a quantisation, an architecture, a rotary scaling or a tokenizer
      that is not read. The message names it.
  """
  check_installed()
  file = pathlib.Path(path)
  reader = _open(file)
  stored = {tensor.name: tensor for tensor in reader.tensors}
  try:
    said = {name: _contents(reader.fields[name]) for name in reader.fields}
    _check_whole(said)
    config = _config(said, stored)
    sources = _sources(config, stored)
    _check_quantisations(stored)
    tokenizer = _tokenizer(said)
  except InputError as error:
    error.add_note(f"It is read from {file}.")
    raise
  kinds = [tensor.tensor_type.name for tensor in reader.tensors]
  return GgufModel(
    path=file,
    config=config,
    tokenizer=tokenizer,
    name=str(said.get("general.name", "")),
    licence=said.get("general.license"),
    tensors={name: stored[source] for name, source in sources.items()},
    quantisations=collections.Counter(kinds),
  )


def _check_whole(said: Mapping[str, Any]) -> None:
  """Refuses one of the parts that a large model was split into."""
  parts = said.get("split.count", 1)
  if isinstance(parts, int) and parts > 1:
    raise InputError(
      f"a GGUF file must hold a whole model, and this is one of {parts} parts: "
      "join them with `llama-gguf-split --merge <first part> <whole file>`."
    )


def write_folder(
  model: GgufModel,
  folder: pathlib.Path,
  *,
  dtype: str = "float32",
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes configuration, weights and tokenizer, one tensor in memory.

  Args:
    model: as `read_gguf` returns it.
    folder: an empty one.
    dtype: of the weights, "float32" or "bfloat16".
    max_shard_bytes: most bytes of weights in a file.
  """
  write_weights(folder, _tensors_to_write(model, dtype), max_shard_bytes)
  config = dataclasses.replace(model.config, dtype=dtype).to_hf()
  generation: dict[str, Any] = {"_from_model_config": True}
  for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
    token_id = getattr(model.tokenizer, name)
    if token_id is not None:
      config[name] = generation[name] = token_id
  write_json(folder / CONFIG, config)
  write_json(folder / GENERATION_CONFIG, generation)
  model.tokenizer.save_pretrained(folder)


def _open(file: pathlib.Path) -> Any:
  import gguf

  if not file.is_file():
    raise MissingInputError(
      f"A GGUF model is one file, and {file} is not there: check the path."
    )
  try:
    return gguf.GGUFReader(file)
  except (IndexError, KeyError, OverflowError, ValueError) as error:
    # The library finds out by failing; a cut file has too few bytes.
    raise InputError(
      f"{file} must be a complete GGUF file of tensor types that the package "
      f"gguf knows, and it cannot be read ({error}): copy or download it "
      "again, or update the package."
    ) from error


def _contents(field: Any) -> Any:
  """The value of an entry of the metadata."""
  try:
    return field.contents()
  except UnicodeDecodeError as error:
    raise InputError(
      f"{field.name} must be text in UTF-8, and is not ({error}): copy or "
      "download the file again, or take another."
    ) from error


def _config(
  said: Mapping[str, Any], stored: Mapping[str, Any]
) -> DecoderConfig:
  """The configuration that the file's metadata describes."""
  family = said.get("general.architecture")
  if family not in ARCHITECTURES:
    raise InputError(
      f"general.architecture must be one of {', '.join(ARCHITECTURES)}, got "
      f"{family!r}; other architectures are not read."
    )

  def number(name: str, *kinds: type, default: Any = None) -> Any:
    value = said.get(f"{family}.{name}", default)
    if type(value) not in kinds or not value > 0:
      raise InputError(
        f"{family}.{name} must be one positive number, got {value!r}; layers "
        "of different sizes, and files without their sizes, are not read."
      )
    return value

  _check_no_rotary_scaling(said, f"{family}.rope")
  heads = number("attention.head_count", int)
  hidden = number("embedding_length", int)
  head_dim = number("attention.key_length", int, default=hidden // heads)
  for name in ("rope.dimension_count", "attention.value_length"):
    size = number(name, int, default=head_dim)
    if size != head_dim:
      raise InputError(
        f"{family}.{name} must be the width of a head, {head_dim}, got {size}; "
        "other shapes are not implemented."
      )
  embedding = stored.get(_ON_TOP[EMBEDDING])
  if embedding is None:
    raise InputError(
      f"The file must hold {_ON_TOP[EMBEDDING]}, and does not; take another."
    )
  return DecoderConfig.from_hf(
    {
      "model_type": family,
      "vocab_size": int(embedding.shape[-1]),
      "hidden_size": hidden,
      "intermediate_size": number("feed_forward_length", int),
      "num_hidden_layers": number("block_count", int),
      "num_attention_heads": heads,
      "num_key_value_heads": number(
        "attention.head_count_kv", int, default=heads
      ),
      "head_dim": head_dim,
      "rope_theta": _decimal(
        number("rope.freq_base", float, int, default=10_000.0)
      ),
      "rms_norm_eps": _decimal(
        number("attention.layer_norm_rms_epsilon", float)
      ),
      "tie_word_embeddings": _tied(stored),
      "max_position_embeddings": number("context_length", int),
    }
  )


def _check_no_rotary_scaling(said: Mapping[str, Any], prefix: str) -> None:
  """Refuses stretched rotary embeddings.

  A factor without a type is a linear one, as llama.cpp takes it; older files
  call it `scale_linear`.
  """
  names: tuple[str, ...] = ("scaling.type",)
  harmless: tuple[Any, ...] = ("none",)
  if said.get(f"{prefix}.scaling.type") is None:
    names, harmless = ("scaling.factor", "scale_linear"), (None, 0, 1)
  for name in names:
    value = said.get(f"{prefix}.{name}")
    if value not in harmless:
      raise InputError(
        f"{prefix}.{name} must not be set, and is {value!r}: stretched rotary "
        "embeddings are not read from GGUF. Take the model's folder in Hugging "
        "Face's format."
      )


def _decimal(value: float) -> float:
  """The number that was rounded to float32: 1e-5, not 9.99999974e-06."""
  return float(str(np.float32(value)))


def _tied(stored: Mapping[str, Any]) -> bool:
  """Whether the head is the embedding, perhaps in another quantisation."""
  if _ON_TOP[HEAD] not in stored:
    return True
  embedding, head = stored[_ON_TOP[EMBEDDING]], stored[_ON_TOP[HEAD]]
  if tuple(embedding.shape) != tuple(head.shape):
    return False
  _check_quantisations({_ON_TOP[EMBEDDING]: embedding, _ON_TOP[HEAD]: head})
  exact = embedding.tensor_type == head.tensor_type
  for first in range(0, len(embedding.data), _COMPARED_ROWS):
    rows = slice(first, first + _COMPARED_ROWS)
    if exact:
      if not np.array_equal(embedding.data[rows], head.data[rows]):
        return False
      continue
    ours, theirs = _values(embedding, rows), _values(head, rows)
    differences = np.linalg.norm(ours - theirs, axis=-1)
    if np.any(differences > _SAME_ROW * np.linalg.norm(theirs, axis=-1)):
      return False
  return True


def _sources(
  config: DecoderConfig, stored: Mapping[str, Any]
) -> dict[str, str]:
  """GGUF's name for each tensor of a checkpoint; all are there, no others."""
  abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  expected = {
    name: layout.shape
    for layout in tensor_layouts(abstract)
    for name in layout.names
  }
  sources = {name: _gguf_name(name) for name in expected}
  if config.tie_embeddings and _ON_TOP[HEAD] in stored:
    pair = (_ON_TOP[EMBEDDING], _ON_TOP[HEAD])
    sources[EMBEDDING] = max(pair, key=lambda name: _bits(stored[name]))
  used = {*sources.values(), _ON_TOP[EMBEDDING]}
  if config.tie_embeddings:
    used.add(_ON_TOP[HEAD])
  problems = [
    f"{name} is missing" for name in sources.values() if name not in stored
  ]
  problems += [f"{name} is unknown" for name in stored if name not in used]
  for name, source in sources.items():
    if source in stored:
      # The first axis of GGUF is the one that lies together in memory.
      shape = tuple(int(size) for size in stored[source].shape[::-1])
      if shape != expected[name]:
        problems.append(f"{source} has shape {shape}, not {expected[name]}")
  if problems:
    raise InputError(
      f"The tensors must be those of a {config.model_type} model of "
      f"{config.num_layers} layers: {name_some(problems, '; ')}. Other models "
      "are not read from GGUF; take a folder in Hugging Face's format."
    )
  return sources


def _gguf_name(name: str) -> str:
  found = _LAYER_NAME.fullmatch(name)
  if found is None:
    return _ON_TOP[name]
  layer, module, kind = found.groups()
  return f"blk.{layer}.{_IN_LAYER[module]}.{kind}"


def _bits(tensor: Any) -> float:
  return tensor.n_bytes / tensor.n_elements


def _check_quantisations(stored: Mapping[str, Any]) -> None:
  """Decodes a row of each type, before anything is written."""
  import gguf

  seen = set()
  for name, tensor in stored.items():
    kind = tensor.tensor_type
    if kind in seen:
      continue
    seen.add(kind)
    try:
      gguf.dequantize(tensor.data[:1], kind)
    except NotImplementedError as error:
      raise InputError(
        f"{name} is stored as {kind.name}, which the package gguf does not "
        "decode: take the model in another quantisation, such as Q8_0."
      ) from error


def _values(tensor: Any, rows: slice = slice(None)) -> np.ndarray:
  """Decodes rows of a tensor to float32."""
  import gguf

  return gguf.dequantize(tensor.data[rows], tensor.tensor_type)


def _tensors_to_write(model: GgufModel, dtype: str) -> Iterator[TensorToWrite]:
  written = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  for name, tensor in model.tensors.items():
    yield TensorToWrite(
      name,
      written,
      tuple(int(size) for size in tensor.shape[::-1]),
      functools.partial(
        _fetch, tensor, _num_turned(name, model.config), written
      ),
    )


def _num_turned(name: str, config: DecoderConfig) -> int:
  """Heads whose rows llama.cpp has in another order; 0 for none.

  It turns neighbours, (0, 1), (2, 3), …; Hugging Face turns entries that lie
  half a head apart. The converter of llama.cpp reorders Llama's rows for that.
  The other families are turned as in Hugging Face.
  """
  if config.model_type != "llama":
    return 0
  if name.endswith(".q_proj.weight"):
    return config.num_heads
  return config.num_kv_heads if name.endswith(".k_proj.weight") else 0


def _fetch(tensor: Any, num_turned: int, dtype: np.dtype) -> np.ndarray:
  values = _values(tensor).astype(dtype, copy=False)
  if not num_turned:
    return values
  rows, columns = values.shape
  half = rows // num_turned // 2
  turned = values.reshape(num_turned, half, 2, columns)
  return turned.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(said: Mapping[str, Any]) -> Any:
  """The byte-level tokenizer; every token keeps its id."""
  model = said.get("tokenizer.ggml.model")
  if model != "gpt2":
    raise InputError(
      f"tokenizer.ggml.model must be gpt2, byte-level BPE, got {model!r}; "
      "other tokenizers are not read from GGUF."
    )
  names = ("tokens", "token_type", "merges")
  tokens, types, merges = (said.get(f"tokenizer.ggml.{n}") for n in names)
  if (
    not (_is_list(tokens, str) and _is_list(types, int))
    or not _is_list(merges, str)
    or not 0 < len(tokens) == len(types)
  ):
    raise InputError(
      "The file must hold a vocabulary: tokenizer.ggml.tokens, a token_type "
      "for each, and merges. It does not; take another."
    )
  # The rest fills the embedding up, and no text becomes it.
  vocabulary = {
    token: token_id
    for token_id, token in enumerate(tokens)
    if types[token_id] != _UNUSED
  }
  if set(types) - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED}:
    raise InputError(
      "tokenizer.ggml.token_type must be normal, unknown, control, user "
      f"defined or unused (1 to 5), got {sorted(set(types))}; other tokens are "
      "not read."
    )
  pairs = []
  for merge in merges:
    one, _, other = merge.partition(" ")
    if not {one, other, one + other} <= vocabulary.keys():
      raise InputError(
        "tokenizer.ggml.merges must make a token of two tokens each, got "
        f"{merge!r}; take another file."
      )
    pairs.append((one, other))
  backend = tokenizers.Tokenizer(
    tokenizer_models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False)
  )
  _set_splitting(backend, said.get("tokenizer.ggml.pre"))
  for token_id, token in enumerate(tokens):
    if types[token_id] in (_UNKNOWN, _CONTROL, _USER_DEFINED):
      special = types[token_id] != _USER_DEFINED
      backend.add_tokens(
        [tokenizers.AddedToken(token, special=special, normalized=False)]
      )
  return _wrapped(backend, tokens, said)


def _is_list(value: Any, kind: type[_T]) -> TypeGuard[list[_T]]:
  return isinstance(value, list) and all(type(v) is kind for v in value)


def _set_splitting(backend: tokenizers.Tokenizer, pre: str | None) -> None:
  """How a text is cut before its pieces are merged, as the model's authors."""
  if pre not in PRE_TOKENIZERS:
    raise InputError(
      f"tokenizer.ggml.pre must be one of {', '.join(PRE_TOKENIZERS)}, got "
      f"{pre!r}: texts would be cut in another way than in training. Take a "
      "folder in Hugging Face's format."
    )
  backend.decoder = decoders.ByteLevel()
  if pre == "smollm":
    backend.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
      ]
    )
    return
  backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_QWEN2_SPLIT), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _wrapped(
  backend: tokenizers.Tokenizer, tokens: list[str], said: Mapping[str, Any]
) -> Any:
  """The tokenizer of transformers, with the file's special tokens."""
  import transformers

  if said.get("tokenizer.ggml.add_bos_token"):
    raise InputError(
      "tokenizer.ggml.add_bos_token must be false, and is true: tokenizers "
      "that put a token before each text are not read from GGUF."
    )
  special: dict[str, str] = {}
  for theirs, ours in (
    ("bos", "bos_token"),
    ("eos", "eos_token"),
    ("padding", "pad_token"),
    ("unknown", "unk_token"),
  ):
    token_id = said.get(f"tokenizer.ggml.{theirs}_token_id")
    if token_id is None:
      continue
    known = type(token_id) is int and 0 <= token_id < len(tokens)
    token = tokens[token_id] if known else None
    if token is None or backend.token_to_id(token) != token_id:
      raise InputError(
        f"tokenizer.ggml.{theirs}_token_id must be the id of a token of the "
        f"file, got {token_id!r}, for {len(tokens)} tokens; take another file."
      )
    special[ours] = token
  if "eos_token" not in special:
    raise InputError(
      "tokenizer.ggml.eos_token_id must name the token that ends a turn, and "
      "is not there: a policy would never stop. Take another file."
    )
  wrapped = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    model_max_length=said[f"{said['general.architecture']}.context_length"],
    clean_up_tokenization_spaces=False,
    **special,
  )
  wrapped.chat_template = said.get("tokenizer.chat_template")
  _check_ids(wrapped, tokens)
  return wrapped


def _check_ids(tokenizer: Any, tokens: list[str]) -> None:
  """Special tokens that get other ids break the template in silence."""
  for token, token_id in tokenizer.get_added_vocab().items():
    if token_id >= len(tokens) or tokens[token_id] != token:
      raise InputError(
        f"Every token must keep its id, and {token!r} has got {token_id}; the "
        "file names it twice. Take another file."
      )
    ids = tokenizer.encode(token, add_special_tokens=False)
    if ids != [token_id]:
      raise InputError(
        f"A special token must be encoded as one id, and {token!r} becomes "
        f"{ids}, not [{token_id}]; take another file."
      )
