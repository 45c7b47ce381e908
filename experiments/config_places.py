"""Places that a config names: folders and files on this machine's disks."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments import places
from experiments.config import ExperimentConfig
from rapo_jax.tasks import MixedTask, Task

CONFIG_PLACES = (
  "policy.base",
  "policy.off_policy",
  "policy.chat_template",
  "encoder.path",
  "buffer.path",
)
"""Fields of a config that name a file or a folder, or a model on the hub.

A task has further ones (`Task.paths`).
"""


def local_config(config: ExperimentConfig) -> ExperimentConfig:
  """The config with `~` expanded in each of its places.

  Raises:
    InputError: a field holds a URL; names it.
  """
  for name in CONFIG_PLACES:
    section, field = name.split(".")
    values = getattr(config, section)
    text = getattr(values, field)
    if text is not None:
      values = dataclasses.replace(values, **{field: places.local(text, name)})
      config = dataclasses.replace(config, **{section: values})
  tasks = tuple(_local_task(task) for task in config.tasks)
  return dataclasses.replace(config, tasks=tasks)


def _local_task(task: Task, above: str = "") -> Task:
  """The task with `~` expanded in each of its paths."""
  changes: dict[str, Any] = {}
  name = f"{above}tasks.{task.name}."
  if isinstance(task, MixedTask):
    changes["tasks"] = tuple(_local_task(part, name) for part in task.tasks)
  tools = getattr(task, "tools", ())
  if any(hasattr(tool, "paths") for tool in tools):
    changes["tools"] = tuple(
      _with_local_paths(tool, f"{name}tools.{tool.name}.") for tool in tools
    )
  return _with_local_paths(dataclasses.replace(task, **changes), name)


def _with_local_paths(value: Any, name: str) -> Any:
  """A task or a tool with `~` expanded in each of its `paths`."""
  changes: dict[str, Any] = {}
  for field in getattr(value, "paths", ()):
    path = getattr(value, field)
    if isinstance(path, str):
      changes[field] = places.local(path, f"{name}{field}")
    elif path is not None:
      changes[field] = tuple(
        places.local(text, f"{name}{field}") for text in path
      )
  return dataclasses.replace(value, **changes) if changes else value
