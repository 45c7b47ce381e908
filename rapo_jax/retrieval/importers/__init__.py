"""Reads trajectories from files of other programs."""

from rapo_jax.retrieval.importers.authors import read_authors
from rapo_jax.retrieval.importers.formats import (
  Format,
  detect_format,
  read_trajectories,
)
from rapo_jax.retrieval.importers.lines import (
  ImportReport,
  JsonLines,
  OnError,
  Problem,
)
from rapo_jax.retrieval.importers.logged import read_logged
from rapo_jax.retrieval.importers.messages import read_messages

__all__ = [
  "Format",
  "ImportReport",
  "JsonLines",
  "OnError",
  "Problem",
  "detect_format",
  "read_authors",
  "read_logged",
  "read_messages",
  "read_trajectories",
]
