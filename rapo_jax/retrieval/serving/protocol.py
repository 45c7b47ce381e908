"""The retrieval protocol of Search-R1 and of RAPO's authors, as messages.

`POST /retrieve` with `queries`, `topk` and `return_scores`, answered by
`result`: a list of documents for each query. The two sides that speak it do not
read documents alike. Search-R1's trainer takes `document["contents"]`, a
title's line and then the text. RAPO's trainer takes `document` itself for the
text, and `reward` and `score` beside it. Both let their users set the URL and
nothing else, so parameters of the URL tell which is meant. `docs/serving.md`
has both in full.

Beyond the protocol, in the body: `histories`, which are cut to the encoder's
window as the buffer's keys are, and `vectors` for clients that embed
themselves. Fields that nobody reads are refused rather than ignored, since
`top_k` for `topk` would train on something else in silence.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from rapo_jax import text_files
from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval import Hit, StepTrace, step_hit

PATH = "/retrieve"
HEALTH_PATH = "/healthz"
METRICS_PATH = "/metrics"
CLIENT_HEADER = "x-rapo-client"
"""Names a client, which then has a turn of its own on its machine."""

Document = Literal["object", "text"]
"""What `document` is: an object, as Search-R1 reads it, or the step's text, as
the authors of RAPO do."""

Mode = Literal["list", "choice"]
"""What a query gets: its nearest traces, or the one that a rollout would."""

_CHATML_START, _CHATML_END = "<|im_start|>", "<|im_end|>"
# With and without special tokens.
_TRANSCRIPT_STARTS = (_CHATML_START, "system\n")
_BODY_FIELDS = ("queries", "topk", "return_scores", "histories", "vectors")
_VECTOR_FIELDS = ("shape", "float32")
_SHOWN_CHARS = 80
_BRIEF = reprlib.Repr()
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxstring = _BRIEF.maxlong = 80


class RefusedError(ValueError):
  """A request that is not answered, or an answer that cannot be read.

  Attributes:
    status: of HTTP.
  """

  def __init__(self, message: str, status: int = 422):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request may ask for.

  Attributes:
    max_body_bytes: length of its body.
    max_queries: queries or vectors. Search-R1 sends those of a whole batch of
      trajectories at once.
    max_query_chars: characters of a query with its history.
    max_topk: documents a query.
  """

  max_body_bytes: int = 32 * 2**20
  max_queries: int = 4096
  max_query_chars: int = 65_536
  max_topk: int = 100

  def __post_init__(self) -> None:
    names = (field.name for field in dataclasses.fields(self))
    check_numbers(self, *names, at_least=1)


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What a request gets that does not say.

  Attributes:
    topk: documents a query. The paper has 3, and so has Search-R1.
    document: the form of a document.
    mode: what a query gets.
  """

  topk: int = 3
  document: Document = "object"
  mode: Mode = "list"

  def __post_init__(self) -> None:
    check_numbers(self, "topk", at_least=1)


@dataclasses.dataclass(frozen=True, eq=False)
class RetrieveRequest:
  """What one request asks for.

  Attributes:
    questions: Q questions.
    histories: for each, the texts of the steps so far, oldest first.
    vectors: Q vectors in place of questions and histories, or None.
    topk: documents a query.
    return_scores: whether documents come with their scores.
    document: the form of a document.
    mode: what a query gets.
  """

  questions: tuple[str, ...]
  histories: tuple[tuple[str, ...], ...]
  vectors: Float[np.ndarray, "Q D"] | None
  topk: int
  return_scores: bool
  document: Document
  mode: Mode

  def __len__(self) -> int:
    """Returns Q."""
    return len(self.questions if self.vectors is None else self.vectors)

  def parts(self, size: int) -> list[RetrieveRequest]:
    """The request in parts of at most `size` queries; one if it has none."""
    return [
      dataclasses.replace(
        self,
        questions=self.questions[first : first + size],
        histories=self.histories[first : first + size],
        vectors=(
          None if self.vectors is None else self.vectors[first : first + size]
        ),
      )
      for first in range(0, max(len(self), 1), size)
    ]


def parse_request(
  body: bytes,
  parameters: Mapping[str, str],
  *,
  limits: Limits,
  defaults: Defaults,
) -> RetrieveRequest:
  """Reads a request.

  A query without a history of its own has one of two forms. Either its first
  line is the question, and the lines after it are what has happened since. Or
  it is a transcript in ChatML: the question is the user's message, and the rest
  what the assistant wrote.

  Args:
    body: of the request.
    parameters: of its URL: `document` and `mode`.
    limits: what it may ask for.
    defaults: what it gets where it does not say.

  Raises:
    RefusedError: it is malformed or asks for too much; the message states the
      rule, the value and the remedy.
  """
  document, mode = _parse_parameters(parameters, defaults)
  fields = _parse_object(body)
  for name in fields:
    if name not in _BODY_FIELDS:
      raise RefusedError(
        f"{name!r:.80} is no field of a request{_nearest(name, _BODY_FIELDS)};"
        f" fields are {', '.join(_BODY_FIELDS)}."
      )
  topk = _parse_topk(fields.get("topk"), limits, defaults)
  return_scores = fields.get("return_scores", False)
  if not isinstance(return_scores, bool):
    raise RefusedError(
      f"return_scores must be true or false, got {_shown(return_scores)}."
    )
  if "vectors" in fields:
    for name in ("queries", "histories"):
      if name in fields:
        raise RefusedError(
          f"vectors stand in place of {name}, but the request has both: send"
          " one of them."
        )
    vectors = _parse_vectors(fields["vectors"])
    _check_number(len(vectors), limits)
    return RetrieveRequest((), (), vectors, topk, return_scores, document, mode)
  questions, histories = _parse_queries(fields, limits)
  return RetrieveRequest(
    questions, histories, None, topk, return_scores, document, mode
  )


def _parse_parameters(
  parameters: Mapping[str, str], defaults: Defaults
) -> tuple[Document, Mode]:
  known = {"document": get_args(Document), "mode": get_args(Mode)}
  for name, value in parameters.items():
    if name not in known:
      raise RefusedError(
        f"{name!r} is no parameter of this URL{_nearest(name, known)};"
        f" parameters are {', '.join(known)}."
      )
    if value not in known[name]:
      raise RefusedError(
        f"{name} must be {' or '.join(known[name])}, got {value!r}."
      )
  document: Any = parameters.get("document", defaults.document)
  mode: Any = parameters.get("mode", defaults.mode)
  return document, mode


def _parse_object(body: bytes) -> dict[str, Any]:
  try:
    fields = text_files.parse_json(body, allow_nul=True)
  except text_files.TextError as error:
    raise RefusedError(
      f"The body must be JSON in UTF-8, but it is not: {error}.", 400
    ) from error
  if not isinstance(fields, dict):
    raise RefusedError(
      f"The body must be a JSON object, got {_shown(fields)}: send"
      ' {"queries": ["..."], "topk": 3, "return_scores": true}.'
    )
  return fields


def _parse_topk(value: Any, limits: Limits, defaults: Defaults) -> int:
  # Search-R1 takes 0 for "not said" as well.
  if value is None or value == 0:
    value = defaults.topk
  if not isinstance(value, int) or isinstance(value, bool):
    raise RefusedError(f"topk must be a whole number, got {_shown(value)}.")
  if not 1 <= value <= limits.max_topk:
    raise RefusedError(
      f"topk must lie between 1 and {limits.max_topk}, got {_shown(value)}: ask"
      " for less, or start the server with a higher limit."
    )
  return value


def _parse_queries(
  fields: Mapping[str, Any], limits: Limits
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
  queries = fields.get("queries")
  if not _are_texts(queries):
    raise RefusedError(
      f"queries must be a list of texts, got {_shown(queries)}: send"
      ' {"queries": ["..."]}.'
    )
  assert isinstance(queries, list)
  _check_number(len(queries), limits)
  if "histories" in fields:
    histories = fields["histories"]
    if not isinstance(histories, list) or not all(map(_are_texts, histories)):
      raise RefusedError(
        "histories must be a list of lists of texts, the steps of a query's"
        f" trajectory, got {_shown(histories)}."
      )
    if len(histories) != len(queries):
      raise RefusedError(
        f"Each query needs one history, got {len(queries)} queries and"
        f" {len(histories)} histories: send [] for an empty one."
      )
  else:
    pairs = [_split_query(query) for query in queries]
    queries = [question for question, _ in pairs]
    histories = [[rest] if rest else [] for _, rest in pairs]
  for number, (query, history) in enumerate(
    zip(queries, histories, strict=True)
  ):
    length = len(query) + sum(map(len, history))
    if length > limits.max_query_chars:
      raise RefusedError(
        f"A query may have {limits.max_query_chars} characters with its"
        f" history, but query {number} has {length}: leave out the oldest"
        " steps, of which the encoder reads nothing anyway."
      )
  return tuple(queries), tuple(map(tuple, histories))


def _split_query(query: str) -> tuple[str, str]:
  """A query's question, and what has happened since."""
  if query.startswith(_TRANSCRIPT_STARTS):
    # RAPO's trainer sends what the policy has in its context, in ChatML.
    text = "\n" + query.replace(_CHATML_START, "").replace(_CHATML_END, "")
    _, user, rest = text.partition("\nuser\n")
    if user:
      question, _, history = rest.partition("\nassistant\n")
      return question, history
  question, _, history = query.partition("\n")
  return question, history


def _check_number(number: int, limits: Limits) -> None:
  if number > limits.max_queries:
    raise RefusedError(
      f"A request may have {limits.max_queries} queries, got {number}: send"
      " several requests, or start the server with a higher limit.",
      413,
    )


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _shown(value: Any) -> str:
  """A value for a message, of bounded length."""
  # Only the start is written of what is long.
  text = _BRIEF.repr(value)
  return text if len(text) <= _SHOWN_CHARS else f"{text[:77]}..."


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
  if len(name) > _SHOWN_CHARS:  # Comparing takes long for what is long.
    return ""
  near = difflib.get_close_matches(name, known, n=1)
  return f", did you mean {near[0]!r}?" if near else ""


def _parse_vectors(value: Any) -> Float[np.ndarray, "Q D"]:
  remedy = (
    'send {"shape": [number, dimension], "float32": "<base64 of the values,'
    ' little-endian, row by row>"}.'
  )
  if not isinstance(value, dict) or sorted(value) != sorted(_VECTOR_FIELDS):
    raise RefusedError(
      f"vectors must be an object of {' and '.join(_VECTOR_FIELDS)}, got"
      f" {_shown(value)}: {remedy}"
    )
  shape, data = value["shape"], value["float32"]
  if (
    not isinstance(shape, list)
    or len(shape) != 2
    or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
  ):
    raise RefusedError(
      f"The shape of vectors must be two whole numbers, got {_shown(shape)}:"
      f" {remedy}"
    )
  try:
    raw = base64.b64decode(data, validate=True)
  except (TypeError, ValueError, binascii.Error) as error:
    raise RefusedError(
      f"The values of vectors are no base64 ({error}): {remedy}"
    ) from error
  number, dimension = shape
  if len(raw) != 4 * number * dimension:
    raise RefusedError(
      f"Vectors of shape {_shown(shape)} take {4 * number * dimension} bytes,"
      f" got {len(raw)}: {remedy}"
    )
  # A copy, since the bytes cannot be written to.
  return np.frombuffer(raw, "<f4").reshape(shape).astype(np.float32)


def vectors_to_json(vectors: Float[np.ndarray, "Q D"]) -> dict[str, Any]:
  """Writes vectors as `vectors` of a request."""
  data = np.ascontiguousarray(vectors, "<f4").tobytes()
  return {
    "shape": list(vectors.shape),
    "float32": base64.b64encode(data).decode("ascii"),
  }


def hits_to_json(hits: Sequence[Hit], request: RetrieveRequest) -> list[Any]:
  """Writes what one query gets.

  Args:
    hits: the traces, best first.
    request: that asked for them.

  Returns:
    An entry of `result`.
  """
  return [_hit_to_json(hit, request) for hit in hits]


def _hit_to_json(hit: Hit, request: RetrieveRequest) -> dict[str, Any]:
  trace = hit.trace
  if request.document == "text":
    if not request.return_scores:
      # The authors' server gives the lines of its corpus file then.
      key = "\n".join((trace.question, *trace.history))
      return {"key": key, "value": trace.step, "reward": trace.reward}
    document: Any = trace.step
  else:
    # Search-R1 takes the first line for a title.
    title = " ".join(trace.question.split())
    document = {
      "id": str(trace.trace_id),
      "contents": f"{title}\n{trace.step}",
      **{name: getattr(trace, name) for name in _TRACE_TYPES},
    }
    if not request.return_scores:
      return document
  return {
    "document": document,
    "reward": trace.reward,
    "score": hit.similarity,
  }


def hit_from_json(item: Any) -> Hit:
  """Reads an object with its score, as `hits_to_json` wrote it.

  Raises:
    RefusedError: it is of another server, which has no step traces.
  """
  document = item.get("document") if isinstance(item, dict) else None
  if not isinstance(document, dict) or not _is_score(item):
    raise RefusedError(
      "A result must be an object of document and score, the document an"
      f" object as well, got {_shown(item)}: ask a server of a Step-Trace"
      " Buffer, with ?document=object."
    )
  wrong = [
    name
    for name, (is_right, _) in _TRACE_TYPES.items()
    if not is_right(document.get(name))
  ]
  if wrong:
    raise RefusedError(
      f"The {wrong[0]} of a document must be {_TRACE_TYPES[wrong[0]][1]}, got"
      f" {_shown(document.get(wrong[0]))}: ask a server of a Step-Trace Buffer,"
      " of the same version of rapo_jax."
    )
  fields = {name: document[name] for name in _TRACE_TYPES}
  fields["history"] = tuple(fields["history"])
  return step_hit(StepTrace(**fields), _score(item))


def _is_score(item: Mapping[str, Any]) -> bool:
  """Whether there is a score: a number, or null for one that is not finite."""
  return "score" in item and (
    item["score"] is None or _is_number(item["score"])
  )


def _score(item: Mapping[str, Any]) -> float:
  """A score; NaN, which no threshold lets pass, if it is null."""
  score = item["score"]
  return math.nan if score is None else float(score)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def is_count(value: Any) -> bool:
  """Whether a value is a whole number of at least 0 that int64 holds."""
  return type(value) is int and 0 <= value < 2**63


_TRACE_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  "question": (_is_text, "a text"),
  "history": (_are_texts, "a list of texts"),
  "step": (_is_text, "a text"),
  "reward": (_is_number, "a number"),
  "source": (_is_text, "a text"),
  "trace_id": (is_count, "a whole number of at least 0"),
  "query_id": (_is_text, "a text"),
  "step_index": (is_count, "a whole number of at least 0"),
  "answers": (lambda value: isinstance(value, bool), "true or false"),
  "trajectory_id": (_is_text, "a text"),
  "extras": (lambda value: isinstance(value, dict), "an object"),
}
"""What each field of a `StepTrace` has to be, in JSON."""


def neighbors_to_json(
  ids: Sequence[int], scores: Sequence[float], request: RetrieveRequest
) -> list[Any]:
  """Writes the rows of an index that one vector gets, best first."""
  rows = [(i, s) for i, s in zip(ids, scores, strict=True) if i >= 0]
  if not request.return_scores:
    return [{"id": str(i)} for i, _ in rows]
  return [{"document": {"id": str(i)}, "score": s} for i, s in rows]


def row_from_json(item: Any) -> tuple[int, float]:
  """Reads a row of an index and its score, as `neighbors_to_json` wrote it.

  Raises:
    RefusedError: it is no such row.
  """
  try:
    row = int(item["document"]["id"])
    if not _is_score(item):
      raise TypeError("no score")
    return row, _score(item)
  except (TypeError, KeyError, ValueError) as error:
    raise RefusedError(
      "A result must be an object of score and document, the document an"
      f" object whose id is a row's number, got {_shown(item)}: ask a server"
      " of a Step-Trace Buffer."
    ) from error


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answers.

  Attributes:
    results: for each query, its results.
    version: of the buffer that was searched; None where the server does not
      say.
  """

  results: list[list[Any]]
  version: int | None


def result_to_json(result: Any) -> bytes:
  """Writes what one query gets; numbers that are not finite become null."""
  try:
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
  except ValueError:
    text = json.dumps(_finite(result), ensure_ascii=False, allow_nan=False)
  return text.encode("utf-8")


def _finite(value: Any) -> Any:
  """A JSON value with null in the place of NaN and infinities."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {name: _finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return value


def answer_to_json(results: Iterable[bytes], version: int | None) -> bytes:
  """Writes the body of a response.

  Args:
    results: what each query gets, as `result_to_json` writes it.
    version: of the buffer; None for an index alone.
  """
  end = b"" if version is None else b', "version": %d' % version
  return b'{"result": [' + b", ".join(results) + b"]" + end + b"}"


def answer_from_json(body: bytes, num_queries: int) -> Answer:
  """Reads a response as far as it says whose results are whose.

  Args:
    body: of the response.
    num_queries: Q of the request.

  Raises:
    RefusedError: it is no response to so many queries.
  """
  try:
    fields = text_files.parse_json(body, allow_nul=True)
  except text_files.TextError as error:
    raise RefusedError(f"The response is no JSON: {error}.") from error
  result = fields.get("result") if isinstance(fields, dict) else None
  if not isinstance(result, list) or not all(
    isinstance(results, list) for results in result
  ):
    raise RefusedError(
      "A response must be an object whose result is a list of lists, got"
      f" {_shown(fields)}: is this the URL of a retrieval server?"
    )
  if len(result) != num_queries:
    raise RefusedError(
      f"The response has results of {len(result)} queries, {num_queries} were"
      " asked: is something between client and server that changes them?"
    )
  version = fields.get("version")
  return Answer(result, version if is_count(version) else None)
