"""Places that a config names: files and folders that are read."""

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
  """The config with all of its places on this machine.

  `~` is expanded. What lies on an object store is copied here.

  Raises:
    InputError: a field holds another URL, or what cannot be copied; names it.
  """
  for name in CONFIG_PLACES:
    section, field = name.split(".")
    values = getattr(config, section)
    text = getattr(values, field)
    if text is not None:
      values = dataclasses.replace(
        values, **{field: places.fetched(text, name)}
      )
      config = dataclasses.replace(config, **{section: values})
  tasks = tuple(_local_task(task) for task in config.tasks)
  return dataclasses.replace(config, tasks=tasks)


def _local_task(task: Task, above: str = "") -> Task:
  """The task with all of its paths on this machine."""
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
  """A task or a tool with all of its `paths` on this machine."""
  changes: dict[str, Any] = {}
  for field in getattr(value, "paths", ()):
    path = getattr(value, field)
    if isinstance(path, str):
      changes[field] = places.fetched(path, f"{name}{field}")
    elif path is not None:
      changes[field] = tuple(
        places.fetched(text, f"{name}{field}") for text in path
      )
  return dataclasses.replace(value, **changes) if changes else value
