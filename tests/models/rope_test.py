"""Tests of the rotary embedding's frequencies."""

import math

import numpy as np
from absl.testing import parameterized

from rapo_jax import models
from rapo_jax.models import rope
from tests.models import real_configs


class InverseFrequenciesTest(parameterized.TestCase):
  def test_default(self):
    # 100^(-0/4), 100^(-2/4)
    got, scale = rope.inverse_frequencies(models.RopeConfig(theta=100.0), 4)
    np.testing.assert_allclose(got, [1, 0.1], rtol=1e-7)
    self.assertEqual(got.dtype, np.float32)
    self.assertEqual(scale, 1.0)

  def test_linear_divides_every_frequency(self):
    config = models.RopeConfig(theta=100.0, rope_type="linear", factor=4.0)
    got, scale = rope.inverse_frequencies(config, 4)
    np.testing.assert_allclose(got, [0.25, 0.025], rtol=1e-7)
    self.assertEqual(scale, 1.0)

  def test_llama3_by_hand(self):
    # Frequencies 10^0, 10^-1, 10^-2 turn 200, 20 and 2 times in a length of
    # 400 pi, which is 1257: more than 30, between 10 and 30, less than 10.
    # Half way between, half of the frequency is divided by 8.
    config = models.RopeConfig(
      theta=1_000.0,
      rope_type="llama3",
      factor=8.0,
      original_max_position_embeddings=1_257,
      low_freq_factor=10.0,
      high_freq_factor=30.0,
    )
    got, scale = rope.inverse_frequencies(config, 6)
    np.testing.assert_allclose(
      got, [1, 0.1 * (0.5 + 0.5 / 8), 0.01 / 8], rtol=1e-3
    )
    self.assertEqual(scale, 1.0)

  def test_llama3_by_the_published_loop(self):
    scaling = real_configs.LLAMA_3_1_8B["rope_scaling"]
    length = scaling["original_max_position_embeddings"]
    expected = []
    for i in range(64):
      frequency = 500_000.0 ** (-2 * i / 128)
      wavelength = 2 * math.pi / frequency
      if wavelength < length / scaling["high_freq_factor"]:
        expected.append(frequency)
      elif wavelength > length / scaling["low_freq_factor"]:
        expected.append(frequency / scaling["factor"])
      else:
        smooth = (length / wavelength - scaling["low_freq_factor"]) / (
          scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        expected.append(
          (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        )
    config = models.DecoderConfig.from_hf(real_configs.LLAMA_3_1_8B)
    got, _ = rope.inverse_frequencies(config.rope, config.head_dim)
    np.testing.assert_allclose(got, expected, rtol=1e-6)

  @parameterized.parameters(True, False)
  def test_yarn_by_hand(self, truncate):
    # theta 10^4 and 8 entries: frequencies 1, 0.1, 0.01, 0.001. In a length
    # of 2000 pi, which is 6283, they turn 1000, 100, 10 and 1 times, so the
    # border of 500 turns lies at pair log10(2) = 0.301 and that of 2 turns at
    # log10(500) = 2.699; rounded outwards 0 and 3.
    first, last = (0, 3) if truncate else (math.log10(2), math.log10(500))
    kept = [min(max(1 - (i - first) / (last - first), 0), 1) for i in range(4)]
    plain = np.array([1, 0.1, 0.01, 0.001])
    config = models.RopeConfig(
      rope_type="yarn",
      factor=4.0,
      original_max_position_embeddings=6_283,
      beta_fast=500.0,
      beta_slow=2.0,
      truncate=truncate,
    )
    got, _ = rope.inverse_frequencies(config, 8)
    expected = [
      share * f + (1 - share) * f / 4
      for share, f in zip(kept, plain, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-4)

  @parameterized.parameters(
    # 0.1 ln 4 + 1
    ({}, 1.1386294361),
    ({"attention_factor": 0.7}, 0.7),
    # (0.2 ln 4 + 1) / (0.1 ln 4 + 1)
    ({"mscale": 2.0, "mscale_all_dim": 1.0}, 1.1217511),
    # One of the two alone counts for nothing.
    ({"mscale": 2.0}, 1.1386294361),
    ({"factor": 1.0}, 1.0),
  )
  def test_yarn_scales_cosines_and_sines(self, changes, expected):
    fields = {"factor": 4.0, "original_max_position_embeddings": 32} | changes
    config = models.RopeConfig(rope_type="yarn", **fields)
    _, scale = rope.inverse_frequencies(config, 8)
    self.assertAlmostEqual(scale, expected, places=6)
