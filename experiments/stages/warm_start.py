"""Stage warm_start: supervised learning of a task's base agent."""

from __future__ import annotations

import contextlib
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments import flags, health
from experiments.config import ExperimentConfig, WarmStartConfig
from experiments.dependencies import (
  CHECKPOINTS_FOLDER,
  DONE_FILE,
  WARM_START,
  differences,
)
from experiments.devices import device_mesh
from experiments.metrics import MetricsWriter, read_metrics
from experiments.policies import load_policy, model_digest
from experiments.progress import Report
from experiments.stages.trainers import buffer_digest
from experiments.stop_signal import StopSignal
from experiments.tasks import OpenedTask
from experiments.workdir import Workdir, read_json, write_json
from rapo_jax import files, models
from rapo_jax.data import Query, TextEncoder, end_ids, prompt_hash
from rapo_jax.errors import InputError
from rapo_jax.retrieval import StepTrace, StepTraceBuffer
from rapo_jax.tasks import load_solutions
from rapo_jax.tools import TagSet
from rapo_jax.tools.tags import opens_thought
from rapo_jax.training import Checkpoints, SupervisedTrainer
from rapo_jax.training.agent_rows import AgentEncoder, whole_trajectories
from rapo_jax.training.demonstrations import Demonstrations
from rapo_jax.trajectory import decode

HELD_OUT_LOSS = "held_out/loss"
_ORIGIN_FILE = "origin.json"

Note = Callable[[str], None]
Prompts = Callable[[Query], Int[np.ndarray, " _"]]


def warm_start(
  config: ExperimentConfig,
  workdir: Workdir,
  task: OpenedTask,
  buffer: StepTraceBuffer | None,
  report: Report,
  stop: StopSignal,
  note: Note,
) -> None:
  """Trains the base agent of a task, from the newest checkpoint if any.

  Args:
    config: the experiment, which has a warm start.
    workdir: gets metrics, checkpoints and the agent.
    task: questions and tools.
    buffer: whose whole trajectories are learned from; None for the task's
      solutions.
    report: called with the share done, 0 to 1, and a word on the last step.
    stop: once it is requested, the step under way is the last.
    note: called with what a user has to see, a line each.

  Raises:
    Stopped: after a checkpoint of all that was done.
    InputError: there are too few demonstrations, or what an interrupted warm
      start left is of something else.
    health.HealthStop: the loss is not finite.
  """
  folder = workdir.warm_start(task.name)
  if is_finished(config, workdir, task.name):
    report(1.0, "finished before", earlier=True)
    return
  settings = _settings(config)
  found = read_demonstrations(
    config,
    task.name,
    task.train,
    task.tokenizer,
    task.tools,
    task.prompt,
    buffer,
  )
  note(describe(settings, task.name, found))
  files.make_private_folder(folder)
  origin = _begun_with(config, task, buffer, folder)
  model = load_policy(
    config, task.base_path, seed=settings.seed, lora=settings.lora
  )
  checkpoints_folder = folder / CHECKPOINTS_FOLDER
  mesh = device_mesh(config.mesh)
  with contextlib.closing(
    Checkpoints(checkpoints_folder, mesh=mesh)
  ) as checkpoints:
    trainer = SupervisedTrainer(
      model,
      settings.training,
      mesh=mesh,
      checkpoints=checkpoints,
      checkpoint_every=settings.checkpoint_every,
    )
    figures = _train(config, task.name, trainer, found, folder, report, stop)
  files.clear_leftovers(workdir.warm_started(task.name))
  models.save_pretrained(
    models.merge_adapters(models.gather(trainer.model)),
    workdir.warm_started(task.name),
    tokenizer=task.tokenizer,
    source=task.base_path,
    end_ids=end_ids(task.tokenizer),
  )
  figures |= {
    "examples": len(found.train),
    "held_out_examples": len(found.held_out),
    "left_out": found.num_left_out,
  }
  write_json(folder / DONE_FILE, {**origin, "figures": figures})
  # No further step could follow the last one: the schedule has ended.
  shutil.rmtree(checkpoints_folder)


def is_finished(config: ExperimentConfig, workdir: Workdir, task: str) -> bool:
  """Whether the agent is there that the config asks for.

  Raises:
    InputError: what was written has been changed.
  """
  done = workdir.warm_start(task) / DONE_FILE
  if not done.exists():
    return False
  if not (workdir.warm_started(task) / "config.json").exists():
    return False
  wanted = WARM_START.of(flags.to_dict(config), task)
  there = WARM_START.complete(read_json(done)["config"], task)
  return not differences(there, wanted)


def read_demonstrations(
  config: ExperimentConfig,
  name: str,
  train: Sequence[Query],
  tokenizer: Any,
  tool_names: Collection[str],
  prompt: Prompts,
  traces: Iterable[StepTrace] | None,
) -> Demonstrations:
  """What a task's base agent learns from.

  Args:
    config: the experiment, which has a warm start.
    name: of the task.
    train: its training questions.
    tokenizer: of the base agent.
    tool_names: of the task's tools.
    prompt: tokens of a question's prompt.
    traces: of the Step-Trace Buffer; None for the task's solutions.

  Raises:
    InputError: the tokenizer loses tags, or fewer demonstrations than a batch
      has rows are left.
  """
  settings, rollout = _settings(config), config.rollout
  tag_set = TagSet(tuple(tool_names))
  check_tags(tokenizer, tag_set)
  queries = {query.query_id: query for query in train}
  trajectories: Mapping[str, Sequence[Sequence[str]]]
  if traces is None:
    solutions = load_solutions(config.task(name), train)
    trajectories = {query_id: [steps] for query_id, steps in solutions.items()}
  else:
    trajectories = whole_trajectories(
      traces,
      {query.query_id: query.question for query in train},
      min_reward=config.retrieval.min_reward,
    )
  opened = bool(train) and opens_thought(decode(tokenizer, prompt(train[0])))
  found = Demonstrations(
    trajectories,
    lambda query_id: prompt(queries[query_id]),
    AgentEncoder(
      tokenizer,
      tag_set,
      max_response_tokens=rollout.max_response_tokens,
      max_steps=rollout.max_steps,
      opened=opened,
    ),
    rollout,
    row_length=settings.training.row_length,
    held_out=settings.held_out,
    retrieved_share=settings.retrieved_share,
    retrieved_prob=settings.retrieved_prob,
    seed=settings.seed,
  )
  least = settings.training.rows
  if len(found.train) < least:
    raise InputError(
      f"a warm start needs a demonstration for each of the {least} rows of a "
      f"batch (warm_start.training.rows), and {name} has {len(found.train)}, "
      f"beside {len(found.held_out)} that are held out; {found.num_left_out} "
      "do not fit a row or a rollout: raise warm_start.training.row_length "
      f"({settings.training.row_length}) or the budgets of config.rollout, "
      "lower warm_start.held_out or warm_start.training.rows, or take another "
      "warm_start.source."
    )
  return found


def check_tags(tokenizer: Any, tag_set: TagSet) -> None:
  """Refuses a tokenizer that cannot write the tags of an agent.

  Raises:
    InputError: names the first tag that is lost.
  """
  encode = TextEncoder(tokenizer, tag_set)
  for name in tag_set.names:
    for tag in (f"<{name}>", f"</{name}>"):
      text = decode(tokenizer, encode(tag))
      if tag not in text:
        raise InputError(
          "a tokenizer must be able to write the tags of an agent, and of "
          f"{tag} it makes {text!r}: take another base agent, or rename the "
          "tool."
        )


def describe(
  settings: WarmStartConfig, name: str, found: Demonstrations
) -> str:
  """Steps, examples and tokens of a warm start, in a line."""
  training = settings.training
  total = training.num_steps * training.rows * training.row_length
  lengths = [found.num_tokens(worked) for worked in found.train]
  mean = sum(lengths) / len(lengths)
  epochs = total / sum(lengths)
  return (
    f"warm start of {name}: {training.num_steps} steps × {training.rows} rows "
    f"× {training.row_length} tokens = {total:,} tokens, at most {epochs:.2g} "
    f"epochs of {len(lengths):,} examples of {mean:.0f} tokens on average; "
    f"{len(found.held_out):,} examples held out, {found.num_left_out:,} left "
    "out as they do not fit"
  )


def _settings(config: ExperimentConfig) -> WarmStartConfig:
  assert config.warm_start is not None
  return config.warm_start


def _begun_with(
  config: ExperimentConfig,
  task: OpenedTask,
  buffer: StepTraceBuffer | None,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """What makes a warm start this one; written where nothing was begun.

  Raises:
    InputError: another one was begun in the folder.
  """
  origin = {
    "config": WARM_START.of(flags.to_dict(config), task.name),
    "base_agent": model_digest(task.base_path),
    "prompt_hash": prompt_hash(
      task.tokenizer, task.train[0], date=task.prompt_date
    ),
    "buffer": buffer_digest(buffer),
  }
  path = folder / _ORIGIN_FILE
  if path.exists() and Checkpoints.numbers(folder / CHECKPOINTS_FOLDER):
    lines = differences(read_json(path), origin, "origin")
    if lines:
      shown = "\n".join(f"  {line}" for line in lines)
      raise InputError(
        "a warm start goes on with what it began with, and that in "
        f"{folder} differs:\n{shown}\nundo what has changed, or delete the "
        "folder to begin again."
      )
  write_json(path, origin)
  return origin


def _train(
  config: ExperimentConfig,
  name: str,
  trainer: SupervisedTrainer,
  found: Demonstrations,
  folder: pathlib.Path,
  report: Report,
  stop: StopSignal,
) -> dict[str, Any]:
  """Runs the steps that are left; returns what the report shows.

  Raises:
    Stopped: after a checkpoint of all that was done.
    health.HealthStop: the loss is not finite.
  """
  settings = _settings(config)
  training, total = settings.training, settings.training.num_steps
  held_out = found.held_out_examples()
  with MetricsWriter(
    folder,
    tensorboard=config.logging.tensorboard,
    wandb=config.logging.wandb,
    trackio=config.logging.trackio,
    resumed_update=trainer.step or -1,
    config=flags.to_dict(config),
  ) as writer:
    if not trainer.step and held_out:
      writer.write(0, {HELD_OUT_LOSS: trainer.loss(held_out)})
    rows = read_metrics(folder)
    seconds = rows[-1].get("seconds", 0.0) if rows else 0.0
    before, began = trainer.step, time.perf_counter()
    report(before / total, f"{name} warm start", earlier=before > 0)
    for step, loss in stop.deferred(trainer.run(found.examples())):
      _check_loss(name, step, loss)
      took = time.perf_counter() - began
      seconds += took
      tokens = (step - before) * training.rows * training.row_length
      row = {"loss": loss, "tokens_per_s": tokens / took, "seconds": seconds}
      every = settings.eval_every
      if held_out and (step == total or step // every > before // every):
        row[HELD_OUT_LOSS] = trainer.loss(held_out)
      writer.write(step, row)
      report(step / total, _describe_step(name, row))
      if stop.requested and step < total:
        trainer.save()
        raise stop.stop(f"warm start of {name} stopped after step {step}")
      before, began = step, time.perf_counter()
  return _figures(folder, trainer, found)


def _check_loss(name: str, step: int, loss: float) -> None:
  if not math.isfinite(loss):
    raise health.HealthStop(
      f"the loss of a warm start must be finite, and that of {name} is {loss} "
      f"at step {step}: lower warm_start.training.learning_rate, or raise "
      "warm_start.training.warmup_steps."
    )


def _describe_step(name: str, row: Mapping[str, float]) -> str:
  text = f"{name} loss {row['loss']:.3f}, {row['tokens_per_s']:,.0f} tokens/s"
  if HELD_OUT_LOSS in row:
    text += f", held-out loss {row[HELD_OUT_LOSS]:.3f}"
  return text


def _figures(
  folder: pathlib.Path, trainer: SupervisedTrainer, found: Demonstrations
) -> dict[str, Any]:
  """Losses and seconds of a warm start that has ended."""
  rows = read_metrics(folder)
  losses = [row["loss"] for row in rows if "loss" in row]
  measured = {
    row["update"]: row[HELD_OUT_LOSS] for row in rows if HELD_OUT_LOSS in row
  }
  # Stopped between the last checkpoint and its row.
  if found.held_out and trainer.step not in measured:
    measured[trainer.step] = trainer.loss(found.held_out_examples())
  return {
    "steps": trainer.step,
    "loss": [losses[0], losses[-1]] if losses else None,
    "held_out_loss": [measured.get(0), measured[trainer.step]]
    if measured
    else None,
    "seconds": max((row.get("seconds", 0.0) for row in rows), default=0.0),
  }
