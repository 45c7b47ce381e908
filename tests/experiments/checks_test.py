"""Checks before a run: what the mesh, the template or the memory refuses."""

import dataclasses
import json
import sys
import types

import jax
import pytest
from flax import nnx

from experiments import checks, memory, metrics, tokenizer_files
from experiments.config import (
  BufferConfig,
  ExperimentConfig,
  GrowConfig,
  LoggingConfig,
  MeshConfig,
  PolicyConfig,
  TrainConfig,
  miniature_rollout,
)
from experiments.stages import agents
from rapo_jax.errors import InputError
from rapo_jax.models import (
  Decoder,
  LoraConfig,
  end_token_ids,
  save_pretrained,
)
from rapo_jax.tasks import TASKS, FileTask, SearchSpec
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.world import WorldConfig
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
    tasks=(
      MiniatureTask(
        "multihop", world=WorldConfig(num_train=32, num_held_out=6)
      ),
    ),
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


def test_what_an_engine_would_refuse_is_a_problem(tmp_path):
  for name in ("base", "off_policy"):
    write_agent(tmp_path / name)
  config = config_of(tmp_path)
  rollout = dataclasses.replace(config.rollout, max_tool_tokens=3)
  narrow = dataclasses.replace(config, rollout=rollout)
  with pytest.raises(checks.CheckError, match=r"policy\.base: max_tool_tokens"):
    checks.dry_run(narrow, None)
  train = dataclasses.replace(config.train, methods=("tree_grpo",))
  rollout = dataclasses.replace(config.rollout, num_slots=4)
  forking = dataclasses.replace(config, train=train, rollout=rollout)
  with pytest.raises(checks.CheckError, match="a device has 4 slots"):
    checks.dry_run(forking, None)


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
def test_a_broken_tokenizer_is_reported_in_one_line(tmp_path, name, content):
  write_agent(tmp_path / "base")
  (tmp_path / "base" / name).write_text(content, encoding="utf-8")
  if name == "tokenizer_config.json" and content == '{"a": 1}':
    tokenizer_files.load_tokenizer(tmp_path / "base")  # An unknown key.
    return
  with pytest.raises(InputError, match=r"cannot be read: .* download it again"):
    tokenizer_files.load_tokenizer(tmp_path / "base")


@pytest.mark.parametrize(
  ("field", "value"), [("initializer_range", None), ("pad_token_id", "0")]
)
def test_a_field_that_transformers_refuses_is_reported(tmp_path, field, value):
  write_agent(tmp_path / "base")
  config = tmp_path / "base" / "config.json"
  content = json.loads(config.read_text(encoding="utf-8"))
  config.write_text(json.dumps({**content, field: value}), encoding="utf-8")
  with pytest.raises(InputError, match=f"cannot be read: .*{field}"):
    tokenizer_files.load_tokenizer(tmp_path / "base")


@pytest.mark.parametrize("eos", ["2", [1, 99999]])
def test_end_tokens_of_the_model_are_checked(tmp_path, eos):
  write_agent(tmp_path / "base")
  write_agent(tmp_path / "off_policy")
  path = tmp_path / "base" / "generation_config.json"
  path.write_text(json.dumps({"eos_token_id": eos}), encoding="utf-8")
  with pytest.raises(checks.CheckError, match=r"policy\.base: .*eos_token_id"):
    checks.dry_run(config_of(tmp_path), None)


def test_a_rollout_finds_the_files_beside_a_tokenizer(tmp_path):
  # `RolloutEngine` reads end tokens there.
  write_agent(tmp_path / "base")
  tokenizer = tokenizer_files.load_tokenizer(tmp_path / "base")
  assert tokenizer.name_or_path == str(tmp_path / "base")
  assert end_token_ids(tokenizer.name_or_path) == (tokenizer.eos_token_id,)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  write_agent(tmp_path / "base")
  (tmp_path / "base" / "tokenizer.json").unlink()
  with pytest.raises(InputError, match="must hold its tokenizer"):
    tokenizer_files.load_tokenizer(tmp_path / "base")


def test_what_a_layer_keeps_is_near_what_the_compiler_keeps():
  # Growth of a compiled gradient's temporary memory with the layers, in float32
  # numbers a layer and token, for rows of 512 tokens.
  for remat, measured in (("none", 8964), ("dots", 3040)):
    kept = memory.kept_a_token(remat, SHAPE)
    assert kept == pytest.approx(measured, rel=0.03)


def test_a_frozen_base_is_held_once_in_the_rollout_s_dtype():
  lora = LoraConfig(rank=64, targets=("query",))
  config = ExperimentConfig(
    name="test",
    policy=PolicyConfig(lora=lora),
    rollout=dataclasses.replace(miniature_rollout(), dtype="bfloat16"),
  )
  text = memory.estimate(config, SHAPE).line(1)
  # Embedding; q, k, v with bias, out, three of the feed-forward, two norms; the
  # last norm.
  attention = 256 * (256 + 2 * 128) + 512 + 256 * 256
  base = 320 * 256 + 2 * (attention + 3 * 256 * 1024 + 2 * 256) + 256
  adapters = 2 * 64 * (256 + 256)
  assert f"{base + adapters:,} parameters" in text
  assert f"parameters {(2 * base + 4 * adapters) / 1e6:.1f} MB" in text
  assert f"rollout copy {2 * adapters / 1e6:.1f} MB" in text


@pytest.mark.parametrize(
  ("base", "task", "words"),
  [
    (None, "multihop", "the agents stage warm-starts the base agent"),
    (None, "tool_star", "near 0, since policy.base is not set"),
    ("some/model", "tool_star", "unknown until the first update"),
  ],
)
def test_the_dry_run_names_the_warm_start(base, task, words):
  config = ExperimentConfig(
    name="test",
    tasks=(TASKS[task],),
    policy=PolicyConfig(base=base, off_policy=base),
  )
  text = checks._first_signal(config)
  assert text.startswith("share of trajectories that close their tags: ")
  assert words in text
  assert ("instruct model" in text) == (task == "tool_star")


@pytest.mark.parametrize(
  ("methods", "grow", "refused"),
  [
    (("rapo",), None, True),
    (("grpo", "hybrid"), None, True),
    (("grpo",), None, False),
    (("rapo",), GrowConfig(), False),
  ],
)
def test_an_empty_buffer_is_refused_where_it_is_needed(methods, grow, refused):
  config = ExperimentConfig(
    name="test",
    buffer=BufferConfig(path="b", grow=grow),
    train=TrainConfig(methods=methods),
  )
  problems = [text for _, text in checks._empty_buffer(config, 0)]
  assert bool(problems) == refused
  assert all("the buffer at b holds no trace" in text for text in problems)
  assert not list(checks._empty_buffer(config, 1))


def test_a_plan_that_cannot_fit_is_a_problem_of_the_dry_run(
  tmp_path, monkeypatch
):
  for name in ("base", "off_policy"):
    write_agent(tmp_path / name)
  config = config_of(tmp_path)
  assert "device memory" in checks.dry_run(config, tmp_path / "w")
  estimates = [
    memory.estimate(config, SHAPE, trained=trained).total
    for trained in (True, False)
  ]
  room = sum(estimates) / 2
  monkeypatch.setattr(memory, "room", lambda: room)
  with pytest.raises(checks.CheckError) as error:
    checks.dry_run(config, None)
  message = str(error.value)
  assert message.startswith("1 problem(s)")
  assert f"takes about {memory.gigabytes(estimates[0])} on each" in message
  assert f"which has {memory.gigabytes(room)}: take a smaller" in message
  # Evaluated alone it has neither gradients nor activations.
  checks.dry_run(config, None, "evaluate")


def test_room_is_what_the_host_has_within_the_container_s_limit(
  tmp_path, monkeypatch
):
  meminfo = tmp_path / "meminfo"
  meminfo.write_text(
    "MemTotal: 9 kB\nMemAvailable:    2000 kB\n", encoding="utf-8"
  )
  assert memory._available(meminfo) == 2_048_000
  limit = tmp_path / "memory.max"
  for text, expected in (("max\n", None), ("1000000\n", 1_000_000)):
    limit.write_text(text, encoding="utf-8")
    assert memory._limit(limit) == expected
  assert memory._limit(tmp_path / "none") is None
  assert memory.room() > 0


def test_a_corpus_of_another_layout_is_a_problem_of_the_dry_run(tmp_path):
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text('{"id": 1, "text": "Paris"}\n', encoding="utf-8")
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question": "?", "answer": "a"}\n', encoding="utf-8")
  task = FileTask(
    "towns", evaluation=(str(questions),), tools=(SearchSpec(str(corpus)),)
  )
  config = dataclasses.replace(config_of(tmp_path), tasks=(task,))
  for name in ("base", "off_policy"):
    write_agent(tmp_path / name)
  with pytest.raises(checks.CheckError, match=r'corpus\.jsonl:1: .*"contents"'):
    checks.dry_run(config, None)


def test_weights_and_biases_without_a_key_is_found_before_anything_runs(
  tmp_path, monkeypatch
):
  monkeypatch.delenv(metrics.WANDB_KEY, raising=False)
  monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
  config = dataclasses.replace(
    config_of(tmp_path),
    policy=PolicyConfig(),
    logging=LoggingConfig(wandb=metrics.WandbConfig()),
  )
  for check in (checks.quick_checks, lambda c: checks.dry_run(c, None)):
    with pytest.raises(checks.CheckError, match="WANDB_API_KEY is not set"):
      check(config)
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(checks.CheckError, match="not installed"):
    checks.quick_checks(config)


def test_a_folder_that_is_a_file_is_a_problem_of_the_dry_run(tmp_path):
  there = tmp_path / "file"
  there.write_text("", encoding="utf-8")
  config = dataclasses.replace(config_of(tmp_path), policy=PolicyConfig())
  with pytest.raises(checks.CheckError, match="cannot be written, as"):
    checks.dry_run(config, there / "w")


def test_a_dry_run_counts_and_promises_no_minutes(tmp_path):
  config = dataclasses.replace(config_of(tmp_path), policy=PolicyConfig())
  text = checks.dry_run(config, tmp_path / "w")
  # 2 methods with 2 seeds.
  assert "4 runs × 20 updates × 512 rollouts = 40,960 rollouts" in text
  assert "minutes" not in text
