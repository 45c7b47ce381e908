"""Config fields that the content of a work folder depends on.

Another config may continue a work folder if nothing in it was made with a field
that differs. So a wrong path can be corrected, and a run can get more updates,
seeds, methods, evaluations and logging.

Where a whole section is named here, fields that are added to it count at once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import flags
from experiments.config import ExperimentConfig
from experiments.workdir import Workdir
from rapo_jax.tasks import TASKS
from rapo_jax.training import Checkpoints

DIVERGED_FILE = "diverged.json"
"""Lies in the folder of a run that has diverged, until the run has finished."""
DONE_FILE = "done.json"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Fields:
  """Some fields of a config.

  Attributes:
    sections: paths of fields, or of sections with all that is in them. Those of
      a task stand without its name, such as "tasks.world".
    apart: paths below these that do not belong to it.
  """

  sections: tuple[str, ...]
  apart: tuple[str, ...] = ()

  def has(self, path: str) -> bool:
    """Whether a field is one of these."""
    path = without_task_name(path)
    return _below(path, self.sections) and not _below(path, self.apart)

  def of(self, config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """These fields of a plain config, by their dotted path.

    A field that the config does not have, as an older version wrote it, has
    its default.

    Args:
      config: a plain config.
      task: name of the task that they are for; those of others are left out.
    """
    return self.complete(dict(_leaves(config)), task)

  def digest(self, config: ExperimentConfig, task: str) -> str:
    """Changes with the value of any of these fields; in hexadecimal."""
    fields = self.of(flags.to_dict(config), task)
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()

  def complete(self, leaves: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The same of a config whose fields are given by their dotted path."""
    complete = _defaults() | dict(leaves)
    return {
      path: value
      for path, value in complete.items()
      if self.has(path)
      and (not _below(path, ("tasks",)) or _below(path, (f"tasks.{task}",)))
    }


@functools.cache
def _defaults() -> dict[str, Any]:
  """Every field of a config with all tasks of the table, by dotted path."""
  every = ExperimentConfig(name="", tasks=tuple(TASKS.values()))
  return dict(_leaves(flags.to_dict(every)))


def without_task_name(path: str) -> str:
  """A field of a task without the task's name; any other as it is."""
  section, _, rest = path.partition(".")
  if section != "tasks" or "." not in rest:
    return path
  own = rest.partition(".")[2]
  # A mixture holds tasks itself.
  return without_task_name(own) if _below(own, ("tasks",)) else f"tasks.{own}"


# What a task's agents are made with changes nothing else by itself.
_OWN_AGENTS = "tasks.agents"
# What is trained on does not depend on what is reported.
_REPORTED = "tasks.evaluation_reward"
# Compared by what it holds.
_PROMPT = "tasks.prompt"
# Where a data set is prepared changes nothing that it holds.
_DATA_DIR = "tasks.data_dir"
# What keeps programs in changes nothing that they answer.
_TRUST = "tools.python.trust_code"

AGENTS = Fields(
  ("tasks", "data.leaks", "policy.random"),
  # Agents are made from the questions alone.
  apart=("tasks.reward", "tasks.tools", _PROMPT, _REPORTED, _DATA_DIR),
)
"""What the agents that a folder holds were made with."""

BUFFER = Fields(
  (
    "tasks",
    "data.leaks",
    "data.prompt_date",
    "policy.off_policy",
    "policy.enable_thinking",
    "tools",
    "encoder",
    "index",
    "rollout",
    "retrieval.min_reward",
    "buffer.num_trajectories",
    "buffer.top_k_trajectories",
    "buffer.seed",
  ),
  # The off-policy agent retrieves nothing and has a group size of its own.
  apart=(
    _OWN_AGENTS,
    _DATA_DIR,
    _REPORTED,
    "rollout.num_generations",
    "rollout.num_hybrid",
    "rollout.retrieval_prob",
    _TRUST,
  ),
)
"""What a buffer that a folder holds was built with."""

# When the loss is measured, and what is kept meanwhile, changes nothing.
_WARM_START_SHOWN = ("warm_start.eval_every", "warm_start.checkpoint_every")

WARM_START = Fields(
  (
    "tasks",
    "data.leaks",
    "data.prompt_date",
    "policy.base",
    "policy.random",
    "policy.enable_thinking",
    "warm_start",
    "retrieval.min_reward",
    "rollout.dtype",
    "rollout.max_prompt_tokens",
    "rollout.max_response_tokens",
    "rollout.max_step_tokens",
    "rollout.max_tool_tokens",
    "rollout.max_tool_calls",
  ),
  apart=(
    _OWN_AGENTS,
    _DATA_DIR,
    _PROMPT,
    _REPORTED,
    "tasks.reward",
    *_WARM_START_SHOWN,
  ),
)
"""What the agent of a warm start was trained with."""

TRAIN = Fields(
  (
    "tasks",
    "data",
    "policy",
    "warm_start",
    "tools",
    "encoder",
    "index",
    "buffer",
    "retrieval",
    "rollout",
    "objective",
    "optimizer",
    "update",
  ),
  # Base agent, prompts and buffer are compared by what they hold, not by their
  # place.
  apart=(
    _OWN_AGENTS,
    _DATA_DIR,
    _REPORTED,
    "policy.base",
    "policy.off_policy",
    "policy.random",
    "policy.chat_template",
    _PROMPT,
    "buffer.path",
    "buffer.url",
    "buffer.num_trajectories",
    "buffer.top_k_trajectories",
    "buffer.seed",
    _TRUST,
    *_WARM_START_SHOWN,
  ),
)
"""What a run with a checkpoint was trained with."""

EVALUATE = Fields(
  (
    "tasks",
    "data.prompt_date",
    "policy.enable_thinking",
    "tools",
    "encoder",
    "index",
    "rollout",
    "evaluation",
  ),
  apart=(
    _OWN_AGENTS,
    _DATA_DIR,
    _PROMPT,
    "rollout.num_generations",
    "rollout.num_hybrid",
    "rollout.retrieval_prob",
    "evaluation.curve_samples",
    "evaluation.curve_questions",
    "evaluation.max_tool_fail_rate",
    _TRUST,
  ),
)
"""What an evaluation was made with; it is made again where that differs."""

AFTER_DIVERGENCE = Fields(
  ("optimizer",),
  # Without a warm-up the optimizer's state has another form.
  apart=("optimizer.warmup_updates",),
)
"""What may change when a run goes on that has diverged."""


def differences(there: Any, wanted: Any, path: str = "config") -> list[str]:
  """Fields in which two plain configs differ, one line each; 1 equals 1.0.

  Args:
    there: a plain config, or a part of one.
    wanted: the other.
    path: dotted path of that part, for the lines.
  """
  if isinstance(there, dict) and isinstance(wanted, dict):
    return [
      line
      for key in sorted({*there, *wanted})
      for line in differences(there.get(key), wanted.get(key), f"{path}.{key}")
    ]
  if _same(_plain(there), _plain(wanted)):
    return []
  return [f"{path} is {there!r} there and {wanted!r} here"]


def train_differences(
  there: Mapping[str, Any], wanted: Mapping[str, Any], folder: pathlib.Path
) -> list[str]:
  """Differences that keep a run from going on, one line each.

  Args:
    there: fields `TRAIN` that the run began with.
    wanted: those of now.
    folder: of the run; says whether it has diverged.
  """
  may_change = Fields(())
  if (folder / DIVERGED_FILE).exists():
    may_change = AFTER_DIVERGENCE
  return differences(
    {path: v for path, v in there.items() if not may_change.has(path)},
    {path: v for path, v in wanted.items() if not may_change.has(path)},
  )


def conflicts(
  workdir: Workdir, there: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  """Lists what a work folder holds that was made with other values.

  Args:
    workdir: the folder.
    there: plain config that it was made with.
    wanted: plain config of now.

  Returns:
    A line for each field of each thing that depends on it.
  """
  lines = []
  for kind, fields in (
    ("agents", AGENTS),
    ("buffer", BUFFER),
    ("warm_start", WARM_START),
  ):
    for path in filter(_holds_files, _entries(workdir.root / kind)):
      task = path.name
      changed = differences(fields.of(there, task), fields.of(wanted, task))
      lines += [f"{line}; {path} was made with it" for line in changed]
  for path in trained(workdir):
    task = path.parent.name
    changed = train_differences(
      TRAIN.of(there, task), TRAIN.of(wanted, task), path
    )
    lines += [f"{line}; {path} was trained with it" for line in changed]
  return lines


def trained(workdir: Workdir) -> list[pathlib.Path]:
  """Folders of the runs that have a checkpoint, or have ended."""
  return [
    run
    for task in _entries(workdir.root / "train")
    for run in _entries(task)
    if (run / DONE_FILE).exists() or _has_checkpoints(run)
  ]


def _has_checkpoints(run: pathlib.Path) -> bool:
  folder = run / CHECKPOINTS_FOLDER
  return folder.is_dir() and bool(Checkpoints.numbers(folder))


def _holds_files(folder: pathlib.Path) -> bool:
  return any(path.is_file() for path in folder.rglob("*"))


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.iterdir()) if folder.is_dir() else []


def _leaves(
  config: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    path = f"{above}{name}"
    if isinstance(value, dict):
      yield from _leaves(value, f"{path}.")
    else:
      yield path, value


def _below(path: str, sections: tuple[str, ...]) -> bool:
  return any(path == s or path.startswith(f"{s}.") for s in sections)


def _plain(value: Any) -> Any:
  """As JSON gives it back: it has no tuples."""
  return json.loads(json.dumps(value, default=list))


def _same(first: Any, second: Any) -> bool:
  """Equality in which 1 equals 1.0 and does not equal true."""
  if isinstance(first, list) and isinstance(second, list):
    return len(first) == len(second) and all(map(_same, first, second))
  if isinstance(first, bool) or isinstance(second, bool):
    return first is second
  return bool(first == second)
