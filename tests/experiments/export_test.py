"""Exports of checkpoints: what is written is what was trained."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import export
from experiments.policies import describe_policy
from rapo_jax import models
from rapo_jax.training import Checkpoints, OptimizerConfig, init_train_state
from tests import fake_devices
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder

ROOT = pathlib.Path(__file__).resolve().parents[2]
LORA = models.LoraConfig(2, 4.0, ("query", "down"))
TOKENS = jnp.arange(24).reshape(2, 12)


def trained(model):
  """The model, away from where it began."""
  keys = iter(jax.random.split(jax.random.key(1), 100))
  return models.with_trainable(
    model,
    {
      name: v.replace(v + 0.1 * jax.random.normal(next(keys), v.shape, v.dtype))
      for name, v in models.trainable(model).items()
    },
  )


def write_run(root, *, lora=None, dtype="float32"):
  """A run's base agent, two checkpoints, and the policy of the newer one."""
  models.save_pretrained(tiny_decoder(), root / "base")
  (root / "base" / "tokenizer.json").write_text('{"a": 1}', encoding="utf-8")
  (root / "base" / "generation_config.json").write_text(
    '{"top_p": 0.9}', encoding="utf-8"
  )
  model = models.from_pretrained(root / "base", dtype=dtype)
  if lora is not None:
    model = models.add_adapters(model, lora, rngs=nnx.Rngs(1))
  checkpoints = Checkpoints(root / "checkpoints")
  for update in (5, 10):
    model = trained(model)
    checkpoints.save(
      update,
      init_train_state(model, OptimizerConfig()),
      {
        "update": update,
        **describe_policy(
          model, root / "base", end_ids=[3, 5], chat_template="{{ trained }}"
        ),
      },
    )
  checkpoints.close()
  return model


def run(root, *arguments, checkpoint="checkpoints", output="out"):
  return export.main(
    [
      *("--checkpoint", str(root / checkpoint)),
      *("--output", str(root / output)),
      *arguments,
    ]
  )


def same(first, second):
  return jax.tree.all(
    jax.tree.map(lambda a, b: np.array_equal(a, b), first, second)
  )


def test_a_broken_checkpoint_is_passed_over_or_refused(tmp_path, capsys):
  write_run(tmp_path)
  path = tmp_path / "checkpoints" / "10" / "metadata" / "metadata"
  path.write_bytes(path.read_bytes()[:-1])
  assert run(tmp_path, checkpoint="checkpoints/10") == 2
  assert "checkpoint 10 in" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
  # Through a link, which stays.
  (tmp_path / "link").symlink_to(tmp_path / "far")
  assert run(tmp_path, output="link") == 0
  printed = capsys.readouterr()
  assert "warning: checkpoint 10: metadata/metadata has" in printed.err
  assert "policy after update 5" in printed.out
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "far" / "config.json").is_file()


def test_a_policy_that_is_not_finite_is_not_exported(tmp_path, capsys):
  model = write_run(tmp_path)
  model.final_norm.scale[...] = model.final_norm.scale[...].at[0].set(np.nan)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state = init_train_state(model, OptimizerConfig())
  described = describe_policy(model, tmp_path / "base", end_ids=[3, 5])
  checkpoints.save(15, state, {"update": 15, **described})
  checkpoints.close()
  assert run(tmp_path) == 2
  message = capsys.readouterr().err
  assert "NaN or infinity is in final_norm.scale" in message
  assert not (tmp_path / "out").exists()


def test_the_newest_checkpoint_is_written_bit_for_bit(tmp_path, capsys):
  model = write_run(tmp_path)
  assert run(tmp_path) == 0
  assert same(models.from_pretrained(tmp_path / "out"), model)
  printed = capsys.readouterr().out
  assert "the policy after update 10, in float32" in printed
  assert "difference of a logit from the checkpoint's: 0 (" in printed
  card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
  assert "# base, trained\n" in card
  assert "| updates | 10 |" in card
  template = tmp_path / "out" / "chat_template.jinja"
  assert template.read_text(encoding="utf-8") == "{{ trained }}"
  # What the base agent has and a checkpoint does not.
  assert (tmp_path / "out" / "tokenizer.json").read_text(
    encoding="utf-8"
  ) == '{"a": 1}'
  generation = (tmp_path / "out" / "generation_config.json").read_text(
    encoding="utf-8"
  )
  assert json.loads(generation) == {"eos_token_id": [3, 5], "top_p": 0.9}
  # A numbered one is another policy, and takes the place of the first.
  assert run(tmp_path, checkpoint="checkpoints/5") == 0
  assert not same(models.from_pretrained(tmp_path / "out"), model)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *("base", "checkpoints", "out")
  ]


def test_another_dtype_is_written_within_its_bound(tmp_path):
  model = write_run(tmp_path)
  exported = export.export(
    tmp_path / "checkpoints", tmp_path / "out", dtype="bfloat16"
  )
  assert 0 < exported.difference <= exported.limit
  assert exported.limit == pytest.approx(
    export.ROUNDING_BOUND * np.abs(model(export._sample_tokens(model))).max()
  )
  config = json.loads(
    (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
  )
  assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged(tmp_path, dtype):
  model = write_run(tmp_path, lora=LORA, dtype=dtype)
  exported = export.export(tmp_path / "checkpoints", tmp_path / "out")
  assert exported.dtype == dtype
  loaded = models.from_pretrained(tmp_path / "out", dtype=dtype)
  assert same(loaded, models.merge_adapters(model))
  if dtype == "float32":
    assert_close(loaded(TOKENS), model(TOKENS))


def test_a_wider_dtype_keeps_what_merging_would_round(tmp_path):
  model = write_run(tmp_path, lora=LORA, dtype="bfloat16")
  export.export(tmp_path / "checkpoints", tmp_path / "out", dtype="float32")
  loaded = models.from_pretrained(tmp_path / "out")
  wide = model.astype("float32")
  assert_close(loaded(TOKENS), wide(TOKENS))


def test_adapters_are_written_apart(tmp_path, capsys):
  model = write_run(tmp_path, lora=LORA)
  assert run(tmp_path, "--adapters") == 0
  assert "the adapters after update 10" in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
    *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    *("chat_template.jinja", "tokenizer.json"),
  ]
  template = tmp_path / "out" / "chat_template.jinja"
  assert template.read_text(encoding="utf-8") == "{{ trained }}"
  loaded = models.load_adapters(tiny_decoder(), tmp_path / "out")
  assert same(models.trainable(loaded), models.trainable(model))


def test_a_base_that_has_moved_is_named(tmp_path, capsys):
  model = write_run(tmp_path, lora=LORA)
  (tmp_path / "base").rename(tmp_path / "elsewhere")
  assert run(tmp_path) == 2
  assert str(tmp_path / "base") in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
  assert run(tmp_path, "--base", str(tmp_path / "elsewhere")) == 0
  loaded = models.from_pretrained(tmp_path / "out")
  assert same(loaded, models.merge_adapters(model))


def test_a_base_that_has_changed_is_refused(tmp_path, capsys):
  write_run(tmp_path, lora=LORA)
  base = jax.tree.map(lambda x: x + 0.01, tiny_decoder())
  models.save_pretrained(base, tmp_path / "base")
  assert run(tmp_path) == 2
  error = capsys.readouterr().err
  assert "over the base agent that they were trained over" in error
  assert "give the one of then with --base" in error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_tokenizer_that_has_changed_is_refused(tmp_path, capsys, lora):
  write_run(tmp_path, lora=lora)
  file = tmp_path / "base" / "tokenizer.json"
  shutil.copytree(tmp_path / "base", tmp_path / "kept")
  file.write_text('{"a": 2}', encoding="utf-8")
  assert run(tmp_path) == 2
  assert "give the base agent of then with --base" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
  assert run(tmp_path, "--base", str(tmp_path / "kept")) == 0


@pytest.mark.parametrize(
  ("arguments", "paths", "message"),
  [
    ([], {"checkpoint": "nothing"}, "does not exist: give <workdir>/train"),
    ([], {"checkpoint": "base"}, "holds none: give <workdir>/train"),
    ([], {"checkpoint": "checkpoints/7"}, "got 7: "),
    ([], {"checkpoint": "checkpoints/²"}, "does not exist: give <workdir>"),
    ([], {"checkpoint": "checkpoints/7"}, "checkpoints holds 5, 10."),
    ([], {"output": "checkpoints"}, "is something else: give another"),
    ([], {"output": "base/config.json"}, "give another folder"),
    ([], {"output": "base"}, "must not be the base agent"),
    (["--adapters"], {}, "the checkpoint has none: leave it out"),
  ],
)
def test_what_cannot_be_exported_says_why(
  plain_run, capsys, arguments, paths, message
):
  before = sorted(plain_run.rglob("*"))
  assert run(plain_run, *arguments, **paths) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert message in error
  assert sorted(plain_run.rglob("*")) == before


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
  root = tmp_path_factory.mktemp("run")
  write_run(root)
  return root


def test_adapters_have_no_other_dtype(tmp_path, capsys):
  write_run(tmp_path, lora=LORA)
  assert run(tmp_path, "--adapters", "--dtype=bfloat16") == 2
  assert "in float32, got --dtype bfloat16" in capsys.readouterr().err


def test_a_mismatch_leaves_the_earlier_export(tmp_path, monkeypatch, capsys):
  write_run(tmp_path)
  assert run(tmp_path) == 0
  before = (tmp_path / "out" / "model.safetensors").read_bytes()
  save = models.save_pretrained

  def save_another(model, *args, **kwargs):
    save(jax.tree.map(lambda x: x * 1.001, model), *args, **kwargs)

  monkeypatch.setattr(export.models, "save_pretrained", save_another)
  assert run(tmp_path) == 2
  assert "at most 0, and they differ by" in capsys.readouterr().err
  assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *("base", "checkpoints", "out")
  ]


_ON_A_MESH = """
import pathlib, sys
from experiments.policies import describe_policy
from rapo_jax import models
from rapo_jax.models import sharding
from rapo_jax.training import Checkpoints, OptimizerConfig, init_train_state
root = pathlib.Path(sys.argv[1])
mesh = sharding.make_mesh(fsdp=4, tensor=2)
model = models.from_pretrained(root / "base", mesh=mesh)
state = init_train_state(model, OptimizerConfig(), mesh=mesh)
checkpoints = Checkpoints(root / "checkpoints")
checkpoints.save(20, state, describe_policy(model, root / "base"))
checkpoints.close()
"""


def test_a_checkpoint_of_a_mesh_is_read_on_one_device(tmp_path):
  models.save_pretrained(tiny_decoder(), tmp_path / "base")
  fake_devices.run_python("-c", _ON_A_MESH, str(tmp_path))
  assert run(tmp_path) == 0
  assert same(models.from_pretrained(tmp_path / "out"), tiny_decoder())


def test_help_names_every_option(capsys):
  with pytest.raises(SystemExit) as stopped:
    export.main(["--help"])
  assert stopped.value.code == 0
  text = capsys.readouterr().out
  for option in ("--checkpoint", "--output", "--dtype", "--adapters", "--base"):
    assert option in text
