"""The server as a person starts and ends it."""

import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading

import httpx2
import pytest

from experiments import serve_index
from rapo_jax import retrieval
from tests.retrieval import tiny_bert

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTION = "Whose 'tower' is it?"


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
  return tiny_bert.write_folder(tmp_path_factory.mktemp("serve") / "encoder")


@pytest.fixture(scope="module")
def encoder(encoder_folder):
  """One that has a prefix which its folder does not have."""
  return retrieval.SentenceEncoder.from_pretrained(
    encoder_folder, query_prefix="query "
  )


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
  """A buffer of three steps."""
  traces = retrieval.step_traces(
    QUESTION,
    ["Look it up.", "Read on.", "It is hers."],
    reward=1.0,
    source="strong",
    query_id="q0",
    first_trace_id=0,
  )
  path = tmp_path_factory.mktemp("serve") / "buffer"
  retrieval.StepTraceBuffer.build(traces, encoder).save(path)
  return path


@pytest.fixture
def process(folder, encoder_folder):
  search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.serve_index", "--port=0"),
      *(f"--buffer={folder}", "--max_wait_ms=500", "--topk=1"),
      *(f"--encoder={encoder_folder}", "--query_prefix=query "),
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": search},
    stdout=subprocess.PIPE,
    encoding="utf-8",
  )
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


def test_it_serves_until_it_is_ended_and_finishes_what_it_began(process):
  first, example = (process.stdout.readline() for _ in range(2))
  url = re.fullmatch(r"3 step traces .* at (http://127.0.0.1:\d+)\n", first)[1]
  assert httpx2.get(url + "/healthz").json()["num_traces"] == 3
  # The example is one that works.
  _, curl, silent, path, data, body = shlex.split(example)
  assert [curl, silent, data] == ["curl", "-s", "-d"]
  response = httpx2.post(path, content=body.encode(), timeout=60)
  assert json.loads(body)["queries"] == [QUESTION]
  assert len(response.json()["result"][0]) == 3

  # It waits half a second for more to batch, and is told to end meanwhile.
  answers = []
  thread = threading.Thread(
    target=lambda: answers.append(
      httpx2.post(
        url + "/retrieve", json={"queries": [QUESTION]}, timeout=60
      ).json()
    )
  )
  thread.start()
  while not httpx2.get(url + "/metrics").json()["queued"]:
    assert thread.is_alive()
  process.send_signal(signal.SIGTERM)
  thread.join()
  ((document,),) = answers[0]["result"]
  assert document["step"] == "Look it up."
  assert process.wait(timeout=60) == 0


@pytest.fixture
def run(capsys, encoder_folder):
  """Starts a server that does not start; gives the status and the reason."""

  def run(*arguments):
    status = serve_index.main(
      [
        *("--port=0", f"--encoder={encoder_folder}", "--query_prefix=query "),
        *arguments,
      ]
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err

  return run


def test_a_folder_without_a_buffer(run, tmp_path):
  status, text = run(f"--buffer={tmp_path}")
  assert status == 2
  assert "holds no Step-Trace Buffer" in text


def test_a_buffer_without_traces(run, tmp_path, encoder):
  retrieval.StepTraceBuffer.build([], encoder).save(tmp_path / "buffer")
  status, text = run(f"--buffer={tmp_path / 'buffer'}")
  assert status == 2
  assert "holds no traces" in text


def test_another_encoder_than_the_buffer_s(run, folder):
  status, text = run(f"--buffer={folder}", "--query_prefix=")
  assert status == 2
  assert "Their vectors do not compare" in text


def test_a_port_that_is_taken(run, folder):
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    status, text = run(f"--buffer={folder}", f"--port={port}")
  assert status == 2
  assert f"cannot listen at 127.0.0.1, port {port}" in text


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--port=99999", "port 99999"),
    ("--host=no.such.host.invalid", "cannot listen at no.such.host.invalid"),
    ("--topk=101", "between 1 and max_topk (100), got 101"),
    ("--min_similarity=2", "must lie in [-1, 1], got 2"),
    ("--max_queries=0", "max_queries must be at least 1, got 0"),
    ("--encoder=/no/such/folder", "/no/such/folder has no"),
  ],
)
def test_a_wrong_argument_is_report_input_errors(
  run, folder, argument, message
):
  status, text = run(f"--buffer={folder}", argument)
  assert status == 2
  assert message in text


def test_more_connections_than_files(run, folder, monkeypatch):
  limits = []
  monkeypatch.setattr(serve_index.resource, "getrlimit", lambda _: (256, 2_000))
  monkeypatch.setattr(
    serve_index.resource, "setrlimit", lambda _, pair: limits.append(pair)
  )
  status, text = run(f"--buffer={folder}", "--max_connections=1999")
  assert status == 2
  assert "2127 open files are needed" in text
  assert "--max_connections" in text
  assert not limits
  serve_index._allow_files(1_000)
  serve_index._allow_files(100)
  assert limits == [(1_000, 2_000)]
