"""Tests of rules, refusals, and of loading onto eight fake devices."""

import json
import pathlib
import tempfile
import types

import jax
from absl.testing import parameterized
from flax import nnx
from jax.sharding import PartitionSpec as P

from rapo_jax import models
from rapo_jax.models import sharding
from tests import fake_devices
from tests.models import real_configs

ROOT = pathlib.Path(__file__).resolve().parents[2]

# All that eight devices can be made into divides these.
SIZES = {
  "vocab_size": 96,
  "num_attention_heads": 16,
  "num_key_value_heads": 8,
  "head_dim": 4,
}


def abstract_model(**changes):
  config = models.DecoderConfig.from_hf(
    real_configs.shrunk(real_configs.QWEN3_14B, **SIZES, **changes)
  )
  return jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))


def run_on_eight_devices(hf):
  """Writes a random model and has the other process load it."""
  config = models.DecoderConfig.from_hf(hf)
  model = models.Decoder(config, rngs=nnx.Rngs(0))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model"
    models.save_pretrained(model, path)
    output = fake_devices.run_python(
      "-m", "tests.models.on_eight_devices", str(path)
    )
  return json.loads(output)


class LogicalAxesTest(parameterized.TestCase):
  def test_every_axis_of_every_parameter_has_a_name(self):
    model = abstract_model(attention_bias=True)
    axes = sharding.logical_axes(model)
    attention = axes.layers.attention
    self.assertEqual(
      attention.query.kernel.get_value(), ("layers", "embed", "heads")
    )
    self.assertEqual(attention.query.bias.get_value(), ("layers", "heads"))
    self.assertEqual(attention.out.bias.get_value(), ("layers", "embed"))
    self.assertEqual(attention.key_norm.scale.get_value(), ("layers", "norm"))
    self.assertEqual(axes.embedding.get_value(), ("vocab", "embed"))
    self.assertEqual(axes.head.kernel.get_value(), ("embed", "vocab"))
    self.assertEqual(axes.final_norm.scale.get_value(), ("norm",))

  @parameterized.parameters(
    (sharding.TRAIN_RULES, P(None, "fsdp", "tensor")),
    (sharding.ROLLOUT_RULES, P(None, None, "tensor")),
  )
  def test_rules_turn_names_into_a_partition(self, rules, expected):
    got = sharding.partition_spec(("layers", "embed", "mlp"), rules)
    self.assertEqual(got, expected)
    self.assertEqual(
      sharding.partition_spec(("norm", None), rules), P(None, None)
    )


class MeshTest(parameterized.TestCase):
  def test_a_mesh_has_all_three_axes(self):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    self.assertEqual(dict(mesh.shape), {"data": 1, "fsdp": 1, "tensor": 1})

  def test_a_mesh_takes_all_its_devices(self):
    with self.assertRaisesRegex(ValueError, r"devices \(1\), got 1 \* 2 \* 3"):
      sharding.make_mesh(fsdp=2, tensor=3, devices=jax.devices()[:1])

  @parameterized.parameters(
    ({"data": 3, "fsdp": 4}, "take mesh.data 4 and mesh.fsdp 3"),
    ({"data": 2, "fsdp": 3, "tensor": 2}, r"lower .* a slice \(3\)"),
    ({"tensor": 12}, "lower mesh.tensor, which has to divide the devices of"),
  )
  def test_slices_of_tpus_are_cut_over_rows(self, axes, remedy):
    devices = [
      types.SimpleNamespace(platform="tpu", slice_index=i // 3)
      for i in range(12)
    ]
    with self.assertRaisesRegex(ValueError, f"4 slices of TPUs .*{remedy}"):
      sharding.make_mesh(**axes, devices=devices)

  def test_without_a_mesh_nothing_is_constrained(self):
    x = jax.numpy.ones((2, 3))
    self.assertIs(sharding.constrain(x, "batch", "heads"), x)


class EightDevicesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Biases, norms of heads, and a head of its own: all parameters there are.
    cls.report = run_on_eight_devices(
      real_configs.shrunk(
        real_configs.QWEN3_14B,
        **SIZES,
        attention_bias=True,
        initializer_range=0.1,
      )
    )

  @parameterized.product(
    mesh=("8x1", "4x2", "2x4", "1x8", "2x2x2"), purpose=("train", "rollout")
  )
  def test_loads_the_same_parameters_where_they_belong(self, mesh, purpose):
    self.assertEqual(self.report["devices"], 8)
    got = self.report["meshes"][f"{mesh} {purpose}"]
    self.assertTrue(got["equal"])
    self.assertTrue(got["placed"])
    self.assertTrue(got["written_equal"])
    self.assertLess(got["logits_gap"], 1e-5)

  def test_kernels_are_cut_as_the_rules_say(self):
    meshes = self.report["meshes"]
    specs = meshes["4x2 train"]["specs"]
    for path, expected in {
      "layers.attention.query.kernel": P(None, "fsdp", "tensor"),
      "layers.attention.out.kernel": P(None, "tensor", "fsdp"),
      "layers.attention.query_norm.scale": P(None, None),
      "embedding": P("tensor", "fsdp"),
      "head.kernel": P("fsdp", "tensor"),
    }.items():
      self.assertEqual(specs[path], str(expected), path)
    specs = meshes["4x2 rollout"]["specs"]
    self.assertEqual(specs["head.kernel"], str(P(None, "tensor")))

  def test_the_kernel_over_the_cache_runs_on_each_devices_part(self):
    gaps = self.report["cache_kernel_gaps"]
    self.assertLen(gaps, 5)
    self.assertLess(max(gaps.values()), 1e-5, gaps)

  def test_every_device_holds_its_share(self):
    for name, cuts in {
      "8x1 train": 8,
      "4x2 train": 8,
      "1x8 train": 8,
      "2x2x2 train": 4,
      "4x2 rollout": 2,
      "8x1 rollout": 1,
    }.items():
      shares = self.report["meshes"][name]["device_bytes"]
      self.assertLen(set(shares), 1)
      # Norms, and biases where `tensor` is 1, are whole: little, of a model.
      share = self.report["total_bytes"] / cuts
      self.assertBetween(shares[0], share, 1.2 * share, name)

  @parameterized.parameters(
    (
      "1x3",
      "tensor has 3, which does not divide heads (16), kv_heads (8); the "
      "nearest sizes that divide all that is cut over it are 2 and 4",
    ),
    ("5x1", "fsdp has 5, which does not divide embed (32); the nearest"),
    # Divides 48 and 96, but no number of heads; 8 would do for all four.
    ("1x6", "heads (16), kv_heads (8); the nearest sizes that divide all"),
    ("1x6", "are 4 and 8"),
  )
  def test_a_mesh_that_does_not_divide_is_refused(self, mesh, message):
    self.assertIn(message, self.report["refusals"][mesh])
