"""A world small enough to train agents in from scratch on two CPU cores."""

from rapo_jax.tasks.miniature.task import TASKS, MiniatureTask

__all__ = ["TASKS", "MiniatureTask"]
