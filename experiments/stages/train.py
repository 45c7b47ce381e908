"""Stage train: every method with every seed, from the same agent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import flags, health, hosts, provenance
from experiments.config import ExperimentConfig
from experiments.dependencies import (
  CHECKPOINTS_FOLDER,
  DONE_FILE,
  TRAIN,
  differences,
  train_differences,
)
from experiments.devices import device_mesh
from experiments.metrics import MetricsWriter, read_metrics, truncate_rows
from experiments.policies import describe_policy, load_policy, model_digest
from experiments.progress import Report
from experiments.report.methods import write_shown
from experiments.stages.divergence import Diverged, Watch
from experiments.stages.evaluate import curve_point
from experiments.stages.growth import Growth
from experiments.stages.runs import (
  ADAPTERS_FOLDER,
  POLICY_FOLDER,
  Run,
  is_finished,
  write_end,
)
from experiments.stages.trainers import (
  buffer_digest,
  make_trainer,
  open_growth,
)
from experiments.stop_signal import StopSignal
from experiments.tasks import OpenedTask, own_template
from experiments.workdir import TRAJECTORIES_FILE, Workdir
from rapo_jax import files, models
from rapo_jax.algorithms import Algorithm
from rapo_jax.algorithms.replay import StoredGroup
from rapo_jax.compilation import Compilation, compilations
from rapo_jax.data import Query, end_ids, order, prompt_hash
from rapo_jax.errors import InputError
from rapo_jax.retrieval import Buffer
from rapo_jax.tools import ToolStatus as ToolStatus
from rapo_jax.training import (
  Checkpoints,
  Trainer,
  TrainState,
  init_train_state,
  trajectory_records,
)
from rapo_jax.training.packing import PackedBatch
from rapo_jax.training.stored_groups import from_bytes, to_bytes

_STORE_FILE = "stored_groups.npz"
SKIPPED_FOLDER = "skipped"
"""Minibatches that a run has skipped, in its folder."""
_KEPT_SKIPPED = 8
# Share of the questions that needed guidance, for the update after.
_NEEDED = "guidance/needed"

Note = Callable[[str], None]


def train(
  config: ExperimentConfig,
  workdir: Workdir,
  task: OpenedTask,
  run: Run,
  buffer: Buffer | None,
  report: Report,
  stop: StopSignal,
  note: Note,
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
    note: called with what a user has to see, a line each.

  Raises:
    Stopped: after a checkpoint of all that was done.
    InputError: no checkpoint is sound, or the newest is of another run, config,
      prompt template, base agent or buffer; the base agent cannot be read, or
      the mesh does not divide it.
    Diverged: the policy is not finite, or has grown beyond all bounds.
    health.HealthStop: the run cannot learn, and `train.health` says to stop; or
      log-probs of a rollout are not finite.
  """
  folder = workdir.run(run.task, run.name)
  if is_finished(folder, config):
    report(1.0, "finished before", earlier=True)
    return
  write_shown(folder, config.train.algorithm(run.method))
  files.clear_leftovers(folder / POLICY_FOLDER)
  files.clear_leftovers(folder / ADAPTERS_FOLDER)
  policy = load_policy(
    config, task.start_path, seed=run.seed, lora=config.policy.lora
  )
  watch = Watch(config, workdir, folder, policy)
  growth = open_growth(config, run, buffer, folder)
  trainer = make_trainer(
    config, task, run, buffer if growth is None else growth.buffer, policy
  )
  origin = _origin(config, task, run, buffer)
  described = {
    "code": provenance.code(),
    **describe_policy(
      policy,
      task.start_path,
      end_ids=end_ids(task.tokenizer),
      chat_template=own_template(config, task.tokenizer),
    ),
  }
  state = init_train_state(
    policy, config.optimizer, mesh=device_mesh(config.mesh)
  )
  with contextlib.closing(_open_checkpoints(config, folder)) as checkpoints:
    resumed = _resume(checkpoints, state, run, folder, origin, growth, note)
    (folder / DONE_FILE).unlink(missing_ok=True)
    updates = _Updates(
      config,
      task,
      run,
      folder,
      trainer,
      growth,
      checkpoints,
      watch,
      saved_with={**origin, **described},
    )
    if resumed.update < config.train.num_updates:
      state = updates.all(resumed, report, stop, note)
    else:
      state = resumed.state
      note(_ends_at(config, run, resumed.update))
  update = max(resumed.update, config.train.num_updates)
  write_end(state.model, task, folder, update, origin)


def _ends_at(config: ExperimentConfig, run: Run, update: int) -> str:
  """What is said of a run whose newest checkpoint is its last."""
  text = f"{run.task} {run.name}: all of its {update} updates were done before"
  if update > config.train.num_updates:
    text += (
      f", which is more than train.num_updates ({config.train.num_updates}): "
      "it ends there"
    )
  return text


@dataclasses.dataclass
class _Updates:
  """The updates of one run, with what they need.

  Attributes:
    config: the experiment.
    task: questions and tools.
    run: method and seed.
    folder: of the run.
    trainer: does an update.
    growth: what the run adds to its buffer, or None.
    checkpoints: of the run.
    watch: sees when it diverges.
    saved_with: what each checkpoint says of where it is from.
  """

  config: ExperimentConfig
  task: OpenedTask
  run: Run
  folder: pathlib.Path
  trainer: Trainer
  growth: Growth | None
  checkpoints: Checkpoints
  watch: Watch
  saved_with: dict[str, Any]

  def all(
    self, resumed: _Resumed, report: Report, stop: StopSignal, note: Note
  ) -> TrainState:
    """Trains to the last update; returns the state after it.

    Raises:
      Stopped: after a checkpoint of all that was done.
      health.HealthStop: the run cannot learn.
      Diverged: the policy is not finite, or too large.
    """
    config, run = self.config, self.run
    state, done, totals, store = resumed
    num_updates = config.train.num_updates
    with MetricsWriter(
      self.folder,
      tensorboard=config.logging.tensorboard,
      wandb=config.logging.wandb,
      trackio=config.logging.trackio,
      resumed_update=done if totals else -1,
      config=flags.to_dict(config),
    ) as writer:
      monitor = _monitor(config, run).replay(read_metrics(self.folder))
      if not totals:
        writer.write(0, self._evaluate(state.model))
        totals = {"seconds": 0.0, "generated_tokens": 0.0}
      report(done / num_updates, run.name, earlier=done > 0)
      with compilations() as compiled:
        state = self.trainer.compile(state)
      report(done / num_updates, _describe_programs(run, compiled))
      for number in stop.deferred(range(done + 1, num_updates + 1)):
        state, row = _update(
          config,
          self.task,
          run,
          self.trainer,
          state,
          number - 1,
          totals,
          store,
          self.folder,
          self.growth,
          monitor,
        )
        try:
          self.watch.check(number, row, state, self.checkpoints)
        except Diverged:
          # The report shows what the run has stopped at.
          writer.write(number, row)
          raise
        alerts = _watch(config, run, row, number, monitor, writer, note)
        last = number == num_updates
        if last or number % config.train.eval_every == 0:
          row |= self._evaluate(state.model)
        writer.write(number, row)
        stopping = stop.requested
        if (
          last
          or stopping
          or number % config.train.checkpoint_every == 0
          or any(alert.saves for alert in alerts)
        ):
          self._save(number, state, totals, store, row.get("eval/accuracy"))
        report(number / num_updates, _describe(run, row))
        if stopping and not last:
          raise stop.stop(
            f"{run.task} {run.name} stopped after update {number}"
          )
    return state

  def _evaluate(self, model: models.Decoder) -> dict[str, float]:
    return curve_point(self.config, self.task, model)

  def _save(
    self,
    number: int,
    state: TrainState,
    totals: dict[str, float],
    store: list[StoredGroup],
    accuracy: float | None,
  ) -> None:
    """Saves what the run has to go back to."""
    metadata = {"update": number, "totals": totals, **self.saved_with}
    if self.growth is not None:
      metadata["buffer_growth"] = self.growth.state()
      kept = min(self.checkpoints.updates(), default=0)
      self.growth.buffer.forget_before(kept)
    attached = {}
    if self.config.train.algorithm(self.run.method).plan.replay is not None:
      attached[_STORE_FILE] = to_bytes(store)
    _check_room(self.folder, state, sum(map(len, attached.values())))
    best = accuracy if self.config.train.keep_best else None
    self.checkpoints.save(number, state, metadata, attached, score=best)


def _open_checkpoints(
  config: ExperimentConfig, folder: pathlib.Path
) -> Checkpoints:
  mesh = device_mesh(config.mesh)
  return Checkpoints(
    folder / CHECKPOINTS_FOLDER,
    max_to_keep=config.train.keep_checkpoints,
    mesh=mesh,
  )


class _Resumed(NamedTuple):
  """Where a run goes on.

  Attributes:
    state: after `update` updates.
    update: updates that are done.
    totals: running totals; none for a fresh run.
    store: groups of earlier updates, for a method that replays.
  """

  state: TrainState
  update: int
  totals: dict[str, float]
  store: list[StoredGroup]


def _origin(
  config: ExperimentConfig, task: OpenedTask, run: Run, buffer: Buffer | None
) -> dict[str, Any]:
  """What makes a run this run; a checkpoint with another origin is refused."""
  algorithm = config.train.algorithm(run.method)
  rollout, _ = config.method(run.method)
  reads = rollout.num_hybrid or algorithm.plan.reads_agent
  return {
    "run": f"{run.task} {run.name}",
    "config": TRAIN.of(flags.to_dict(config), run.task),
    "algorithm": _definition(algorithm),
    "prompt_hash": prompt_hash(
      task.tokenizer, task.train[0], date=task.prompt_date
    ),
    "base_agent": model_digest(task.start_path),
    "buffer": buffer_digest(buffer) if reads else None,
  }


def _definition(algorithm: Algorithm) -> dict[str, Any]:
  """What an algorithm computes with, by names; how it is shown may change."""
  plain = flags.to_dict(algorithm)
  return {
    name: value
    for name, value in plain.items()
    if name not in ("label", "description", "colour", "dark_colour")
  }


def _resume(
  checkpoints: Checkpoints,
  state: TrainState,
  run: Run,
  folder: pathlib.Path,
  origin: dict[str, Any],
  growth: Growth | None,
  note: Note,
) -> _Resumed:
  """Goes back to the newest sound checkpoint, and says what is lost.

  Metrics, trajectories and what the buffer has grown by go back with it.

  Raises:
    InputError: no checkpoint is sound, or the newest is of something else.
  """
  newest, problems = checkpoints.newest_sound()
  name = f"{run.task} {run.name}"
  for line in problems:
    note(f"warning: {name}: {line}")
  if newest is None:
    _begin_anew(folder, name, growth, note)
    return _Resumed(state, 0, {}, [])
  where = f"update {newest} in {folder}"
  if problems:
    note(
      f"warning: {name} goes on from the checkpoint of update {newest}, the "
      "newest that is sound; what came after it is dropped and done again"
    )
  # Of another experiment it may have other shapes too, which nobody could
  # make sense of.
  metadata = checkpoints.metadata(newest)
  _check_origin(metadata, origin, where)
  _check_config(metadata["config"], origin["config"], folder, where)
  there, here = metadata["code"], provenance.code()
  if there["source_sha256"] != here["source_sha256"]:
    note(
      f"warning: {name}: the checkpoint of {where} was written by other code "
      f"({provenance.describe_code(there)}) than this "
      f"({provenance.describe_code(here)}); the run goes on"
    )
  if growth is not None:
    growth.restore(newest, metadata.get("buffer_growth"))
  state = checkpoints.restore(newest, state)
  truncate_rows(folder / TRAJECTORIES_FILE, newest)
  stored = checkpoints.attached(newest, _STORE_FILE)
  return _Resumed(
    state,
    newest,
    dict(metadata["totals"]),
    [] if stored is None else from_bytes(stored),
  )


def _begin_anew(
  folder: pathlib.Path, name: str, growth: Growth | None, note: Note
) -> None:
  """Clears what a run without a checkpoint has left.

  Raises:
    InputError: the run has ended, so that there must be checkpoints.
  """
  if (folder / DONE_FILE).exists():
    raise InputError(
      f"{name} has ended, and a run goes on from a checkpoint: "
      f"{folder / CHECKPOINTS_FOLDER} holds none. Put them back, or delete "
      f"{folder} to train it from the start."
    )
  lost = [row for row in read_metrics(folder) if row["update"] > 0]
  if lost:
    note(
      f"{name} has no checkpoint yet: the {len(lost)} updates that were done "
      "are done again"
    )
  if growth is not None:
    growth.restore(0, None)
  truncate_rows(folder / TRAJECTORIES_FILE, -1)


def _check_room(folder: pathlib.Path, state: TrainState, attached: int) -> None:
  """Refuses to begin a checkpoint that the disk has no room for."""
  trained = models.trainable(state.model)
  leaves = jax.tree.leaves((trained, state.opt_state))
  size = sum(x.nbytes for x in leaves) + attached
  free = shutil.disk_usage(folder).free
  if size > free:
    raise InputError(
      f"a checkpoint takes about {size / 1e6:,.1f} MB, and {folder} has "
      f"{free / 1e6:,.1f} MB free: free some space there and start again; it "
      "goes on from the newest checkpoint."
    )


def _check_origin(
  metadata: dict[str, Any], origin: dict[str, Any], where: str
) -> None:
  """Refuses a checkpoint that another run, or another version, wrote."""
  missing = sorted({"totals", *origin} - metadata.keys())
  if missing:
    raise InputError(
      f"a checkpoint says what it is of, and that of {where} has no "
      f"{', '.join(missing)}: go on with the version that wrote it, or choose "
      "another --workdir."
    )
  for name, here in origin.items():
    there = metadata[name]
    if name == "config" or there == here:
      continue
    changed = f"has {there}, this run {here}"
    if isinstance(here, dict):
      lines = differences(there, here, name)
      if not lines:
        continue
      changed = f"differs: {'; '.join(lines)}"
    raise InputError(
      f"a run goes on with the {name} that it began with; the checkpoint of "
      f"{where} {changed}: undo what has changed, or choose another --workdir."
    )


def _check_config(
  there: dict[str, Any], here: dict[str, Any], folder: pathlib.Path, where: str
) -> None:
  """Refuses a checkpoint whose run had other settings than this one."""
  task = folder.parent.name
  lines = train_differences(TRAIN.complete(there, task), here, folder)
  if lines:
    raise InputError(
      f"a run goes on with the config that it began with; of that of {where}\n"
      + "\n".join(f"  {line}" for line in lines)
      + "\nundo what has changed, or choose another --workdir."
    )


class _Questions:
  """The questions of a run, in an order that is the same for every method.

  Args:
    config: the experiment.
    task: whose questions they are.
    run: whose seed shuffles them.
    asks: says which are trained on; others are passed over.
    at: where they go on.

  Attributes:
    at: where those begin that are next.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    task: OpenedTask,
    run: Run,
    asks: Callable[[Query], bool],
    at: order.Place,
  ):
    self._asks = asks
    self._seed = config.data.seed + run.seed
    self._task = task
    self.at = at

  def take(self, count: int) -> tuple[list[Query], list[np.ndarray]]:
    """The next questions with their prompts."""
    train = self._task.train
    queries: list[Query] = []
    while len(queries) < count:
      chosen, self.at = order.take(
        self._seed, self.at, count - len(queries), len(train)
      )
      queries += [train[i] for i in chosen if self._asks(train[i])]
    return queries, [self._task.prompt(query) for query in queries]


def _batch_place(
  config: ExperimentConfig, task: OpenedTask, batch: int
) -> order.Place:
  """Where a batch begins, for a method that takes one an update."""
  return order.place(batch, config.update.queries_per_update, len(task.train))


def _update(
  config: ExperimentConfig,
  task: OpenedTask,
  run: Run,
  trainer: Trainer,
  state: TrainState,
  update: int,
  totals: dict[str, float],
  store: list[StoredGroup],
  folder: pathlib.Path,
  growth: Growth | None,
  monitor: health.Monitor,
) -> tuple[TrainState, dict[str, float]]:
  """One update and its row of metrics; adds to the totals and to the store.

  Its trajectories are logged on a schedule, and where an alert begins.
  """
  # A checkpoint from before methods replayed counts batches.
  at = _batch_place(config, task, int(totals.pop("batches", update)))
  if "data/epoch" in totals:
    at = order.Place(int(totals["data/epoch"]), int(totals["data/position"]))
  questions = _Questions(config, task, run, trainer.asks, at)
  count = trainer.num_fresh(store)
  where = f"update {update + 1} of {run.task} {run.name}"
  idle = hosts.Idle()
  with compilations() as compiled, health.finite_rollout(where):
    state, experience, row = trainer.step(
      state,
      *questions.take(count),
      update,
      more=lambda _: questions.take(count),
      store=store,
      guidance=totals.get(_NEEDED, 1.0),
    )
  row |= idle.metrics()
  if _NEEDED in row:
    totals[_NEEDED] = row[_NEEDED]
  store[:] = trainer.stored(store, experience)
  queries = experience.queries
  row["compile/programs"] = len(compiled)
  row["compile/seconds"] = sum(c.seconds for c in compiled)
  _stop_if_compiled(config, run, update + 1, compiled)
  totals["seconds"] += row["step/seconds"]
  totals["generated_tokens"] += row["budget/generated_tokens"]
  totals["data/epoch"], totals["data/position"] = map(float, questions.at)
  number = update + 1
  every = config.train.log_trajectories_every
  alerts = monitor.look(number, row)
  row |= monitor.metrics()
  for batch, skipped in enumerate(experience.skipped):
    _keep_skipped(folder / SKIPPED_FOLDER, number, batch, skipped)
  if (
    number == 1
    or number % every == 0
    or experience.skipped
    or any(a.show for a in alerts)
  ):
    with files.append_private(folder / TRAJECTORIES_FILE) as file:
      for record in trajectory_records(
        experience,
        queries,
        task.tokenizer,
        number,
        tokens=config.train.log_tokens,
      ):
        line = json.dumps(record.to_json(), ensure_ascii=False)
        file.write(line + "\n")
  if growth is not None:
    row |= growth.after_update(number, experience, queries, task.tokenizer)
  return state, {**totals, **row}


def _keep_skipped(
  folder: pathlib.Path, update: int, number: int, batch: PackedBatch
) -> None:
  """Writes a minibatch that was skipped; the oldest ones make room for it."""
  files.make_private_folder(folder)
  name = f"update-{update:06d}-{number}.npz"
  arrays = {**batch._asdict(), **batch.columns}
  del arrays["columns"]
  arrays = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
  with files.replaced_file(folder / name) as new, new.open("wb") as file:
    np.savez_compressed(file, **arrays)
  for old in sorted(folder.glob("update-*.npz"))[:-_KEPT_SKIPPED]:
    old.unlink()


def _describe_programs(run: Run, compiled: list[Compilation]) -> str:
  """What was compiled before the first update, the longest first."""
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
      "nothing may compile in an update (train.strict_compile), "
      f"update {number} of {run.task} {run.name} compiled "
      f"{', '.join(c.name for c in compiled)}: find what changes its shapes, "
      "or turn train.strict_compile off."
    )


def _monitor(config: ExperimentConfig, run: Run) -> health.Monitor:
  rollout, _ = config.method(run.method)
  # By a rule it may well be that no question needs guidance.
  always = config.train.algorithm(run.method).plan.guide is None
  retrieves = always and rollout.num_hybrid > 0
  return health.Monitor(config.train.health, retrieves=retrieves)


def _watch(
  config: ExperimentConfig,
  run: Run,
  row: dict[str, float],
  number: int,
  monitor: health.Monitor,
  writer: MetricsWriter,
  note: Note,
) -> list[health.Alert]:
  """Notes how the first update went and what alerts begin; stops a broken run.

  The row of an update that stops the run is written first, for the report.

  Returns:
    Alerts of the update.
  """
  try:
    alerts = _stop_if_broken(config, run, number, row, monitor)
  except RuntimeError:
    writer.write(number, row)
    raise
  first = health.first_update_text(row) if number == 1 else ""
  if first:
    note(f"{run.task} {run.name}: {first}")
  for alert in alerts:
    if alert.show:
      note(f"warning: {run.task} {run.name}: {alert.describe()}")
  return alerts


def _stop_if_broken(
  config: ExperimentConfig,
  run: Run,
  number: int,
  row: dict[str, float],
  monitor: health.Monitor | None = None,
) -> list[health.Alert]:
  """Raises rather than train on, once nothing can be learned any more.

  Args:
    config: the experiment.
    run: of which the update is.
    number: of the update.
    row: its metrics.
    monitor: has seen the updates before; None for a new one, with defaults.

  Returns:
    Alerts that do not stop the run.

  Raises:
    RuntimeError: names the rule, the figures and the remedy.
  """
  where = f"update {number} of {run.task} {run.name}"
  # Not there where nothing was rolled out.
  gap = row.get("mismatch/abs_log_prob_mean", 0.0)
  # Not `gap > limit`: NaN has to stop the run too.
  if not gap <= config.train.stop_mismatch:
    raise RuntimeError(
      "the trainer's log-probs may differ from the sampler's by at most "
      f"{config.train.stop_mismatch} on average (train.stop_mismatch), {where} "
      f"has {gap:.4f}: the two do not compute the same model."
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
    raise health.HealthStop(f"every retrieval of {where} failed: {remedy}")
  alerts = (monitor or health.Monitor()).look(number, row)
  for alert in alerts:
    if alert.stops:
      raise health.HealthStop(
        f"{where} cannot learn. {alert.describe()} To go on all the same, "
        f"start again with --config.train.health.{alert.kind}=warn."
      )
  return alerts


def _describe(run: Run, row: dict[str, Any]) -> str:
  text = f"{run.task} {run.name} "
  if "reward/accuracy" in row:
    text += f"train accuracy {row['reward/accuracy']:.2f}"
  else:
    text += f"loss {row['loss']:.3f}"
  if "eval/accuracy" in row:
    text += f", held-out {row['eval/accuracy']:.2f}"
  return text
