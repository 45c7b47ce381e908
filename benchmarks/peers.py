"""Peers in environments of their own, and processes that take turns.

A benchmark that compares with other libraries starts one process for each, all
pinned to the same cores. It asks them in turn. A peer's environment is made
from `benchmarks/requirements` on first use and kept under `.cache/benchmarks`.
The program in the process serves by `benchmarks.worker`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = "ours"
"""Runs in the environment that the benchmark itself runs in."""

_CACHE = ROOT / ".cache" / "benchmarks"
_REQUIREMENTS = ROOT / "benchmarks" / "requirements"
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The package index has these for torch with CUDA alone. Beside the CPU build
# they fail to import, and text needs none of them.
_UNUSABLE = {"vllm": ("torchvision", "torchaudio", "torchcodec")}


class Worker:
  """A process that runs one thing at a time.

  Args:
    peer: whose environment it runs in.
    script: file to run, its folder on Python's path.
    arguments: of the script.
    cores: the only cores that it runs on, one or several; none leaves cores and
      JAX's platform as they are.
    variables: environment variables beside those that all workers have.
  """

  def __init__(
    self,
    peer: str,
    script: pathlib.Path,
    *arguments: object,
    cores: Sequence[int],
    variables: Mapping[str, str] | None = None,
  ):
    pinned = [
      *("taskset", "--cpu-list", ",".join(map(str, cores)), "env"),
      *("JAX_PLATFORMS=cpu", f"OMP_NUM_THREADS={len(cores)}"),
    ]
    self._process = subprocess.Popen(
      [
        *(pinned if cores else ["env"]),
        f"PYTHONPATH={ROOT}",
        # Large arrays come and go, and first touches of small pages add up;
        # the same for all workers.
        "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
        *(f"{name}={value}" for name, value in (variables or {}).items()),
        *(str(environment(peer)), str(script)),
        *(str(argument) for argument in arguments),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      encoding="utf-8",
    )

  def run(self, what: str) -> dict[str, Any]:
    """Seconds and result of one run."""
    assert self._process.stdin
    assert self._process.stdout
    answer = ""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(what + "\n")
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError("a worker stopped; its message is above.")
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()


def environment(peer: str) -> pathlib.Path:
  """Interpreter of a peer's environment, made if missing."""
  if peer == OURS:
    return pathlib.Path(sys.executable)
  venv = _CACHE / peer / "venv"
  python, done = venv / "bin" / "python", venv / ".installed"
  if not done.exists():
    requirements = _REQUIREMENTS / f"{peer}.txt"
    print(f"installing {requirements.name} into {venv}", file=sys.stderr)
    create = [str(ROOT / "scripts" / "create_venv.sh"), str(venv)]
    subprocess.run(create, check=True, stdout=sys.stderr)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "-r", str(requirements)]
    if subprocess.run(install, stdout=sys.stderr, check=False).returncode:
      install += ["--extra-index-url", _TORCH_INDEX]
      subprocess.run(install, stdout=sys.stderr, check=True)
    if peer in _UNUSABLE:
      uninstall = [*pip, "uninstall", "--yes", *_UNUSABLE[peer]]
      subprocess.run(uninstall, stdout=sys.stderr, check=True)
    done.touch()
  return python


def medians(
  turns: Mapping[str, Sequence[Mapping[str, Any]]], clock: str
) -> dict[str, float]:
  """Median of each worker's turns by one of the clocks of an answer."""
  return {
    name: statistics.median(run[clock] for run in runs)
    for name, runs in turns.items()
  }
