"""What can be checked before a run: files, shapes, template, memory."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import flags
from experiments.config import ExperimentConfig
from experiments.input_errors import InputError
from experiments.miniature import tokenizer as miniature_tokenizer
from experiments.policy_shape import Agent, policy_shape
from experiments.stages import train as train_stage
from experiments.stages.agents import train_byte_level_tokenizer
from experiments.tasks import make_world, questions, task_names
from experiments.tokenizer_files import load_tokenizer
from experiments.workdir import Workdir, read_json
from rapo_jax import models
from rapo_jax.data import (
  Query,
  check_prefix_preservation,
  check_vocabulary,
  encode_prompt,
  end_ids,
  order,
)
from rapo_jax.models import hub, sharding
from rapo_jax.retrieval import manifest, remote
from rapo_jax.training import UpdateConfig


class CheckError(InputError):
  """The experiment cannot run as configured."""


def dry_run(config: ExperimentConfig, workdir: pathlib.Path | None) -> str:
  """Checks everything that can be checked without running or writing.

  Returns:
    What was found, for people.

  Raises:
    CheckError: with every problem and its remedy.
  """
  problems: list[str] = []
  lines = [f"{config.name}: {config.data.source}"]
  for check in (_shapes, _files, _models, _questions):
    if check in (_models, _questions) and problems:
      continue  # They read the files.
    for kind, text in check(config):
      (problems if kind == "problem" else lines).append(text)
  if workdir is not None and Workdir(workdir).config.exists():
    there = read_json(Workdir(workdir).config)
    for line in differences(there, flags.to_dict(config)):
      problems.append(
        f"{workdir} holds an experiment with another config: {line}"
      )
  _refuse(problems)
  seconds = sum(stage_seconds(config, task_names(config)).values())
  lines.append(f"about {seconds / 60:.0f} minutes on two CPU cores")
  lines.append("all checks passed; nothing was written")
  return "\n".join(lines)


def quick_checks(config: ExperimentConfig) -> None:
  """What costs nothing to check before a run writes anything.

  Raises:
    CheckError: with every problem and its remedy.
  """
  _refuse(
    text
    for check in (_shapes, _files)
    for kind, text in check(config)
    if kind == "problem"
  )


def _refuse(problems: Iterable[str]) -> None:
  found = list(problems)
  if found:
    raise CheckError(
      f"{len(found)} problem(s):\n"
      + "\n".join(f"  {problem}" for problem in found)
    )


def differences(there: Any, wanted: Any, path: str = "config") -> list[str]:
  """Fields in which two plain configs differ, one line each."""
  if isinstance(there, dict) and isinstance(wanted, dict):
    return [
      line
      for key in sorted({*there, *wanted})
      for line in differences(there.get(key), wanted.get(key), f"{path}.{key}")
    ]
  # JSON has no tuples.
  if json.dumps(there, default=list) == json.dumps(wanted, default=list):
    return []
  return [f"{path} is {there!r} there and {wanted!r} here"]


def stage_seconds(
  config: ExperimentConfig, tasks: list[str]
) -> dict[str, float]:
  """Rough seconds of each stage on two CPU cores, for the progress display."""
  runs = len(list(train_stage.runs(config, tasks)))
  made = config.data.source == "miniature"
  samples = config.evaluation.num_samples
  return {
    "agents": (150.0 if made else 5.0) * len(tasks),
    "buffer": 90.0 * len(tasks),
    "train": 3.0 * config.train.num_updates * runs + 20.0 * len(tasks),
    "evaluate": 3.0 * samples * (runs + 2 * len(tasks)),
    "report": 5.0,
  }


def _shapes(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Budgets that do not fit each other, each with what would."""
  if jax.process_count() > 1:
    yield (
      "problem",
      "an experiment runs in one process, this is one of "
      f"{jax.process_count()}: start it on one host. Rollouts and updates of "
      "rapo_jax run on several, see docs/semantics.md.",
    )
  if config.buffer.path is not None:
    try:
      manifest.read_manifest(config.buffer.path)
    except ValueError as error:
      yield "problem", f"buffer.path: {error}"
  if config.buffer.url is not None:
    try:
      remote.check_policy(config.retrieval)
    except ValueError as error:
      yield "problem", f"buffer.url is set: {error}"
  rollout, update = config.rollout, config.update
  longest = rollout.max_prompt_tokens + rollout.max_response_tokens
  if update.row_length < longest:
    yield (
      "problem",
      "update.row_length must hold a prompt and a response "
      f"({rollout.max_prompt_tokens} + {rollout.max_response_tokens}), got "
      f"{update.row_length}: set it to {longest} or more.",
    )
  if rollout.max_step_tokens > rollout.max_response_tokens:
    yield (
      "problem",
      "rollout.max_step_tokens may not exceed rollout.max_response_tokens "
      f"({rollout.max_response_tokens}), got {rollout.max_step_tokens}.",
    )
  if rollout.max_tool_tokens >= rollout.max_response_tokens:
    yield (
      "problem",
      "rollout.max_tool_tokens must be below rollout.max_response_tokens "
      f"({rollout.max_response_tokens}), got {rollout.max_tool_tokens}.",
    )
  if rollout.num_generations == 1:
    yield (
      "problem",
      "rollout.num_generations must be at least 2 for a group to have a "
      "variance, got 1.",
    )
  try:
    mesh = _mesh(config)
    sharding.check_rows("rollout.num_slots", rollout.num_slots, mesh)
    sharding.check_rows(
      "update.rows_per_microbatch", update.rows_per_microbatch, mesh
    )
  except ValueError as error:
    yield "problem", str(error)
  groups = rollout.num_slots / rollout.num_generations
  yield (
    "note",
    f"an update: {update.queries_per_update} questions × "
    f"{rollout.num_generations} rollouts ({rollout.num_hybrid} hybrid), "
    f"{groups:g} groups at a time in {rollout.num_slots} slots of {longest} "
    "tokens",
  )


def _mesh(config: ExperimentConfig) -> jax.sharding.AbstractMesh:
  """The mesh, of which no device is needed to see what it divides."""
  shape = config.mesh.shape(jax.device_count())
  return jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))


def _models(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Files of the agents that do not fit, dimensions that the mesh cuts."""
  mesh = _mesh(config)
  for agent in get_args(Agent):
    path = _agents(config)[agent]
    try:
      if path is not None and not hub.is_hub_id(path):
        models.check_pretrained(path)
      shape = policy_shape(config, agent)
      # The off-policy agent is rolled out alone, and never trained.
      trained = agent == "base"
      abstract = _abstract(shape, config.policy.lora if trained else None)
      if trained:
        sharding.shardings(abstract, mesh, sharding.TRAIN_RULES)
      sharding.shardings(abstract, mesh, sharding.ROLLOUT_RULES)
    except (ValueError, FileNotFoundError) as error:
      yield "problem", f"{_name(agent)}: {error}"


def _agents(config: ExperimentConfig) -> dict[str, str | None]:
  """What the config names each agent, as in `PolicyConfig`."""
  return {"base": config.policy.base, "off_policy": config.policy.off_policy}


def _name(agent: str) -> str:
  return f"policy.{agent}"


def _abstract(
  shape: models.DecoderConfig, lora: models.LoraConfig | None
) -> models.Decoder:
  """A model that takes no memory."""
  shape = dataclasses.replace(shape, lora=lora)
  return jax.eval_shape(lambda: models.Decoder(shape, rngs=nnx.Rngs(0)))


def _files(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Files that are needed and not named, or named and not there."""
  base, off_policy = config.policy.base, config.policy.off_policy
  if (base is None) != (off_policy is None):
    yield (
      "problem",
      "an agent that is named needs the other one named: set both policy.base "
      "and policy.off_policy, or neither.",
    )
  if config.data.source == "tool_star" and config.data.path is None:
    yield (
      "problem",
      f"data.source {config.data.source!r} reads a Parquet file and data.path "
      "is not set: add --config.data.path=<folder>/train_10k.parquet.",
    )
  for name in ("data.path", "data.corpus", "policy.base", "policy.off_policy"):
    section, field = name.split(".")
    value = getattr(getattr(config, section), field)
    if section == "policy" and value is not None and hub.is_hub_id(value):
      continue
    if value is not None and not pathlib.Path(value).exists():
      parent = pathlib.Path(value).parent
      near = difflib.get_close_matches(
        pathlib.Path(value).name,
        [p.name for p in parent.iterdir()] if parent.is_dir() else [],
        n=1,
      )
      hint = f": did you mean {parent / near[0]}?" if near else "."
      yield "problem", f"{name} names {value}, which does not exist{hint}"


def _questions(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Questions, prompts, template and memory of each task."""
  for name in task_names(config):
    try:
      train, held_out = questions(config, name)
      order.batch(0, 0, config.update.queries_per_update, len(train))
    except (ValueError, FileNotFoundError) as error:
      yield "problem", str(error)
      continue
    yield (
      "note",
      f"{name}: {len(train)} training questions, {len(held_out)} held out",
    )
    for agent in get_args(Agent):
      path = _agents(config)[agent]
      try:
        tokenizer = _tokenizer(config, path, train)
        check_vocabulary(tokenizer, policy_shape(config, agent).vocab_size)
        end_ids(tokenizer)
        longest = _longest_prompt(config, tokenizer, train, held_out)
      except (ValueError, OSError) as error:
        yield "problem", f"{_name(agent)}: {error}"
        continue
      yield (
        "note",
        f"{name}: longest prompt of {_name(agent)} has {longest} of "
        f"{config.rollout.max_prompt_tokens} tokens; the chat template only "
        "appends",
      )
    for text in memory_estimate(config, policy_shape(config)):
      yield "note", f"{name}: {text}"


def _longest_prompt(
  config: ExperimentConfig,
  tokenizer: Any,
  train: list[Query],
  held_out: list[Query],
) -> int:
  """Tokens of the longest prompt, as an agent's own tokenizer writes it.

  Raises:
    ValueError: one is too long, or the chat template fails or rewrites prompts.
  """
  date = datetime.date.fromisoformat(config.data.prompt_date)
  check_prefix_preservation(tokenizer, train[0], date=date)
  limit = config.rollout.max_prompt_tokens
  return max(
    len(encode_prompt(tokenizer, query, limit, date=date))
    for query in (*train, *held_out)
  )


def _tokenizer(
  config: ExperimentConfig, path: str | None, train: list[Query]
) -> Any:
  """Of an agent: as named, or as the agents stage would make it.

  Raises:
    InputError: it is not there, or broken.
  """
  if path is not None:
    return load_tokenizer(path)
  if config.data.source == "miniature":
    return miniature_tokenizer.train_tokenizer(
      miniature_tokenizer.corpus(make_world(config.world))
    )
  return train_byte_level_tokenizer(
    [q.question for q in train], config.policy.random.vocab_size
  )


def memory_estimate(
  config: ExperimentConfig, shape: models.DecoderConfig
) -> list[str]:
  """Bytes on one device by kind; `experiments.plan` knows better.

  What is trained has gradients and two moments of AdamW's in float32; what is
  frozen has rollout.dtype, in which it is loaded. The rollout has a copy of its
  own of what lies otherwise or is of another dtype.
  """
  abstract = _abstract(shape, config.policy.lora)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
  trained = sum(
    leaf.size for leaf in jax.tree.leaves(models.trainable(abstract))
  )
  rollout, update = config.rollout, config.update
  mesh = config.mesh.shape(jax.device_count())
  devices, slices = math.prod(mesh.values()), mesh["fsdp"] * mesh["tensor"]
  width = jnp.dtype(rollout.dtype).itemsize
  copied = trained if rollout.dtype != "float32" else 0
  if devices > 1:
    copied = parameters
  length = rollout.max_prompt_tokens + rollout.max_response_tokens
  kv = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
  tokens = update.rows_per_microbatch * update.row_length
  parts = {
    "parameters": (4 * trained + width * (parameters - trained)) / slices,
    "gradients and optimizer": 12 * trained / slices,
    "rollout copy": width * copied / mesh["tensor"],
    "KV cache": width * kv * rollout.num_slots * length / devices,
    "activations": width
    * tokens
    * shape.num_layers
    * _kept_a_token(update, shape)
    / (mesh["data"] * mesh["fsdp"]),
  }
  shown = ", ".join(
    f"{name} {_gigabytes(size)}" for name, size in parts.items() if size
  )
  where = "device memory" if devices == 1 else f"memory on each of {devices}"
  return [
    f"{parameters:,} parameters; about {_gigabytes(sum(parts.values()))} of "
    f"{where}: {shown}"
  ]


def _kept_a_token(update: UpdateConfig, shape: models.DecoderConfig) -> int:
  """Numbers that a layer keeps of a token for its backward pass.

  Attention keeps no scores: `attention.attend` computes them again.
  """
  size, wide = shape.hidden_size, shape.intermediate_size
  queries = shape.num_heads * shape.head_dim
  keys = shape.num_kv_heads * shape.head_dim
  if update.remat == "layer":
    return size
  if update.remat == "nested":
    # Inputs of the groups' first layers, and of the layers of one group.
    group = models.nested_group(shape.num_layers)
    inputs = shape.num_layers // group + group
    return -(-size * inputs // shape.num_layers)
  if update.remat == "attention":
    return size + queries
  # Its input, and the outputs of the projections that anything is made of.
  kept = 2 * size + queries + 2 * keys + 2 * wide
  if update.remat == "none":
    # Rotated and attended heads, the gate's parts, norms and residual sums, as
    # XLA's CPU back end keeps them.
    kept += 2 * queries + keys + 3 * wide + 8 * size
  return kept


def _gigabytes(size: float) -> str:
  return f"{size / 1e9:.2f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"
