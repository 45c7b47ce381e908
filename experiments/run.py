"""Runs an experiment, stage by stage.

    python -m experiments.run --config experiments/configs/quickstart.py \\
        --workdir runs/quickstart

Started again with the same config and folder it goes on where it stopped; what
is finished is not repeated. `--config.<path>=<value>` overrides any field.
`--task=<name>` runs one task of several, so that processes can share a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import pathlib
import signal
import sys
from collections.abc import Iterator, Sequence

import jax

from experiments import (
  checks,
  flags,
  input_errors,
  report,
  results,
  tables,
)
from experiments.config import ExperimentConfig
from experiments.input_errors import InputError
from experiments.policies import load_agent
from experiments.progress import Progress
from experiments.stages import agents as agents_stage
from experiments.stages import buffer as buffer_stage
from experiments.stages import evaluate as evaluate_stage
from experiments.stages import train as train_stage
from experiments.stop_signal import Stopped, StopSignal
from experiments.tasks import (
  Task,
  agent_paths,
  load_encoder,
  open_task,
  task_names,
)
from experiments.workdir import Workdir, read_json, write_json
from rapo_jax.retrieval import SentenceEncoder, StepTraceBuffer
from rapo_jax.retrieval.remote import RemoteBuffer

STAGES = ("agents", "buffer", "train", "evaluate", "report")
COMPILATION_CACHE = pathlib.Path(".cache/jax")


class Experiment:
  """The stages of one experiment over one work folder.

  Args:
    config: the experiment.
    workdir: its folder.
    progress: display.
    tasks: names of the tasks to run, of those that the experiment has.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    workdir: Workdir,
    progress: Progress,
    tasks: list[str],
  ):
    self._config = config
    self._workdir = workdir
    self._progress = progress
    self._tasks = tasks

  @functools.cached_property
  @input_errors.from_outside()
  def _encoder(self) -> SentenceEncoder:
    return load_encoder(self._config.encoder)

  def run(self, stage: str) -> None:
    """Runs one stage, or shows that it has been finished before."""
    if self._finished(stage):
      self._progress.skip(stage)
      return
    with self._progress.stage(stage):
      getattr(self, f"_{stage}")()

  def _finished(self, stage: str) -> bool:
    config, workdir = self._config, self._workdir
    if stage == "agents":
      return all(
        (path / "config.json").exists()
        for task in self._tasks
        for path in agent_paths(config, workdir, task)
      )
    if stage == "buffer":
      there = config.buffer.path is not None or config.buffer.url is not None
      return there or all(
        (workdir.buffer(task) / "manifest.json").exists()
        for task in self._tasks
      )
    if stage == "train":
      return all(
        (workdir.run(run.task, run.name) / train_stage.DONE_FILE).exists()
        for run in train_stage.runs(config, self._tasks)
      )
    if stage == "evaluate":
      return all(
        workdir.evaluation(task, agent).exists()
        for task, agent, _ in self._agents_to_evaluate()
      )
    return False

  def _agents(self) -> None:
    for number, name in enumerate(self._tasks):
      agents_stage.make_agents(
        self._config,
        self._workdir,
        name,
        functools.partial(self._share, number, len(self._tasks)),
      )

  def _buffer(self) -> None:
    for number, name in enumerate(self._tasks):
      path = self._workdir.buffer(name)
      if (path / "manifest.json").exists():
        continue
      with self._open(name) as task:
        buffer_stage.build_buffer(
          self._config,
          task,
          self._encoder,
          functools.partial(self._share, number, len(self._tasks)),
          path,
        )

  def _train(self) -> None:
    runs = list(train_stage.runs(self._config, self._tasks))
    self._encoder.compile()
    for name in self._tasks:
      with StopSignal() as stop, self._open(name) as task:
        buffer = self._open_buffer(name)
        for number, run in enumerate(runs):
          if run.task == name:
            train_stage.train(
              self._config,
              self._workdir,
              task,
              run,
              buffer,
              functools.partial(self._share, number, len(runs)),
              stop,
            )

  @input_errors.from_outside()
  def _open_buffer(self, task: str) -> StepTraceBuffer | RemoteBuffer:
    config = self._config.buffer
    if config.url is not None:
      buffer = RemoteBuffer(config.url, self._encoder)
      buffer.check()
      return buffer
    path = config.path or self._workdir.buffer(task)
    return StepTraceBuffer.load(path, self._encoder)

  def _evaluate(self) -> None:
    wanted = list(self._agents_to_evaluate())
    done = 0
    for name in self._tasks:
      with self._open(name) as task:
        for owner, agent, run in wanted:
          path = self._workdir.evaluation(owner, agent)
          if owner == name and not path.exists():
            model = load_agent(self._config, self._agent_path(task, agent, run))
            acting = task.for_off_policy() if agent == "off_policy" else task
            result = evaluate_stage.evaluate(self._config, acting, model)
            result |= {
              "task": name,
              "agent": agent,
              "method": run.method if run else agent,
              "seed": run.seed if run else None,
              "update": self._config.train.num_updates if run else 0,
            }
            write_json(path, result)
          if owner == name:
            done += 1
            self._progress.update(done, len(wanted), f"{name} {agent}")

  def _report(self) -> None:
    root = self._workdir.root
    with _one_at_a_time(self._workdir):
      report.write_report(root, results.write_results(root))

  def _share(self, item: int, items: int, share: float, text: str) -> None:
    """Shows how much of a stage's items is done, `item` being under way."""
    self._progress.update(item + share, items, text)

  def _open(self, name: str) -> contextlib.AbstractContextManager[Task]:
    return open_task(self._config, self._workdir, name, self._encoder)

  def _agents_to_evaluate(
    self,
  ) -> Iterator[tuple[str, str, train_stage.Run | None]]:
    """(task, agent, its run or None) in the order of the table."""
    for task in self._tasks:
      yield task, "base", None
      yield task, "off_policy", None
    for run in train_stage.runs(self._config, self._tasks):
      yield run.task, run.name, run

  def _agent_path(
    self, task: Task, agent: str, run: train_stage.Run | None
  ) -> pathlib.Path:
    if run is not None:
      folder = self._workdir.run(run.task, run.name)
      if not (folder / train_stage.DONE_FILE).exists():
        raise InputError(
          f"{folder} holds no finished run: run --stage=train first."
        )
      return folder / train_stage.POLICY_FOLDER
    return task.base_path if agent == "base" else task.off_policy_path


@contextlib.contextmanager
def claim_workdir(
  config: ExperimentConfig, workdir: Workdir, tasks: list[str]
) -> Iterator[None]:
  """Holds some tasks of a work folder for this process and this config.

  The locks end with the process, however that ends.

  Raises:
    flags.ConfigError: another process works on one of the tasks, or the folder
      holds another experiment; names the fields that differ.
  """
  with input_errors.from_outside():
    workdir.root.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as locks:
    for task in tasks:
      lock = locks.enter_context((workdir.root / f".lock-{task}").open("ab"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise flags.ConfigError(
          f"another process works on {task} in {workdir.root}: wait for it, or "
          "choose another --task or --workdir."
        ) from error
    with _one_at_a_time(workdir):
      _check_config(config, workdir)
    yield


@contextlib.contextmanager
def _one_at_a_time(workdir: Workdir) -> Iterator[None]:
  """Waits for other processes that write files of the whole folder."""
  with (workdir.root / ".lock").open("ab") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


@input_errors.from_outside()
def _check_config(config: ExperimentConfig, workdir: Workdir) -> None:
  wanted = flags.to_dict(config)
  if not workdir.config.exists():
    write_json(workdir.config, wanted)
    return
  there = read_json(workdir.config)
  differences = checks.differences(there, wanted)
  if differences:
    shown = "\n".join(f"  {line}" for line in differences[:10])
    raise flags.ConfigError(
      f"{workdir.root} holds an experiment with another config:\n{shown}\n"
      "choose another --workdir, or undo these changes to go on with it."
    )


@input_errors.told_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.run",
    description=__doc__,
    epilog="Fields: experiments/config.py. A wrong name gives the nearest.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", required=True, help="Python config file")
  parser.add_argument(
    "--workdir", type=pathlib.Path, help="folder of the experiment"
  )
  parser.add_argument(
    "--stage",
    choices=("all", *STAGES),
    default="all",
    help="run one stage alone (default: all, in order)",
  )
  parser.add_argument(
    "--task",
    help="run one task (family) of the experiment alone (default: all)",
  )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="check everything that can be checked, write nothing",
  )
  known, overrides = parser.parse_known_args(arguments)
  config = flags.apply_overrides(flags.load_config(known.config), overrides)
  if known.dry_run:
    print(checks.dry_run(config, known.workdir))
    return 0
  if known.workdir is None:
    parser.error("--workdir is needed for anything but --dry_run")
  checks.quick_checks(config)
  tasks = _chosen_tasks(config, known.task)
  workdir = Workdir(known.workdir)
  try:
    with claim_workdir(config, workdir, tasks):
      run_stages(config, workdir, known.stage, tasks)
  except Stopped as stopped:
    print(f"{stopped}: start it again to go on.", file=sys.stderr)
    return 128 + signal.SIGTERM
  return 0


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


def use_compilation_cache() -> None:
  """Keeps compiled programs from one start to the next."""
  jax.config.update(
    "jax_compilation_cache_dir", str(COMPILATION_CACHE.absolute())
  )
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_stages(
  config: ExperimentConfig, workdir: Workdir, stage: str, tasks: list[str]
) -> None:
  """Runs the stages with a live display and prints the result table."""
  use_compilation_cache()
  stages = STAGES if stage == "all" else (stage,)
  estimates = checks.stage_seconds(config, tasks)
  with Progress([(name, estimates[name]) for name in stages]) as progress:
    experiment = Experiment(config, workdir, progress, tasks)
    for name in stages:
      experiment.run(name)
  if "report" in stages:
    print(tables.format_table(read_json(workdir.root / "results.json")))
    print(f"report: {workdir.root / 'report.html'}")


if __name__ == "__main__":
  sys.exit(main())
