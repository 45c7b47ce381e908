"""A buffer that a server holds, and servers that answer as they should not."""

import asyncio
import contextlib
import json
import threading
import time

import numpy as np
import pytest
import starlette.applications
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import protocol, remote, server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.retrieval import loopback

CONFIG = retrieval.RetrievalConfig()
TOWER = "Where is the\ntallest tower?"


def make_traces():
  """Steps of several questions; some share keys, some have no reward."""
  traces = []
  for question in (TOWER, "What is 2 + 2?", "Who wrote Faust? " * 80):
    for number, reward in enumerate((1.0, 0.5, 0.0)):
      traces += retrieval.step_traces(
        question,
        [
          f"<think> Plan {number}. </think>",
          f"<search> look it up {number} </search><result> α</result>",
          "<answer> so </answer>",
        ],
        reward=reward,
        source=f"agent {number}",
        query_id=question[:5],
        first_trace_id=len(traces),
      )
  return traces


@pytest.fixture(scope="module")
def buffer(encoder):
  return retrieval.StepTraceBuffer.build(
    make_traces(), encoder, retrieval.ExactIndex
  )


@pytest.fixture(scope="module")
def url(buffer):
  # Whatever the server's own defaults are.
  config = ServerConfig(
    defaults=protocol.Defaults(topk=9, document="text", mode="choice")
  )
  with loopback.serving(server.buffer_app(buffer, config)) as url:
    yield url


@pytest.fixture
def connect(encoder, monkeypatch):
  """Opens remote buffers that lose no time."""
  monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
  with contextlib.ExitStack() as stack:

    def open_buffer(url, **options):
      opened = remote.RemoteBuffer(url, encoder, **options)
      stack.callback(opened.close)
      return opened

    yield open_buffer


@contextlib.contextmanager
def answering(*answers):
  """A server that gives prepared answers, the last one again and again."""
  left = list(answers)
  asked = []

  async def answer(request):
    asked.append((request.method, request.url.path, await request.body()))
    return left.pop(0) if len(left) > 1 else left[0]

  app = starlette.applications.Starlette(
    routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]
  )
  with loopback.serving(app) as url:
    yield url, asked


@pytest.mark.parametrize("top_k", [1, 3, 7])
@pytest.mark.parametrize(
  "limits", [{}, {"min_similarity": 0.6}, {"min_reward": 0.5}]
)
def test_it_gives_what_the_buffer_gives(buffer, url, connect, top_k, limits):
  traces = make_traces()
  questions = [trace.question for trace in traces] + ["Something else?"]
  histories = [trace.history for trace in traces] + [("and more",)]
  config = retrieval.RetrievalConfig(top_k=top_k, **limits)
  found = connect(url).retrieve(questions, histories, config=config)
  assert found == buffer.retrieve(questions, histories, config=config)
  if limits == {"min_reward": 0.5}:
    kinds = {type(outcome) for outcome in found}
    assert retrieval.Hit in kinds


def test_with_or_without_the_path(url, connect):
  for address in (url, url + "/", url + "/retrieve"):
    (outcome,) = connect(address).retrieve([TOWER], [()], config=CONFIG)
    assert outcome.trace.question == TOWER


def test_no_questions_and_uneven_ones(url, connect):
  assert connect(url).retrieve([], [], config=CONFIG) == []
  with pytest.raises(ValueError, match="1 questions and 0 histories"):
    connect(url).retrieve([TOWER], [], config=CONFIG)


def test_its_version_is_that_of_the_last_answer(connect):
  source = loopback.FakeSource()
  source.version = 3
  app = server.make_app(source, None, config=ServerConfig())
  with loopback.serving(app) as url:
    opened = connect(url)
    for version in (3, 4):
      source.version = version
      opened.retrieve(["q"], [()], config=CONFIG)
      assert opened.version == version


def test_an_empty_buffer_misses(encoder, connect):
  empty = retrieval.StepTraceBuffer.build([], encoder, retrieval.ExactIndex)
  with loopback.serving(server.buffer_app(empty, ServerConfig())) as url:
    assert (
      connect(url).retrieve([TOWER] * 2, [()] * 2, config=CONFIG)
      == [retrieval.Miss("empty buffer")] * 2
    )


def test_threads_share_one(url, connect):
  shared = connect(url, max_connections=2)
  outcomes = []

  def ask():
    outcomes.extend(shared.retrieve([TOWER], [()], config=CONFIG))

  threads = [threading.Thread(target=ask) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(outcomes) == 8
  assert all(outcome == outcomes[0] for outcome in outcomes)


class TestFailures:
  def test_a_server_that_is_not_there(self, connect):
    outcomes = connect("http://127.0.0.1:9").retrieve(
      [TOWER] * 2, [()] * 2, config=CONFIG
    )
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].attempted
    assert "ConnectError" in outcomes[0].reason

  def test_a_server_that_dies_opens_the_breaker(self, buffer, connect):
    config = retrieval.RetrievalConfig(breaker_failures=2, breaker_window=2)
    app = server.buffer_app(buffer, ServerConfig())
    with loopback.serving(app) as url:
      opened = connect(url, timeout_s=5)
      guarded = retrieval.GuardedBuffer(opened)
      ask = lambda: guarded.retrieve([TOWER], [()], config=config)[0]  # noqa: E731
      assert isinstance(ask(), retrieval.Hit)
    outcomes = [ask() for _ in range(3)]
    assert [outcome.attempted for outcome in outcomes] == [True, True, False]

  def test_busy_and_starting_servers_are_asked_again(self, connect):
    busy = JSONResponse({"error": "busy"}, 503, {"retry-after": "0"})
    none = JSONResponse({"result": [[]]})
    with answering(busy, Response("bad gateway", 502), none) as (url, asked):
      (outcome,) = connect(url).retrieve([TOWER], [()], config=CONFIG)
    assert outcome == retrieval.Miss("empty buffer")
    assert [path for _, path, _ in asked] == ["/retrieve"] * 3

  def test_it_waits_as_it_is_told_but_no_longer_than_it_has(self, connect):
    busy = JSONResponse({"error": "too much waits"}, 503, {"retry-after": "9"})
    with answering(busy) as (url, asked):
      (outcome,) = connect(url, timeout_s=1.0).retrieve(
        [TOWER], [()], config=CONFIG
      )
    assert "status 503: too much waits" in outcome.reason
    assert len(asked) == 1

  @pytest.mark.parametrize(
    ("answer", "reason"),
    [
      (JSONResponse({"error": "no such field"}, 422), "no such field"),
      (Response("<html>", 404), "<html>"),
      (JSONResponse({"error": "out of memory"}, 500), "out of memory"),
      (JSONResponse(["not", "an", "object"], 500), "an"),
      (Response("<html>"), "no JSON"),
      (JSONResponse({"result": []}), "0 queries, 1 were asked"),
      (JSONResponse({"result": [[{"document": "text"}]]}), "object"),
    ],
  )
  def test_answers_that_are_none_are_not_asked_for_again(
    self, connect, answer, reason
  ):
    with answering(answer) as (url, asked):
      (outcome,) = connect(url).retrieve([TOWER], [()], config=CONFIG)
    assert isinstance(outcome, retrieval.Failed)
    assert reason in outcome.reason
    assert len(asked) == 1

  def test_a_body_that_is_not_encoded_as_it_says(self, connect):
    broken = Response(b"no gzip", headers={"content-encoding": "gzip"})
    with answering(broken) as (url, _):
      (outcome,) = connect(url).retrieve([TOWER], [()], config=CONFIG)
    assert "DecodingError" in outcome.reason

  def test_a_body_that_drips_has_a_deadline(self, connect):
    async def drops():
      for _ in range(100):
        await asyncio.sleep(0.1)
        yield b" "

    with answering(StreamingResponse(drops())) as (url, _):
      began = time.monotonic()
      (outcome,) = connect(url, timeout_s=0.5).retrieve(
        [TOWER], [()], config=CONFIG
      )
    assert "ReadTimeout: the answer did not end in time" in outcome.reason
    assert time.monotonic() - began < 5

  def test_a_body_that_is_too_large(self, connect, monkeypatch):
    monkeypatch.setattr(remote, "_MAX_ANSWER_BYTES", 1000)
    with answering(Response(b" " * 1001)) as (url, asked):
      (outcome,) = connect(url).retrieve([TOWER], [()], config=CONFIG)
    assert "may have 1000 bytes" in outcome.reason
    assert len(asked) == 1

  def test_an_error_in_an_encoding_that_is_none(self, connect):
    html = Response("<html>", 404, {"content-type": "text/html; charset=hex"})
    with answering(html) as (url, _):
      (outcome,) = connect(url).retrieve([TOWER], [()], config=CONFIG)
    assert "<html>" in outcome.reason

  @pytest.mark.parametrize(
    "changes",
    [
      {"version": "1"},
      {"version": -1},
      {"version": True},
      {"version": [1]},
      {"encoder": []},
      {"encoder": None},
      {"encoder": "x"},
    ],
  )
  def test_a_server_that_says_nonsense_of_itself(self, connect, changes):
    health = {"num_keys": 1, "version": 1, "encoder": {"sha256": "x"}}
    with (
      answering(JSONResponse(health | changes)) as (url, _),
      pytest.raises(ValueError, match="is not as a server"),
    ):
      connect(url).check()

  def test_a_slow_server(self, connect):
    source = loopback.FakeSource(delay_s=0.6)
    app = server.make_app(source, None, config=ServerConfig())
    with loopback.serving(app) as url:
      (outcome,) = connect(url, timeout_s=0.2).retrieve(
        [TOWER], [()], config=CONFIG
      )
    assert "ReadTimeout" in outcome.reason

  def test_policies_that_need_the_buffer_itself(self, url, connect):
    config = retrieval.RetrievalConfig(noise_prob=0.2)
    with pytest.raises(ValueError, match=r"noise_prob must be 0.0, got 0.2"):
      connect(url).retrieve([TOWER], [()], config=config)
    config = retrieval.RetrievalConfig(granularity="trajectory")
    with pytest.raises(ValueError, match="granularity must be 'step'"):
      connect(url).retrieve([TOWER], [()], config=config)

  @pytest.mark.parametrize(
    ("arguments", "message"),
    [
      ({"url": "localhost:8000"}, "begins with http:// or https://"),
      ({"url": "http://x", "timeout_s": 0.0}, "above 0 seconds, got 0"),
    ],
  )
  def test_arguments_are_checked(self, encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
      remote.RemoteBuffer(encoder=encoder, **arguments)


class TestCredentials:
  @pytest.mark.parametrize(
    ("environment", "header"),
    [
      ({}, None),
      ({"RAPO_BUFFER_TOKEN": "canary"}, "Bearer canary"),
      # base64 of "me:canary" and of "me:".
      (
        {"RAPO_BUFFER_USER": "me", "RAPO_BUFFER_PASSWORD": "canary"},
        "Basic bWU6Y2FuYXJ5",
      ),
      ({"RAPO_BUFFER_USER": "me"}, "Basic bWU6"),
    ],
  )
  def test_they_come_from_the_environment(
    self, connect, monkeypatch, environment, header
  ):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    seen = []

    async def refuse(request):
      seen.append(request.headers.get("authorization"))
      return JSONResponse({"error": "not you"}, 401)

    app = starlette.applications.Starlette(
      routes=[Route("/{path:path}", refuse, methods=["GET", "POST"])]
    )
    with loopback.serving(app) as url:
      opened = connect(url)
      with pytest.raises(ValueError, match="401: not you") as caught:
        opened.check()
      (outcome,) = opened.retrieve([TOWER], [()], config=CONFIG)
    assert seen == [header] * 2
    assert "canary" not in f"{caught.value} {outcome}"

  @pytest.mark.parametrize(
    "environment",
    [
      {"RAPO_BUFFER_TOKEN": "canary\n"},
      {"RAPO_BUFFER_TOKEN": "canaryé"},
      {"RAPO_BUFFER_TOKEN": "canary", "RAPO_BUFFER_USER": "canary"},
    ],
  )
  def test_what_cannot_be_sent_is_not_repeated(
    self, encoder, monkeypatch, environment
  ):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="RAPO_BUFFER_TOKEN") as caught:
      remote.RemoteBuffer("http://x", encoder)
    assert "canary" not in str(caught.value)

  def test_an_address_has_none(self, encoder, tmp_path):
    with pytest.raises(ValueError, match=r"Set RAPO_BUFFER_TOKEN") as caught:
      remote.RemoteBuffer("http://me:canary@host", encoder)
    assert "canary" not in str(caught.value)


class TestCheck:
  def test_it_says_what_is_there(self, url, connect):
    health = connect(url).check()
    assert health["num_traces"] == 27
    assert health["version"] == 1
    # Whoever has not asked yet asks.
    assert connect(url).version == 1

  def test_nobody_there(self, connect):
    with pytest.raises(ValueError, match=r"does not answer.*start its server"):
      connect("http://127.0.0.1:9").check()

  @pytest.mark.parametrize(
    "answer", [Response("hello"), JSONResponse([]), Response("", 404)]
  )
  def test_somebody_else(self, connect, answer):
    with (
      answering(answer) as (url, _),
      pytest.raises(ValueError, match="does not answer"),
    ):
      connect(url).check()

  def test_an_index_without_traces(self, buffer, connect):
    app = server.index_app(buffer.index, ServerConfig(), dimension=384)
    with (
      loopback.serving(app) as url,
      pytest.raises(ValueError, match="serves an index alone"),
    ):
      connect(url).check()

  def test_another_encoder(self, encoder, connect):
    encoder_of = {"id": "other", "sha256": "0" * 64}
    health = {"num_keys": 1, "version": 1, "encoder": encoder_of}
    with (
      answering(Response(json.dumps(health))) as (url, _),
      pytest.raises(ValueError, match=r"of the encoder other.*use the same"),
    ):
      connect(url).check()


HEALTH = {
  "num_keys": 3,
  "dimension": 2,
  "encoder": {"sha256": None},
  "index": {},
  "limits": {"max_queries": 8},
}


@pytest.mark.parametrize(
  "changes",
  [
    {"num_keys": "3"},
    {"num_keys": -1},
    {"dimension": 0},
    {"dimension": None},
    {"encoder": None},
    {"encoder": {}},
    {"encoder": {"sha256": 5}},
    {"index": []},
    {"limits": {}},
    {"limits": {"max_queries": 0}},
  ],
)
def test_an_index_that_says_nonsense_of_itself(changes):
  with (
    answering(JSONResponse(HEALTH | changes)) as (url, _),
    pytest.raises(RuntimeError, match="is not as a server"),
  ):
    remote.RemoteIndex(url)


@pytest.mark.parametrize(
  "rows",
  [
    [{"document": {"id": "3"}, "score": 1.0}],
    [{"document": {"id": "-1"}, "score": 1.0}],
    [{"document": {"id": str(2**70)}, "score": 1.0}],
    [{"document": {"id": "0"}, "score": 1.0}] * 3,
    [{"document": {"id": "0"}, "score": "nan"}],
    [{"document": {"id": "0"}}],
    [{"document": {"id": None}, "score": 1.0}],
    [5],
  ],
)
def test_rows_that_an_index_cannot_have(rows):
  answers = JSONResponse(HEALTH), JSONResponse({"result": [rows]})
  with answering(*answers) as (url, _):
    index = remote.RemoteIndex(url)
    with pytest.raises((RuntimeError, protocol.RefusedError)):
      index.search(np.ones((1, 2), np.float32), 2)
    index.close()
