"""Shape of a decoder, and its Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers

_REQUIRED = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
)
_DTYPES = ("float32", "bfloat16", "float16")

# What the fields that are read may hold. Optional ones may be null too.
_INTEGERS = (
  *_REQUIRED,
  "num_key_value_heads",
  "head_dim",
  "max_position_embeddings",
)
_NUMBERS = ("rms_norm_eps", "initializer_range", "rope_theta")
_FLAGS = (
  "attention_bias",
  "mlp_bias",
  "tie_word_embeddings",
  "use_sliding_window",
)
_OBJECTS = ("rope_scaling", "rope_parameters")

AttentionKernel = Literal["xla", "cudnn", "splash"]
AttentionImplementation = Literal["auto", "xla", "cudnn", "splash"]
"""How whole sequences attend, see `attention.attend`."""

ATTENTION_OUTPUT = "attention_output"
"""Name of attention's outputs in rematerialization policies."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""How the rotary embedding's frequencies may be scaled."""


@dataclasses.dataclass(frozen=True)
class _Family:
  """What a `model_type` fixes, and its defaults where the file is silent.

  Attributes:
    architecture: name of the causal language model in transformers.
    qk_norm: whether queries and keys are normalised.
    attention_bias: whether q, k and v have biases; None: the file's key of
      this name says so, and then the output projection has one too.
    num_kv_heads: key and value heads; None: as many as query heads.
    head_dim: width of a head; None: hidden size over query heads.
    max_position_embeddings: longest sequence trained on.
  """

  architecture: str
  qk_norm: bool = False
  attention_bias: bool | None = None
  num_kv_heads: int | None = None
  head_dim: int | None = None
  max_position_embeddings: int = 32_768


# The defaults are those of the configuration classes of transformers; what is
# the same in all three families stands in `DecoderConfig.from_hf`.
_FAMILIES = {
  "qwen2": _Family("Qwen2ForCausalLM", attention_bias=True, num_kv_heads=32),
  "qwen3": _Family(
    "Qwen3ForCausalLM", qk_norm=True, num_kv_heads=32, head_dim=128
  ),
  "llama": _Family("LlamaForCausalLM", max_position_embeddings=2_048),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
  """The rotary embedding's wavelengths, and how they are stretched.

  Attributes:
    theta: base of the wavelengths.
    rope_type: `default` leaves them; `linear` stretches all by `factor`;
      `llama3` and `yarn` stretch the long ones only.
    factor: by which wavelengths are stretched, at least 1.
    original_max_position_embeddings: longest sequence before the stretching;
      `llama3` and `yarn` need it.
    low_freq_factor: `llama3` stretches in full what turns less often than
      this over the original length.
    high_freq_factor: and leaves what turns more often than this.
    beta_fast: `yarn` leaves what turns more often than this over the original
      length.
    beta_slow: and stretches in full what turns less often than this.
    truncate: whether `yarn` rounds the border dimensions to whole ones.
    attention_factor: by which `yarn` multiplies cosines and sines; None
      derives it from `factor`, `mscale` and `mscale_all_dim`.
    mscale: weight of log(factor) in the numerator of that derivation; None
      with `mscale_all_dim` leaves both out.
    mscale_all_dim: the same in the denominator.
  """

  theta: float = 10_000.0
  rope_type: str = "default"
  factor: float = 1.0
  original_max_position_embeddings: int | None = None
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None

  def __post_init__(self):
    if self.rope_type not in ROPE_TYPES:
      raise InputError(
        f"The rotary embedding's type must be one of {', '.join(ROPE_TYPES)}, "
        f"got {self.rope_type!r}; other scalings are not implemented."
      )
    names = _ROPE_FIELDS[self.rope_type]
    for field in dataclasses.fields(self):
      if field.name in ("theta", "rope_type", *names):
        continue
      if getattr(self, field.name) != field.default:
        raise InputError(
          f"The rotary type {self.rope_type} reads "
          f"{', '.join(names) or 'theta alone'}, got {field.name}="
          f"{getattr(self, field.name)}; set rope_type, or leave it out."
        )
    check_numbers(self, "factor", at_least=1)
    check_numbers(self, "original_max_position_embeddings", at_least=1)
    check_numbers(
      self,
      "theta",
      "low_freq_factor",
      "high_freq_factor",
      "beta_fast",
      "beta_slow",
      "attention_factor",
      above=0,
    )
    check_numbers(self, "mscale", "mscale_all_dim", at_least=0)
    if (
      "original_max_position_embeddings" in names
      and not self.original_max_position_embeddings
    ):
      raise InputError(
        f"The rotary type {self.rope_type} needs "
        "original_max_position_embeddings, the longest sequence before the "
        f"stretching, got {self.original_max_position_embeddings}."
      )
    if self.high_freq_factor <= self.low_freq_factor:
      raise InputError(
        "high_freq_factor must exceed low_freq_factor, got "
        f"{self.high_freq_factor} and {self.low_freq_factor}."
      )

  def used(self) -> dict[str, Any]:
    """Returns the fields that `rope_type` reads and that are set, by name.

    Hugging Face's names, but for the type and `theta`, are these.
    """
    return {
      name: getattr(self, name)
      for name in _ROPE_FIELDS[self.rope_type]
      if getattr(self, name) is not None
    }


_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
  "default": (),
  "linear": ("factor",),
  "llama3": (
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
  ),
  "yarn": (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
  ),
}


_COMMON_ROPE_FIELDS = (
  "finetuned",  # Says how a model was made, and nothing of what it computes.
  "original_max_position_embeddings",
  "partial_rotary_factor",
  "rope_theta",
  "rope_type",
  "type",
)

LoraTarget = Literal["query", "key", "value", "out", "gate", "up", "down"]
"""Projections of a layer that may have an adapter."""


@hosts.travels
@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters beside frozen projections.

  A projection W becomes W + (alpha / rank) · A B (Hu et al., LoRA, arXiv
  2106.09685). A and B alone are trained.

  Attributes:
    rank: columns of A and rows of B.
    alpha: strength; an adapter's product counts alpha / rank times.
    targets: projections that have an adapter, in every layer.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[LoraTarget, ...] = ("query", "key", "value", "out")

  def __post_init__(self):
    check_numbers(self, "rank", at_least=1)
    check_numbers(self, "alpha", above=0)
    choices = get_args(LoraTarget)
    if (
      not self.targets
      or len(set(self.targets)) < len(self.targets)
      or not set(self.targets) <= set(choices)
    ):
      raise InputError(
        f"targets must name some of {', '.join(choices)}, none twice, got "
        f"{self.targets}."
      )

  @property
  def scale(self) -> float:
    """Factor of an adapter's product."""
    return self.alpha / self.rank


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
    rope: the rotary embedding.
    rms_norm_eps: added to the mean square in RMSNorm.
    tie_embeddings: whether the output head is the embedding, transposed.
    max_position_embeddings: longest sequence the weights were trained for;
      carried for export, not enforced.
    qkv_bias: whether the q, k and v projections have a bias.
    out_bias: whether attention's output projection has one.
    qk_norm: whether every head of queries and keys goes through RMSNorm
      before the rotary embedding.
    initializer_range: standard deviation of freshly drawn weights.
    model_type: family, in Hugging Face's spelling.
    dtype: dtype of parameters, residual stream and KV cache. Softmax, norms
      and logits are float32 whatever it is.
    attention: how whole sequences attend, see `attention.attend`. A matter of
      speed and memory, so no part of `config.json`.
    lora: adapters beside the projections; no part of `config.json` either, as
      they are merged or written apart.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope: RopeConfig = RopeConfig()
  rms_norm_eps: float = 1e-6
  tie_embeddings: bool = True
  max_position_embeddings: int = 32_768
  qkv_bias: bool = True
  out_bias: bool = False
  qk_norm: bool = False
  initializer_range: float = 0.02
  model_type: str = "qwen2"
  dtype: str = "float32"
  attention: AttentionImplementation = "auto"
  lora: LoraConfig | None = None

  def __post_init__(self):
    check_numbers(
      self,
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "max_position_embeddings",
      at_least=1,
    )
    check_numbers(self, "rms_norm_eps", "initializer_range", at_least=0)
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        "num_heads must be a multiple of num_kv_heads, got "
        f"{self.num_heads} and {self.num_kv_heads}; query heads share key "
        "and value heads in equal groups."
      )
    if self.head_dim % 2:
      raise InputError(
        f"head_dim must be even, got {self.head_dim}; the rotary embedding "
        "turns pairs of its entries."
      )
    if self.dtype not in _DTYPES:
      raise InputError(
        f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}."
      )

    choices = get_args(AttentionImplementation)
    if self.attention not in choices:
      raise InputError(
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
      InputError: for a family, rotary type, activation or attention pattern
        that this decoder does not compute. Ignoring one would load the
        weights and give other logits.
    """
    family = _family(hf.get("model_type"))
    missing = [name for name in _REQUIRED if hf.get(name) is None]
    if missing:
      raise InputError(
        f"A {hf['model_type']} configuration must have {', '.join(missing)}."
      )
    _check_types(hf)
    _check_supported(hf)
    # A field that is null is one that the file leaves out.
    hf = {name: value for name, value in hf.items() if value is not None}
    num_heads = hf["num_attention_heads"]
    bias = family.attention_bias
    max_position_embeddings = hf.get(
      "max_position_embeddings", family.max_position_embeddings
    )
    return cls(
      vocab_size=hf["vocab_size"],
      hidden_size=hf["hidden_size"],
      intermediate_size=hf["intermediate_size"],
      num_layers=hf["num_hidden_layers"],
      num_heads=num_heads,
      num_kv_heads=hf.get("num_key_value_heads", family.num_kv_heads)
      or num_heads,
      head_dim=hf.get("head_dim")
      or family.head_dim
      or hf["hidden_size"] // num_heads,
      rope=_read_rope(hf, max_position_embeddings),
      rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
      tie_embeddings=hf.get("tie_word_embeddings", False),
      max_position_embeddings=max_position_embeddings,
      qkv_bias=hf.get("attention_bias", False) if bias is None else bias,
      out_bias=bias is None and hf.get("attention_bias", False),
      qk_norm=family.qk_norm,
      initializer_range=hf.get("initializer_range", 0.02),
      model_type=hf["model_type"],
      dtype=hf.get("dtype") or hf.get("torch_dtype") or "float32",
    )

  def to_hf(self) -> dict[str, Any]:
    """Returns the content of a `config.json` that transformers 4 and 5 read.

    Raises:
      InputError: if the family cannot express the configuration.
    """
    family = _family(self.model_type)
    self._check_expressible(family)
    content = {
      "architectures": [family.architecture],
      "model_type": self.model_type,
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.intermediate_size,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      **_written_rope(self.rope),
      "rms_norm_eps": self.rms_norm_eps,
      "tie_word_embeddings": self.tie_embeddings,
      "max_position_embeddings": self.max_position_embeddings,
      "initializer_range": self.initializer_range,
      "attention_dropout": 0.0,
      "use_cache": True,
      "dtype": self.dtype,
      "torch_dtype": self.dtype,
    }
    if family.attention_bias is None:
      content["attention_bias"] = self.qkv_bias
    if self.model_type == "llama":
      content["mlp_bias"] = False
    else:
      content["use_sliding_window"] = False
    return content

  def _check_expressible(self, family: _Family) -> None:
    """Rejects what a `config.json` of this family cannot say."""
    fixed = family.attention_bias
    biases = (self.qkv_bias, self.out_bias)
    allowed = ((fixed, False),) if fixed else ((True, True), (False, False))
    if biases not in allowed:
      raise InputError(
        f"A {self.model_type} model has (qkv_bias, out_bias) in {allowed}, "
        f"and this one has qkv_bias={self.qkv_bias}, "
        f"out_bias={self.out_bias}; it cannot be exported as one."
      )
    if self.qk_norm != family.qk_norm:
      raise InputError(
        f"A {self.model_type} model has qk_norm={family.qk_norm}, and this "
        f"one has qk_norm={self.qk_norm}; it cannot be exported as one."
      )


def _family(model_type: Any) -> _Family:
  if not isinstance(model_type, str) or model_type not in _FAMILIES:
    raise InputError(
      f"model_type must be one of {', '.join(_FAMILIES)}, got "
      f"{model_type!r}; other families are not implemented."
    )
  return _FAMILIES[model_type]


def _check_types(hf: Mapping[str, Any]) -> None:
  """Rejects values that are not of their field's kind; names the field."""
  for names, kind, fits in (
    (_INTEGERS, "a positive integer", lambda v: type(v) is int and v > 0),
    (_NUMBERS, "a positive number", lambda v: _is_number(v) and v > 0),
    (_FLAGS, "true or false", lambda v: isinstance(v, bool)),
    (_OBJECTS, "an object", lambda v: isinstance(v, Mapping)),
    (("layer_types",), "a list of texts", _is_texts),
  ):
    for name in names:
      value = hf.get(name)
      if value is not None and not fits(value):
        raise InputError(
          f"{name} must be {kind}, got {value!r}; correct the configuration."
        )


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_texts(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(
    isinstance(v, str) for v in value
  )


def _check_supported(hf: Mapping[str, Any]) -> None:
  """Rejects what the file asks for and the decoder would not compute."""
  activation = hf.get("hidden_act", "silu")
  # Two names of one function.
  if activation not in ("silu", "swish"):
    raise InputError(
      f"hidden_act must be 'silu', got {activation!r}; other activations are "
      "not implemented."
    )
  if hf.get("mlp_bias"):
    raise InputError(
      "mlp_bias must be false, got true; feed-forward layers with biases are "
      "not implemented."
    )
  for name in ("quantization_config", "compression_config"):
    if hf.get(name):
      raise InputError(
        "Only plain floating-point weights are read, and the configuration "
        f"has {name}={hf[name]}; load the unquantized model."
      )
  layer_types = set(hf.get("layer_types") or ())
  if hf.get("use_sliding_window") or layer_types - {"full_attention"}:
    raise InputError(
      "Only full attention is implemented, and the configuration asks for "
      f"a sliding window (use_sliding_window="
      f"{hf.get('use_sliding_window')}, layer_types={sorted(layer_types)})."
    )


def _read_rope(
  hf: Mapping[str, Any], max_position_embeddings: int
) -> RopeConfig:
  """Merges the two spellings, with the defaults of transformers."""
  rope = {"rope_theta": hf["rope_theta"]} if "rope_theta" in hf else {}
  rope |= hf.get("rope_scaling") or {}
  rope |= hf.get("rope_parameters") or {}
  _check_rope(rope)
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  partial = rope.get(
    "partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)
  )
  if partial != 1:
    raise InputError(
      f"partial_rotary_factor must be 1, got {partial}; rotating a part of "
      "each head is not implemented."
    )
  names = _ROPE_FIELDS.get(rope_type, ())
  fields = {name: rope[name] for name in names if rope.get(name) is not None}
  if "original_max_position_embeddings" in names:
    # A key outside the rotary parameters wins over one inside.
    fields["original_max_position_embeddings"] = hf.get(
      "original_max_position_embeddings",
      fields.get("original_max_position_embeddings", max_position_embeddings),
    )
  if rope_type == "yarn" and "factor" not in fields:
    fields["factor"] = (
      max_position_embeddings / fields["original_max_position_embeddings"]
    )
  needed = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
  }.get(rope_type, ())
  missing = [name for name in needed if name not in fields]
  if missing:
    raise InputError(
      f"The rotary type {rope_type} must have {', '.join(missing)}."
    )
  return RopeConfig(
    theta=float(rope.get("rope_theta", 10_000.0)),
    rope_type=rope_type,
    **fields,
  )


def _check_rope(rope: Mapping[str, Any]) -> None:
  """Rejects rotary parameters that would be read as others, or not at all."""
  layers = sorted(n for n, v in rope.items() if isinstance(v, Mapping))
  if layers:
    raise InputError(
      "All layers must have one rotary embedding, and the configuration has "
      f"one each for {', '.join(layers)}; other patterns are not implemented."
    )
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  if not isinstance(rope_type, str):
    raise InputError(
      f"rope_type must be a text, got {rope_type!r}; correct the configuration."
    )
  read = _ROPE_FIELDS.get(rope_type, ())
  ignored = sorted(
    name
    for name, value in rope.items()
    if value is not None and name not in (*read, *_COMMON_ROPE_FIELDS)
  )
  if rope_type in _ROPE_FIELDS and ignored:
    remedy = "name the type that reads it as rope_type, or leave it out."
    if rope_type == "yarn" and ignored[0] == "attn_factor":
      # Of vLLM: it multiplies what the factor alone would give.
      remedy = (
        "write attention_factor = attn_factor * (0.1 * ln(factor) + 1) in its "
        "place where the model was trained with it, or leave it out."
      )
    raise InputError(
      f"The rotary type {rope_type} reads {', '.join(read) or 'theta alone'}, "
      f"and the configuration has {ignored[0]}={rope[ignored[0]]!r} too; "
      f"{remedy}"
    )
  for name in {*read, "rope_theta"} - {"truncate"}:
    if rope.get(name) is not None and not _is_number(rope[name]):
      raise InputError(
        f"{name} of the rotary embedding must be a number, got "
        f"{rope[name]!r}; correct the configuration."
      )


def _written_rope(rope: RopeConfig) -> dict[str, Any]:
  """Returns the rotary embedding's keys, in both spellings."""
  scaling = {"rope_type": rope.rope_type, **rope.used()}
  return {
    "rope_theta": rope.theta,
    "rope_scaling": None if rope.rope_type == "default" else scaling,
    "rope_parameters": {**scaling, "rope_theta": rope.theta},
  }
