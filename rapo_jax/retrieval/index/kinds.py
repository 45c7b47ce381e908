"""The table of index kinds: which one is built, and how a saved one is read."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import pathlib
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from rapo_jax.errors import InputError
from rapo_jax.ranges import check_number
from rapo_jax.retrieval.index import base, scann_index
from rapo_jax.retrieval.index.exact import ExactIndex
from rapo_jax.retrieval.index.mapped import MappedIndex
from rapo_jax.retrieval.index.scann_index import ScannIndex

INDEXES: dict[str, base.IndexClass] = {
  ExactIndex.kind: ExactIndex,
  MappedIndex.kind: MappedIndex,
  ScannIndex.kind: ScannIndex,
}
"""Index classes by their kind. A new kind is a file of its own and a row here;
a program that uses the library may add its own row before it builds."""
AUTO = "auto"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class IndexConfig:
  """Which index is built over keys and documents.

  Attributes:
    kind: "auto", or a kind of `INDEXES`: "exact", "mapped" or "scann". "auto"
      builds ScaNN where it is installed, else an exact index.
    parameters: arguments of the kind's `build`, as (name, number), such as
      ("recall_target", 0.99) of "scann".
  """

  kind: str = AUTO
  parameters: tuple[tuple[str, float], ...] = ()

  def __post_init__(self) -> None:
    if self.kind != AUTO and self.kind not in INDEXES:
      raise InputError(
        f"kind must be {AUTO} or one of {', '.join(sorted(INDEXES))}, got "
        f"{self.kind!r}: correct it, or add the kind to INDEXES."
      )
    for name, value in self.parameters:
      check_number("parameters", value, above=0, of=name)
    names = [name for name, _ in self.parameters]
    if self.kind == AUTO:
      known: list[str] = []
    else:
      build = inspect.signature(INDEXES[self.kind].build)
      known = [
        name
        for name, parameter in build.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and name != "encoder_sha256"
      ]
    if not set(names) <= set(known) or len(set(names)) < len(names):
      raise InputError(
        f"parameters may name each of ({', '.join(known)}) once for the kind "
        f"{self.kind!r}, got ({', '.join(names)}): correct the names, or the "
        "kind."
      )


def index_class(config: IndexConfig | None = None) -> base.IndexClass:
  """What builds and loads the indexes of a config.

  Without ScaNN, "auto" gives `ExactIndex`, with a warning.

  Args:
    config: kind and parameters; None for the default.
  """
  config = config or IndexConfig()
  if config.kind == AUTO:
    return _automatic()
  chosen = INDEXES[config.kind]
  if not config.parameters:
    return chosen
  return _Configured(chosen, dict(config.parameters))


@dataclasses.dataclass(frozen=True)
class _Configured:
  """An index class with some arguments of its `build` set."""

  index_cls: base.IndexClass
  parameters: dict[str, Any]

  def build(
    self,
    vectors: Float[ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> base.Index:
    """Builds an index; see `IndexClass.build`."""
    build: Any = self.index_cls.build
    index: base.Index = build(
      vectors, encoder_sha256=encoder_sha256, **self.parameters
    )
    return index

  def load(self, path: str | pathlib.Path) -> base.Index:
    """Reads a folder; see `IndexClass.load`."""
    return self.index_cls.load(path)


def _automatic() -> base.IndexClass:
  if scann_index.is_scann_installed():
    return ScannIndex
  _log.warning(
    "ScaNN is not installed (it has wheels for Linux only: `pip install"
    " scann`); searching exactly instead. Results are the same or better; it"
    " is slower from about 100,000 vectors on."
  )
  return ExactIndex


def load_index(
  path: str | pathlib.Path, *, encoder_sha256: str | None = None
) -> base.Index:
  """Loads a saved index with the class that saved it.

  Without ScaNN, a ScaNN index is searched exactly, with a warning.

  Args:
    path: folder written by an index's `save`.
    encoder_sha256: digest of the encoder that queries will come from; None to
      load whatever is there.

  Returns:
    The index.

  Raises:
    InputError: the folder holds no index, one of an unknown kind, or one of
      another encoder's vectors.
  """
  meta = base.read_meta(pathlib.Path(path))
  kind = meta["kind"]
  if kind not in INDEXES:
    raise InputError(
      f"{path} holds an index of kind {kind!r}; known are {sorted(INDEXES)}."
      " Load it with the version of rapo_jax that wrote it."
    )
  built_with = meta["encoder_sha256"]
  if encoder_sha256 is not None and built_with != encoder_sha256:
    raise InputError(
      f"{path} holds vectors of encoder {_shortened(built_with)}, but the"
      f" encoder given is {_shortened(encoder_sha256)}. Their vectors do not"
      " compare: load the same encoder, or build the index again with this"
      " one."
    )
  if kind == ScannIndex.kind:
    # Every index keeps its vectors, so an exact search can read them.
    return _automatic().load(path)
  return INDEXES[kind].load(path)


def _shortened(sha256: str | None) -> str:
  return "unknown" if sha256 is None else sha256[:12]
