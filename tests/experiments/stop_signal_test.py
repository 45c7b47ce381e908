"""What SIGTERM and Ctrl+C do: at once, after a unit, and the second time."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments import input_errors

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SIGNALS = [signal.SIGTERM, signal.SIGINT]


def _run(code: str, *numbers: int) -> subprocess.CompletedProcess:
  """Runs code; sends a signal at each line that it prints first."""
  program = f"""
  import signal, sys, time
  from experiments import input_errors
  from experiments.stop_signal import StopSignal

  def ready():
    print("ready", flush=True)
    time.sleep(60)

  @input_errors.report_input_errors
  def main():
    {textwrap.indent(textwrap.dedent(code), "    ").strip()}

  sys.exit(main())
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program)],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    encoding="utf-8",
    env={**os.environ, "PYTHONPATH": str(_ROOT)},
  )
  for number in numbers:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
  out, err = process.communicate(timeout=60)
  return subprocess.CompletedProcess((), process.returncode, out, err)


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_ends_a_command_at_once_with_a_line(number):
  done = _run("with StopSignal('start it again.'):\n  ready()", number)
  assert done.returncode == 128 + number
  assert done.stderr == "stopped: start it again.\n"


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_waits_for_the_unit_under_way(number):
  done = _run(
    """
    with StopSignal("start it again.") as stop:
      for unit in stop.deferred(range(3)):
        if unit == 1:
          print("ready", flush=True)
          while not stop.requested:
            time.sleep(0.01)
          time.sleep(0.2)
          print("unit 1 is whole")
          raise stop.stop("stopped after unit 1")
    """,
    number,
  )
  assert done.returncode == 128 + number
  lines = done.stdout.splitlines()
  assert "stopping after the update under way; Ctrl+C again" in lines[0]
  assert lines[1] == "unit 1 is whole"
  assert done.stderr == "stopped after unit 1: start it again.\n"


def test_a_signal_in_a_finalizer_is_not_lost():
  # Python drops what is raised there.
  done = _run(
    """
    class Slow:
      def __del__(self):
        print("ready", flush=True)
        for _ in range(20):
          time.sleep(0.01)

    with StopSignal("start it again."):
      Slow()
      time.sleep(60)
    """,
    signal.SIGINT,
  )
  assert done.returncode == 130
  assert done.stderr == "stopped: start it again.\n"


def test_what_a_callback_dropped_is_raised_at_the_next_check():
  done = _run(
    """
    import weakref

    class Kept:
      pass

    def slow(_):
      print("ready", flush=True)
      while not stop.requested:
        time.sleep(0.01)

    with StopSignal("start it again.") as stop:
      kept = Kept()
      reference = weakref.ref(kept, slow)
      del kept
      stop.check()
      print("not reached")
    """,
    signal.SIGTERM,
  )
  assert done.returncode == 128 + signal.SIGTERM
  assert "not reached" not in done.stdout
  assert done.stderr.endswith("stopped: start it again.\n")


def test_a_second_signal_ends_at_once_without_a_traceback():
  done = _run(
    """
    with StopSignal("start it again.", lambda _: None) as stop:
      for _ in stop.deferred(range(1)):
        print("ready", flush=True)
        while not stop.requested:
          time.sleep(0.01)
        ready()
    """,
    signal.SIGINT,
    signal.SIGINT,
  )
  assert done.returncode == -signal.SIGINT
  assert done.stderr == ""


def test_ctrl_c_before_the_stages_is_not_lost_in_a_finalizer():
  done = _run(
    """
    class Slow:
      def __del__(self):
        print("ready", flush=True)
        for _ in range(20):
          time.sleep(0.01)

    Slow()
    time.sleep(60)
    """,
    signal.SIGINT,
  )
  assert done.returncode == 130
  assert done.stderr == "stopped.\n"


def test_ctrl_c_while_a_command_imports_has_no_traceback(tmp_path):
  # It stands in for an import that takes seconds.
  (tmp_path / "jax.py").write_text(
    "import time\nprint('ready', flush=True)\ntime.sleep(60)\n",
    encoding="utf-8",
  )
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.run", "--help"],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    encoding="utf-8",
    env={**os.environ, "PYTHONPATH": f"{tmp_path}:{_ROOT}"},
  )
  while process.stdout.readline() != "ready\n":
    assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGINT
  assert err == ""


def test_ctrl_c_before_anything_is_written_is_a_line_too(capsys):
  @input_errors.report_input_errors
  def interrupted():
    raise KeyboardInterrupt

  assert interrupted() == 130
  assert capsys.readouterr().err == "stopped.\n"
