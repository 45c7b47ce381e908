"""The client of a remote sandbox, against a server on this machine."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.tools.sandbox import SandboxTool
from tests.tools.contract_test import ARGUMENTS


class Sandbox(http.server.BaseHTTPRequestHandler):
  """Runs the programs; some words in them make it break."""

  protocol_version = "HTTP/1.1"

  def do_POST(self):
    length = int(self.headers["Content-Length"])
    asked = json.loads(self.rfile.read(length))
    assert self.path == "/run_code"
    assert asked["language"] == "python"
    code = asked["code"]
    if "HANG" in code:
      time.sleep(1.0)
    if "BUSY" in code:
      return self._reply(503, b"busy")
    if "NO JSON" in code:
      return self._reply(200, b"<html>")
    if "BROKEN" in code:
      result = {"status": "Error", "stderr": "x"} if "RAN" in code else None
      answer = {"status": "SandboxError", "message": "x", "run_result": result}
      return self._reply(200, json.dumps(answer).encode())
    return self._reply(200, json.dumps(self._run(asked)).encode())

  def _run(self, asked):
    result = {"status": "TimeLimitExceeded", "return_code": None}
    try:
      done = subprocess.run(
        [sys.executable, "-I", "-"],
        input=asked["code"].encode(),
        capture_output=True,
        timeout=asked["run_timeout"],
        check=False,
      )
    except subprocess.TimeoutExpired as late:
      result |= {"stdout": (late.stdout or b"").decode(), "stderr": ""}
    else:
      result |= {
        "status": "Finished",
        "return_code": done.returncode,
        "stdout": done.stdout.decode("utf-8", "replace"),
        "stderr": done.stderr.decode("utf-8", "replace"),
      }
    whole = result["status"] == "Finished" and not result["return_code"]
    status = "Success" if whole else "Failed"
    return {"status": status, "message": "", "run_result": result}

  def _reply(self, status, content):
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    """Says nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sandbox) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def tool(url) -> Iterator[SandboxTool]:
  tool = SandboxTool(url, max_output_chars=100)
  yield tool
  tool.close()


def test_it_is_the_python_tool(tool):
  assert isinstance(tool, tools.Tool)
  assert tools.check_tools({"python": tool}).tool_names == ("python",)
  assert tools.call_policy(tool).idempotent


@pytest.mark.parametrize(
  ("program", "text", "status"),
  [
    (" print(6 * 7) ", "42", "ok"),
    ("```python\nprint(1)\n```", "1", "ok"),
    ('x = """a\n  b"""\nprint(x)', "a\n  b", "ok"),
    ('\n  x = """a\n  b"""\n  print(x)', "a\n  b", "ok"),
    ("```python\n```", "The program is empty.", "error"),
    ("x = 1", "[no output]", "ok"),
    ("import sys; print('x', file=sys.stderr)", "x", "ok"),
    ("import sys; print('x', file=sys.stderr); print('y')", "y", "ok"),
    ("print(1); 1 / 0", "1\n", "error"),
    ("import sys; sys.exit(3)", "exit status 3", "error"),
    ("print('x' * 101)", "x" * 100 + "\n[cut: more than 100", "error"),
    (" ", "The program is empty.", "error"),
    ("BUSY", "The sandbox could not be asked", "failed"),
    ("NO JSON", "The sandbox could not be asked", "failed"),
    ("BROKEN", "The sandbox could not run the program.", "failed"),
    ("BROKEN, RAN", "The sandbox could not run the program.", "failed"),
  ],
)
def test_results(tool, program, text, status):
  result = tool.call(program)
  assert result.status == status
  assert result.text.startswith(text)


def test_an_error_shows_its_kind(tool):
  assert "ZeroDivisionError" in tool.call("1 / 0").text


def test_a_program_that_takes_too_long(url):
  tool = SandboxTool(url, timeout_s=0.5)
  result = tool.call("print(1, flush=True)\nwhile True: pass")
  assert result.status == "timeout"
  assert result.text == "1\nTimeoutError: the program ran longer than 0.5 s."
  tool.close()


def test_a_server_that_is_slow_or_gone(url, monkeypatch):
  monkeypatch.setattr("rapo_jax.tools.sandbox._GRACE_S", 0.1)
  tool = SandboxTool(url, timeout_s=0.1)
  assert tool.call("'HANG'").status == "late"
  tool.close()
  gone = SandboxTool("http://127.0.0.1:9")
  assert gone.call("print(1)").status == "failed"
  gone.close()


def test_programs_run_side_by_side(tool):
  results = tool.call_batch([f"print({n})" for n in range(6)])
  assert [result.text for result in results] == list("012345")


@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_it_returns_whatever_the_argument(tool, argument):
  assert isinstance(tool.call(argument), tools.ToolResult)


@pytest.mark.parametrize(
  "arguments",
  [
    {"url": "sandbox:8080"},
    {"url": "http://me:secret@sandbox"},
    {"url": "http://sandbox", "timeout_s": 0},
    {"url": "http://sandbox", "max_output_chars": 0},
    {"url": "http://sandbox", "max_concurrency": 0},
  ],
)
def test_what_is_refused(arguments):
  with pytest.raises(InputError) as error:
    SandboxTool(**arguments)
  assert "secret" not in str(error.value)
