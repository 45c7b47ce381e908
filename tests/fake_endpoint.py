"""An OpenAI-compatible endpoint on loopback, for tests."""

import contextlib
import http.server
import json
import threading


class FakeServer:
  """Speaks `/v1/chat/completions`.

  Args:
    reply: from the messages of a request to the text of its reply, to an
      HTTP status, or to the bytes of a whole body.
    cuts: whether it cuts a reply before a stop string, as servers should.
  """

  def __init__(self, reply, cuts=True):
    self.reply, self.cuts = reply, cuts
    self.requests = []
    self.lock = threading.Lock()
    self.running = self.most_running = 0

  def answer(self, body):
    with self.lock:
      self.requests.append(body)
      self.running += 1
      self.most_running = max(self.most_running, self.running)
    try:
      content = self.reply(body["messages"])
    finally:
      with self.lock:
        self.running -= 1
    if isinstance(content, int):
      return content, {"error": {"message": f"status {content}"}}
    if isinstance(content, bytes):
      return 200, content
    finish = "stop"
    for stop in body.get("stop") or () if self.cuts else ():
      content = content.partition(stop)[0]
    if content.endswith("[long]"):
      finish = "length"
    message = {"role": "assistant", "content": content}
    return 200, {
      "id": "c",
      "object": "chat.completion",
      "created": 0,
      "model": body["model"],
      "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }

  @contextlib.contextmanager
  def serve(self):
    fake = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = fake.answer(body)
        whole = isinstance(answer, bytes)
        data = answer if whole else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *_):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
      server.shutdown()
      server.server_close()
      thread.join()
