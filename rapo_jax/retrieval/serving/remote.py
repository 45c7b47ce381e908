"""Clients of the retrieval protocol: a buffer, or an index, somewhere else.

One server can then hold the buffer of many runs. `RemoteBuffer` gives a rollout
the same traces as the buffer itself. The client writes the keys as the buffer
does. The server finds the nearest ones, and the client chooses. `RemoteIndex`
is an `Index` whose vectors are on a server.

A failed request is an outcome, `Failed`. So the circuit breaker before the
buffer (`GuardedBuffer`) can stop asking a dead server. Searches change nothing,
so a failed one is safe to repeat.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import httpx2
import numpy as np
from jaxtyping import Float

from rapo_jax import files, hosts, http_client, text_files, web_address
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.policy import (
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
  choose_hit,
)
from rapo_jax.retrieval.buffer.step_trace import check_lengths, key_texts
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.serving import protocol

TIMEOUT_S = 30.0
MAX_CONNECTIONS = 8
_RETRIES = 3
_FIRST_PAUSE_S = 0.2
_KEEP_ALIVE_S = 60.0
_VECTORS_A_REQUEST = 1024
_MESSAGE_CHARS = 300
_MAX_ANSWER_BYTES = 2**30
_SPOILT = (
  "is not as a server of a Step-Trace Buffer says it. Is this its URL, and are"
  " both sides of the same version of rapo_jax?"
)


TOKEN_VARIABLE = "RAPO_BUFFER_TOKEN"
USER_VARIABLE = "RAPO_BUFFER_USER"
PASSWORD_VARIABLE = "RAPO_BUFFER_PASSWORD"
"""Environment variables with the credentials that a server, or a proxy before
it, asks for: a bearer token, or a user with a password."""


class RemoteError(RuntimeError):
  """The server was not reached, or did not answer the question."""


def check_url(url: str) -> None:
  """Refuses an address that is no URL of a server, or holds secrets.

  Raises:
    InputError: see `web_address.check_address`.
  """
  web_address.check_address(
    url,
    "a retrieval server",
    f"Set {TOKEN_VARIABLE}, or {USER_VARIABLE} and {PASSWORD_VARIABLE}, in the"
    " environment; they are sent in the header Authorization.",
  )


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
  """The header that carries the credentials of the environment, if any.

  Raises:
    InputError: a token and a user are given, or one that is no ASCII.
  """
  token = environment.get(TOKEN_VARIABLE)
  user = environment.get(USER_VARIABLE)
  password = environment.get(PASSWORD_VARIABLE)
  if token and user:
    raise InputError(
      f"Credentials of a retrieval server are {TOKEN_VARIABLE} or"
      f" {USER_VARIABLE}, but both are set. Unset one of them."
    )
  if token:
    if not (token.isascii() and token.isprintable()):
      raise InputError(
        f"{TOKEN_VARIABLE} must be of printable ASCII characters. Set it again,"
        " without a line end."
      )
    return {"authorization": f"Bearer {token}"}
  if user:
    pair = f"{user}:{password or ''}".encode()
    return {"authorization": f"Basic {base64.b64encode(pair).decode()}"}
  return {}


class _Client:
  """Asks one server, from any thread.

  Args:
    url: of the server, with or without `/retrieve`.
    timeout_s: for one question, repetitions included.
    max_connections: open at a time; who needs one more waits for it.
  """

  def __init__(self, url: str, *, timeout_s: float, max_connections: int):
    check_url(url)
    self.url = url.rstrip("/").removesuffix(protocol.PATH)
    if timeout_s <= 0:
      raise InputError(f"timeout_s must be above 0 seconds, got {timeout_s}.")
    self._timeout_s = timeout_s
    self._http = httpx2.Client(
      limits=httpx2.Limits(
        max_connections=max_connections, keepalive_expiry=_KEEP_ALIVE_S
      ),
      # Proxies of the environment are for the world outside the cluster.
      trust_env=False,
      headers={
        protocol.CLIENT_HEADER: uuid.uuid4().hex,
        **_authorization(os.environ),
      },
    )

  def close(self) -> None:
    """Closes the connections."""
    self._http.close()

  def health(self) -> dict[str, Any]:
    """What the server says of itself.

    Raises:
      RemoteError: it does not answer, or is no server of a buffer.
    """
    response = self._ask("GET", protocol.HEALTH_PATH, None)
    try:
      health = text_files.parse_json(response.content)
    except text_files.TextError:
      health = None
    if not isinstance(health, dict) or "num_keys" not in health:
      raise RemoteError(
        f"{self.url}{protocol.HEALTH_PATH} is not that of a server of a"
        " Step-Trace Buffer: start one with `python -m"
        " experiments.serve_index`."
      )
    return health

  def retrieve(
    self, fields: Mapping[str, Any], num_queries: int
  ) -> protocol.Answer:
    """The results of each query, nearest first.

    Raises:
      RemoteError: the server is not reached, busy, or failed.
      RefusedError: it refuses the request, or its answer is malformed.
    """
    body = json.dumps(fields, ensure_ascii=False).encode("utf-8")
    # Whatever the server's defaults are.
    path = f"{protocol.PATH}?document=object&mode=list"
    response = self._ask("POST", path, body)
    return protocol.answer_from_json(response.content, num_queries)

  def _ask(
    self, method: str, path: str, body: bytes | None
  ) -> http_client.Answer:
    """The answer to one request that changes nothing, so it may be repeated."""
    where = f"{self.url}{path}"
    headers = {"content-type": "application/json"}
    try:
      answer = http_client.ask(
        self._http,
        http_client.Request(method, where, content=body, headers=headers),
        deadline=time.monotonic() + self._timeout_s,
        max_bytes=_MAX_ANSWER_BYTES,
        retries=http_client.Retries(_RETRIES, _FIRST_PAUSE_S),
      )
    except http_client.TooLargeError as error:
      raise RemoteError(
        f"{where}: {error}. Is this the URL of a retrieval server?"
      ) from error
    except http_client.NoAnswer as error:
      raise RemoteError(f"{where}: {error}") from error
    if answer.is_success:
      return answer
    failure = f"status {answer.status}: {_message(answer)}"
    if 400 <= answer.status < 500:
      raise protocol.RefusedError(failure, answer.status)
    raise RemoteError(f"{where}: {failure}")


def _message(response: http_client.Answer) -> str:
  """What a server says of an error, of bounded length."""
  try:
    message = text_files.parse_json(response.content)["error"]
  except (text_files.TextError, TypeError, KeyError):
    message = response.content[:_MESSAGE_CHARS].decode("utf-8", "replace")
  return str(message)[:_MESSAGE_CHARS]


def check_policy(config: RetrievalConfig) -> None:
  """Refuses a policy that needs the buffer itself.

  Raises:
    InputError: it draws from all traces, or gives whole trajectories.
  """
  wanted = {"noise_prob": 0.0, "granularity": "step"}
  for name, value in wanted.items():
    if getattr(config, name) != value:
      raise InputError(
        f"A buffer that a server holds gives its nearest steps and no others:"
        f" {name} must be {value!r}, got {getattr(config, name)!r}. Set it so,"
        " or open the buffer's folder here."
      )


@hosts.held()
class RemoteBuffer:
  """A Step-Trace Buffer that a server holds.

  Args:
    url: of the server, with or without `/retrieve`.
    encoder: that of the buffer; it writes keys and embeds nothing here.
    timeout_s: for one search, repetitions included.
    max_connections: open at a time.
  """

  def __init__(
    self,
    url: str,
    encoder: SentenceEncoder,
    *,
    timeout_s: float = TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
  ):
    self._client = _Client(
      url, timeout_s=timeout_s, max_connections=max_connections
    )
    self._encoder = encoder
    self._version: int | None = None

  @property
  def version(self) -> int:
    """Version of the buffer as of the last answer.

    Raises:
      InputError: no answer has come yet, and `check` fails.
    """
    if self._version is None:
      self.check()
      assert self._version is not None
    return self._version

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def check(self) -> dict[str, Any]:
    """Asks whether the server is there and holds a buffer of this encoder.

    Returns:
      What it says of itself: `version`, `num_traces` and others.

    Raises:
      InputError: it is not, or of another encoder.
    """
    try:
      health = self._client.health()
    except (RemoteError, protocol.RefusedError) as error:
      raise InputError(
        f"The Step-Trace Buffer at {self._client.url} does not answer"
        f" ({error}): start its server, or correct the URL."
      ) from error
    version = health.get("version")
    if version is None:
      raise InputError(
        f"{self._client.url} serves an index alone, without traces: start a"
        " server of a buffer, or correct the URL."
      )
    theirs = health.get("encoder")
    if not isinstance(theirs, dict) or not protocol.is_count(version):
      raise InputError(f"{self._client.url}{protocol.HEALTH_PATH} {_SPOILT}")
    if theirs.get("sha256") != self._encoder.sha256:
      raise InputError(
        f"The Step-Trace Buffer at {self._client.url} is of the encoder"
        f" {theirs.get('id')}, but the one here is {self._encoder.encoder_id}"
        f" ({self._encoder.sha256[:12]}). Their keys are cut at other places:"
        " use the same encoder on both sides."
      )
    self._version = version
    return health

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
    keys: Sequence[Sequence[int]] | None = None,
  ) -> list[Hit | Miss | Failed]:
    """Finds a step for each of N histories; see `StepTraceBuffer.retrieve`.

    All histories are one request. It is repeated, within the time, where the
    server was not reached or is busy.

    Args:
      questions: N questions.
      histories: for each, the texts of its steps so far, oldest first.
      config: how one trace is chosen; see `check_policy`.
      keys: not needed, since nothing is drawn.

    Returns:
      An outcome for each history; `Failed` for all where the server was not
      reached in time, refused, or answered something else.

    Raises:
      InputError: if there are not as many histories as questions. Or the policy
        needs more of the buffer than the protocol gives.
    """
    check_policy(config)
    check_lengths(questions, histories)
    if not questions:
      return []
    # A query's first line is its question. To the encoder all space is one.
    lines = [question.replace("\n", " ") for question in questions]
    request = {
      "queries": key_texts(lines, histories, self._encoder),
      "topk": config.top_k,
      "return_scores": True,
    }
    try:
      answer = self._client.retrieve(request, len(questions))
      found = [
        [protocol.hit_from_json(item) for item in items]
        for items in answer.results
      ]
    except (RemoteError, protocol.RefusedError) as error:
      return [Failed(f"{type(error).__name__}: {error}")] * len(questions)
    if answer.version is not None:
      self._version = answer.version
    return [_choose(hits, config) for hits in found]


def _choose(hits: Sequence[Hit], config: RetrievalConfig) -> Hit | Miss:
  return choose_hit(hits, config) if hits else Miss("empty buffer")


class RemoteIndex:
  """An `Index` whose vectors lie with a server of a buffer.

  Its rows are those of the index there.

  Args:
    url: of the server, with or without `/retrieve`.
    timeout_s: for one request, repetitions included.
    max_connections: open at a time.

  Raises:
    RemoteError: if the server does not answer.
  """

  kind: ClassVar[str] = "remote"

  def __init__(
    self,
    url: str,
    *,
    timeout_s: float = TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
  ):
    self._client = _Client(
      url, timeout_s=timeout_s, max_connections=max_connections
    )
    health = self._client.health()
    match health:
      case {
        "num_keys": int(size),
        "dimension": int(dimension),
        "encoder": {"sha256": str() | None as sha256},
        "index": dict(index),
        "limits": {"max_queries": int(max_queries)},
      } if min(size + 1, dimension, max_queries) > 0:
        self._size, self._dimension = size, dimension
        self._encoder_sha256: str | None = sha256
      case _:
        raise RemoteError(f"{self._client.url}{protocol.HEALTH_PATH} {_SPOILT}")
    self._parameters = {**index, "kind": self.kind, "url": self._client.url}
    self._chunk = min(max_queries, _VECTORS_A_REQUEST)

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  @property
  def encoder_sha256(self) -> str | None:
    """Digest of the encoder of its vectors; None if nobody said."""
    return self._encoder_sha256

  @property
  def parameters(self) -> Mapping[str, Any]:
    """Where it is, and what was chosen for the index there."""
    return self._parameters

  def __len__(self) -> int:
    """Returns the number of vectors, as of when the server was asked."""
    return self._size

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds the vectors with the largest inner products; see `Index.search`.

    Raises:
      InputError: also if k exceeds what the server gives.
      RuntimeError: also if it is not reached.
    """
    queries = index_lib.checked_queries(
      queries, dimension=self._dimension, num_neighbors=num_neighbors
    )
    ids = np.full((len(queries), num_neighbors), -1, np.int64)
    scores = np.full(ids.shape, -np.inf, np.float32)
    for first in range(0, len(queries), self._chunk):
      chunk = queries[first : first + self._chunk]
      fields = {
        "vectors": protocol.vectors_to_json(chunk),
        "topk": num_neighbors,
        "return_scores": True,
      }
      answer = self._client.retrieve(fields, len(chunk))
      for place, items in enumerate(answer.results, first):
        pairs = [protocol.row_from_json(item) for item in items]
        if len(pairs) > num_neighbors or not all(
          0 <= row < self._size for row, _ in pairs
        ):
          raise RemoteError(f"{self._client.url}: an answer {_SPOILT}")
        ids[place, : len(pairs)] = [i for i, _ in pairs]
        scores[place, : len(pairs)] = [s for _, s in pairs]
    return index_lib.Neighbors(ids=ids, scores=scores)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes to a folder where the index is."""
    with files.replaced_folder(path) as new:
      index_lib.write_meta(new, self)

  @classmethod
  def load(
    cls, path: str | pathlib.Path, *, encoder_sha256: str | None = None
  ) -> RemoteIndex:
    """Asks the server that a folder written by `save` names.

    Raises:
      InputError: if the folder holds an index of another kind, or the server
        one of another encoder than the given.
      RemoteError: if the server does not answer.
    """
    meta = index_lib.read_meta(pathlib.Path(path))
    if meta["kind"] != cls.kind:
      raise InputError(
        f"{path} holds an index of kind {meta['kind']!r}, not {cls.kind!r}."
        " Load it with the class that saved it."
      )
    index = cls(meta["url"])
    if encoder_sha256 not in (None, index.encoder_sha256):
      raise InputError(
        f"{meta['url']} serves an index of another encoder"
        f" ({(index.encoder_sha256 or 'unknown')[:12]}) than the one given"
        f" ({encoder_sha256[:12]}). Their vectors do not compare: use the same"
        " encoder."
      )
    return index
