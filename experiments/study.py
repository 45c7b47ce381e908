"""Runs a study: experiments that differ in some settings, in one report.

    python -m experiments.study --study noise --workdir runs/noise

`--study` takes a Python file, or the name of a study that comes along. A study
is run cell by cell: one seed of one task of one arm, seed by seed, so that what
is there can be compared early. Started again with the same folder it goes on
where it stopped. Arms whose agents, buffers or warm starts are made alike share
them.

`--config.<path>=<value>` overrides a field of all arms. `--arm`, `--task` and
`--seed` choose cells. `--processes=2` runs two cells side by side, each on its
part of the cores. `<workdir>/report.html` is written after each cell.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from experiments import (
  checks,
  cli,
  config_places,
  diversity,
  flags,
  input_errors,
  places,
)
from experiments import run as run_lib
from experiments.arms import Arm, Study, load_study, packaged_studies
from experiments.dependencies import AGENTS, BUFFER, WARM_START, Fields
from experiments.devices import check_devices
from experiments.health import HealthStop
from experiments.help_text import HelpFormatter
from experiments.progress import Progress
from experiments.report import page, results, tables
from experiments.report.folders import STUDY_FILE, arm_folder
from experiments.stages.runs import all_runs
from experiments.stop_signal import StopSignal
from experiments.tasks import load_encoder, task_names
from experiments.workdir import Workdir, hold_lock, write_json
from rapo_jax import files
from rapo_jax.retrieval import index_class
from rapo_jax.retrieval.buffer import store

FAILED_STATUS = 1
"""Exit status of a study of which a cell has failed."""
_SHARED = "shared"
_LOGS = "logs"
_POLL_S = 1.0


class Cell(NamedTuple):
  """What is run at a time.

  Attributes:
    arm: its name.
    task: its name.
    seed: of all methods of the arm.
  """

  arm: str
  task: str
  seed: int

  def __str__(self) -> str:
    return f"{self.arm}-{self.task}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Command:
  """What the processes of a study have to know.

  Attributes:
    study: file or name of the study.
    overrides: of the configs of all arms.
    root: folder of the study.
    arguments: of the command line, for the record.
  """

  study: str
  overrides: tuple[str, ...]
  root: pathlib.Path
  arguments: tuple[str, ...]

  def load(self) -> Study:
    """The study, with paths that hold on this machine."""
    study = load_study(self.study, self.overrides)
    arms = [
      dataclasses.replace(arm, config=config_places.local_config(arm.config))
      for arm in study.arms
    ]
    return dataclasses.replace(study, arms=tuple(arms))


def cells(study: Study) -> Iterator[Cell]:
  """All cells in the order in which they are run, seed by seed."""
  for seed in study.seeds():
    for task in dict.fromkeys(
      name for arm in study.arms for name in task_names(arm.config)
    ):
      for arm in study.arms:
        if task in task_names(arm.config) and seed in arm.config.train.seeds:
          yield Cell(arm.name, task, seed)


def run_cell(command: Command, study: Study, cell: Cell) -> None:
  """Trains and evaluates all methods of an arm, of one task and seed."""
  arm = study.arm(cell.arm)
  workdir = Workdir(arm_folder(command.root, arm.name))
  run = functools.partial(
    run_lib.run_stages,
    arm.config,
    workdir,
    tasks=[cell.task],
    seeds=[cell.seed],
  )
  # Whose folder it is comes first: a link would be made in another's.
  with run_lib.claim_workdir(arm.config, workdir, [cell.task]):
    run_lib.record_start(arm.config, workdir, command.arguments)
    shared = [
      _share(command.root, workdir, arm, kind, cell.task) for kind in _KINDS
    ]
    with contextlib.ExitStack() as locks:
      for folder in filter(None, shared):
        lock = folder.with_name(f".lock-{folder.name}")
        locks.enter_context(files.locked(lock))
      run(("agents",))
      if arm.buffers_of:
        _join_buffers(command.root, workdir, arm, cell.task)
      run(("buffer", "warm_start"))
    run(("train", "evaluate"))
  if study.diversity:
    _measure_diversity(arm, workdir, cell)


def _measure_diversity(arm: Arm, workdir: Workdir, cell: Cell) -> None:
  """Measures the rollouts of a cell's runs that were not measured before."""
  encoder = load_encoder(arm.config.encoder)
  for folder in _unmeasured(arm, workdir, cell):
    diversity.measure_run(folder, encoder)


def _unmeasured(arm: Arm, workdir: Workdir, cell: Cell) -> list[pathlib.Path]:
  """Folders of a cell's runs whose diversity was not measured."""
  runs = all_runs(arm.config, [cell.task], [cell.seed])
  folders = [workdir.run(run.task, run.name) for run in runs]
  return [f for f in folders if not diversity.is_measured(f)]


_KINDS: Mapping[str, tuple[Fields, ...]] = {
  "agents": (AGENTS,),
  "buffer": (AGENTS, BUFFER),
  "warm_start": (AGENTS, WARM_START),
}


def _share(
  root: pathlib.Path, workdir: Workdir, arm: Arm, kind: str, task: str
) -> pathlib.Path | None:
  """Links agents, buffer or warm start of a task to a folder that arms share.

  Returns:
    The folder, whose name says what is in it was made with; None if the arm has
    its own.
  """
  link = workdir.root / kind / task
  if kind == "buffer" and arm.buffers_of:
    return None
  if kind == "warm_start" and (
    arm.config.warm_start is None or arm.config.warm_starts_from_buffer
  ):
    return None
  if link.is_symlink():
    return files.followed(link)
  if link.exists():
    return None
  digests = [part.digest(arm.config, task)[:12] for part in _KINDS[kind]]
  folder = root / _SHARED / kind / "-".join([task, *digests])
  files.make_private_folder(folder.parent)
  link.parent.mkdir(parents=True, exist_ok=True)
  link.symlink_to(os.path.relpath(folder, link.parent))
  return files.followed(link)


def _join_buffers(
  root: pathlib.Path, workdir: Workdir, arm: Arm, task: str
) -> None:
  """Makes the buffer of an arm from those of others."""
  folder = workdir.buffer(task)
  if (folder / "manifest.json").exists():
    return
  store.merge(
    [_buffer_of(root, name, task) for name in arm.buffers_of],
    folder,
    load_encoder(arm.config.encoder),
    index_cls=index_class(arm.config.index),
  )


def _buffer_of(root: pathlib.Path, arm: str, task: str) -> pathlib.Path:
  return Workdir(arm_folder(root, arm)).buffer(task)


class _Worker(NamedTuple):
  """A process that runs a cell, on some cores."""

  cell: Cell
  process: SpawnProcess
  cores: frozenset[int]


class _Runner:
  """Runs cells, some side by side.

  Args:
    command: what is run.
    study: the same, loaded.
    num_processes: cells at a time.
  """

  def __init__(self, command: Command, study: Study, num_processes: int):
    self._command = command
    self._study = study
    self._free = _core_sets(num_processes)
    self._workers: list[_Worker] = []
    self.failed: list[Cell] = []

  def run(self, waiting: Sequence[Cell], stop: StopSignal) -> None:
    """Runs all cells; ends the processes when a signal comes."""
    left, total = list(waiting), len(waiting)
    try:
      while left or self._workers:
        while self._free and (cell := self._next(left)) is not None:
          left.remove(cell)
          self._start(cell)
        stop.check()
        sentinels = [worker.process.sentinel for worker in self._workers]
        connection.wait(sentinels, timeout=_POLL_S)
        for worker in self._ended():
          self._workers.remove(worker)
          done = total - len(left) - len(self._workers)
          self._finish(worker, f"{done}/{total}")
          # The command itself writes that of the last one.
          if left or self._workers:
            write_report(self._command.root, self._study)
    finally:
      for worker in self._workers:
        worker.process.terminate()
      for worker in self._workers:
        worker.process.join()

  def _next(self, left: Sequence[Cell]) -> Cell | None:
    """The first cell that no running one is in the way of."""
    busy = {(worker.cell.arm, worker.cell.task) for worker in self._workers}
    for cell in left:
      needed = self._study.arm(cell.arm).buffers_of
      missing = [
        name
        for name in needed
        if not _buffer_of(self._command.root, name, cell.task).exists()
      ]
      if (cell.arm, cell.task) not in busy and (
        not missing or not self._workers
      ):
        return cell
    return None

  def _start(self, cell: Cell) -> None:
    cores = self._free.pop(0)
    process = multiprocessing.get_context("spawn").Process(
      target=_work, args=(self._command, cell, cores), name=str(cell)
    )
    process.start()
    self._workers.append(_Worker(cell, process, cores))
    print(f"{cell}: started ({_log(self._command.root, cell)})", flush=True)

  def _ended(self) -> list[_Worker]:
    return [w for w in self._workers if not w.process.is_alive()]

  def _finish(self, worker: _Worker, where: str) -> None:
    self._free.append(worker.cores)
    worker.process.join()
    status, log = worker.process.exitcode, _log(self._command.root, worker.cell)
    if status:
      self.failed.append(worker.cell)
    how = f"FAILED with exit status {status}, see {log}" if status else "done"
    print(f"[{where}] {worker.cell}: {how}", flush=True)


def _core_sets(num_processes: int) -> list[frozenset[int]]:
  """The cores of this process in as many parts; empty where it cannot say."""
  if not hasattr(os, "sched_getaffinity"):
    return [frozenset()] * num_processes
  cores = sorted(os.sched_getaffinity(0))
  parts = [frozenset(cores[i::num_processes]) for i in range(num_processes)]
  return [part or frozenset(cores) for part in parts]


def _work(command: Command, cell: Cell, cores: frozenset[int]) -> None:
  """Body of a process: runs a cell, with its output in the cell's log."""
  # Ctrl+C reaches the command alone, which then ends its processes.
  os.setsid()
  threading.Thread(target=_end_with_parent, daemon=True).start()
  if cores:
    os.sched_setaffinity(0, cores)
  with _log(command.root, cell).open("a", encoding="utf-8") as log:
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
  sys.exit(_run_here(command, cell))


@input_errors.report_input_errors
def _run_here(command: Command, cell: Cell) -> int:
  try:
    run_cell(command, command.load(), cell)
  except HealthStop as stopped:
    print(f"error: {stopped}", file=sys.stderr)
    return run_lib.UNHEALTHY_STATUS
  return 0


def _end_with_parent() -> None:
  """Ends a process in good order once the command is gone."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _log(root: pathlib.Path, cell: Cell) -> pathlib.Path:
  return root / _LOGS / f"{cell}.log"


def write_report(root: pathlib.Path, study: Study) -> dict[str, Any]:
  """Writes `study.json`, `results.json`, `results.md` and `report.html`.

  Returns:
    The results.
  """
  write_json(root / STUDY_FILE, study.to_json())
  found = results.write_results(root)
  files.replace_text(
    root / "results.md", tables.format_board_markdown(found) + "\n"
  )
  page.write_report(root, found)
  return found


def _unfinished(
  command: Command, study: Study, chosen: Sequence[Cell]
) -> list[Cell]:
  """The cells of which anything is still to be made."""
  left = []
  for cell in chosen:
    arm = study.arm(cell.arm)
    workdir = Workdir(arm_folder(command.root, arm.name))
    if not workdir.config.exists():
      left.append(cell)
      continue
    experiment = run_lib.Experiment(
      arm.config,
      workdir,
      Progress(()),
      StopSignal(""),
      [cell.task],
      [cell.seed],
    )
    unmeasured = study.diversity and _unmeasured(arm, workdir, cell)
    if unmeasured or not experiment.is_complete():
      left.append(cell)
  return left


def _chosen(study: Study, known: argparse.Namespace) -> list[Cell]:
  """The cells that the command line asks for.

  Raises:
    flags.ConfigError: it asks for something that the study has not.
  """
  every = list(cells(study))
  for name in ("arm", "task", "seed"):
    wanted = getattr(known, name)
    there = list(dict.fromkeys(getattr(cell, name) for cell in every))
    if wanted is not None and wanted not in there:
      raise flags.ConfigError(
        f"--{name} must be one of {', '.join(map(str, there))}, got {wanted}."
      )
    every = [c for c in every if wanted in (None, getattr(c, name))]
  return every


def _check(study: Study, chosen: Sequence[Cell]) -> None:
  """Checks what costs nothing to check, arm by arm."""
  for name in dict.fromkeys(cell.arm for cell in chosen):
    checks.quick_checks(study.arm(name).config)


def _dry_run(study: Study, root: pathlib.Path | None, num: int) -> str:
  """Checks every arm whole; says what would be run."""
  lines = [f"{study.name}: {len(study.arms)} arms, {num} cells"]
  for arm in study.arms:
    folder = None if root is None else arm_folder(root, arm.name)
    lines += ["", f"arm {arm.name}", checks.dry_run(arm.config, folder)]
  return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.study"),
    description=__doc__,
    epilog="Fields: experiments/config.py. A wrong name gives the nearest.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  packaged = ", ".join(packaged_studies())
  parser.add_argument(
    "--study",
    type=places.text_argument,
    metavar="FILE",
    required=True,
    help=f"Python file, or one of: {packaged}",
  )
  parser.add_argument(
    "--workdir",
    metavar="FOLDER",
    type=places.path_argument,
    help="folder of the study",
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=1,
    metavar="N",
    help="cells that are run side by side (default: 1)",
  )
  parser.add_argument("--arm", help="run one arm alone (default: all)")
  parser.add_argument("--task", help="run one task alone (default: all)")
  parser.add_argument(
    "--seed", type=int, help="run one seed alone (default: all)"
  )
  parser.add_argument(
    "--report",
    action="store_true",
    help="write the report of what is there, run nothing",
  )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="check everything that can be checked, write nothing",
  )
  return parser


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = make_parser()
  known, overrides = flags.parse_arguments(parser, arguments)
  if known.processes < 1:
    parser.error(f"--processes must be at least 1, got {known.processes}")
  command = Command(
    known.study,
    tuple(overrides),
    known.workdir,
    tuple(sys.argv[1:] if arguments is None else arguments),
  )
  study = command.load()
  chosen = _chosen(study, known)
  check_devices()
  if known.dry_run:
    print(_dry_run(study, known.workdir, len(chosen)))
    return 0
  if known.workdir is None:
    parser.error("--workdir is needed for anything but --dry_run")
  failed: list[Cell] = []
  if not known.report:
    _check(study, chosen)
    files.make_private_folder(known.workdir)
    (known.workdir / _LOGS).mkdir(exist_ok=True)
    failed = _run(command, study, chosen, known.processes)
  found = write_report(known.workdir, study)
  width = shutil.get_terminal_size((100, 24)).columns
  print(tables.format_board(found, width))
  print(f"report: {known.workdir / 'report.html'}")
  if failed:
    print(f"failed cells: {', '.join(map(str, failed))}", file=sys.stderr)
    return FAILED_STATUS
  return 0


def _run(
  command: Command, study: Study, chosen: Sequence[Cell], num_processes: int
) -> list[Cell]:
  """Runs what is not finished yet; returns the cells that failed."""
  began = time.monotonic()
  left = _unfinished(command, study, chosen)
  print(f"{len(chosen) - len(left)} of {len(chosen)} cells are finished")
  runner = _Runner(command, study, num_processes)
  with (
    _hold_tasks(command.root, {cell.task for cell in chosen}),
    StopSignal("start it again to go on.") as stop,
  ):
    runner.run(left, stop)
  print(f"{len(left)} cells in {time.monotonic() - began:.0f} s")
  return runner.failed


@contextlib.contextmanager
def _hold_tasks(root: pathlib.Path, tasks: set[str]) -> Iterator[None]:
  """Holds some tasks of a study for this command.

  Raises:
    flags.ConfigError: another command runs cells of one of them.
  """
  with contextlib.ExitStack() as locks:
    for task in sorted(tasks):
      name = f"{run_lib.TASK_LOCK}{task}"
      if not locks.enter_context(hold_lock(root, name, wait=False)):
        raise flags.ConfigError(
          f"another command runs {task} of the study in {root}: wait for it, "
          "or choose another --task or --workdir."
        )
    yield


if __name__ == "__main__":
  sys.exit(main())
