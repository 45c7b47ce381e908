"""A server on loopback, and what it serves."""

import asyncio
import contextlib
import json
import threading
import time
import urllib.parse

import uvicorn

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import connections


@contextlib.contextmanager
def serving(app, limits=None):
  """Serves an ASGI application; gives its URL.

  Args:
    app: the application.
    limits: `ServerConfig` whose limits connections have; None for uvicorn's.
  """
  config = uvicorn.Config(
    app,
    http="h11" if limits is None else connections.limited(limits),
    host="127.0.0.1",
    port=0,
    # Its own would close the handlers that are there, and absl's closes with it
    # what a test's output goes to.
    log_config=None,
    log_level="warning",
    lifespan="on",
  )
  server = uvicorn.Server(config)
  with config.bind_socket() as socket:
    thread = threading.Thread(
      target=server.run, kwargs={"sockets": [socket]}, daemon=True
    )
    thread.start()
    try:
      while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
      yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join(timeout=30)
      assert not thread.is_alive()


async def post(url, fields):
  """Posts JSON on a connection of its own; gives the status and the JSON.

  The pool of a client goes over all its connections for every request, which
  takes seconds for hundreds of them.
  """
  parts = urllib.parse.urlsplit(url)
  body = json.dumps(fields).encode()
  head = (
    f"POST {parts.path}?{parts.query} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
  )
  reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
  writer.write(head.encode() + body)
  answer, _, content = (await reader.read()).partition(b"\r\n\r\n")
  writer.close()
  return int(answer.split()[1]), json.loads(content)


def make_trace(question, trace_id=0, *, reward=1.0, history=(), step=None):
  return retrieval.StepTrace(
    question=question,
    history=tuple(history),
    step=step or f"step {trace_id} of {question}",
    reward=reward,
    source="strong",
    trace_id=trace_id,
    query_id="q0",
    step_index=len(history),
    answers=False,
  )


class FakeSource:
  """Finds traces that name what was asked, and remembers the batches.

  Attributes:
    version: of the buffer that it stands for.
    batches: questions of each.
    histories: of all.
    gate: answers wait until it is set, as it is at first.
  """

  def __init__(self, delay_s=0.0, error=None):
    self.version = 1
    self.gate = threading.Event()
    self.gate.set()
    self.delay_s = delay_s
    self.error = error
    self.batches = []
    self.histories = []

  def neighbors(self, questions, histories, num_neighbors):
    self.batches.append(list(questions))
    self.histories += histories
    time.sleep(self.delay_s)
    self.gate.wait(timeout=20)
    if self.error is not None:
      raise self.error
    return [
      [
        retrieval.step_hit(
          make_trace(question, k, reward=k / 2, history=history), 1 - k / 8
        )
        for k in range(num_neighbors)
      ]
      for question, history in zip(questions, histories, strict=True)
    ]
