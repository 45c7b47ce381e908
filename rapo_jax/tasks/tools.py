"""Tools that a task asks for and that need a service to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from rapo_jax.data import load_corpus
from rapo_jax.tools import Described, PythonTool, SearchTool, Tool

_NO_DOCUMENTS = ("Nothing was found.",)


class Services(Protocol):
  """What an experiment runs tools with; it closes them with the task."""

  def search(self, documents: Sequence[str], /) -> Tool:
    """A search tool over documents, by the experiment's encoder and index."""

  def python(self) -> Tool:
    """A python tool with the experiment's limits."""


@runtime_checkable
class ToolSpec(Described, Protocol):
  """A tool that is still to be started.

  A spec may have `paths`, as a task has them.
  """

  def start(self, services: Services, /) -> Tool:
    """The running tool.

    Raises:
      InputError: it lacks something that it needs.
    """


@dataclasses.dataclass(frozen=True)
class PythonSpec:
  """The python tool; `tools.python` of the config has its limits."""

  name = PythonTool.name
  description = PythonTool.description
  example = PythonTool.example

  def start(self, services: Services, /) -> Tool:
    """Starts the interpreters."""
    return services.python()


@dataclasses.dataclass(frozen=True)
class SearchSpec:
  """The search tool over a corpus.

  Attributes:
    corpus: JSONL file (`id`, `contents`); None for a tool that answers that
      nothing was found.
  """

  paths: ClassVar[Mapping[str, bool]] = {"corpus": False}

  corpus: str | None = None

  name = SearchTool.name
  description = SearchTool.description
  example = SearchTool.example

  def start(self, services: Services, /) -> Tool:
    """Reads the corpus and builds an index over it."""
    documents: Sequence[str] = _NO_DOCUMENTS
    if self.corpus is not None:
      documents = load_corpus(self.corpus)
    return services.search(documents)


TOOLS: Mapping[str, Tool | ToolSpec] = {
  "search": SearchSpec(),
  "python": PythonSpec(),
}
"""Tools that a task can be given by name, on the command line."""


def start_tools(
  specs: Iterable[Tool | ToolSpec], services: Services
) -> dict[str, Tool]:
  """Running tools by name; one that needs no service is used as it is.

  Raises:
    InputError: a tool lacks something that it needs.
  """
  return {
    spec.name: spec if isinstance(spec, Tool) else spec.start(services)
    for spec in specs
  }
