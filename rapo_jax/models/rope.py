"""Frequencies of the rotary embedding, stretched for longer sequences or not.

The rules are those of transformers' `modeling_rope_utils`. So weights trained
with one of them give the same logits here.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from rapo_jax.models.config import RopeConfig


def inverse_frequencies(
  rope: RopeConfig, head_dim: int
) -> tuple[Float[np.ndarray, "half"], float]:
  """Returns what positions are multiplied by, and what their cosines are.

    angle[i] = position * frequency[i],  frequency[i] = theta^(-2i / head_dim)

  before the stretching that `rope.rope_type` asks for.

  Args:
    rope: the rotary embedding.
    head_dim: width of a head.

  Returns:
    Radians a position, float32, one for each pair of a head's entries; and
    the factor of cosines and sines, 1 but for `yarn`.
  """
  plain = rope.theta ** -(np.arange(0, head_dim, 2) / head_dim)
  stretched = plain / rope.factor
  if rope.rope_type == "linear":
    return stretched.astype(np.float32), 1.0
  if rope.rope_type == "llama3":
    share = _llama3_share(rope, plain)
  elif rope.rope_type == "yarn":
    share = _yarn_share(rope, head_dim)
  else:
    return plain.astype(np.float32), 1.0
  mixed = share * plain + (1 - share) * stretched
  return mixed.astype(np.float32), _attention_factor(rope)


def _llama3_share(
  rope: RopeConfig, plain: Float[np.ndarray, "half"]
) -> Float[np.ndarray, "half"]:
  """Share of the plain frequency, by turns over the original length.

  A frequency is left alone from `high_freq_factor` turns on. It is stretched in
  full up to `low_freq_factor`, with a line between (Llama 3.1).
  """
  assert rope.original_max_position_embeddings is not None
  turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
  low, high = rope.low_freq_factor, rope.high_freq_factor
  return np.clip((turns - low) / (high - low), 0, 1)


def _yarn_share(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, "half"]:
  """Share of the plain frequency, by the index of the pair.

  The line runs between the pairs that make `beta_fast` and `beta_slow` turns
  over the original length (YaRN, arXiv:2309.00071, section 3.2).
  """
  length = rope.original_max_position_embeddings
  assert length is not None

  def pair(turns: float) -> float:
    # Solves length * theta^(-2 i / head_dim) = 2 pi turns for i.
    wavelength_ratio = math.log(length / (turns * 2 * math.pi))
    return head_dim * wavelength_ratio / (2 * math.log(rope.theta))

  first, last = pair(rope.beta_fast), pair(rope.beta_slow)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  # Past the last pair by a factor of two, as transformers has it.
  first, last = max(first, 0), min(last, head_dim - 1)
  # The same width where the two coincide as in transformers.
  width = (last - first) or 0.001
  index = np.arange(head_dim // 2)
  return 1 - np.clip((index - first) / width, 0, 1)


def _attention_factor(rope: RopeConfig) -> float:
  """Factor of cosines and sines, which sharpens attention under `yarn`."""
  if rope.rope_type != "yarn":
    return 1.0
  if rope.attention_factor is not None:
    return rope.attention_factor

  def scale(weight: float) -> float:
    return 0.1 * weight * math.log(rope.factor) + 1.0

  if rope.mscale and rope.mscale_all_dim:
    return scale(rope.mscale) / scale(rope.mscale_all_dim)
  return scale(1.0)
