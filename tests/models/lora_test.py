"""LoRA: neutral at first, alone in training, the same merged and unmerged."""

import dataclasses
import functools
import json
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from rapo_jax import models
from rapo_jax.models import sharding
from rapo_jax.models.checkpoint_layout import peft_module
from rapo_jax.models.config import LoraTarget
from rapo_jax.models.decoder import AdapterParam
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder

LORA = models.LoraConfig(4, 8.0, ("query", "value", "out", "gate", "down"))
TOKENS = jnp.arange(24).reshape(2, 12)


def adapted(base, lora=LORA):
  """The base with adapters that are far from 0."""
  model = models.add_adapters(base, lora, rngs=nnx.Rngs(1))
  keys = iter(jax.random.split(jax.random.key(2), 100))
  return models.with_trainable(
    model,
    {
      name: v.replace(0.3 * jax.random.normal(next(keys), v.shape))
      for name, v in models.trainable(model).items()
    },
  )


def leaves(model):
  return [np.asarray(x) for x in jax.tree.leaves(model)]


def test_fresh_adapters_change_no_logit_and_share_the_base():
  base = tiny_decoder()
  model = models.add_adapters(base, LORA, rngs=nnx.Rngs(1))
  np.testing.assert_array_equal(model(TOKENS), base(TOKENS))
  assert model.embedding.get_value() is base.embedding.get_value()
  a = models.trainable(model)["layers.attention.query.lora_a"].get_value()
  # Uniform on ±1/√16: its deviation is 0.25/√3, about 0.144.
  assert 0.2 < np.abs(a).max() <= 0.25
  assert 0.1 < np.std(a) < 0.19
  assert not np.array_equal(a[0], a[1]), "each layer has a draw of its own"


def test_parameters_are_made_as_configured():
  variables = models.trainable(adapted(tiny_decoder(dtype="bfloat16")))
  assert {name: v.shape for name, v in variables.items()} == {
    "layers.attention.out.lora_a": (2, 32, 4),
    "layers.attention.out.lora_b": (2, 4, 16),
    "layers.attention.query.lora_a": (2, 16, 4),
    "layers.attention.query.lora_b": (2, 4, 32),
    "layers.attention.value.lora_a": (2, 16, 4),
    "layers.attention.value.lora_b": (2, 4, 16),
    "layers.feed_forward.down.lora_a": (2, 32, 4),
    "layers.feed_forward.down.lora_b": (2, 4, 16),
    "layers.feed_forward.gate.lora_a": (2, 16, 4),
    "layers.feed_forward.gate.lora_b": (2, 4, 32),
  }
  assert all(isinstance(v, AdapterParam) for v in variables.values())
  assert {v.dtype for v in variables.values()} == {jnp.dtype("float32")}


def test_without_adapters_everything_is_trained():
  base = tiny_decoder()
  assert len(models.trainable(base)) == len(jax.tree.leaves(base))
  assert models.merge_adapters(base) is base


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_merged_equals_unmerged(tie_embeddings):
  base = tiny_decoder(tie_embeddings=tie_embeddings)
  model = adapted(base)
  merged = models.merge_adapters(model)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  assert_close(merged(TOKENS), model(TOKENS))
  # The control: the adapters do something.
  assert np.abs(model(TOKENS) - base(TOKENS)).max() > 0.1


def test_the_product_counts_alpha_over_rank_times():
  base = tiny_decoder()
  model = adapted(base, models.LoraConfig(2, 6.0, ("up",)))
  up, merged = model.layers.feed_forward.up, models.merge_adapters(model)
  # W + 6 / 2 · A B, layer by layer.
  expected = np.asarray(up.kernel[...]) + 3 * np.einsum(
    "lir,lro->lio", up.lora_a[...], up.lora_b[...]
  )
  actual = merged.layers.feed_forward.up.kernel[...]
  assert_close(actual, expected)
  np.testing.assert_array_equal(
    merged.layers.feed_forward.gate.kernel[...],
    base.layers.feed_forward.gate.kernel[...],
  )


def test_cached_decoding_applies_the_adapters():
  model = adapted(tiny_decoder())
  hidden, _ = model.extend(
    model.init_cache(2, models.KV_BLOCK),
    TOKENS,
    jnp.zeros(2, jnp.int32),
    jnp.full(2, 12),
    attend_length=models.KV_BLOCK,
  )
  assert_close(hidden, model.hidden_states(TOKENS))


def test_a_cast_reaches_adapters_over_a_base_that_has_the_dtype():
  model = adapted(tiny_decoder(dtype="bfloat16"))
  cast = model.astype("bfloat16")
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype("bfloat16")}
  # What the update differentiates through and what the sampler runs agree.
  np.testing.assert_array_equal(cast(TOKENS), model(TOKENS))
  placed = sharding.place(
    model, mesh=None, rules=sharding.ROLLOUT_RULES, dtype="bfloat16"
  )
  np.testing.assert_array_equal(placed(TOKENS), model(TOKENS))
  assert placed.embedding.get_value() is model.embedding.get_value()
  kept = sharding.place(model, mesh=None, rules=sharding.ROLLOUT_RULES)
  assert kept is model
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  kept = sharding.place(model, mesh=mesh, rules=sharding.TRAIN_RULES)
  assert [x.dtype for x in jax.tree.leaves(kept)] == [
    x.dtype for x in jax.tree.leaves(model)
  ]


def test_adapters_alone_are_placed_where_the_base_lies_already():
  model = adapted(tiny_decoder())
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  place = functools.partial(
    sharding.place, mesh=mesh, rules=sharding.ROLLOUT_RULES, dtype="bfloat16"
  )
  placed = place(models.add_adapters(tiny_decoder(), LORA, rngs=nnx.Rngs(3)))
  got, expected = models.with_adapters_of(placed, model), place(model)
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
  assert got.embedding.get_value() is placed.embedding.get_value()


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ((0, 1.0, ("query",)), "rank must be at least 1, got 0"),
    ((2, 0.0, ("query",)), "alpha must be > 0, got 0"),
    ((2, 1.0, ()), "targets must name some of query, key"),
    ((2, 1.0, ("query", "query")), "none twice"),
  ],
)
def test_settings_that_mean_nothing_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    models.LoraConfig(*values)


def test_adapters_are_added_once():
  with pytest.raises(ValueError, match="some of rank 4; merge them"):
    models.add_adapters(adapted(tiny_decoder()), LORA, rngs=nnx.Rngs(0))


def test_files_are_those_of_peft(tmp_path):
  model = adapted(tiny_decoder())
  models.save_adapters(model, tmp_path / "adapters", base_model="some/base")
  content = json.loads(
    (tmp_path / "adapters/adapter_config.json").read_text(encoding="utf-8")
  )
  assert content["peft_type"] == "LORA"
  assert (content["r"], content["lora_alpha"]) == (4, 8)
  assert content["target_modules"] == [
    *("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
  ]
  assert content["base_model_name_or_path"] == "some/base"
  tensors = safetensors.numpy.load_file(
    tmp_path / "adapters/adapter_model.safetensors"
  )
  # Two matrices for five projections of two layers; [r, in] and [out, r].
  prefix = "base_model.model.model.layers.1."
  assert len(tensors) == 20
  shapes = {
    name.removeprefix(prefix): value.shape
    for name, value in tensors.items()
    if name.startswith(prefix)
  }
  assert shapes == {
    "self_attn.q_proj.lora_A.weight": (4, 16),
    "self_attn.q_proj.lora_B.weight": (32, 4),
    "self_attn.v_proj.lora_A.weight": (4, 16),
    "self_attn.v_proj.lora_B.weight": (16, 4),
    "self_attn.o_proj.lora_A.weight": (4, 32),
    "self_attn.o_proj.lora_B.weight": (16, 4),
    "mlp.gate_proj.lora_A.weight": (4, 16),
    "mlp.gate_proj.lora_B.weight": (32, 4),
    "mlp.down_proj.lora_A.weight": (4, 32),
    "mlp.down_proj.lora_B.weight": (16, 4),
  }
  np.testing.assert_array_equal(
    tensors[prefix + "mlp.down_proj.lora_A.weight"],
    np.asarray(model.layers.feed_forward.down.lora_a[...])[1].T,
  )


def test_adapters_come_back_bit_for_bit(tmp_path):
  base = tiny_decoder()
  model = adapted(base)
  models.save_adapters(model, tmp_path / "adapters", base_model="base")
  loaded = models.load_adapters(base, tmp_path / "adapters")
  assert set(loaded.config.lora.targets) == set(LORA.targets)
  for a, b in zip(leaves(loaded), leaves(model), strict=True):
    np.testing.assert_array_equal(a, b)
  assert [path.name for path in tmp_path.iterdir()] == ["adapters"]


def test_adapters_of_another_base_are_refused(tmp_path):
  models.save_adapters(
    adapted(tiny_decoder()), tmp_path / "it", base_model="base"
  )
  other = dataclasses.replace(tiny_decoder().config, intermediate_size=24)
  base = models.Decoder(other, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"gate_proj\.lora_B\.weight") as error:
    models.load_adapters(base, tmp_path / "it")
  assert "q_proj" not in str(error.value)
  with pytest.raises(FileNotFoundError, match="that save_adapters wrote"):
    models.load_adapters(base, tmp_path)


@pytest.mark.parametrize(
  "changes",
  [
    {"use_rslora": True},
    {"use_dora": True},
    {"use_qalora": True},
    {"alpha_pattern": {"q_proj": 64}},
    {"rank_pattern": {"q_proj": 4}},
    {"layers_to_transform": [0]},
    {"layers_to_transform": 0},
    {"bias": "all"},
    {"lora_bias": True},
    {"modules_to_save": ["lm_head"]},
    {"exclude_modules": ["q_proj"]},
    {"fan_in_fan_out": True},
    {"init_lora_weights": "pissa"},
    {"layer_replication": [[0, 2]]},
    {"trainable_token_indices": [1]},
    {"target_parameters": ["weight"]},
    {"a_field_of_tomorrow": 2},
    {"peft_type": "IA3"},
    {"peft_type": None},
    {"target_modules": None},
    {"target_modules": r".*\.[01]\.self_attn\.(q_proj"},
    {"r": None},
    {"target_modules": "q{99999999999999}"},
    {"target_modules": []},
    {"r": 4.0},
    {"r": 0},
    {"r": 2**31},
    {"lora_alpha": "16"},
    {"lora_alpha": 0},
  ],
  ids=str,
)
def test_adapters_that_are_more_than_plain_lora_are_refused(tmp_path, changes):
  base = tiny_decoder()
  models.save_adapters(adapted(base), tmp_path / "it", base_model="base")
  edit_adapter_config(tmp_path / "it", changes)
  (name,) = changes
  with pytest.raises(ValueError, match=name):
    models.load_adapters(base, tmp_path / "it")


def test_adapters_that_are_not_finite_are_refused(tmp_path):
  base = tiny_decoder()
  model = adapted(base)
  broken = model.layers.feed_forward.down.lora_a
  broken[...] = broken[...].at[1, 0, 0].set(np.nan)
  models.save_adapters(model, tmp_path / "it", base_model="base")
  with pytest.raises(ValueError, match=r"finite, and those of .*down\.lora_a"):
    models.load_adapters(base, tmp_path / "it")


def edit_adapter_config(folder, changes):
  path = folder / "adapter_config.json"
  path.write_text(
    json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
    encoding="utf-8",
  )


def peft_module_names():
  return [peft_module(target) for target in LORA.targets]


@pytest.mark.parametrize(
  "changes",
  [
    # What PEFT writes beside it.
    {
      "alpha_pattern": {},
      "rank_pattern": {},
      "layers_to_transform": None,
      "layers_pattern": None,
      "modules_to_save": None,
      "use_rslora": False,
      "init_lora_weights": True,
      "loftq_config": {},
      "qalora_group_size": 16,
      "lora_dropout": 0.05,
      "peft_version": "0.17.1",
      "revision": None,
    },
    {"target_modules": rf".*\.({'|'.join(peft_module_names())})"},
    {"target_modules": peft_module_names()[::-1]},
    {"init_lora_weights": "gaussian"},
  ],
)
def test_plain_lora_is_read_however_it_is_said(tmp_path, changes):
  base = tiny_decoder()
  model = adapted(base)
  models.save_adapters(model, tmp_path / "it", base_model="base")
  edit_adapter_config(tmp_path / "it", changes)
  loaded = models.load_adapters(base, tmp_path / "it")
  for a, b in zip(leaves(loaded), leaves(model), strict=True):
    np.testing.assert_array_equal(a, b)


def test_all_linear_projections_by_one_word(tmp_path):
  base = tiny_decoder()
  targets = get_args(LoraTarget)
  lora = models.LoraConfig(rank=2, alpha=4.0, targets=targets)
  model = models.add_adapters(base, lora, rngs=nnx.Rngs(1))
  models.save_adapters(model, tmp_path / "it", base_model="base")
  edit_adapter_config(tmp_path / "it", {"target_modules": "all-linear"})
  loaded = models.load_adapters(base, tmp_path / "it")
  assert loaded.config.lora == lora


def test_an_expression_for_some_layers_is_refused(tmp_path):
  base = tiny_decoder()
  models.save_adapters(adapted(base), tmp_path / "it", base_model="base")
  changes = {"target_modules": r"model\.layers\.0\..*_proj"}
  edit_adapter_config(tmp_path / "it", changes)
  with pytest.raises(ValueError, match=r"layers\.0\..*but not .*layers\.1"):
    models.load_adapters(base, tmp_path / "it")


def test_weights_in_other_formats_are_named(tmp_path):
  base = tiny_decoder()
  models.save_adapters(adapted(base), tmp_path / "it", base_model="base")
  path = tmp_path / "it" / "adapter_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  name = min(tensors)
  tensors[name] = tensors[name].astype(np.int32)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match=name):
    models.load_adapters(base, tmp_path / "it")
  path.unlink()
  with pytest.raises(FileNotFoundError, match="convert other formats"):
    models.load_adapters(base, tmp_path / "it")


def test_each_way_of_writing_names_the_other(tmp_path):
  with pytest.raises(ValueError, match="merge them with merge_adapters, or"):
    models.save_pretrained(adapted(tiny_decoder()), tmp_path / "it")
  with pytest.raises(ValueError, match="write it with save_pretrained"):
    models.save_adapters(tiny_decoder(), tmp_path / "it", base_model="base")
  assert not list(tmp_path.iterdir())
