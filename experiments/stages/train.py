"""Stage train: every method with every seed, from the same base agent."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags, input_errors, trajectory_log
from experiments.config import ExperimentConfig, Method
from experiments.devices import device_mesh
from experiments.engines import open_engine
from experiments.input_errors import InputError
from experiments.metrics import MetricsWriter, truncate_rows
from experiments.policies import (
  BASE_FINGERPRINT,
  describe_policy,
  load_policy,
)
from experiments.stages.evaluate import sample_accuracy
from experiments.stages.growth import Growth
from experiments.stop_signal import Stopped, StopSignal
from experiments.tasks import Task
from experiments.workdir import Workdir, write_json
from rapo_jax import models
from rapo_jax.compilation import Compilation, compilations
from rapo_jax.data import Query, end_ids, order, prompt_hash
from rapo_jax.retrieval import Buffer, StepTraceBuffer
from rapo_jax.tools import ToolStatus
from rapo_jax.training import (
  Checkpoints,
  Trainer,
  TrainState,
  init_train_state,
)

TRAJECTORIES_FILE = "trajectories.jsonl"
DONE_FILE = "done.json"
POLICY_FOLDER = "policy"
"""Hugging Face folder of a finished run's policy, adapters merged."""
ADAPTERS_FOLDER = "adapters"
"""Its adapters alone, in PEFT's format, where it has any."""
BUFFER_FOLDER = "buffer"
"""What a run whose buffer grows has added to it."""

# One call that fails may be bad luck; that many of as many are not.
_BROKEN_CALLS = 8

Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    task: name of its task.
    method: what trains.
    seed: of sampling and retrieval.
  """

  task: str
  method: Method
  seed: int

  @property
  def name(self) -> str:
    return f"{self.method}-seed{self.seed}"


def runs(config: ExperimentConfig, tasks: list[str]) -> Iterator[Run]:
  """All runs of an experiment, seed by seed, so that pairs end together."""
  for task in tasks:
    for seed in config.train.seeds:
      for method in config.train.methods:
        yield Run(task, method, seed)


def train(
  config: ExperimentConfig,
  workdir: Workdir,
  task: Task,
  run: Run,
  buffer: Buffer | None,
  report: Report,
  stop: StopSignal,
) -> None:
  """Trains one run to its last update, from its newest checkpoint if any.

  Args:
    config: the experiment.
    workdir: where everything is written.
    task: questions and tools.
    run: method and seed.
    buffer: Step-Trace Buffer of the task; the run may grow one of its own from
      it.
    report: called with the share done, 0 to 1, and a word on the last update.
    stop: once it is requested, the update under way is the last.

  Raises:
    Stopped: after a checkpoint of all that was done.
    InputError: the newest checkpoint is of another config or prompt template,
      the base agent cannot be read, or the mesh does not divide it.
  """
  folder = workdir.run(run.task, run.name)
  if (folder / DONE_FILE).exists():
    report(1.0, "finished before")
    return
  policy = load_policy(config, task.base_path, seed=run.seed)
  growth = _open_growth(config, run, buffer, folder)
  trainer = _make_trainer(
    config, task, run, buffer if growth is None else growth.buffer, policy
  )
  state = init_train_state(
    policy, config.optimizer, mesh=device_mesh(config.mesh)
  )
  checkpoints = Checkpoints(folder / "checkpoints")
  origin = {
    "config_hash": flags.config_hash(config),
    "prompt_hash": prompt_hash(
      task.tokenizer, task.train[0], date=task.prompt_date
    ),
  }
  described = describe_policy(
    policy, task.base_path, end_ids=end_ids(task.tokenizer)
  )
  if policy.config.lora is not None:
    # The checkpoint holds adapters, which mean nothing over another base.
    origin[BASE_FINGERPRINT] = described[BASE_FINGERPRINT]
  state, done, totals = _resume(checkpoints, state, folder, origin, growth)
  with MetricsWriter(
    folder,
    tensorboard=config.logging.tensorboard,
    wandb=config.logging.wandb,
    resumed_update=done if totals else -1,
    config=flags.to_dict(config),
  ) as writer:
    evaluate = functools.partial(
      sample_accuracy, config, task, samples=config.evaluation.curve_samples
    )
    if not totals:
      accuracy = evaluate(state.model)
      writer.write(0, {"eval/accuracy": accuracy})
      totals = {"seconds": 0.0, "generated_tokens": 0.0}
    report(done / config.train.num_updates, run.name)
    with compilations() as compiled:
      _rehearse(config, task, run, trainer, state)
    report(done / config.train.num_updates, _describe_programs(run, compiled))
    for update in range(done, config.train.num_updates):
      state, row = _update(
        config, task, run, trainer, state, update, totals, folder, growth
      )
      number = update + 1
      last = number == config.train.num_updates
      if last or number % config.train.eval_every == 0:
        row["eval/accuracy"] = evaluate(state.model)
      writer.write(number, row)
      stopping = stop.requested
      if last or stopping or number % config.train.checkpoint_every == 0:
        metadata = {"update": number, "totals": totals, **origin, **described}
        if growth is not None:
          metadata["buffer"] = growth.state()
          kept = min(checkpoints.updates(), default=0)
          growth.buffer.forget_before(kept)
        checkpoints.save(number, state, metadata)
      report(number / config.train.num_updates, _describe(run, row))
      if stopping and not last:
        checkpoints.close()
        raise Stopped(f"{run.task} {run.name} stopped after update {number}")
  checkpoints.close()
  _write_policy(state.model, task, folder)
  write_json(folder / DONE_FILE, {"update": config.train.num_updates})


@input_errors.from_outside()
def _open_growth(
  config: ExperimentConfig,
  run: Run,
  buffer: Buffer | None,
  folder: pathlib.Path,
) -> Growth | None:
  """What grows the run's buffer; None if nothing does, or nothing retrieves."""
  rollout, _ = config.method(run.method)
  if buffer is None or config.buffer.grow is None or not rollout.num_hybrid:
    return None
  # What a server holds does not grow: `BufferConfig` has seen to that.
  assert isinstance(buffer, StepTraceBuffer)
  return Growth(config, buffer, folder / BUFFER_FOLDER)


@input_errors.from_outside()
def _make_trainer(
  config: ExperimentConfig,
  task: Task,
  run: Run,
  buffer: Buffer | None,
  policy: models.Decoder,
) -> Trainer:
  """What runs the updates of a run's method."""
  rollout, objective = config.method(run.method)
  engine = open_engine(
    config,
    task,
    rollout,
    vocab_size=policy.config.vocab_size,
    buffer=buffer,
    policy=policy,
  )
  return Trainer(
    engine,
    task.tokenizer,
    rollout=rollout,
    objective=objective,
    optimizer=config.optimizer,
    update=config.update,
    seed=run.seed,
    mesh=device_mesh(config.mesh),
  )


def _write_policy(
  model: models.Decoder, task: Task, folder: pathlib.Path
) -> None:
  """Writes the trained policy, and its adapters apart if it has any."""
  models.save_pretrained(
    models.merge_adapters(model),
    folder / POLICY_FOLDER,
    tokenizer=task.tokenizer,
    source=task.base_path,
    end_ids=end_ids(task.tokenizer),
  )
  if model.config.lora is not None:
    models.save_adapters(
      model, folder / ADAPTERS_FOLDER, base_model=task.base_path.absolute()
    )


def _resume(
  checkpoints: Checkpoints,
  state: TrainState,
  folder: pathlib.Path,
  origin: dict[str, str],
  growth: Growth | None,
) -> tuple[TrainState, int, dict[str, float]]:
  """State, updates done and running totals; no totals for a fresh run."""
  newest = checkpoints.latest()
  if newest is None:
    if growth is not None:
      growth.restore(0, None)
    truncate_rows(folder / TRAJECTORIES_FILE, -1)
    return state, 0, {}
  # Of another experiment it may have other shapes too, which nobody could
  # make sense of.
  metadata = checkpoints.metadata(newest)
  _check_origin(metadata, origin, f"update {newest} in {folder}")
  if growth is not None:
    growth.restore(newest, metadata.get("buffer"))
  state = checkpoints.restore(newest, state)
  truncate_rows(folder / TRAJECTORIES_FILE, newest)
  return state, newest, dict(metadata["totals"])


def _check_origin(
  metadata: dict[str, Any], origin: dict[str, str], where: str
) -> None:
  """Refuses a checkpoint that another experiment, or version, wrote."""
  missing = sorted({"totals", *origin} - metadata.keys())
  if missing:
    raise InputError(
      f"a checkpoint says what it is of, and that of {where} has no "
      f"{', '.join(missing)}: go on with the version that wrote it, or choose "
      "another --workdir."
    )
  for name, here in origin.items():
    if metadata[name] != here:
      raise InputError(
        f"a run goes on with the {name} that it began with; the checkpoint of "
        f"{where} has {metadata[name]}, this run {here}: undo what has "
        "changed, or choose another --workdir."
      )


@input_errors.from_outside()
def _questions(
  config: ExperimentConfig, task: Task, run: Run, update: int
) -> tuple[list[Query], list[np.ndarray]]:
  """Queries and prompts of an update, the same for every method."""
  chosen = order.batch(
    config.data.seed + run.seed,
    update,
    config.update.queries_per_update,
    len(task.train),
  )
  queries = [task.train[i] for i in chosen]
  return queries, [task.prompt(query) for query in queries]


def _rehearse(
  config: ExperimentConfig,
  task: Task,
  run: Run,
  trainer: Trainer,
  state: TrainState,
) -> None:
  """One update that nothing remembers, so that none is timed compiling.

  Its questions are those that would come after the last update.
  """
  update = config.train.num_updates
  queries, prompts = _questions(config, task, run, update)
  # A copy: the state is donated.
  trainer.step(jax.tree.map(jnp.copy, state), queries, prompts, update)


def _update(
  config: ExperimentConfig,
  task: Task,
  run: Run,
  trainer: Trainer,
  state: TrainState,
  update: int,
  totals: dict[str, float],
  folder: pathlib.Path,
  growth: Growth | None,
) -> tuple[TrainState, dict[str, float]]:
  """One update and its row of metrics; adds to the totals."""
  queries, prompts = _questions(config, task, run, update)
  with compilations() as compiled:
    state, experience, row = trainer.step(state, queries, prompts, update)
  row["compile/programs"] = len(compiled)
  row["compile/seconds"] = sum(c.seconds for c in compiled)
  _stop_if_compiled(config, run, update + 1, compiled)
  _stop_if_broken(config, run, update + 1, row)
  totals["seconds"] += row["step/seconds"]
  totals["generated_tokens"] += row["rollout/generated_tokens"]
  number = update + 1
  every = config.train.log_trajectories_every
  if number == 1 or number % every == 0:
    with (folder / TRAJECTORIES_FILE).open("a", encoding="utf-8") as file:
      for record in trajectory_log.records(
        experience, queries, task.tokenizer, number
      ):
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
  if growth is not None:
    row |= growth.after_update(number, experience, queries, task.tokenizer)
  return state, {**totals, **row}


def _describe_programs(run: Run, compiled: list[Compilation]) -> str:
  """What the rehearsal compiled, the longest first."""
  longest = sorted(compiled, key=lambda c: c.seconds, reverse=True)[:3]
  names = ", ".join(f"{c.name} {c.seconds:.1f} s" for c in longest)
  return f"{run.name} compiled {len(compiled)} programs" + (
    f" ({names})" if names else ""
  )


def _stop_if_compiled(
  config: ExperimentConfig, run: Run, number: int, compiled: list[Compilation]
) -> None:
  """Raises, where it is asked for, once an update has compiled something."""
  if compiled and config.train.strict_compile:
    raise RuntimeError(
      "nothing may compile after the rehearsal (train.strict_compile), update "
      f"{number} of {run.task} {run.name} compiled "
      f"{', '.join(c.name for c in compiled)}: find what changes its shapes, "
      "or turn train.strict_compile off."
    )


def _stop_if_broken(
  config: ExperimentConfig, run: Run, number: int, row: dict[str, float]
) -> None:
  """Raises rather than train on, once nothing can be learned any more."""
  where = f"update {number} of {run.task} {run.name}"
  gap = row["mismatch/abs_log_prob_mean"]
  # Not `gap > limit`: NaN has to stop the run too.
  if not gap <= config.train.stop_mismatch:
    raise RuntimeError(
      "the trainer's log-probs may differ from the sampler's by at most "
      f"{config.train.stop_mismatch} on average (train.stop_mismatch), {where} "
      f"has {gap:.4f}: the two do not compute the same model."
    )
  for name in ("loss", "gradient_norm"):
    if not math.isfinite(row[name]):
      raise RuntimeError(
        f"{name} must be finite, {where} has {row[name]}: lower "
        "optimizer.learning_rate; the newest checkpoint is from before."
      )
  if row["rollout/retrievals_failed"] and not (
    row["rollout/retrievals"] or row["rollout/retrievals_missed"]
  ):
    if config.buffer.url is not None:
      remedy = (
        f"the server at {config.buffer.url} does not answer. Start it again, "
        "and then this."
      )
    elif config.buffer.path is not None:
      remedy = (
        "the index or the encoder is broken. See what `python -m "
        f"experiments.buffer verify --buffer {config.buffer.path}` says."
      )
    else:
      remedy = (
        "the index or the encoder is broken. Build the buffer again with "
        "--stage=buffer in a fresh work folder."
      )
    raise RuntimeError(f"every retrieval of {where} failed: {remedy}")
  for tool in sorted({n.split("/")[1] for n in row if n.startswith("tools/")}):
    counts = {s: row[f"tools/{tool}/{s}"] for s in ToolStatus}
    broken = counts[ToolStatus.FAILED] + counts[ToolStatus.REFUSED]
    if broken >= _BROKEN_CALLS and broken == sum(counts.values()):
      raise RuntimeError(
        f"every call of {tool} in {where} failed, {broken:.0f} of them: the "
        "tool is broken, not the agent. The log has the first error."
      )


def _describe(run: Run, row: dict[str, Any]) -> str:
  text = f"{run.task} {run.name} train accuracy {row['reward/accuracy']:.2f}"
  if "eval/accuracy" in row:
    text += f", held-out {row['eval/accuracy']:.2f}"
  return text
