"""Shape of a decoder, and its Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM"}
_REQUIRED = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
)
_DTYPES = ("float32", "bfloat16", "float16")

AttentionKernel = Literal["xla", "cudnn", "splash"]
AttentionImplementation = Literal["auto", "xla", "cudnn", "splash"]
"""How whole sequences attend, see `attention.attend`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """Everything that fixes the arrays and the arithmetic of a decoder.

  Hashable, so that a `Decoder` that carries it stays a valid argument of
  `jax.jit`.

  Attributes:
    vocab_size: rows of the embedding, at least the tokenizer's size.
    hidden_size: width of the residual stream.
    intermediate_size: width of the gated feed-forward layer.
    num_layers: number of decoder layers.
    num_heads: number of query heads.
    num_kv_heads: number of key and value heads; divides `num_heads`.
    head_dim: width of a head, even (rotary embedding turns pairs).
    rope_theta: base of the rotary embedding's wavelengths.
    rms_norm_eps: added to the mean square in RMSNorm.
    tie_embeddings: whether the output head is the embedding, transposed.
    max_position_embeddings: longest sequence the weights were trained for;
      carried for export, not enforced.
    qkv_bias: whether the q, k and v projections have a bias.
    initializer_range: standard deviation of freshly drawn weights.
    model_type: family, in Hugging Face's spelling.
    dtype: dtype of parameters, residual stream and KV cache. Softmax, norms
      and logits are float32 whatever it is.
    attention: how whole sequences attend, see `attention.attend`. A matter of
      speed and memory, so no part of `config.json`.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float = 10_000.0
  rms_norm_eps: float = 1e-6
  tie_embeddings: bool = True
  max_position_embeddings: int = 32_768
  qkv_bias: bool = True
  initializer_range: float = 0.02
  model_type: str = "qwen2"
  dtype: str = "float32"
  attention: AttentionImplementation = "auto"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        "num_heads must be a multiple of num_kv_heads, got "
        f"{self.num_heads} and {self.num_kv_heads}; query heads share key "
        "and value heads in equal groups."
      )
    if self.head_dim % 2:
      raise ValueError(
        f"head_dim must be even, got {self.head_dim}; the rotary embedding "
        "turns pairs of its entries."
      )
    if self.dtype not in _DTYPES:
      raise ValueError(
        f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}."
      )

    choices = get_args(AttentionImplementation)
    if self.attention not in choices:
      raise ValueError(
        f"attention must be one of {', '.join(choices)}, got "
        f"{self.attention!r}."
      )

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads the content of a `config.json`.

    Understands the spellings of transformers 4 (`rope_theta`,
    `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).

    Args:
      hf: the parsed file.

    Returns:
      The configuration, with the file's own dtype.

    Raises:
      ValueError: for a family, rotary type, activation or attention pattern
        that this decoder does not compute. Ignoring one would load the
        weights and give other logits.
    """
    model_type = hf.get("model_type")
    if model_type not in _ARCHITECTURES:
      raise ValueError(
        f"model_type must be one of {', '.join(_ARCHITECTURES)}, got "
        f"{model_type!r}; other families are not implemented."
      )
    missing = [name for name in _REQUIRED if name not in hf]
    if missing:
      raise ValueError(
        f"A {model_type} configuration must have {', '.join(missing)}."
      )
    _check_supported(hf)
    rope = _rope_parameters(hf)
    num_heads = hf["num_attention_heads"]
    return cls(
      vocab_size=hf["vocab_size"],
      hidden_size=hf["hidden_size"],
      intermediate_size=hf["intermediate_size"],
      num_layers=hf["num_hidden_layers"],
      num_heads=num_heads,
      num_kv_heads=hf.get("num_key_value_heads") or num_heads,
      head_dim=hf.get("head_dim") or hf["hidden_size"] // num_heads,
      rope_theta=float(rope.get("rope_theta", 10_000.0)),
      rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
      tie_embeddings=hf.get("tie_word_embeddings", False),
      max_position_embeddings=hf.get("max_position_embeddings", 32_768),
      initializer_range=hf.get("initializer_range", 0.02),
      model_type=model_type,
      dtype=hf.get("dtype") or hf.get("torch_dtype") or "float32",
    )

  def to_hf(self) -> dict[str, Any]:
    """Returns the content of a `config.json` that transformers 4 and 5 read.

    Raises:
      ValueError: if the family cannot express the configuration.
    """
    if self.model_type not in _ARCHITECTURES:
      raise ValueError(
        f"model_type must be one of {', '.join(_ARCHITECTURES)} for export, "
        f"got {self.model_type!r}."
      )
    if not self.qkv_bias:
      raise ValueError(
        f"A {self.model_type} model has biases on q, k and v, and this one "
        "has qkv_bias=False; it cannot be exported as one."
      )
    return {
      "architectures": [_ARCHITECTURES[self.model_type]],
      "model_type": self.model_type,
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.intermediate_size,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      "rope_theta": self.rope_theta,
      "rope_parameters": {
        "rope_type": "default",
        "rope_theta": self.rope_theta,
      },
      "rms_norm_eps": self.rms_norm_eps,
      "tie_word_embeddings": self.tie_embeddings,
      "max_position_embeddings": self.max_position_embeddings,
      "initializer_range": self.initializer_range,
      "use_sliding_window": False,
      "attention_dropout": 0.0,
      "use_cache": True,
      "dtype": self.dtype,
      "torch_dtype": self.dtype,
    }


def _check_supported(hf: Mapping[str, Any]) -> None:
  """Rejects what the file asks for and the decoder would not compute."""
  activation = hf.get("hidden_act", "silu")
  if activation != "silu":
    raise ValueError(f"hidden_act must be 'silu', got {activation!r}.")
  layer_types = set(hf.get("layer_types") or ())
  if hf.get("use_sliding_window") or layer_types - {"full_attention"}:
    raise ValueError(
      "Only full attention is implemented, and the configuration asks for "
      f"a sliding window (use_sliding_window="
      f"{hf.get('use_sliding_window')}, layer_types={sorted(layer_types)})."
    )


def _rope_parameters(hf: Mapping[str, Any]) -> dict[str, Any]:
  """Merges the two spellings, and rejects scaled rotary embeddings."""
  rope = {"rope_theta": hf["rope_theta"]} if "rope_theta" in hf else {}
  rope |= hf.get("rope_scaling") or {}
  rope |= hf.get("rope_parameters") or {}
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  if rope_type != "default":
    raise ValueError(
      f"The rotary embedding's type must be 'default', got {rope_type!r}; "
      "scaled embeddings are not implemented."
    )
  return rope
