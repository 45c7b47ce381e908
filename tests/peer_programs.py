"""Runs a program in the environment of another library."""

import os
import subprocess

import pytest

from benchmarks import peers


def run(peer: str, *arguments: str, timeout_s: float = 1800) -> str:
  """Runs Python on these arguments; gives what it prints.

  Skips the test where the library cannot be installed; fails it, with standard
  error, where the program fails.

  Args:
    peer: name of a file of `benchmarks/requirements`.
    *arguments: of Python.
    timeout_s: for the program.
  """
  try:
    python = peers.environment(peer)
  except subprocess.CalledProcessError as error:
    pytest.skip(f"{peer} cannot be installed: {error}")
  done = subprocess.run(
    [str(python), *arguments],
    cwd=peers.ROOT,
    env={
      "PATH": os.environ["PATH"],
      "HOME": os.environ.get("HOME", "/"),
      "PYTHONPATH": str(peers.ROOT),
      "JAX_PLATFORMS": "cpu",
    },
    capture_output=True,
    encoding="utf-8",
    timeout=timeout_s,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout
