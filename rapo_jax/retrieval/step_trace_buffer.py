"""The Step-Trace Buffer: off-policy steps, found by the history before them.

An off-policy agent's trajectories are cut into steps. Each is stored as a
pair: the key is the question with the history before the step, `q + S_<t`;
the value is the step `s_t`, thought, action and observation (RAPO, section
"hybrid-policy rollout", Eq. 3). A waiting history is embedded, the nearest
keys are found, and one value comes back.

Many traces share a key (every trajectory of a question starts with an empty
history), so the index holds each distinct key once, and ties between the
traces of one key are settled by reward and not by the index's rounding.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rapo_jax.models import folder
from rapo_jax.retrieval import index as index_lib
from rapo_jax.retrieval import scann_index
from rapo_jax.retrieval.encoder import SentenceEncoder, Wordpiece
from rapo_jax.tools.tags import ALL_TAGS

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TRACES_FILE = "traces.parquet"
INDEX_FOLDER = "index"

_RETRIEVE_TAGS = re.compile(r"</?retrieve>")
_TAGS = re.compile(rf"(?:\s*</?(?:{'|'.join(ALL_TAGS)})>\s*)+")
_ANSWER_TAG = "<answer>"
_SPACE = " \t\r\n"
_KEY_COLUMN = "key"


@dataclasses.dataclass(frozen=True)
class StepTrace:
  """One step of an off-policy trajectory, and what came before it.

  Attributes:
    question: the question `q`.
    history: texts of the steps before this one, `S_<t`, oldest first.
    step: text of the step `s_t`: thought, action and `<result>` (or answer).
    reward: outcome reward of the trajectory that the step is from.
    source: name of the agent that wrote it.
    trace_id: id, unique in a buffer.
    query_id: id of the question.
    step_index: `t`, from 0.
    answers: whether the step holds an answer, which a retrieval can leak.
  """

  question: str
  history: tuple[str, ...]
  step: str
  reward: float
  source: str
  trace_id: int
  query_id: str
  step_index: int
  answers: bool


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """How one trace is chosen among those found.

  Attributes:
    top_k: traces considered, by similarity, at least 1. The paper has 3.
    min_similarity: least cosine similarity of a key, in [-1, 1]. The paper
      has no threshold, which is -1.
    min_reward: a trace's reward must be above it.
    breaker_failures: failed searches among the last `breaker_window` at which
      no more are tried for a while; at least 1. A search is one batch of
      waiting histories.
    breaker_window: searches that this counts, at least `breaker_failures`.
    breaker_cooldown_s: for how many seconds none is tried then.
  """

  top_k: int = 3
  min_similarity: float = -1.0
  min_reward: float = 0.0
  breaker_failures: int = 4
  breaker_window: int = 8
  breaker_cooldown_s: float = 60.0

  def __post_init__(self) -> None:
    if self.top_k < 1:
      raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
    if not -1 <= self.min_similarity <= 1:
      raise ValueError(
        "min_similarity is a cosine and must lie in [-1, 1], got"
        f" {self.min_similarity}."
      )
    if not 1 <= self.breaker_failures <= self.breaker_window:
      raise ValueError(
        "breaker_failures must lie between 1 and breaker_window "
        f"({self.breaker_window}), got {self.breaker_failures}: lower it or "
        "raise breaker_window."
      )
    if self.breaker_cooldown_s < 0:
      raise ValueError(
        "breaker_cooldown_s must be at least 0 seconds, got "
        f"{self.breaker_cooldown_s}: raise it."
      )


@dataclasses.dataclass(frozen=True)
class Hit:
  """A trace to insert, and the similarity of its key to the history."""

  trace: StepTrace
  similarity: float


@dataclasses.dataclass(frozen=True)
class Miss:
  """Nothing qualified.

  Attributes:
    reason: "empty buffer", "below min_similarity" or "below min_reward".
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
  """The search itself failed; nothing is to be inserted.

  Attributes:
    reason: the error, for the log. Never training text.
    attempted: whether there was a search; there is none while too many before
      it have failed.
  """

  reason: str
  attempted: bool = True


def key_text(
  question: str, history: Sequence[str], encoder: SentenceEncoder
) -> str:
  """Writes the text that a key or a waiting history is embedded as.

  The encoder reads a bounded number of wordpieces, and what tells histories
  of one question apart is their end. So the question stays whole and the
  newest history is kept: the oldest steps are left out first, and of the step
  that then only partly fits, its last words stay. A question that fills the
  encoder alone keeps its beginning, and its history does not count.

  Tags are left out. A sentence encoder spends three or four wordpieces on each
  of them, more than on what a short step says, they tell no history from
  another, and a retrieved step in a history has to look like an ordinary one.

  Args:
    question: the question.
    history: texts of the steps so far, oldest first.
    encoder: the encoder that will embed the text.

  Returns:
    The question and the kept history, a step a line.
  """
  room = encoder.max_tokens - encoder.num_tokens(question)
  kept: list[str] = []
  for step in reversed(history):
    if room <= 0:
      break
    text = _TAGS.sub(" ", step).strip(_SPACE)
    pieces = encoder.tokenize(text)
    if len(pieces) > room:
      text = _newest_words(text, pieces, room)
    if text:
      kept.append(text)
    room -= len(pieces)
  # Words never span lines, so the wordpieces of the lines add up.
  return "\n".join([question, *reversed(kept)])


def _newest_words(
  text: str, pieces: Sequence[Wordpiece], max_pieces: int
) -> str:
  """Returns the last whole words of at most `max_pieces`; "" if none fits."""
  for first in range(len(pieces) - max_pieces, len(pieces)):
    if pieces[first].word != pieces[first - 1].word:
      return text[pieces[first].start :]
  return ""


def step_traces(
  question: str,
  steps: Sequence[str],
  *,
  reward: float,
  source: str,
  query_id: str,
  first_trace_id: int,
) -> list[StepTrace]:
  """Cuts one trajectory into step traces.

  Args:
    question: its question.
    steps: texts of its steps in order, each with its result. Tags of a
      retrieved step are taken off: inside another retrieval they would nest.
    reward: its outcome reward.
    source: name of the agent that wrote it.
    query_id: id of the question.
    first_trace_id: id of the first step; the others follow it.

  Returns:
    A trace for every step.
  """
  texts = tuple(_RETRIEVE_TAGS.sub("", step).strip(_SPACE) for step in steps)
  return [
    StepTrace(
      question=question,
      history=texts[:step_index],
      step=text,
      reward=float(reward),
      source=source,
      trace_id=first_trace_id + step_index,
      query_id=query_id,
      step_index=step_index,
      answers=_ANSWER_TAG in text,
    )
    for step_index, text in enumerate(texts)
  ]


def select_top_k(
  query_ids: Sequence[str],
  rewards: Sequence[float],
  *,
  k: int,
  min_reward: float = 0.0,
) -> list[int]:
  """Picks each question's best trajectories for the buffer.

  Args:
    query_ids: question of each of N trajectories.
    rewards: outcome reward of each.
    k: most to keep for one question. The paper keeps 5 of 16.
    min_reward: a reward must be above it.

  Returns:
    Positions of the kept trajectories, ascending. Among equal rewards the
    earlier ones stay.
  """
  by_query: dict[str, list[int]] = collections.defaultdict(list)
  rows = zip(query_ids, rewards, strict=True)
  for position, (query_id, reward) in enumerate(rows):
    if reward > min_reward:
      by_query[query_id].append(position)
  best = (
    sorted(positions, key=lambda position: -rewards[position])[:k]
    for positions in by_query.values()
  )
  return sorted(itertools.chain.from_iterable(best))


class StepTraceBuffer:
  """Step traces with an index over their keys. Read-only once built."""

  def __init__(
    self,
    traces: Sequence[StepTrace],
    key_ids: Sequence[int],
    index: index_lib.Index,
    encoder: SentenceEncoder,
  ):
    """Joins the parts; use `build` or `load`.

    Args:
      traces: the N traces.
      key_ids: row of each trace's key in the index, N of them.
      index: index over the distinct keys.
      encoder: the encoder that embedded them.
    """
    self._traces = list(traces)
    self._key_ids = list(key_ids)
    self._index = index
    self._encoder = encoder
    self._by_key: dict[int, list[StepTrace]] = collections.defaultdict(list)
    for trace, key_id in zip(self._traces, self._key_ids, strict=True):
      self._by_key[key_id].append(trace)
    for members in self._by_key.values():
      members.sort(key=lambda trace: -trace.reward)

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
      ValueError: if two traces have one id or a reward is not finite.
    """
    seen: set[int] = set()
    for trace in traces:
      if trace.trace_id in seen:
        raise ValueError(
          f"Two traces have the id {trace.trace_id}. Number them through all"
          " trajectories with step_traces' first_trace_id."
        )
      if not math.isfinite(trace.reward):
        raise ValueError(
          f"The reward of trace {trace.trace_id} is {trace.reward}; it must be"
          " finite. Drop the trajectory or mend its score."
        )
      seen.add(trace.trace_id)
    rows: dict[str, int] = {}
    key_ids = [
      rows.setdefault(key_text(t.question, t.history, encoder), len(rows))
      for t in traces
    ]
    index_cls = index_cls or scann_index.default_index_class()
    index = index_cls.build(
      encoder.encode(list(rows)), encoder_sha256=encoder.sha256
    )
    return cls(traces, key_ids, index, encoder)

  def __len__(self) -> int:
    """Returns the number of traces."""
    return len(self._traces)

  def __iter__(self) -> Iterator[StepTrace]:
    """Goes over the traces in the order in which they were given."""
    return iter(self._traces)

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
  ) -> list[Hit | Miss | Failed]:
    """Finds a step for each of N waiting histories (Eq. 3).

    All histories are embedded as one batch and searched at once. Of the
    `top_k` traces by similarity, those that pass the thresholds compete: the
    highest reward wins, and among equal rewards the greatest similarity. Where
    traces of one key overflow `top_k`, those of higher reward are considered.

    Args:
      questions: N questions.
      histories: for each, the texts of its steps so far, oldest first.
      config: how one trace is chosen.

    Returns:
      An outcome for each history: `Hit`; `Miss` where nothing qualifies;
      `Failed` for all where the encoder or the index failed, which is what
      a RuntimeError, ValueError or OSError of theirs says. Others are bugs and
      are raised.

    Raises:
      ValueError: if there are not as many histories as questions.
    """
    if len(questions) != len(histories):
      raise ValueError(
        f"retrieve needs one history a question, got {len(questions)} questions"
        f" and {len(histories)} histories."
      )
    if not self._traces:
      return [Miss("empty buffer")] * len(questions)
    if not questions:
      return []
    try:
      queries = self._encoder.encode_queries(
        [
          key_text(question, history, self._encoder)
          for question, history in zip(questions, histories, strict=True)
        ]
      )
      neighbors = self._index.search(queries, config.top_k)
    except (RuntimeError, ValueError, OSError) as error:
      reason = f"{type(error).__name__}: {error}"
      return [Failed(reason)] * len(questions)
    return [
      self._choose(ids, scores, config)
      for ids, scores in zip(
        neighbors.ids.tolist(), neighbors.scores.tolist(), strict=True
      )
    ]

  def _choose(
    self, ids: list[int], scores: list[float], config: RetrievalConfig
  ) -> Hit | Miss:
    """Chooses among one history's nearest keys, given best first."""
    found = (
      Hit(trace, score)
      for key_id, score in zip(ids, scores, strict=True)
      for trace in self._by_key.get(key_id, ())
    )
    hits = list(itertools.islice(found, config.top_k))
    near = [hit for hit in hits if hit.similarity >= config.min_similarity]
    if not near:
      return Miss("below min_similarity")
    good = [hit for hit in near if hit.trace.reward > config.min_reward]
    if not good:
      return Miss("below min_reward")
    # `max` keeps the first of equals, and they come by similarity.
    return max(good, key=lambda hit: hit.trace.reward)

  def save(
    self, directory: str | pathlib.Path, *, num_tokens: int | None = None
  ) -> None:
    """Writes the buffer to a folder, whole or not at all.

    Args:
      directory: folder to create or replace: manifest.json, traces.parquet
        and index/ (with vectors.npy). It can be moved.
      num_tokens: length of all steps in the policy's tokens, for the manifest.
    """
    with folder.replaced_folder(directory) as new:
      pq.write_table(self._table(), new / TRACES_FILE, compression="zstd")
      self._index.save(new / INDEX_FOLDER)
      manifest = {
        "format_version": FORMAT_VERSION,
        "num_traces": len(self._traces),
        "num_keys": len(self._by_key),
        "num_tokens": num_tokens,
        "sources": dict(collections.Counter(t.source for t in self._traces)),
        "encoder": {
          "id": self._encoder.encoder_id,
          "sha256": self._encoder.sha256,
        },
        "files": {name: _sha256(new / name) for name in _file_names(new)},
      }
      text = json.dumps(manifest, indent=2, ensure_ascii=False)
      (new / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

  def _table(self) -> pa.Table:
    columns = {
      field.name: pa.array(
        [getattr(trace, field.name) for trace in self._traces],
        type=_column_types()[field.name],
      )
      for field in dataclasses.fields(StepTrace)
    }
    columns[_KEY_COLUMN] = pa.array(self._key_ids, type=pa.int64())
    return pa.table(columns)

  @classmethod
  def load(
    cls, directory: str | pathlib.Path, encoder: SentenceEncoder
  ) -> StepTraceBuffer:
    """Reads a folder written by `save`, also after it was moved.

    Args:
      directory: the folder.
      encoder: must be the encoder that the buffer was built with.

    Returns:
      The buffer, with the saved index as it is: a rebuilt ScaNN tree would
      give other neighbours.

    Raises:
      ValueError: if the folder holds no buffer, one of another format, one
        whose files were changed, or one of another encoder.
    """
    directory = pathlib.Path(directory)
    _check_manifest(directory, encoder)
    columns = pq.read_table(directory / TRACES_FILE).to_pydict()
    key_ids = columns.pop(_KEY_COLUMN)
    columns["history"] = [tuple(history) for history in columns["history"]]
    traces = [
      StepTrace(**dict(zip(columns, row, strict=True)))
      for row in zip(*columns.values(), strict=True)
    ]
    index = scann_index.load_index(
      directory / INDEX_FOLDER, encoder_sha256=encoder.sha256
    )
    return cls(traces, key_ids, index, encoder)


@functools.cache
def _column_types() -> dict[str, pa.DataType]:
  return {
    "question": pa.string(),
    "history": pa.list_(pa.string()),
    "step": pa.string(),
    "reward": pa.float64(),
    "source": pa.string(),
    "trace_id": pa.int64(),
    "query_id": pa.string(),
    "step_index": pa.int64(),
    "answers": pa.bool_(),
  }


def _file_names(directory: pathlib.Path) -> list[str]:
  """Paths of all files below a folder, relative to it."""
  return sorted(
    path.relative_to(directory).as_posix()
    for path in directory.rglob("*")
    if path.is_file()
  )


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_manifest(directory: pathlib.Path, encoder: SentenceEncoder) -> None:
  """Refuses a folder that is not what `save` wrote for this encoder."""
  path = directory / MANIFEST_FILE
  if not path.is_file():
    raise ValueError(
      f"{directory} holds no Step-Trace Buffer: it has no {MANIFEST_FILE}."
      " Build one with the stage `buffer`."
    )
  manifest = json.loads(path.read_text(encoding="utf-8"))
  version = manifest.get("format_version")
  if version != FORMAT_VERSION:
    raise ValueError(
      f"{directory} has format version {version}, this code reads"
      f" {FORMAT_VERSION}. Build the buffer again."
    )
  saved = manifest["encoder"]
  if saved["sha256"] != encoder.sha256:
    raise ValueError(
      f"{directory} was embedded with {saved['id']} ({saved['sha256'][:12]}),"
      f" but the encoder given is {encoder.encoder_id}"
      f" ({encoder.sha256[:12]}). Their vectors do not compare: load the same"
      " encoder, or build the buffer again with this one."
    )
  found = {
    name: _sha256(directory / name)
    for name in _file_names(directory)
    if name != MANIFEST_FILE
  }
  changed = sorted(
    name
    for name in found.keys() | manifest["files"].keys()
    if found.get(name) != manifest["files"].get(name)
  )
  if changed:
    raise ValueError(
      f"Files of {directory} are not as they were saved: {', '.join(changed)}."
      " Copy the folder again, or build the buffer again."
    )
