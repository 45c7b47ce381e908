"""An experiment on several hosts: one leads, the others do what it tells them.

The same command starts on every host. Before any device is touched, all of them
say what they run with, and the leader names what is missing or differs. Then it
alone runs the stages; the others launch the same programs on their devices.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import pathlib
import platform
import queue
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec

import jax

from experiments import flags, provenance, stalls
from experiments.config import ExperimentConfig
from experiments.devices import (
  check_devices,
  device_mesh,
  use_compilation_cache,
)
from experiments.stop_signal import Stopped
from rapo_jax import files, hosts
from rapo_jax.errors import InputError

HOST_STATUS = 4
"""Exit status where another host ended or does not answer."""
_ADDRESS = re.compile(r"(?P<host>[^:\s]+|\[[^\]\s]+\]):(?P<port>\d{1,5})")
_WHOLE_BYTES = 1 << 26
_SAMPLE_BYTES = 1 << 20
# A host that failed is given so long to be told by the leader, which may have
# met the same error and words it better.
_GRACE_S = 8.0
_LEAVE_S = 2.0
_SAY_S = 0.2
_ANSWER_S = 100.0
_SHUTDOWN_S = 30

Facts = dict[str, Any]

_Arguments = ParamSpec("_Arguments")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says which host of several this is."""
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="this is one of several hosts, which are found: a TPU slice, Slurm, "
    "Open MPI, Kubernetes",
  )
  parser.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="this is one of several hosts: address of the first, with a free port",
  )
  parser.add_argument(
    "--num_processes", type=int, metavar="N", help="how many hosts there are"
  )
  parser.add_argument(
    "--process_id", type=int, metavar="I", help="number of this one, from 0"
  )


def find_place(known: argparse.Namespace) -> hosts.Place | None:
  """Where this host stands among several; None where it is alone.

  Args:
    known: values of `add_arguments`. `--distributed` finds what the others do
      not say.

  Raises:
    InputError: they do not fit each other, or nothing says what is missing.
  """
  given = (known.coordinator, known.num_processes, known.process_id)
  if known.distributed:
    address, count, index = _detected(known)
  elif all(value is None for value in given):
    return None
  elif any(value is None for value in given):
    raise InputError(
      "--coordinator, --num_processes and --process_id go together, got some "
      "of them: give all three on every host."
    )
  else:
    address, count, index = _address(known.coordinator), *given[1:]
  if count < 1:
    raise InputError(
      f"--num_processes must be at least 1, got {count}: correct it."
    )
  if not 0 <= index < count:
    raise InputError(
      f"--process_id must be from 0 to --num_processes - 1 ({count - 1}), got "
      f"{index}: correct it."
    )
  return None if count == 1 else hosts.Place(address, count, index)


def _address(coordinator: str) -> tuple[str, int]:
  """Host and port of `--coordinator`."""
  found = _ADDRESS.fullmatch(coordinator)
  if found is None or not 0 < int(found["port"]) < 1 << 16:
    raise InputError(
      f"--coordinator must be HOST:PORT, got {coordinator!r}: correct it."
    )
  return found["host"].strip("[]"), int(found["port"])


def _detected(known: argparse.Namespace) -> tuple[tuple[str, int], int, int]:
  """Address of host 0, number of hosts and index of this one.

  What started this process says it, or else the command line.
  """
  if known.process_id is not None:
    raise InputError(
      "--distributed finds the number of this host, got --process_id beside "
      "it: leave one out."
    )
  found = hosts.detect()
  if found is None:
    raise InputError(
      "--distributed needs a TPU slice, Slurm, Open MPI or Kubernetes, and "
      "finds none: give --coordinator, --num_processes and --process_id."
    )
  count = found.count if known.num_processes is None else known.num_processes
  if count is None:
    raise InputError(
      f"{found.scheduler} does not say how many hosts there are: give "
      "--num_processes beside --distributed."
    )
  if known.coordinator is not None:
    return _address(known.coordinator), count, found.index
  if found.host is None:
    raise InputError(
      f"{found.scheduler} does not say where host 0 is: give --coordinator "
      "beside --distributed."
    )
  return (found.host, found.port), count, found.index


def run_together(
  place: hosts.Place,
  workdir: pathlib.Path,
  load: Callable[[], ExperimentConfig],
  arguments: Mapping[str, Any],
  lead: Callable[[ExperimentConfig], int],
) -> int:
  """Runs an experiment on all hosts; to be called on each of them.

  Args:
    place: of this host.
    workdir: folder of the experiment, on a file system that all hosts share.
    load: reads the config.
    arguments: further values that must be the same everywhere.
    lead: runs the stages, on host 0 alone; returns the exit status.

  Returns:
    The exit status, the same on every host.

  Raises:
    InputError: a host is missing or differs.
  """
  if place.index == 0:
    files.make_private_folder(workdir)
  team = Team(place)
  try:
    hosts.join(team.link, workdir)
    config = load()
    team.agree({**facts(config), **arguments})
    shared = (config, device_mesh(config.mesh), *_of_methods(config))
    if not place.index:
      leader = hosts.Leader(team.link, shared)
      team.watch(lambda: leader.doing)
      with hosts.leading(leader):
        status = lead(config)
      team.end(status)
      return status
    return team.follow(shared)
  except BaseException as error:
    team.fail(error)
    raise


def ends_process(main: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
  """Decorates a command that may run on several hosts.

  After such a run the process ends here: at its exit JAX would wait for hosts
  that are gone.
  """

  @functools.wraps(main)
  def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
    try:
      status = main(*args, **kwargs)
    except Exception:
      if not any(team.has_begun for team in _teams):
        raise
      traceback.print_exc()
      status = 1
    if any(team.has_begun for team in _teams):
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
    return status

  return wrapped


def _of_methods(config: ExperimentConfig) -> list[Any]:
  """Parts of the methods that every host uses, and no message can hold."""
  methods = config.train.algorithms.values()
  forks = [m.plan.forks for m in methods if m.plan.forks is not None]
  return [*(m.loss for m in methods), *forks]


def facts(config: ExperimentConfig) -> Facts:
  """What a host runs with that must be the same on all, by what it is."""
  return {
    "code": provenance.describe_code(provenance.code()),
    "python": platform.python_version(),
    **provenance.versions(),
    "config": flags.config_hash(config),
    **{str(path): digest(path) for path in _read_paths(config)},
  }


def _read_paths(config: ExperimentConfig) -> Iterator[pathlib.Path]:
  """Files and folders that a config names: agents, buffer, data, encoder."""
  policy = config.policy
  named = [policy.base, policy.off_policy, config.buffer.path]
  named += [config.encoder.path, policy.chat_template]
  for task in config.tasks:
    for part in (task, *task.tool_specs()):
      named += [getattr(part, field) for field in getattr(part, "paths", {})]
  for path in dict.fromkeys(named):
    # What is no path is a name on the hub, whose revision is the cache's.
    if path is not None and pathlib.Path(path).exists():
      yield pathlib.Path(path)


def digest(path: pathlib.Path) -> str:
  """Changes with what a file or folder holds; of large files, with samples.

  Args:
    path: of a file up to 64 MB all is read; of a larger one its size, its first
      and its last MB.
  """
  found = hashlib.sha256()
  inside = sorted(path.rglob("*")) if path.is_dir() else [path]
  for file in inside:
    if not file.is_file():
      continue
    size = file.stat().st_size
    found.update(f"{file.relative_to(path)} {size}\n".encode())
    with file.open("rb") as stream:
      if size <= _WHOLE_BYTES:
        found.update(stream.read())
      else:
        found.update(stream.read(_SAMPLE_BYTES))
        stream.seek(-_SAMPLE_BYTES, os.SEEK_END)
        found.update(stream.read())
  return found.hexdigest()[:16]


_teams: list[Team] = []


class Idle:
  """What share of the time hosts wait for each other.

  In a rollout a host waits while the loop of another one decides what comes
  next. Beside it, all others wait while the one that leads scores and packs.
  """

  def __init__(self) -> None:
    self._then = time.monotonic()
    self._waited = self._all()

  def metrics(self) -> dict[str, float]:
    """Mean and most since it was made; empty where a host is alone."""
    passed = time.monotonic() - self._then
    shares = [
      (seconds - self._waited.get(index, 0.0)) / passed
      for index, seconds in self._all().items()
    ]
    if not shares:
      return {}
    return {
      "hosts/idle_fraction_mean": sum(shares) / len(shares),
      "hosts/idle_fraction_max": max(shares),
    }

  @staticmethod
  def _all() -> dict[int, float]:
    return {
      index: seconds
      for team in _teams
      for index, seconds in team.waited().items()
    }


class Team:
  """The hosts of a run, as one of them sees them.

  Args:
    place: of this host.

  Attributes:
    link: to the others, once they have joined.
    has_begun: whether JAX was started for all hosts.
  """

  def __init__(self, place: hosts.Place):
    self.link = hosts.Link(place, self._heard, self._lost)
    self.has_begun = False
    self._ending = threading.Lock()
    self._told = False
    self._watch: stalls.Watch | None = None
    self._standing: dict[int, str] = {}
    self._asked = threading.Lock()
    # Of each other host, for how long it has waited so far.
    self._waited: dict[int, float] = {}
    self._began = time.monotonic()
    _teams.append(self)

  def agree(self, own: Facts) -> None:
    """Compares what the hosts run with, and starts JAX on all of them.

    Args:
      own: what must be the same everywhere, by what it is.

    Raises:
      InputError: a host differs, or does not say what it runs with.
    """
    place, began = self.link.place, time.monotonic()
    self._compare(own)
    compared = time.monotonic()
    address = ""
    if self.link.leads:
      host = place.address[0]
      # An address of IPv6 has colons of its own.
      host = f"[{host}]" if ":" in host else host
      address = f"{host}:{free_port()}"
      self.link.send({"start": address})
    else:
      address = self._answer("start")
    self.has_begun = True
    jax.distributed.initialize(
      address,
      place.count,
      place.index,
      # Or else JAX looks for a scheduler, and takes one GPU of a host under
      # Slurm and Open MPI.
      cluster_detection_method="deactivate",
      initialization_timeout=int(_ANSWER_S),
      shutdown_timeout_seconds=_SHUTDOWN_S,
    )
    check_devices()
    local = jax.local_devices()
    kinds = ", ".join(sorted({device.device_kind for device in local}))
    self._compare({"devices": f"{len(local)} × {kinds}"})
    print(
      f"{self.link.name(place.index)} of {place.count}: all agree after "
      f"{compared - began:.1f} s, {jax.device_count()} devices are there after "
      f"{time.monotonic() - began:.1f} s"
    )

  def follow(self, shared: Sequence[Any]) -> int:
    """Does what the leader says until it ends; returns its exit status."""
    follower = hosts.Follower(self.link, shared)
    self.watch(lambda: follower.doing)
    use_compilation_cache()
    self._forward_signals()
    told = 0.0
    while True:
      with hosts.waiting():
        _, message = self.link.receive()
      if time.monotonic() - told > _SAY_S:
        told = time.monotonic()
        self.link.send({"waited": hosts.waited_s()})
      if isinstance(message, bytes):
        follower.run(message)
      elif "over" in message:
        jax.distributed.shutdown()
        return int(message["over"])

  def watch(self, doing: Callable[[], hosts.Doing | None]) -> None:
    """Ends the run where this host computes for ever.

    Args:
      doing: the led function that it is in.
    """
    stuck = self._is_stuck if self.link.leads else self._say_stuck
    self._watch = stalls.Watch(doing, stuck)

  def end(self, status: int) -> None:
    """The leader has done all that there was."""
    self._told = True
    passed = time.monotonic() - self._began
    for index, waited in sorted(self.waited().items()):
      print(
        f"{self.link.name(index)} waited for others in {waited:.1f} of "
        f"{passed:.1f} s"
      )
    self.link.send({"over": status, "text": "", "orderly": True})
    jax.distributed.shutdown()

  def waited(self) -> dict[int, float]:
    """Seconds that each host has waited for others, once they have said it."""
    return self._waited and {0: hosts.waited_s(), **self._waited}

  def fail(self, error: BaseException) -> None:
    """Tells the others of an error here, and lets them go first.

    An error that another host has caused ends this process instead, with a
    word on that one.
    """
    text = _described(error)
    if not self.link.is_connected:
      return
    if self.link.leads:
      if not _is_ours(error):
        # A host that dies or hangs breaks what is computed together. Then the
        # link ends this process, and says which.
        time.sleep(_LEAVE_S)
        if self.link.is_silent:
          time.sleep(hosts.SILENCE_S)
      with self._ending:
        self._told = True
        self.link.send({"over": _status(error), "text": text, "orderly": False})
        time.sleep(_LEAVE_S)
      return
    self.link.send({"failed": text})
    threading.Event().wait(_GRACE_S + 2 * _LEAVE_S)

  def _compare(self, own: Facts) -> None:
    """The leader refuses what differs from its own; the others wait."""
    if not self.link.leads:
      self.link.send({"facts": own})
      self._answer("agreed")
      return
    waiting = set(range(1, self.link.place.count))
    until = time.monotonic() + _ANSWER_S
    differing: list[str] = []
    while waiting:
      try:
        left = max(0.0, until - time.monotonic())
        index, message = self.link.messages.get(timeout=left)
      except queue.Empty:
        named = ", ".join(map(self.link.name, sorted(waiting)))
        raise InputError(
          f"all hosts must say what they run with, and within {_ANSWER_S:.0f} s"
          f" {named} did not: look at what they print."
        ) from None
      waiting.discard(index)
      differing += _differences(
        self.link.name(index), own, message.get("facts", {})
      )
    if differing:
      raise InputError(
        "all hosts must run with the same code, config and files, and these "
        "differ from host 0:\n"
        + "\n".join(f"  {line}" for line in differing)
        + "\nmake them the same, and start all hosts again."
      )
    self.link.send({"agreed": True})

  def _answer(self, name: str) -> Any:
    """What the leader says next."""
    while True:
      _, message = self.link.messages.get()
      if isinstance(message, dict) and name in message:
        return message[name]

  def _forward_signals(self) -> None:
    """A signal here is one to the leader, which decides when to stop."""

    def handle(number: int, _: Any) -> None:
      signal.signal(number, signal.SIG_DFL)
      threading.Thread(
        target=self.link.send, args=({"signal": number},), daemon=True
      ).start()

    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, handle)

  def _heard(self, index: int, message: Any) -> bool:
    """In another thread: what must be heard while programs run."""
    if not isinstance(message, dict):
      return False
    if "over" in message:
      self._told = True
      if not message["orderly"]:
        self._end_process(message["text"], int(message["over"]))
    if "signal" in message and self.link.leads:
      number = int(message["signal"])
      # One that has come here too is heeded already.
      if signal.getsignal(number) is not signal.SIG_DFL:
        os.kill(os.getpid(), number)
      return True
    if "where" in message and self._watch is not None:
      self.link.send({"here": self._watch.here()})
      return True
    if "waited" in message and self.link.leads:
      self._waited[index] = float(message["waited"])
      return True
    if "here" in message and self.link.leads:
      self._standing[index] = str(message["here"])
      return True
    if "stuck" in message and self.link.leads:
      threading.Thread(target=self._is_stuck, daemon=True).start()
      return True
    if "failed" in message and self.link.leads:
      threading.Thread(
        target=self._other_failed, args=(index, message["failed"]), daemon=True
      ).start()
      return True
    return False

  def _say_stuck(self) -> None:
    self.link.send({"stuck": True})

  def _is_stuck(self) -> None:
    """The leader asks all hosts where they stand, and ends the run."""
    if self._watch is None or not self._asked.acquire(blocking=False):
      return
    self.link.send({"where": True})
    time.sleep(_LEAVE_S)
    self._standing[0] = self._watch.here()
    lines = [
      f"  {self.link.name(index)} {self._standing.get(index, 'does not say')}"
      for index in range(self.link.place.count)
    ]
    self._end_all(
      "error: nothing goes on; one of these hosts computes for ever:\n"
      + "\n".join(lines)
      + "\nStart the command on all hosts again; it goes on from the newest "
      f"checkpoint. {stalls.STALL_VARIABLE} says after how many seconds in one "
      "function a host counts as stuck."
    )

  def _other_failed(self, index: int, text: str) -> None:
    # This host may meet the same error, and then says so itself.
    time.sleep(_GRACE_S)
    self._end_all(f"{text}\n{self.link.name(index)} has met this error.")

  def _lost(self, lost: hosts.Lost) -> None:
    """In another thread: a host is gone."""
    name = f"host {lost.index} ({lost.name})"
    self._end_all(
      f"error: {name} of {self.link.place.count} is gone: {lost.reason}. Start "
      "the command on all hosts again; it goes on from the newest checkpoint."
    )

  def _end_all(self, text: str) -> None:
    with self._ending:
      if self._told:
        return
      self._told = True
      self.link.send({"over": HOST_STATUS, "text": text, "orderly": False})
      if self.link.leads:
        time.sleep(_LEAVE_S)
      self._end_process(text, HOST_STATUS)

  def _end_process(self, text: str, status: int) -> NoReturn:
    """Ends this process, whatever its other threads wait for."""
    if text:
      print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _differences(name: str, own: Facts, other: Facts) -> Iterator[str]:
  for what in sorted({*own, *other}):
    if own.get(what) != other.get(what):
      yield f"{what} of {name} is {other.get(what)}, not {own.get(what)}"


def free_port() -> int:
  """A port of this host on which nothing listens."""
  with socket.socket() as free:
    free.bind(("", 0))
    return int(free.getsockname()[1])


def _is_ours(error: BaseException) -> bool:
  """Whether an error says itself what is wrong."""
  return isinstance(error, InputError | Stopped | KeyboardInterrupt)


def _status(error: BaseException) -> int:
  if isinstance(error, Stopped):
    return error.exit_status
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT
  return 2 if isinstance(error, InputError) else 1


def _described(error: BaseException) -> str:
  """An error as every host prints it."""
  if isinstance(error, Stopped):
    return str(error)
  if isinstance(error, InputError):
    return f"error: {error}"
  return f"error: {type(error).__name__}: {error}"
