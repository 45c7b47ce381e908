"""What a run was made with: date, commit, versions, devices and command.

Each start of the stages appends one line to `starts.jsonl` in the work folder.
So a result names the machine that trained it, even if another one writes the
report.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments import flags
from experiments.config import ExperimentConfig
from rapo_jax import files
from rapo_jax.errors import InputError

STARTS_FILE = "starts.jsonl"
PACKAGES = (
  "rapo_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "transformers",
  "scann",
  "numpy",
)
_FIELDS = {"date", "command", "commit", "versions", "platform", "devices"}
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_GIT_SECONDS = 10.0
_SECRET = re.compile(
  r"(?i)((?:api_?key|access_?key|token|secret|password|passwd)=)[^&\s]+"
)
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def describe(arguments: Sequence[str] | None = None) -> dict[str, Any]:
  """What runs here and now, as plain values.

  Args:
    arguments: of the command; those of this process when None. Credentials in
      URLs and values of fields named like secrets are left out.
  """
  devices = jax.devices()
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": _command(sys.argv[1:] if arguments is None else arguments),
    "commit": _commit(),
    "versions": {"python": platform.python_version(), **versions()},
    "platform": platform.platform(),
    "devices": {
      "backend": jax.default_backend(),
      "kind": devices[0].device_kind,
      "count": len(devices),
      "processes": jax.process_count(),
    },
  }


@functools.cache
def code() -> dict[str, str | None]:
  """Which code runs: its version, commit and a digest of its source files.

  The digest tells code that was changed and not committed from its commit.
  """
  digest = hashlib.sha256()
  for package in ("rapo_jax", "experiments"):
    for path in sorted((_ROOT / package).rglob("*.py")):
      digest.update(path.relative_to(_ROOT).as_posix().encode())
      digest.update(path.read_bytes())
  commit = _commit()
  return {
    "version": versions()["rapo_jax"],
    "commit": commit["id"] if commit else None,
    "source_sha256": digest.hexdigest(),
  }


def describe_code(code: Mapping[str, str | None]) -> str:
  """`code()` for a message."""
  parts = [f"version {code.get('version')}"]
  if code.get("commit"):
    parts.append(f"commit {str(code['commit'])[:12]}")
  return ", ".join([*parts, f"source {str(code.get('source_sha256'))[:12]}"])


def append_start(
  workdir: pathlib.Path,
  config: ExperimentConfig,
  arguments: Sequence[str] | None = None,
) -> None:
  """Adds what runs here and now to the starts of a work folder.

  A line that a kill has cut short goes, so that none is written behind it.
  """
  start = {**describe(arguments), "config_hash": flags.config_hash(config)}
  starts = [*read_starts(workdir), start]
  lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in starts]
  files.replace_text(workdir / STARTS_FILE, "".join(lines))


def read_starts(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Starts of a work folder, the first one first; a torn line is left out.

  Raises:
    InputError: a whole line is not as it was written.
  """
  path = pathlib.Path(workdir) / STARTS_FILE
  if not path.exists():
    return []
  text = path.read_text(encoding="utf-8", errors="replace")
  return [
    _start(line, path, number)
    for number, line in enumerate(text.split("\n")[:-1], 1)
  ]


def _start(line: str, path: pathlib.Path, number: int) -> dict[str, Any]:
  try:
    start = json.loads(line)
  except ValueError:
    start = None
  if not isinstance(start, dict) or _FIELDS - start.keys():
    raise InputError(
      f"every line of {path} must say how one start was made, and line "
      f"{number} does not: restore it, or delete the line."
    )
  return start


def _command(arguments: Sequence[str]) -> str:
  words = [_SECRET.sub(r"\1…", _USER.sub("…@", word)) for word in arguments]
  return shlex.join(["python", "-m", "experiments.run", *words])


def versions() -> dict[str, str | None]:
  """Installed versions; None for what is not installed."""
  found: dict[str, str | None] = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def _commit() -> dict[str, Any] | None:
  """Commit of this code and whether it was changed; None outside its clone."""
  top = _git("rev-parse", "--show-toplevel")
  # A clone around an installed copy is of something else.
  if top is None or pathlib.Path(top).resolve() != _ROOT:
    return None
  commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
  return {"id": commit, "changed": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
  """Output of git; None where there is no git, or it refuses."""
  try:
    done = subprocess.run(
      ["git", "-C", str(_ROOT), *arguments],
      capture_output=True,
      encoding="utf-8",
      timeout=_GIT_SECONDS,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()
