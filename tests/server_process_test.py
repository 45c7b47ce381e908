"""Processes that answer lines, or do not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax.server_process import (
  ServerLateError,
  ServerPool,
  ServerProcess,
  ServersBusyError,
)

PROGRAM = """
import os, sys, time
print("ready", flush=True)
for line in sys.stdin:
  word = line.strip()
  if word == "hang":
    time.sleep(60)
  if word == "die":
    os._exit(1)
  print(os.environ.get(word, word.upper()), flush=True)
"""


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM, encoding="utf-8")
  return path


def test_a_line_is_answered(program):
  server = ServerProcess(program)
  assert server.ask(b"a", 5) == b"A"
  assert server.ask(b"x" * 300_000, 5) == b"X" * 300_000
  server.close()


def test_it_does_not_get_the_environment(program, monkeypatch):
  monkeypatch.setenv("SERPER_API_KEY", "canary")
  server = ServerProcess(program)
  assert server.ask(b"SERPER_API_KEY", 5) == b"SERPER_API_KEY"
  assert server.ask(b"PATH", 5) != b"PATH"
  server.close()


def test_a_pool_whose_processes_are_busy(program):
  pool = ServerPool(program, 1)
  with ThreadPoolExecutor(1) as threads:
    hanging = threads.submit(pool.ask, b"hang", 1.0)
    while not hanging.running():
      time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(ServersBusyError):
      pool.ask(b"a", 5, wait_s=0.1)
    assert isinstance(hanging.exception(), ServerLateError)
  assert pool.ask(b"a", 5) == b"A"
  pool.close()


@pytest.mark.parametrize("word", [b"hang", b"die"])
def test_a_process_that_does_not_answer_is_replaced(program, word):
  pool = ServerPool(program, 1)
  with pytest.raises(ServerLateError):
    pool.ask(word, 0.5)
  assert pool.ask(b"a", 5) == b"A"
  pool.close()
  with pytest.raises(RuntimeError, match="closed"):
    pool.ask(b"a", 5)
