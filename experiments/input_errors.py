"""What ends a command: one line for bad input, a traceback for a bug.

The type of an error tells which it is. What checks a config, a file or a folder
raises `InputError`; what opens a path of a user does so under
`rapo_jax.errors.accessing`. A full or read-only disk and a full device are no
bug anywhere; they get a line with a remedy. Everything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import errno
import functools
import io
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec

from experiments import log_once
from experiments.stop_signal import Stopped, interrupt
from rapo_jax.errors import InputError

_Arguments = ParamSpec("_Arguments")

EXIT_STATUS = 2

# A refusal by the machine is no bug, wherever it happens.
_REMEDIES = {
  errno.ENOSPC: "free some space there, or write to another disk",
  errno.EDQUOT: "free some of your quota, or write to another disk",
  errno.EROFS: "choose a folder on a disk that can be written",
  errno.ENAMETOOLONG: "choose a shorter name",
  errno.EACCES: "choose a folder that you may read and write",
  errno.EPERM: "choose a folder that you may read and write",
}
_OUT_OF_MEMORY = (
  "a device has too little memory for this: lower rollout.num_slots, "
  "update.rows_per_microbatch or update.head_chunk, set policy.lora, or take "
  "more devices. --dry_run and `python -m experiments.plan` add up what is "
  "needed."
)


def report_input_errors(
  main: Callable[_Arguments, int],
) -> Callable[_Arguments, int]:
  """Decorates a command: an input error goes to standard error, in a line.

  The exit status is 2 for an input error, 128 + n for a signal n. Libraries
  that repeat their warnings are heard once.
  """

  @functools.wraps(main)
  def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
    _heed_interrupts()
    if isinstance(sys.stdout, io.TextIOWrapper):
      # A locale of Latin-1 has no arrows and no Chinese.
      sys.stdout.reconfigure(errors="backslashreplace")
    log_once.show_each_once()
    try:
      return main(*args, **kwargs)
    except (OSError, ValueError) as error:
      remedy = _remedy(error)
      if not remedy and not isinstance(error, InputError):
        raise
      lines = (f"error: {error}{remedy}", *getattr(error, "__notes__", ()))
      print("\n".join(lines), file=sys.stderr)
      return EXIT_STATUS
    except RuntimeError as error:
      # JAX's own type would have to be imported, and not all commands use JAX.
      jax_s = type(error).__name__ == "JaxRuntimeError"
      if not (jax_s and str(error).startswith("RESOURCE_EXHAUSTED")):
        raise
      print(f"error: {error}\n{_OUT_OF_MEMORY}", file=sys.stderr)
      return EXIT_STATUS
    except Stopped as stopped:
      print(stopped, file=sys.stderr)
      return stopped.exit_status
    except KeyboardInterrupt:
      print("stopped.", file=sys.stderr)
      return 128 + signal.SIGINT

  return wrapped


def _heed_interrupts() -> None:
  """Ends what `experiments/__init__.py` does about Ctrl+C during imports.

  What Python does about it would be lost in a callback of a library's.
  """
  in_main = threading.current_thread() is threading.main_thread()
  defaults = (signal.SIG_DFL, signal.default_int_handler)
  if in_main and signal.getsignal(signal.SIGINT) in defaults:
    signal.signal(signal.SIGINT, interrupt)


def _remedy(error: Exception) -> str:
  """What helps against what the machine refused; empty for all else."""
  number = getattr(error, "errno", None) or 0
  # TensorStore, which writes checkpoints, raises ValueError for all it meets.
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    number = int(code[1])
  remedy = _REMEDIES.get(number)
  return f": {remedy}." if remedy else ""
