"""Checks before a run: what the mesh, the template or the memory refuses."""

import dataclasses
import json

import jax
import pytest
from flax import nnx

from experiments import checks, tokenizer_files
from experiments.config import (
  ExperimentConfig,
  MeshConfig,
  PolicyConfig,
  miniature_rollout,
)
from experiments.input_errors import InputError
from experiments.miniature.world import WorldConfig
from experiments.stages import agents
from rapo_jax.models import Decoder, LoraConfig, save_pretrained
from rapo_jax.training import UpdateConfig
from tests.tiny_decoder import tiny_config

SHAPE = tiny_config(
  vocab_size=320,
  hidden_size=256,
  intermediate_size=1024,
  head_dim=64,
)


def write_agent(folder, *, template=None, **changes):
  """An agent's folder, with weights of which a dry run reads the names."""
  tokenizer = agents.train_byte_level_tokenizer(["What is one?"], 300)
  if template is not None:
    tokenizer.chat_template = template(tokenizer.chat_template)
  shape = dataclasses.replace(SHAPE, **changes)
  model = Decoder(shape, rngs=nnx.Rngs(0))
  save_pretrained(model, folder, tokenizer=tokenizer)


def config_of(folder):
  return ExperimentConfig(
    name="test",
    world=WorldConfig(num_train=32, num_held_out=6),
    policy=PolicyConfig(
      base=str(folder / "base"), off_policy=str(folder / "off_policy")
    ),
    rollout=dataclasses.replace(miniature_rollout(), max_prompt_tokens=256),
  )


@pytest.mark.parametrize("agent", ["base", "off_policy"])
def test_a_mesh_that_does_not_divide_an_agent_is_refused(
  agent, tmp_path, monkeypatch
):
  for name in ("base", "off_policy"):
    heads = 4 if name == agent else 8
    write_agent(tmp_path / name, num_heads=heads, num_kv_heads=heads)
  config = dataclasses.replace(
    config_of(tmp_path), mesh=MeshConfig(fsdp=1, tensor=8)
  )
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  with pytest.raises(checks.CheckError) as error:
    checks.dry_run(config, None)
  message = str(error.value)
  assert message.startswith("1 problem(s)")
  assert f"policy.{agent}: each mesh axis must divide" in message
  assert "tensor has 8, which does not divide heads (4)" in message


def test_each_agent_s_own_template_is_checked(tmp_path):
  write_agent(tmp_path / "base")
  write_agent(tmp_path / "off_policy", template=lambda t: "x" * 300 + t)
  with pytest.raises(checks.CheckError, match="max_prompt_tokens=") as error:
    checks.dry_run(config_of(tmp_path), None)
  message = str(error.value)
  assert message.startswith("1 problem(s)")
  assert "policy.off_policy: the prompt of query" in message


def test_an_agent_of_an_unknown_kind_is_a_problem(tmp_path):
  write_agent(tmp_path / "base")
  write_agent(tmp_path / "off_policy")
  path = tmp_path / "off_policy" / "config.json"
  path.write_text(
    json.dumps(SHAPE.to_hf() | {"model_type": "mistral"}), encoding="utf-8"
  )
  with pytest.raises(checks.CheckError, match=r"policy\.off_policy: .*mistral"):
    checks.dry_run(config_of(tmp_path), None)


def test_files_that_could_not_be_loaded_are_problems(tmp_path):
  write_agent(tmp_path / "base")
  write_agent(tmp_path / "off_policy")
  (tmp_path / "base" / "model.safetensors").unlink()
  with pytest.raises(checks.CheckError) as error:
    checks.dry_run(config_of(tmp_path), None)
  message = str(error.value)
  assert message.startswith("1 problem(s)")
  assert "policy.base: A checkpoint folder holds model.safetensors" in message


def test_a_tokenizer_larger_than_the_embedding_is_a_problem(tmp_path):
  write_agent(tmp_path / "base")
  # 256 bytes, three special tokens and merges.
  write_agent(tmp_path / "off_policy", vocab_size=260)
  with pytest.raises(checks.CheckError) as error:
    checks.dry_run(config_of(tmp_path), None)
  message = str(error.value)
  assert message.startswith("1 problem(s)")
  assert "policy.off_policy: the embedding must have a row for" in message
  assert "with 260 rows it has none for" in message


def test_a_turn_end_that_is_text_is_a_problem(tmp_path):
  write_agent(tmp_path / "base")
  write_agent(
    tmp_path / "off_policy", template=lambda t: t.replace("<|im_end|>", "END")
  )
  with pytest.raises(checks.CheckError, match=r"ends it with the text 'END"):
    checks.dry_run(config_of(tmp_path), None)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", ""])
def test_a_broken_tokenizer_is_told_in_a_line(tmp_path, name, content):
  write_agent(tmp_path / "base")
  (tmp_path / "base" / name).write_text(content, encoding="utf-8")
  if name == "tokenizer_config.json" and content == '{"a": 1}':
    tokenizer_files.load_tokenizer(tmp_path / "base")  # An unknown key.
    return
  with pytest.raises(InputError, match=r"cannot be read: .* download it again"):
    tokenizer_files.load_tokenizer(tmp_path / "base")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  write_agent(tmp_path / "base")
  (tmp_path / "base" / "tokenizer.json").unlink()
  with pytest.raises(InputError, match="must hold its tokenizer"):
    tokenizer_files.load_tokenizer(tmp_path / "base")


def test_what_a_layer_keeps_is_near_what_the_compiler_keeps():
  # Growth of a compiled gradient's temporary memory with the layers, in float32
  # numbers a layer and token, for rows of 512 tokens.
  for remat, measured in (("none", 8964), ("dots", 3040)):
    update = UpdateConfig(row_length=512, remat=remat)
    kept = checks._kept_a_token(update, SHAPE)
    assert kept == pytest.approx(measured, rel=0.03)


def test_a_frozen_base_is_held_once_in_the_rollout_s_dtype():
  lora = LoraConfig(rank=64, targets=("query",))
  config = ExperimentConfig(
    name="test",
    policy=PolicyConfig(lora=lora),
    rollout=dataclasses.replace(miniature_rollout(), dtype="bfloat16"),
  )
  text = checks.memory_estimate(config, SHAPE)[0]
  # Embedding; q, k, v with bias, out, three of the feed-forward, two norms; the
  # last norm.
  attention = 256 * (256 + 2 * 128) + 512 + 256 * 256
  base = 320 * 256 + 2 * (attention + 3 * 256 * 1024 + 2 * 256) + 256
  adapters = 2 * 64 * (256 + 256)
  assert f"{base + adapters:,} parameters" in text
  assert f"parameters {(2 * base + 4 * adapters) / 1e6:.1f} MB" in text
  assert f"rollout copy {2 * adapters / 1e6:.1f} MB" in text


def test_an_experiment_on_several_processes_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(checks.CheckError, match="runs in one process, this is"):
    checks.quick_checks(config_of(tmp_path))
