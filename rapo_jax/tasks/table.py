"""The table of tasks, put together from this package's modules."""

from __future__ import annotations

import types
from collections.abc import Mapping

from rapo_jax.discovery import values_of
from rapo_jax.tasks.base import Task, by_name

TASKS: Mapping[str, Task] = types.MappingProxyType(
  by_name(values_of("rapo_jax.tasks", "TASK", skip=("table",)))
)
"""All tasks by name, with their default settings."""
