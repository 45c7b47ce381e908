"""Tools that a task asks for and that need a service to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from rapo_jax.corpora import Corpus, Mode, check_mode, open_documents
from rapo_jax.ranges import check_numbers
from rapo_jax.tools import Described, PythonTool, SearchTool, Tool

_NO_DOCUMENTS = ("Nothing was found.",)


class Closable(Protocol):
  """What has to be closed."""

  def close(self) -> None:
    """Ends it."""


Opened = TypeVar("Opened", bound=Closable)


class Services(Protocol):
  """What an experiment runs tools with; it closes them with the task."""

  def search(
    self,
    documents: Corpus | Sequence[str],
    /,
    mode: Mode = "dense",
    top_k: int | None = None,
  ) -> Tool:
    """A search tool over a built corpus or documents in memory.

    Vectors are those of the experiment's encoder, and `top_k` its
    `tools.search_top_k` where it is None.
    """

  def python(self) -> Tool:
    """A python tool with the experiment's limits."""

  def opened(self, key: Hashable, open_it: Callable[[], Opened], /) -> Opened:
    """What is opened once for a key, such as a connection of several tools."""


@runtime_checkable
class ToolSpec(Described, Protocol):
  """A tool that is still to be started.

  A spec may have `paths` and `check()`, as a task has them.
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
    corpus: file of passages (`id`, `contents`), or folder that
      `experiments.corpus` has built; None for a tool that answers that nothing
      was found.
    mode: "dense" finds by vectors, "bm25" by words, "hybrid" by both.
    top_k: documents a search returns; None for `tools.search_top_k`.
  """

  paths: ClassVar[Mapping[str, bool]] = {"corpus": False}

  corpus: str | None = None
  mode: Mode = "dense"
  top_k: int | None = None

  name = SearchTool.name
  description = SearchTool.description
  example = SearchTool.example

  def __post_init__(self) -> None:
    check_mode(self.mode)
    check_numbers(self, "top_k", at_least=1)

  def start(self, services: Services, /) -> Tool:
    """Opens the corpus; a file is read, and an index built over it."""
    documents: Corpus | Sequence[str] = _NO_DOCUMENTS
    if self.corpus is not None:
      documents = open_documents(self.corpus)
    return services.search(documents, mode=self.mode, top_k=self.top_k)


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
