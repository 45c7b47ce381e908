"""Programs on fake CPU devices, in processes of their own.

The number of devices is fixed when JAX starts, and more than one would slow
all other tests.
"""

import concurrent.futures
import os
import pathlib
import socket
import subprocess
import sys

# What tests compile runs for milliseconds. Splitting so small a program into
# parts that are compiled side by side takes longer than compiling it, and XLA's
# newer emitters of fusions take three times as long as the ones before them.
QUICK_TO_COMPILE = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1"
  " --xla_cpu_use_fusion_emitters=false"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_python(*arguments: str) -> str:
  """Runs Python on eight devices and returns what it prints.

  Raises:
    AssertionError: it failed; with what it wrote to standard error.
  """
  return _finish(_start(arguments, num_devices=8))


def run_processes(count: int, *arguments: str, num_devices: int) -> list[str]:
  """Runs Python in several processes, which are to find each other.

  Args:
    count: of processes.
    arguments: of each of them; the coordinator's address, the number of
      processes and the index of this one come after them.
    num_devices: devices of each.

  Returns:
    What each of them prints.

  Raises:
    AssertionError: one failed; with what it wrote to standard error.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  children = [
    _start(
      (*arguments, address, str(count), str(index)),
      num_devices=num_devices,
    )
    for index in range(count)
  ]
  try:
    # Side by side: one that cannot get rid of its output would stop all.
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      return list(pool.map(_finish, children))
  finally:
    for child in children:
      child.kill()
      child.wait()


def _start(
  arguments: tuple[str, ...], *, num_devices: int
) -> subprocess.Popen[str]:
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": (
        f"--xla_force_host_platform_device_count={num_devices} "
        # As this process compiles, see conftest.py.
        + os.environ["XLA_FLAGS"]
      ),
      "PYTHONPATH": str(ROOT),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    encoding="utf-8",
  )


def _finish(child: subprocess.Popen[str]) -> str:
  output, errors = child.communicate()
  assert child.returncode == 0, errors
  return output
