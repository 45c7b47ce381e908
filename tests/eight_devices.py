"""Programs on eight fake CPU devices, each in a process of its own.

The number of devices is fixed when JAX starts, and more than one would slow
all other tests.
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_python(*arguments: str) -> str:
  """Runs Python with these arguments and returns what it prints.

  Raises:
    AssertionError: it failed; with what it wrote to standard error.
  """
  child = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "PYTHONPATH": str(ROOT),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert child.returncode == 0, child.stderr
  return child.stdout
