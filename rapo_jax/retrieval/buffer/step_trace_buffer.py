"""The Step-Trace Buffer: off-policy steps, found by the history before them.

An off-policy agent's trajectories are cut into steps. Each is stored as a pair:
the key is the question with the history before the step, `q + S_<t`; the value
is the step `s_t`, thought, action and observation (RAPO, section "hybrid-policy
rollout", Eq. 3). A search embeds the current history, finds the nearest keys
and returns one value.

Many traces share a key: every trajectory of a question starts with an empty
history. So the index holds each distinct key once. The reward, not the index's
rounding, decides ties between the traces of one key.
"""

from __future__ import annotations

import functools
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from rapo_jax import files, hosts
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer import checks as buffer_checks
from rapo_jax.retrieval.buffer import store
from rapo_jax.retrieval.buffer.manifest import (
  INDEX_FOLDER,
  TRACES_FILE,
  Manifest,
  check_folder,
  file_problems,
  partial_folder,
  read_manifest,
)
from rapo_jax.retrieval.buffer.policy import (
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
  choose,
  draw_noise,
  step_hit,
)
from rapo_jax.retrieval.buffer.step_trace import (
  ANSWER_TAG,
  StepTrace,
  check_lengths,
  key_texts,
  trace_keys,
)
from rapo_jax.retrieval.buffer.trace_file import (
  ColumnarTraces,
  StoredTraces,
  trace_table,
  trajectory_columns,
)
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds
from rapo_jax.trajectory import Candidate

_log = logging.getLogger(__name__)


@hosts.held()
class StepTraceBuffer:
  """Step traces with an index over their keys. Read-only once built.

  Attributes:
    traces: in the order in which they were given.
    index: over their distinct keys.
    encoder: embedded the keys, and embeds what is looked up.
    version: of the content; it grows with every addition.
    directory: folder that it was loaded from; None for one in memory.
  """

  def __init__(
    self,
    traces: Sequence[StepTrace],
    key_ids: Sequence[int] | np.ndarray,
    index: index_lib.Index,
    encoder: SentenceEncoder,
    *,
    version: int = 1,
    directory: pathlib.Path | None = None,
  ):
    """Joins the parts; use `build` or `load`.

    Args:
      traces: the N traces.
      key_ids: row of each trace's key in the index, N of them.
      index: index over the distinct keys.
      encoder: the encoder that embedded them.
      version: of the content.
      directory: folder that the traces and the index are in.
    """
    self.version = version
    self.directory = directory
    self.traces = traces
    self._key_ids = np.asarray(key_ids, np.int64)
    self.index = index
    self.encoder = encoder
    self._rewards = (
      traces.rewards
      if isinstance(traces, ColumnarTraces)
      else np.array([trace.reward for trace in traces], np.float64)
    )
    # The traces of key k, best first, are _order[_starts[k]:_starts[k + 1]].
    # Among equal rewards the earlier ones come first.
    self._order = np.lexsort((-self._rewards, self._key_ids))
    num_keys = int(self._key_ids.max(initial=-1)) + 1
    self._starts = np.searchsorted(
      self._key_ids[self._order], np.arange(num_keys + 1)
    )

  @classmethod
  def build(
    cls,
    traces: Sequence[StepTrace],
    encoder: SentenceEncoder,
    index_cls: index_lib.IndexClass | None = None,
  ) -> StepTraceBuffer:
    """Embeds the keys of all traces and builds the index.

    Args:
      traces: the traces, with distinct ids; may be none.
      encoder: embeds keys now and histories later.
      index_cls: class of the index; None for ScaNN where it is installed.

    Returns:
      The buffer.

    Raises:
      InputError: if two traces have one id or a reward is not finite.
    """
    seen: set[int] = set()
    for trace in traces:
      store.check_trace(trace, seen)
      seen.add(trace.trace_id)
    rows: dict[str, int] = {}
    keys, _ = trace_keys(traces, encoder)
    key_ids = [rows.setdefault(key, len(rows)) for key in keys]
    index = store.build_index(encoder.encode(list(rows)), encoder, index_cls)
    return cls(list(traces), key_ids, index, encoder)

  def __len__(self) -> int:
    """Returns the number of traces."""
    return len(self.traces)

  def num_above(self, min_reward: float) -> int:
    """Number of traces whose reward is above a bound."""
    return int(np.sum(self._rewards > min_reward))

  def __iter__(self) -> Iterator[StepTrace]:
    """Goes over the traces in the order in which they were given."""
    return iter(self.traces)

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
    keys: Sequence[Sequence[int]] | None = None,
  ) -> list[Hit | Miss | Failed]:
    """Finds a step for each of N waiting histories (Eq. 3).

    All histories are embedded as one batch and searched at once. `policy` says
    how one trace is chosen. Where traces of one key overflow `top_k`, those of
    higher reward are considered.

    Args:
      questions: N questions.
      histories: for each, the texts of its steps so far, oldest first.
      config: how one trace is chosen.
      keys: for each, integers that are its own, of which it is drawn whether
        and what `noise_prob` gives; needed for that alone.

    Returns:
      An outcome for each history: `Hit`; `Miss` where nothing qualifies;
      `Failed` for all where the encoder or the index failed: it raised a
      RuntimeError, ValueError or OSError. Other errors are bugs and are raised.

    Raises:
      InputError: if there are not as many histories as questions, or
        `noise_prob` is set and there are not as many keys.
    """
    if config.noise_prob and (keys is None or len(keys) != len(questions)):
      raise InputError(
        f"retrieve needs one key a question where noise_prob is set, got"
        f" {0 if keys is None else len(keys)} keys and {len(questions)}"
        " questions."
      )
    check_lengths(questions, histories)
    if not len(self):
      return [Miss("empty buffer")] * len(questions)
    if not questions:
      return []
    try:
      found = self._search(questions, histories, config.top_k)
    except (RuntimeError, ValueError, OSError) as error:
      reason = f"{type(error).__name__}: {error}"
      return [Failed(reason)] * len(questions)
    outcomes: list[Hit | Miss | Failed] = []
    for number, candidates in enumerate(found):
      chosen = choose(candidates, self._rewards, config)
      if isinstance(chosen, Miss):
        outcomes.append(chosen)
        continue
      if keys is not None:
        drawn = draw_noise(keys[number], self._rewards, config)
        if drawn is not None:
          # What was found is what the drawn one stands in for.
          found_ones = [chosen[:2], *chosen.others]
          others = [pair for pair in found_ones if pair[0] != drawn]
          outcomes.append(self._hit(drawn, None, others, config))
          continue
      outcomes.append(self._hit(*chosen, config))
    return outcomes

  def neighbors(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    num_neighbors: int,
  ) -> list[list[Hit]]:
    """Finds the traces among which `retrieve` chooses a step.

    Args:
      questions: N questions.
      histories: for each, the texts of its steps so far, oldest first.
      num_neighbors: traces a history, at least 1.

    Returns:
      For each history its nearest traces, best first: by similarity, and of
      one key by reward. Fewer than asked for where there are no more.

    Raises:
      InputError: if there are not as many histories as questions, or the
        index refuses `num_neighbors`.
      RuntimeError: if the encoder or the index fails.
    """
    check_lengths(questions, histories)
    if not len(self) or not questions:
      return [[] for _ in questions]
    found = self._search(questions, histories, num_neighbors)
    return [
      [
        step_hit(self.traces[row], score)
        for row, score in itertools.islice(candidates, num_neighbors)
      ]
      for candidates in found
    ]

  def _search(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    num_neighbors: int,
  ) -> list[Iterator[tuple[int, float]]]:
    """Row and similarity of each history's nearest traces, best first.

    At least `num_neighbors` of them, if there are as many.
    """
    queries = self.encoder.encode_queries(
      key_texts(questions, histories, self.encoder)
    )
    # No more than there are, for which any number has room.
    neighbors = self.index.search(queries, min(num_neighbors, len(self.index)))
    return [
      self._candidates(ids, scores)
      for ids, scores in zip(
        neighbors.ids.tolist(), neighbors.scores.tolist(), strict=True
      )
    ]

  def _candidates(
    self, ids: list[int], scores: list[float]
  ) -> Iterator[tuple[int, float]]:
    """Row and similarity of the traces of one history's nearest keys."""
    for key_id, score in zip(ids, scores, strict=True):
      for row in self._rows_of(key_id):
        yield row, score

  def _hit(
    self,
    row: int,
    similarity: float | None,
    others: Iterable[tuple[int, float]],
    config: RetrievalConfig,
  ) -> Hit:
    trace = self.traces[row]
    candidates = tuple(
      Candidate(self.traces[r].trace_id, s, float(self._rewards[r]))
      for r, s in others
    )
    if config.granularity == "step":
      return Hit(trace, similarity, trace.step, trace.answers, candidates)
    last = self.traces[int(self._last_steps[row])]
    return Hit(
      trace,
      similarity,
      "\n".join([*last.history, last.step]),
      last.answers or any(ANSWER_TAG in step for step in last.history),
      candidates,
    )

  @functools.cached_property
  def _last_steps(self) -> Int64[np.ndarray, " N"]:
    """For each trace the row of its trajectory's last step; itself without."""
    trajectories, step_indices = trajectory_columns(self.traces)
    rows = np.arange(len(self))
    apart = np.where(trajectories < 0, len(self) + rows, trajectories)
    order = np.lexsort((step_indices, apart))
    _, groups, counts = np.unique(
      apart, return_inverse=True, return_counts=True
    )
    return order[np.cumsum(counts) - 1][groups]

  def _rows_of(self, key_id: int) -> list[int]:
    """Traces of a key, the best first; none for the padding of the index."""
    if not 0 <= key_id < len(self._starts) - 1:
      return []
    start, end = self._starts[key_id], self._starts[key_id + 1]
    return self._order[start:end].tolist()

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes the buffer to a folder, whole or not at all.

    `store.BufferWriter` writes the same for more traces than fit into memory.

    Args:
      directory: folder to create or replace; `docs/buffer.md` says what is in
        it. It can be moved.
    """
    with files.replaced_folder(directory) as new:
      store.write_contents(
        new, self._tables(), self.index, self.encoder, version=self.version
      )

  def _tables(self) -> Iterator[pa.Table]:
    if isinstance(self.traces, ColumnarTraces):
      yield from self.traces.tables()
      return
    for first in range(0, len(self), store.BATCH_TRACES):
      traces = self.traces[first : first + store.BATCH_TRACES]
      keys, num_tokens = trace_keys(traces, self.encoder)
      yield trace_table(
        traces,
        keys=keys,
        key_ids=self._key_ids[first : first + store.BATCH_TRACES],
        num_tokens=num_tokens,
      )

  @classmethod
  def load(
    cls,
    directory: str | pathlib.Path,
    encoder: SentenceEncoder,
    *,
    checksums: bool = True,
  ) -> StepTraceBuffer:
    """Opens a folder that `save` or a `BufferWriter` wrote.

    The text of traces is not read: the file is mapped, and a step is decoded
    when it is found.

    Args:
      directory: the folder, also after it was moved.
      encoder: must be the encoder that the buffer was built with.
      checksums: read all files once and compare their digests with the
        manifest. Also look for nulls and for vectors whose norm is not 1.
        Otherwise their sizes alone are compared.

    Returns:
      The buffer, with the saved index as it is: a rebuilt ScaNN tree would
      give other neighbours.

    Raises:
      InputError: if the folder holds no buffer, or one whose build was
        interrupted. Or the buffer is of another format or another encoder, or
        its files were cut short or changed. Says with which command to go on.
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    store.check_encoder(directory, manifest, encoder)
    check_folder(
      directory, file_problems(directory, manifest.files, checksums=checksums)
    )
    if partial_folder(directory).exists():
      _log.warning(
        "%s is what an interrupted build left; %s is whole and is what is"
        " opened. Go on with the build (--resume), or delete the former.",
        partial_folder(directory),
        directory,
      )
    if checksums:
      check_folder(directory, buffer_checks.value_problems(directory, manifest))
    traces = StoredTraces(directory / TRACES_FILE)
    index = kinds.load_index(
      directory / INDEX_FOLDER, encoder_sha256=encoder.sha256
    )
    check_folder(directory, _count_problems(traces, index, manifest))
    return cls(
      traces,
      traces.key_ids,
      index,
      encoder,
      version=manifest.version,
      directory=directory,
    )


def _count_problems(
  traces: StoredTraces, index: index_lib.Index, manifest: Manifest
) -> list[str]:
  problems = []
  if len(traces) != manifest.num_traces:
    problems.append(
      f"{TRACES_FILE} has {len(traces)} traces instead of {manifest.num_traces}"
    )
  if len(index) != manifest.num_keys:
    problems.append(
      f"the index has {len(index)} keys instead of {manifest.num_keys}"
    )
  ids = traces.key_ids
  if len(ids) and not 0 <= ids.min() <= ids.max() < len(index):
    problems.append(
      f"key ids must be rows of the index, 0 to {len(index) - 1}, they reach"
      f" from {ids.min()} to {ids.max()}"
    )
  return problems
