"""Which trajectories, and which of their steps, go into a buffer."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory
from rapo_jax.retrieval.buffer.step_trace import (
  StepTrace,
  select_top_k,
  step_traces,
)

_NUM_PERMUTATIONS = 64
# Members of a block that are compared one by one.
_COMPARED = 64


@dataclasses.dataclass(frozen=True)
class Selection:
  """What is taken of an agent's trajectories.

  Attributes:
    num_trajectories: of one agent on one question, the first so many count,
      N; None for all. The paper has 16.
    top_k: of these, the best by reward are kept, K; None for all. The paper
      has 5.
    min_reward: a reward must be above it; None for any.
    exclude_answers: leave out steps that hold an answer, which a retrieval
      would leak.
    near_duplicates: least similarity, in (0, 1], at which a step counts as the
      same as another; None keeps all but exact copies.
  """

  num_trajectories: int | None = None
  top_k: int | None = None
  min_reward: float | None = 0.0
  exclude_answers: bool = False
  near_duplicates: float | None = None

  def __post_init__(self) -> None:
    check_numbers(self, "num_trajectories", "top_k", at_least=1)
    check_numbers(self, "min_reward")
    # A share of common word triples; 0.9 is a good value.
    check_numbers(self, "near_duplicates", above=0, at_most=1)


def select_trajectories(
  trajectories: Sequence[AgentTrajectory], selection: Selection
) -> list[AgentTrajectory]:
  """Each agent's best trajectories on each question, in their order.

  Ids of queries that two files count alike are no matter: a question is its id
  and its text.

  Args:
    trajectories: of any number of agents.
    selection: what is taken.
  """
  counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
  considered = []
  for trajectory in trajectories:
    owner = _owner(trajectory)
    counts[owner] += 1
    limit = selection.num_trajectories
    if limit is None or counts[owner] <= limit:
      considered.append(trajectory)
  kept = select_top_k(
    ["\0".join(_owner(t)) for t in considered],
    [t.reward for t in considered],
    k=selection.top_k or max(len(considered), 1),
    min_reward=-np.inf
    if selection.min_reward is None
    else selection.min_reward,
  )
  return [considered[position] for position in kept]


def _owner(trajectory: AgentTrajectory) -> tuple[str, str, str]:
  """The agent and the question of a trajectory."""
  return trajectory.source, trajectory.query_id, trajectory.question


@dataclasses.dataclass
class TraceCounts:
  """What became of the steps of the selected trajectories.

  Attributes:
    num_traces: given on.
    num_answers: left out as they hold an answer.
    num_exact: left out as copies.
    num_near: left out as nearly the same as another.
  """

  num_traces: int = 0
  num_answers: int = 0
  num_exact: int = 0
  num_near: int = 0


def select_traces(
  trajectories: Iterable[AgentTrajectory],
  selection: Selection,
  counts: TraceCounts,
  *,
  first_trace_id: int = 0,
) -> Iterator[StepTrace]:
  """Cuts trajectories into step traces and leaves out what is there already.

  The first of equal traces stays. Ids count all steps, also those left out.

  Args:
    trajectories: those selected.
    selection: which steps are left out.
    counts: counts them.
    first_trace_id: id of the first step.

  Raises:
    ModuleNotFoundError: near duplicates are to be dropped among many traces of
      one question. But datasketch is not installed (the extra `buffer`).
  """
  seen: set[bytes] = set()
  near = None
  if selection.near_duplicates is not None:
    near = _NearDuplicates(selection.near_duplicates)
  for trajectory in trajectories:
    num_shared = len(trajectory.history)
    traces = step_traces(
      trajectory.question,
      [*trajectory.history, *trajectory.steps],
      reward=trajectory.reward,
      source=trajectory.source,
      query_id=trajectory.query_id,
      first_trace_id=first_trace_id,
      trajectory_id=trajectory.trajectory_id,
      extras=trajectory.extras,
    )
    first_trace_id += len(traces)
    for trace in traces:
      if trace.step_index < num_shared:
        continue
      digest = _digest(trace)
      if selection.exclude_answers and trace.answers:
        counts.num_answers += 1
      elif digest in seen:
        counts.num_exact += 1
      elif near is not None and near.has(trace):
        counts.num_near += 1
      else:
        seen.add(digest)
        counts.num_traces += 1
        yield trace


def _digest(trace: StepTrace) -> bytes:
  text = "\0".join((trace.question, *trace.history, trace.step))
  data = text.encode("utf-8", "surrogatepass")
  return hashlib.blake2b(data, digest_size=16).digest()


class _NearDuplicates:
  """Steps that say nearly the same at nearly the same place.

  Two traces are near duplicates when they meet two conditions. They answer one
  question at one step number. Their steps share the given part of their word
  triples (Jaccard), and so do the steps before them. Traces of one question and
  number are few, and are compared one by one. Where they are many, MinHash
  (Broder, "On the resemblance and containment of documents", 1997) proposes
  whom to compare with; it misses some that are just similar enough.
  """

  def __init__(self, min_similarity: float):
    self._min_similarity = min_similarity
    self._blocks: dict[tuple[str, int], _Block] = collections.defaultdict(
      lambda: _Block(min_similarity)
    )

  def has(self, trace: StepTrace) -> bool:
    """Whether a trace is near one seen before; if not, it is kept in mind."""
    block = self._blocks[trace.query_id, trace.step_index]
    texts = (trace.step, *trace.history[-1:])
    new = tuple(_shingles(text) for text in texts)
    for other in block.candidates(new):
      pairs = zip(new, other, strict=True)
      if all(_similar(a, b, self._min_similarity) for a, b in pairs):
        return True
    block.add(new)
    return False


class _Block:
  """Traces of one question and step number, as word triples."""

  def __init__(self, min_similarity: float):
    self._min_similarity = min_similarity
    self._members: list[tuple[np.ndarray, ...]] = []
    self._lsh: Any = None

  def candidates(
    self, new: tuple[np.ndarray, ...]
  ) -> list[tuple[np.ndarray, ...]]:
    """Members that may be similar."""
    if self._lsh is None:
      return self._members
    return [self._members[i] for i in self._lsh.query(_minhash(new[0]))]

  def add(self, new: tuple[np.ndarray, ...]) -> None:
    self._members.append(new)
    if self._lsh is not None:
      self._lsh.insert(len(self._members) - 1, _minhash(new[0]))
    elif len(self._members) > _COMPARED:
      # Of the extra `buffer`.
      import datasketch

      self._lsh = datasketch.MinHashLSH(
        threshold=self._min_similarity, num_perm=_NUM_PERMUTATIONS
      )
      for i, member in enumerate(self._members):
        self._lsh.insert(i, _minhash(member[0]))


def _minhash(shingles: np.ndarray) -> Any:
  import datasketch

  # They are hashes already.
  minhash = datasketch.MinHash(_NUM_PERMUTATIONS, hashfunc=int)
  minhash.update_batch(shingles.tolist())
  return minhash


def _similar(a: np.ndarray, b: np.ndarray, enough: float) -> bool:
  """Whether two sets' Jaccard similarity is at least `enough`."""
  # Sizes alone rule most pairs out.
  if min(len(a), len(b)) < enough * max(len(a), len(b)):
    return False
  common = len(np.intersect1d(a, b, assume_unique=True))
  return common >= enough * (len(a) + len(b) - common)


def _shingles(text: str) -> np.ndarray:
  """Hashes of a text's word triples, each once."""
  words = text.encode("utf-8", "replace").split()
  triples = zip(words, words[1:], words[2:], strict=False)
  hashes = [zlib.crc32(b" ".join(triple)) for triple in triples]
  return np.unique(
    np.array(hashes or [zlib.crc32(b" ".join(words))], np.uint32)
  )
