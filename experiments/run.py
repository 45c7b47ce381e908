"""Runs an experiment, stage by stage.

    python -m experiments.run --config quickstart --workdir runs/mine --dry_run
    python -m experiments.run --config quickstart --workdir runs/mine

`--config` takes a Python file, or the name of a config that comes along.

Started again with the same folder it goes on where it stopped; what is finished
is not repeated. Fields that nothing in the folder depends on may differ then,
such as train.num_updates. `--config.<path>=<value>` overrides any field.
`--task=<name>` runs one task of several, so that processes can share a folder;
`--seed=<number>` runs one seed of several. On several hosts the same command
starts on each (docs/pods.md).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from experiments import (
  checks,
  cli,
  config_places,
  flags,
  hosts,
  input_errors,
  mirror,
  objects,
  places,
  provenance,
)
from experiments.config import ExperimentConfig
from experiments.dependencies import DONE_FILE, conflicts
from experiments.devices import (
  check_devices,
  forget_programs,
  use_compilation_cache,
)
from experiments.health import HealthStop
from experiments.help_text import HelpFormatter
from experiments.policies import load_agent, model_digest
from experiments.progress import Progress
from experiments.report import page as report
from experiments.report import results, tables
from experiments.stages import agents as agents_stage
from experiments.stages import buffer as buffer_stage
from experiments.stages import evaluate as evaluate_stage
from experiments.stages import runs as run_lib
from experiments.stages import train as train_stage
from experiments.stages import warm_start as warm_start_stage
from experiments.stages.trainers import check_buffer
from experiments.stop_signal import StopSignal
from experiments.tasks import (
  OpenedTask,
  agent_paths,
  check_train_questions,
  open_buffer,
  open_encoder,
  open_task,
  task_names,
)
from experiments.workdir import (
  Workdir,
  hold_lock,
  read_config,
  read_evaluation,
  read_json,
  write_json,
)
from rapo_jax import files
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import SentenceEncoder, StepTraceBuffer
from rapo_jax.retrieval.serving.remote import RemoteBuffer
from rapo_jax.tasks import load_questions

STAGES = ("agents", "buffer", "warm_start", "train", "evaluate", "report")
Resume = Literal["auto", "never", "must"]
UNHEALTHY_STATUS = 3
"""Exit status of a run that ended because it could not learn."""
TASK_LOCK = ".lock-"


class Experiment:
  """The stages of one experiment over one work folder.

  Args:
    config: the experiment.
    workdir: its folder.
    progress: display.
    stop: what a signal to end does.
    tasks: names of the tasks to run, of those that the experiment has.
    seeds: whose runs are trained and evaluated; None for all.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    workdir: Workdir,
    progress: Progress,
    stop: StopSignal,
    tasks: list[str],
    seeds: Sequence[int] | None = None,
  ):
    self._config = config
    self._workdir = workdir
    self._progress = progress
    self._stop = stop
    self._tasks = tasks
    self._runs = list(run_lib.all_runs(config, tasks, seeds))
    self._digests: dict[pathlib.Path, str] = {}
    self._sets: dict[str, Mapping[str, Sequence[Query]]] = {}

  @functools.cached_property
  def _encoder(self) -> SentenceEncoder:
    return open_encoder(self._config)

  def run(self, stage: str) -> None:
    """Runs one stage, or shows why it need not run."""
    reason = self._skipped(stage)
    if reason is not None:
      self._progress.skip(stage, reason)
      if stage == "train":
        self._note_longer_runs()
      return
    with self._progress.stage(stage):
      getattr(self, f"_{stage}")()

  def _skipped(self, stage: str) -> str | None:
    """Why a stage need not run; None if it has to."""
    config, workdir = self._config, self._workdir
    finished = False
    if stage == "agents":
      finished = all(
        (path / "config.json").exists()
        for task in self._tasks
        for path in agent_paths(config, workdir, task).values()
      )
    if stage == "buffer":
      if not (config.retrieves or config.warm_starts_from_buffer):
        return "no method retrieves"
      if not config.builds_buffer:
        return "the config names a buffer"
      finished = all(
        (workdir.buffer(task) / "manifest.json").exists()
        for task in self._tasks
      )
    if stage == "warm_start":
      if config.warm_start is None:
        return "the config has none"
      finished = all(
        warm_start_stage.is_finished(config, workdir, task)
        for task in self._tasks
      )
    if stage == "train":
      finished = all(map(self._is_finished, self._runs))
    if stage == "evaluate":
      finished = all(
        self._is_evaluated(task, agent, run)
        for task, agent, run in self._agents_to_evaluate()
      )
    return "finished before" if finished else None

  def _note_longer_runs(self) -> None:
    """Says which runs have more updates behind them than the config asks."""
    wanted = self._config.train.num_updates
    for run in self._runs:
      folder = self._workdir.run(run.task, run.name)
      update = run_lib.ended_update(folder)
      if update is not None and update > wanted:
        self._progress.note(
          f"{run.task} {run.name} ended after {update} updates, which is more "
          f"than train.num_updates ({wanted}): it stays as it is"
        )

  def _agents(self) -> None:
    self._share(0, len(self._tasks), 0.0, "")
    for number, name in enumerate(self._tasks):
      agents_stage.make_agents(
        self._config,
        self._workdir,
        name,
        functools.partial(self._share, number, len(self._tasks)),
      )

  def _buffer(self) -> None:
    self._share(0, len(self._tasks), 0.0, "")
    for number, name in enumerate(self._tasks):
      path = self._workdir.buffer(name)
      if (path / "manifest.json").exists():
        self._share(
          number, len(self._tasks), 1.0, "finished before", earlier=True
        )
        continue
      with self._open(name) as task:
        buffer_stage.build_buffer(
          self._config,
          task,
          self._encoder,
          functools.partial(self._share, number, len(self._tasks)),
          path,
        )

  def _warm_start(self) -> None:
    config, count = self._config, len(self._tasks)
    assert config.warm_start is not None
    steps = config.warm_start.training.num_steps
    self._share(0, count, 0.0, "", units=steps)
    for number, name in enumerate(self._tasks):
      with self._open(name) as task:
        buffer = (
          self._open_buffer(name) if config.warm_starts_from_buffer else None
        )
        # A warm start from a server's buffer is refused before.
        assert not isinstance(buffer, RemoteBuffer)
        warm_start_stage.warm_start(
          config,
          self._workdir,
          task,
          buffer,
          functools.partial(self._share, number, count, units=steps),
          self._stop,
          self._progress.note,
        )
        forget_programs(self._config)

  def _train(self) -> None:
    runs = self._runs
    for name in self._tasks:
      self._check_warm_start(name)
    updates = self._config.train.num_updates
    self._share(0, len(runs), 0.0, "", units=updates)
    self._encoder.compile()
    for name in self._tasks:
      with self._open(name) as task:
        check_train_questions(self._config, name, task.train)
        buffer = self._open_buffer(name) if self._config.retrieves else None
        for run in runs:
          if run.task == name:
            check_buffer(self._config, run, buffer)
        for number, run in enumerate(runs):
          if run.task == name:
            train_stage.train(
              self._config,
              self._workdir,
              task,
              run,
              buffer,
              functools.partial(self._share, number, len(runs), units=updates),
              self._stop,
              self._progress.note,
            )
            forget_programs(self._config)
            # It came during the last update.
            if self._stop.requested:
              raise self._stop.stop(f"stopped after {run.task} {run.name}")

  def _check_warm_start(self, task: str) -> None:
    """Refuses to train from a warm start that has not ended."""
    if self._config.warm_start is not None and not self._warm_started(task):
      raise InputError(
        f"the runs of {task} begin with what its warm start gives, and "
        f"{self._workdir.warm_start(task)} holds none that has ended: run "
        "--stage=warm_start first."
      )

  def _open_buffer(self, task: str) -> StepTraceBuffer | RemoteBuffer:
    return open_buffer(self._config, self._workdir.buffer(task), self._encoder)

  def _evaluate(self) -> None:
    wanted = list(self._agents_to_evaluate())
    done = 0
    for name in self._tasks:
      with self._open(name) as task:
        for owner, agent, run in wanted:
          if owner != name:
            continue
          there = self._is_evaluated(name, agent, run)
          if not there:
            report = functools.partial(
              self._share, done, len(wanted), text=f"{name} {agent}"
            )
            report(0.0)
            self._evaluate_agent(task, agent, run, report)
          done += 1
          self._share(done, len(wanted), 0.0, f"{name} {agent}", earlier=there)

  def _evaluate_agent(
    self,
    task: OpenedTask,
    agent: str,
    run: run_lib.Run | None,
    report: Callable[[float], None],
  ) -> None:
    """Evaluates one agent, and writes down what its result depends on."""
    acting, folder = task, self._agent_folder(task.name, agent, run)
    if agent == "off_policy":
      acting, _ = task.for_off_policy()
    if run is not None:
      run_lib.check_policy(folder.parent)
    model = load_agent(self._config, folder)
    made_with = self._evaluated_with(task.name, folder, run)
    path = self._workdir.evaluation(task.name, agent)
    result = evaluate_stage.evaluate(
      self._config,
      acting,
      model,
      report,
      path=path.with_suffix(".answers.jsonl"),
      made_with=made_with,
    )
    result |= {
      "task": task.name,
      "agent": agent,
      "method": run.method if run else agent,
      "seed": run.seed if run else None,
      "update": run_lib.ended_update(folder.parent) if run else 0,
      "made_with": made_with,
    }
    write_json(path, result)

  def _is_evaluated(
    self, task: str, agent: str, run: run_lib.Run | None
  ) -> bool:
    """Whether a result is there, of this agent and of what it depends on."""
    path = self._workdir.evaluation(task, agent)
    if not path.exists():
      return False
    made_with = read_evaluation(path).get("made_with")
    folder = self._agent_folder(task, agent, run)
    return bool(made_with == self._evaluated_with(task, folder, run))

  def _evaluated_with(
    self, task: str, agent: pathlib.Path, run: run_lib.Run | None
  ) -> str:
    """Changes with the agent, and with any field that its result depends on."""
    digest = (
      self._agent_digest(agent)
      if run is None
      # It has a sum of every file of the policy.
      else read_json(agent.parent / DONE_FILE)
    )
    return evaluate_stage.evaluated_with(
      self._config, task, digest, self._evaluation(task)
    )

  def _evaluation(self, task: str) -> Mapping[str, Sequence[Query]]:
    """Evaluation sets of a task; its files are read once."""
    if task not in self._sets:
      self._sets[task] = load_questions(self._config.task(task)).evaluation
    return self._sets[task]

  def _agent_digest(self, agent: pathlib.Path) -> str:
    """Of an agent that no run has trained; its files are read once."""
    if agent not in self._digests:
      self._digests[agent] = model_digest(agent)
    return self._digests[agent]

  def _agent_folder(
    self, task: str, agent: str, run: run_lib.Run | None
  ) -> pathlib.Path:
    if run is not None:
      return self._workdir.run(task, run.name) / run_lib.POLICY_FOLDER
    if agent == "warm_start":
      return self._workdir.warm_started(task)
    return agent_paths(self._config, self._workdir, task)[agent]

  def _report(self) -> None:
    root = self._workdir.root
    with _one_at_a_time(self._workdir):
      report.write_report(root, results.write_results(root))

  def _share(
    self,
    item: int,
    items: int,
    share: float,
    text: str,
    *,
    units: int = 1,
    earlier: bool = False,
    until: float | None = None,
  ) -> None:
    """Shows how much of a stage's items is done, `item` being under way.

    Args:
      item: number of the item.
      items: how many there are.
      share: of the item that is done, in [0, 1].
      text: what the last unit gave.
      units: of an item, such as the updates of a run.
      earlier: as in `Progress.update`.
      until: share of the item at which its kind of work ends; None where all
        items are alike.
    """
    self._stop.check()
    # Thirds of an item are shown as whole units.
    done = round((item + share) * units, 6)
    end = None if until is None else round((item + until) * units, 6)
    self._progress.update(done, items * units, text, earlier=earlier, until=end)

  def _open(self, name: str) -> contextlib.AbstractContextManager[OpenedTask]:
    return open_task(self._config, self._workdir, name, self._encoder)

  def _agents_to_evaluate(
    self,
  ) -> Iterator[tuple[str, str, run_lib.Run | None]]:
    """(task, agent, its run or None) in the order of the table."""
    for task in self._tasks:
      yield task, "base", None
      if self._warm_started(task):
        yield task, "warm_start", None
      if self._config.has_off_policy:
        yield task, "off_policy", None
    for run in self._runs:
      if self._is_finished(run):
        yield run.task, run.name, run

  def _warm_started(self, task: str) -> bool:
    """Whether the agent of a task's warm start is there."""
    config = self._config
    return config.warm_start is not None and warm_start_stage.is_finished(
      config, self._workdir, task
    )

  def _is_finished(self, run: run_lib.Run) -> bool:
    folder = self._workdir.run(run.task, run.name)
    return run_lib.is_finished(folder, self._config)

  def is_complete(self) -> bool:
    """Whether everything is made, trained and evaluated."""
    return all(self._skipped(stage) for stage in STAGES if stage != "report")

  def unfinished_runs(self) -> list[str]:
    """Runs that are not finished, which cannot be evaluated."""
    return [
      f"{run.task} {run.name}"
      for run in self._runs
      if not self._is_finished(run)
    ]


@contextlib.contextmanager
def claim_workdir(
  config: ExperimentConfig,
  workdir: Workdir,
  tasks: list[str],
  resume: Resume = "auto",
) -> Iterator[None]:
  """Holds some tasks of a work folder for this process and this config.

  The locks end with the process, however that ends.

  Args:
    config: the experiment.
    workdir: its folder.
    tasks: names of those to hold.
    resume: whether the experiment may, must or must not have begun before.

  Raises:
    flags.ConfigError: another process works on one of the tasks, or the folder
      holds another experiment; names the fields that differ. Or `resume` does
      not allow it.
  """
  _check_resume(workdir, resume)
  files.make_private_folder(workdir.root)
  _warn_if_others_can_read(workdir)
  with contextlib.ExitStack() as locks:
    for task in tasks:
      held = locks.enter_context(
        hold_lock(workdir.root, f"{TASK_LOCK}{task}", wait=False)
      )
      if not held:
        raise flags.ConfigError(
          f"another process works on {task} in {workdir.root}: wait for it, or "
          "choose another --task or --workdir."
        )
    with _one_at_a_time(workdir):
      _check_config(config, workdir, tasks)
    yield


def _check_resume(workdir: Workdir, resume: Resume) -> None:
  """Refuses a folder in which an experiment has begun, or has not."""
  begun = workdir.config.exists()
  if begun and resume == "never":
    raise flags.ConfigError(
      f"--resume=never needs a folder in which nothing has begun, got "
      f"{workdir.root}: choose another --workdir, or leave --resume out to go "
      "on."
    )
  if not begun and resume == "must":
    raise flags.ConfigError(
      f"--resume=must needs a folder in which an experiment has begun, got "
      f"{workdir.root}, which has no {workdir.config.name}: see whether the "
      "right disk is mounted, or leave --resume out to begin."
    )


def _warn_if_others_can_read(workdir: Workdir) -> None:
  mode = stat.S_IMODE(workdir.root.stat().st_mode)
  if mode & (stat.S_IRGRP | stat.S_IROTH):
    print(
      f"warning: {workdir.root} holds ground truth, and others can read it "
      f"(mode {mode:o}): `chmod 700 {shlex.quote(str(workdir.root))}` keeps it "
      "for you alone.",
      file=sys.stderr,
    )


def _one_at_a_time(
  workdir: Workdir,
) -> contextlib.AbstractContextManager[bool]:
  """Waits for other processes that write files of the whole folder."""
  return hold_lock(workdir.root, ".lock", wait=True)


def _refuse_others(workdir: Workdir, tasks: list[str]) -> None:
  """Refuses to change the config that another process works with."""
  for path in workdir.root.iterdir():
    task = path.name.removeprefix(TASK_LOCK)
    if task == path.name or task in tasks:
      continue
    with hold_lock(workdir.root, path.name, wait=False) as held:
      if not held:
        raise flags.ConfigError(
          f"another process works on {task} in {workdir.root} with another "
          "config: use its config, wait for it, or choose another --workdir."
        )


def _check_config(
  config: ExperimentConfig, workdir: Workdir, tasks: list[str]
) -> None:
  """Refuses a config that what is in the folder was not made with.

  Any other takes the place of the one that is written down there.
  """
  wanted = flags.to_dict(config)
  if workdir.config.exists():
    there = read_config(workdir)
    if there == wanted:
      return
    _refuse_others(workdir, tasks)
    found = conflicts(workdir, there, wanted)
    if found:
      shown = "\n".join(f"  {line}" for line in found[:10])
      more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
      raise flags.ConfigError(
        f"{workdir.root} holds what was made with another config:\n"
        f"{shown}{more}\n"
        "undo these changes to go on with it, delete what is named to make it "
        "again, or choose another --workdir."
      )
  write_json(workdir.config, wanted)


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.run"),
    description=__doc__,
    epilog="Fields: experiments/config.py. A wrong name gives the nearest.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  packaged = ", ".join(flags.packaged_configs())
  parser.add_argument(
    "--config",
    type=places.text_argument,
    metavar="FILE",
    help=f"Python config file, or one of: {packaged}",
  )
  parser.add_argument(
    "--workdir",
    metavar="FOLDER",
    type=places.workdir_argument,
    help="folder of the experiment; gs://… or s3://… for one on a store",
  )
  parser.add_argument(
    "--stage",
    choices=("all", *STAGES),
    default="all",
    metavar="STAGE",
    help=f"run one stage alone: {', '.join(STAGES)} (default: all, in order)",
  )
  parser.add_argument(
    "--task",
    help="run one task of the experiment alone (default: all)",
  )
  parser.add_argument(
    "--seed",
    type=int,
    help="run one of train.seeds alone (default: all)",
  )
  parser.add_argument(
    "--resume",
    choices=("auto", "never", "must"),
    default="auto",
    help="auto: go on with what the folder holds, if anything (default); "
    "never: refuse a folder in which an experiment has begun; must: refuse one "
    "in which none has",
  )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="check everything that can be checked, write nothing",
  )
  hosts.add_arguments(parser)
  return parser


@hosts.ends_process
@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = make_parser()
  known, overrides = flags.parse_arguments(parser, arguments)
  if known.config is None:
    packaged = ", ".join(flags.packaged_configs())
    parser.error(f"--config is needed: a Python file, or one of {packaged}")
  if known.workdir is None and not known.dry_run:
    parser.error("--workdir is needed for anything but --dry_run")

  def load() -> ExperimentConfig:
    config = _load_config(known.config, known.workdir)
    return config_places.local_config(flags.apply_overrides(config, overrides))

  place = hosts.find_place(known)
  if place is None:
    if known.workdir is None:
      return _run(load(), known, arguments)
    with mirror.opened(known.workdir, known.dry_run) as known.workdir:
      return _run(load(), known, arguments)
  if isinstance(known.workdir, str):
    raise flags.ConfigError(
      "several hosts need a --workdir on a file system that all share, got "
      f"{known.workdir}: mount the store (gcsfuse, Mountpoint) beside a file "
      "system with locks, or take NFS, Filestore or Lustre."
    )
  if known.dry_run:
    raise flags.ConfigError(
      "--dry_run checks on one host, got several: leave out what names them. "
      "`python -m experiments.plan` plans a pod."
    )
  return hosts.run_together(
    place,
    known.workdir,
    load,
    {name: getattr(known, name) for name in ("stage", "task", "seed")},
    lambda config: _run(config, known, arguments),
  )


def _run(
  config: ExperimentConfig,
  known: argparse.Namespace,
  arguments: Sequence[str] | None,
) -> int:
  """Does what the command line asks for; returns the exit status."""
  check_devices()
  tasks = _chosen_tasks(config, known.task)
  seeds = _chosen_seeds(config, known.seed)
  if known.dry_run:
    if known.workdir is not None:
      _check_resume(Workdir(known.workdir), known.resume)
    print(checks.dry_run(config, known.workdir, known.stage))
    return 0
  checks.quick_checks(config, known.stage)
  workdir = Workdir(known.workdir)
  stages = STAGES if known.stage == "all" else (known.stage,)
  try:
    with claim_workdir(config, workdir, tasks, known.resume):
      record_start(config, workdir, arguments)
      unfinished = run_stages(config, workdir, stages, tasks, seeds=seeds)
  except HealthStop as stopped:
    print(f"error: {stopped}", file=sys.stderr)
    return UNHEALTHY_STATUS
  _print_results(workdir, stages, unfinished)
  return 0


def _load_config(path: str, workdir: pathlib.Path | None) -> ExperimentConfig:
  """The config; where that fails, the error names what the folder needs."""
  try:
    config: ExperimentConfig = flags.load_config(path)
  except flags.ConfigError as error:
    needed: list[str] = []
    if workdir is not None and Workdir(workdir).config.exists():
      held = read_config(Workdir(workdir))
      needed = sorted(set(objects.names_from_outside(held)))
    if not needed:
      raise
    raise flags.ConfigError(
      f"{error} {workdir} was made with {', '.join(needed)} (module:name): "
      "these modules must lie beside the config file, be the config file, or "
      "be on PYTHONPATH."
    ) from error
  return config


def _chosen_tasks(config: ExperimentConfig, task: str | None) -> list[str]:
  tasks = task_names(config)
  if task is None:
    return tasks
  if task not in tasks:
    raise flags.ConfigError(
      f"--task must name a task of the experiment ({', '.join(tasks)}), got "
      f"{task!r}."
    )
  return [task]


def _chosen_seeds(
  config: ExperimentConfig, seed: int | None
) -> list[int] | None:
  if seed is None:
    return None
  if seed not in config.train.seeds:
    seeds = ", ".join(map(str, config.train.seeds))
    raise flags.ConfigError(
      f"--seed must be one of train.seeds ({seeds}), got {seed}: add it there, "
      "or choose another."
    )
  return [seed]


def record_start(
  config: ExperimentConfig,
  workdir: Workdir,
  arguments: Sequence[str] | None = None,
) -> None:
  """Appends what runs here and now to the starts of a work folder.

  Args:
    config: the experiment.
    workdir: its folder, which this process has claimed.
    arguments: of the command; None for those of the process.
  """
  with _one_at_a_time(workdir):
    provenance.append_start(workdir.root, config, arguments)


def run_stages(
  config: ExperimentConfig,
  workdir: Workdir,
  stages: Sequence[str],
  tasks: list[str],
  *,
  seeds: Sequence[int] | None = None,
) -> list[str]:
  """Runs stages with a live display.

  Args:
    config: the experiment.
    workdir: its folder, which this process has claimed.
    stages: of `STAGES`, in their order.
    tasks: names of the tasks to run.
    seeds: whose runs are trained and evaluated; None for all.

  Returns:
    Names of the runs that are not finished.
  """
  use_compilation_cache()
  with (
    Progress(stages) as progress,
    StopSignal("start it again to go on.", progress.note) as stop,
  ):
    experiment = Experiment(config, workdir, progress, stop, tasks, seeds)
    for name in stages:
      experiment.run(name)
    return experiment.unfinished_runs()


def _print_results(
  workdir: Workdir, stages: Sequence[str], unfinished: Sequence[str]
) -> None:
  """Prints the table of what was evaluated, and where the report lies."""
  width = shutil.get_terminal_size((100, 24)).columns
  if "report" in stages:
    results_there = read_json(workdir.root / "results.json")
    print(tables.format_table(results_there, width))
    print(f"report: {workdir.root / 'report.html'}")
    if any(workdir.root.glob("train/*/*/tensorboard")):
      print(_tensorboard_line(workdir.root / "train"))
  elif "evaluate" in stages:
    found = results.compute_results(workdir.root)
    print(tables.format_table(found, width))
    if unfinished:
      print(
        "Not evaluated, as they are not finished (--stage=train finishes "
        f"them): {', '.join(unfinished)}."
      )


def _tensorboard_line(folder: pathlib.Path) -> str:
  """The command that shows the event files; TensorBoard is not required."""
  line = f"curves: tensorboard --logdir {shlex.quote(str(folder))}"
  if importlib.util.find_spec("tensorboard") is None:
    line += f" (after {sys.executable} -m pip install tensorboard)"
  return line


if __name__ == "__main__":
  sys.exit(main())
