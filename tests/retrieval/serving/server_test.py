"""The server over loopback: answers, refusals, load and its end."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time

import httpx2
import numpy as np
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import protocol, server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.retrieval import loopback


@pytest.fixture
def serve():
  """Starts a server of a source or an index; all end with the test."""
  stack = contextlib.ExitStack()

  def start(source=None, *, index=None, **config):
    config = ServerConfig(**config)
    app = server.make_app(source, index, config=config)
    return stack.enter_context(loopback.serving(app, config))

  with stack:
    yield start


@pytest.fixture(scope="module")
def client():
  with httpx2.Client(timeout=20, trust_env=False) as client:
    yield client


def error(response):
  assert response.headers["content-type"] == "application/json"
  (message,) = response.json().values()
  return response.status_code, message


# What the trainers do with an answer, written from what they read of it.


def search_r1_text(results):
  """Search-R1 joins `document.contents`, its first line as the title."""
  texts = []
  for number, item in enumerate(results, 1):
    title, *rest = item["document"]["contents"].split("\n")
    texts.append(f"Doc {number}(Title: {title}) {chr(10).join(rest)}\n")
  return "".join(texts)


def authors_text(results):
  """RAPO's trainer takes the document of the highest reward."""
  return max(results, key=lambda item: item["reward"])["document"]


class TestAnswers:
  def test_search_r1(self, serve, client):
    url = serve(loopback.FakeSource())
    queries = ["Who is 水?", "line\nstep"]
    response = client.post(
      url + "/retrieve",
      json={"queries": queries, "topk": 2, "return_scores": True},
    )
    assert response.status_code == 200
    first, second = response.json()["result"]
    assert search_r1_text(first) == (
      "Doc 1(Title: Who is 水?) step 0 of Who is 水?\n"
      "Doc 2(Title: Who is 水?) step 1 of Who is 水?\n"
    )
    assert [item["score"] for item in second] == [1.0, 0.875]
    assert second[1]["document"]["trace_id"] == 1
    assert second[0]["document"]["history"] == ["step"]

  def test_the_authors(self, serve, client):
    url = serve(loopback.FakeSource())
    response = client.post(
      url + "/retrieve?document=text",
      json={"queries": ["q"], "topk": 3, "return_scores": True},
    )
    (results,) = response.json()["result"]
    assert authors_text(results) == "step 2 of q"

  def test_without_scores_there_are_documents(self, serve, client):
    url = serve(loopback.FakeSource())
    response = client.post(url + "/retrieve", json={"queries": ["q"]})
    (results,) = response.json()["result"]
    assert [document["id"] for document in results] == ["0", "1", "2"]

  def test_the_choice_of_a_rollout(self, serve, client):
    # Similarities are 1, 7/8, 6/8, 5/8 and rewards 0, 1/2, 1, 3/2.
    config = retrieval.RetrievalConfig(min_similarity=0.7)
    url = serve(loopback.FakeSource(), retrieval=config)

    def ids(topk):
      response = client.post(
        url + "/retrieve?mode=choice", json={"queries": ["q"], "topk": topk}
      )
      (results,) = response.json()["result"]
      return [document["trace_id"] for document in results]

    assert ids(2) == [1]
    assert ids(4) == [2]
    # The only one has no reward.
    assert ids(1) == []

  def test_no_queries(self, serve, client):
    url = serve(loopback.FakeSource())
    response = client.post(url + "/retrieve", json={"queries": []})
    assert response.json() == {"result": [], "version": 1}

  def test_unicode(self, serve, client):
    url = serve(loopback.FakeSource())
    text = "Ωμέγα\u0000 👩‍🚀 \u202e\r\n<result>\\boxed{1}</result>"
    response = client.post(
      url + "/retrieve",
      json={"queries": [text], "topk": 1, "return_scores": True},
    )
    ((item,),) = response.json()["result"]
    document = item["document"]
    assert "\n".join([document["question"], *document["history"]]) == text

  def test_the_content_type_does_not_matter(self, serve, client):
    # As curl -d sends it.
    url = serve(loopback.FakeSource())
    response = client.post(
      url + "/retrieve",
      content=b'{"queries": ["q"]}',
      headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 200

  def test_rows_of_an_index(self, serve, client):
    vectors = np.eye(4, dtype=np.float32)
    url = serve(index=retrieval.ExactIndex.build(vectors))
    response = client.post(
      url + "/retrieve",
      json={
        "vectors": protocol.vectors_to_json(vectors[[2, 3]]),
        "topk": 1,
        "return_scores": True,
      },
    )
    assert response.json() == {
      "result": [
        [{"document": {"id": "2"}, "score": 1.0}],
        [{"document": {"id": "3"}, "score": 1.0}],
      ]
    }

  def test_health_and_metrics(self, client):
    about = {"num_traces": 3}
    app = server.make_app(
      loopback.FakeSource(), None, config=ServerConfig(), about=lambda: about
    )
    with loopback.serving(app) as url:
      health = client.get(url + "/healthz").json()
      assert health["ready"] is True
      assert health["num_traces"] == 3
      assert health["limits"]["max_topk"] == protocol.Limits.max_topk
      about["num_traces"] = 4
      assert client.get(url + "/healthz").json()["num_traces"] == 4
      client.post(url + "/retrieve", json={"queries": ["a", "b"]})
      client.post(url + "/retrieve", content=b"")
      metrics = client.get(url + "/metrics").json()
    assert metrics["responses"] == {"200": 1, "400": 1}
    assert (metrics["queries"], metrics["batches"]) == (2, 1)
    assert metrics["queued"] == 0
    assert metrics["latency_s"]["p95"] > 0

  def test_a_buffer(self, encoder, serve, client):
    traces = [
      loopback.make_trace("Where is the tower?", 0, reward=0.5),
      loopback.make_trace("Where is the tower?", 1, reward=1.0),
      loopback.make_trace("Where is the tower?", 2, history=("Look it up.",)),
      loopback.make_trace("What is 2 + 2?", 3),
    ]
    buffer = retrieval.StepTraceBuffer.build(
      traces, encoder, retrieval.ExactIndex
    )
    with loopback.serving(server.buffer_app(buffer, ServerConfig())) as url:
      self._ask_buffer(client, url, encoder)

  def _ask_buffer(self, client, url, encoder):
    health = client.get(url + "/healthz").json()
    assert (health["version"], health["num_traces"]) == (1, 4)
    # The first two traces have one key.
    assert (health["num_keys"], health["dimension"]) == (3, 384)
    assert health["encoder"]["sha256"] == encoder.sha256

    def ask(**fields):
      response = client.post(url + "/retrieve", json=fields)
      return [
        [document["trace_id"] for document in results]
        for results in response.json()["result"]
      ]

    # A query is a question and then its history, or has that beside it.
    queries = ["Where is the tower?", "Where is the tower?\nLook it up."]
    assert ask(queries=queries, topk=3) == [[1, 0, 2], [2, 1, 0]]
    assert ask(
      queries=["Where is the tower?"], histories=[["Look it up."]], topk=1
    ) == [[2]]
    # More than there are.
    assert len(ask(queries=["?"], topk=9)[0]) == 4
    # Of a long query the question stays, and what came last.
    long = queries[1].replace("\n", "\n" + "What is 2 + 2? " * 200)
    assert ask(queries=[long + "Look it up. " * 80], topk=1) == [[2]]

  def test_an_empty_buffer(self, encoder, serve, client):
    buffer = retrieval.StepTraceBuffer.build([], encoder, retrieval.ExactIndex)
    url = serve(buffer)
    response = client.post(url + "/retrieve", json={"queries": ["a", "b"]})
    assert response.json()["result"] == [[], []]


class TestRefusals:
  def test_malformed(self, serve, client):
    url = serve(loopback.FakeSource())
    status, message = error(client.post(url + "/retrieve", content=b"no"))
    assert status == 400
    assert "must be JSON" in message
    status, message = error(
      client.post(url + "/retrieve?mode=x", json={"queries": []})
    )
    assert status == 422
    assert "list or choice" in message
    status, message = error(client.get(url + "/retrieve"))
    assert (status, "send POST /retrieve" in message) == (405, True)
    status, message = error(client.post(url + "/other"))
    assert (status, "'/other' is not served" in message) == (404, True)

  def test_too_large(self, serve, client):
    limits = protocol.Limits(max_body_bytes=1_000)
    url = serve(loopback.FakeSource(), limits=limits)
    body = json.dumps({"queries": ["x" * 1_000]}).encode()
    for content in (body, iter([body])):  # With its length and without.
      status, message = error(client.post(url + "/retrieve", content=content))
      assert status == 413
      assert "may have 1000 bytes: send fewer" in message
    assert client.post(url + "/retrieve", json={"queries": ["q"]}).is_success

  def test_a_body_that_does_not_come(self, serve):
    url = serve(loopback.FakeSource(), timeout_s=0.2)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
      peer.sendall(
        b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
      )
      answer = peer.recv(10_000)
    assert b" 408 " in answer.splitlines()[0]

  def test_who_leaves_is_not_searched_for(self, serve, client):
    source = loopback.FakeSource()
    source.gate.clear()
    url = serve(source)
    port = int(url.rpartition(":")[2])
    body = b'{"queries": ["gone"]}'
    head = f"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
    thread = threading.Thread(
      target=client.post,
      args=(url + "/retrieve",),
      kwargs={"json": {"queries": ["first"]}},
    )
    thread.start()
    while not source.batches:
      time.sleep(0.01)
    for part in (body[:5], body):
      with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(head.encode() + b"\r\n\r\n" + part)
        time.sleep(0.1)
    metrics = url + "/metrics"
    end = time.monotonic() + 10
    while client.get(metrics).json()["responses"].get("499", 0) < 2:
      assert time.monotonic() < end
      time.sleep(0.01)
    source.gate.set()
    thread.join()
    client.post(url + "/retrieve", json={"queries": ["last"]})
    assert source.batches == [["first"], ["last"]]
    responses = client.get(metrics).json()["responses"]
    assert responses == {"200": 2, "499": 2}

  @pytest.mark.parametrize("what", ["queries", "vectors"])
  def test_what_is_not_served(self, serve, client, what):
    vectors = np.eye(4, dtype=np.float32)
    if what == "queries":
      url = serve(index=retrieval.ExactIndex.build(vectors))
      body = {"queries": ["q"]}
    else:
      url = serve(loopback.FakeSource())
      body = {"vectors": protocol.vectors_to_json(vectors)}
    status, message = error(client.post(url + "/retrieve", json=body))
    assert status == 422
    assert f"in place of {what}" in message

  def test_a_bad_vector_spoils_no_others(self, serve):
    vectors = np.eye(4, dtype=np.float32)
    url = serve(index=retrieval.ExactIndex.build(vectors), max_wait_s=0.2)
    bad = np.full((1, 4), np.nan, np.float32)
    wide = np.ones((1, 5), np.float32)

    async def ask():
      return await asyncio.gather(
        *(
          loopback.post(
            url + "/retrieve", {"vectors": protocol.vectors_to_json(queries)}
          )
          for queries in (vectors[:1], bad, vectors[1:], wide)
        )
      )

    good, nan, also_good, five = asyncio.run(ask())
    assert [good[0], also_good[0]] == [200, 200]
    assert nan[0] == 422
    assert "finite" in nan[1]["error"]
    assert "dimension 5" in five[1]["error"]

  def test_a_search_that_fails(self, serve, client):
    source = loopback.FakeSource(error=RuntimeError("out of memory"))
    url = serve(source)
    ask = lambda: client.post(  # noqa: E731
      url + "/retrieve", json={"queries": ["q"]}
    )
    assert error(ask()) == (500, "RuntimeError: out of memory")
    source.error = None
    assert ask().is_success


class TestLoad:
  def test_512_at_once(self, serve):
    source = loopback.FakeSource(delay_s=0.002)
    url = serve(source)

    async def ask():
      return await asyncio.gather(
        *(
          loopback.post(
            url + "/retrieve", {"queries": [f"q{i}"], "topk": 1 + i % 2}
          )
          for i in range(512)
        )
      )

    for number, (status, answer) in enumerate(asyncio.run(ask())):
      assert status == 200
      (results,) = answer["result"]
      assert len(results) == 1 + number % 2
      assert results[0]["question"] == f"q{number}"
    assert sum(map(len, source.batches)) == 512
    assert len(source.batches) < 256

  def test_a_client_with_many_does_not_starve_another(self, serve):
    source = loopback.FakeSource(delay_s=0.05)
    url = serve(source, max_batch=16, max_wait_s=0.0)

    async def ask():
      many = asyncio.ensure_future(
        loopback.post(
          url + "/retrieve", {"queries": [f"many {i}" for i in range(512)]}
        )
      )
      while not source.batches:
        await asyncio.sleep(0.005)
      asked = len(source.batches)
      status, _ = await loopback.post(url + "/retrieve", {"queries": ["one"]})
      answered = len(source.batches)
      return status, answered - asked, await many

    status, batches, (many_status, many) = asyncio.run(ask())
    assert (status, many_status) == (200, 200)
    # Of 32: the one under way, its own, and what goes on before it is read.
    assert batches <= 5
    assert [r[0]["question"] for r in many["result"]] == [
      f"many {i}" for i in range(512)
    ]
    assert max(map(len, source.batches)) <= 16

  def test_what_a_client_asked_goes_when_it_leaves(self, serve, client):
    source = loopback.FakeSource(delay_s=0.05)
    url = serve(source, max_batch=16)
    port = int(url.rpartition(":")[2])
    body = json.dumps({"queries": [f"many {i}" for i in range(512)]}).encode()
    head = f"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port)) as peer:
      peer.sendall(head.encode() + b"\r\n\r\n" + body)
      while not source.batches:
        time.sleep(0.005)
    assert client.post(url + "/retrieve", json={"queries": ["one"]}).is_success
    # Of 32.
    assert len(source.batches) < 8
    assert client.get(url + "/metrics").json()["queued"] == 0

  def test_a_score_that_is_no_number(self, serve, client):
    vectors = np.full((2, 4), 3e38, np.float32)
    url = serve(
      index=retrieval.ExactIndex.build(np.eye(4, dtype=np.float32) * 2)
    )
    fields = {
      "vectors": protocol.vectors_to_json(vectors),
      "topk": 1,
      "return_scores": True,
    }
    response = client.post(url + "/retrieve", json=fields)
    assert response.status_code == 200
    assert b"Infinity" not in response.content
    assert b"NaN" not in response.content
    assert [r[0]["score"] for r in response.json()["result"]] == [None, None]

  def test_beyond_the_queue_it_says_when_to_come_back(self, serve, client):
    source = loopback.FakeSource(delay_s=1.0)
    url = serve(source, max_queue=2)
    threads = [
      threading.Thread(
        target=client.post,
        args=(url + "/retrieve",),
        kwargs={"json": {"queries": ["a", "b"]}},
      )
    ]
    threads[0].start()
    while not source.batches:
      time.sleep(0.01)
    response = client.post(url + "/retrieve", json={"queries": ["c"]})
    threads[0].join()
    status, message = error(response)
    assert status == 503
    assert response.headers["retry-after"] == "1"
    assert message == (
      "2 queries wait, 1 more exceed the 2 that may. Try again in 1 s."
    )
    source.delay_s = 0
    assert client.post(url + "/retrieve", json={"queries": ["c"]}).is_success

  def test_a_slow_encoder(self, serve, client):
    source = loopback.FakeSource(delay_s=0.5)
    url = serve(source, timeout_s=0.1)
    status, message = error(
      client.post(url + "/retrieve", json={"queries": ["q"]})
    )
    assert status == 504
    assert "No answer within 0.1 s: send fewer" in message
    assert client.get(url + "/metrics").json()["queued"] == 0

  def test_it_finishes_what_it_has_begun(self, client):
    source = loopback.FakeSource(delay_s=0.5)
    responses = []
    app = server.make_app(source, None, config=ServerConfig())
    with loopback.serving(app) as url:
      thread = threading.Thread(
        target=lambda: responses.append(
          client.post(url + "/retrieve", json={"queries": ["q"]})
        )
      )
      thread.start()
      while not source.batches:
        time.sleep(0.01)
    thread.join()
    assert responses[0].is_success
    with pytest.raises(httpx2.ConnectError):
      client.post(url + "/retrieve", json={"queries": ["q"]})


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"defaults": protocol.Defaults(topk=101)}, r"max_topk \(100\), got 101"),
    ({"max_batch": 0}, "max_batch"),
    ({"max_queue": 0}, "max_queue"),
    ({"max_wait_s": -1.0}, "max_wait_s"),
    ({"max_batch_s": 0.0}, "max_batch_s"),
    ({"header_timeout_s": float("inf")}, "header_timeout_s"),
    ({"max_connections": 0}, "max_connections"),
    ({"timeout_s": 0.0}, "timeout_s"),
  ],
)
def test_config_is_checked(config, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(ServerConfig(), **config)


def test_a_long_body_is_read_beside_the_event_loop(serve, client, monkeypatch):
  url = serve(loopback.FakeSource())
  threads = []
  parse = protocol.parse_request

  def noted(*args, **kwargs):
    threads.append(threading.current_thread())
    return parse(*args, **kwargs)

  monkeypatch.setattr(protocol, "parse_request", noted)
  for text in ("q", "q" * 60_000):
    response = client.post(url + "/retrieve", json={"queries": [text] * 6})
    assert response.status_code == 200
  short, long = threads
  assert long is not short
