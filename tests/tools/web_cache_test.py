"""Answers of the web on disk."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax.errors import InputError
from rapo_jax.tools import CacheConfig
from rapo_jax.tools.web_cache import (
  IMPORTED,
  Key,
  WebCache,
  import_answers,
  open_cache,
  plain_query,
  plain_url,
)
from rapo_jax.tools.web_search import SERPER, WebSearch
from tests.tools.web_server import reply, scripted, serving

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = Key("search", "http://x", "a query", 3)
FOUND = {"organic": [{"title": "T", "link": "L", "snippet": "S é \ud800"}]}


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
  return tmp_path / "folder" / "web.sqlite"


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("SERPER_API_KEY", "canary-key")


def test_what_is_added_is_there_for_others(path):
  first, second = WebCache(path), WebCache(path)
  assert second.get(KEY) is None
  first.add(KEY, [{"text": "é\ud800\0"}])
  assert second.get(KEY) == [{"text": "é\ud800\0"}]
  for other in ("kind", "endpoint", "query"):
    assert second.get(dataclasses.replace(KEY, **{other: "else"})) is None
  assert second.get(dataclasses.replace(KEY, top_k=4)) is None
  second.add(KEY, "new")
  assert first.get(KEY) == "new"
  assert first.counts() == {("search", "http://x"): 1}
  first.close()
  second.close()
  assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
  ("text", "plain"),
  [
    ("  two\n words\t", "two words"),
    ("e\u0301", "é"),
    ("Case Stays", "Case Stays"),
    ("nul\0", "nul"),
    ("\ud800", "?"),
  ],
)
def test_plain_queries(text, plain):
  assert plain_query(text) == plain


def test_plain_addresses():
  assert plain_url(" http://X/a?b#c ") == "http://X/a?b"


def test_threads_share_a_cache(path):
  cache = WebCache(path)
  keys = [dataclasses.replace(KEY, query=str(n)) for n in range(50)]
  with ThreadPoolExecutor(8) as threads:
    list(threads.map(lambda key: cache.add(key, key.query), keys))
    assert list(threads.map(cache.get, keys)) == [key.query for key in keys]
  cache.close()


def _add_many(path: str, first: int) -> None:
  cache = WebCache(pathlib.Path(path))
  for n in range(first, first + 50):
    cache.add(dataclasses.replace(KEY, query=str(n)), n)
  cache.close()


def test_processes_share_a_cache(path):
  context = multiprocessing.get_context("spawn")
  processes = [
    context.Process(target=_add_many, args=(str(path), first))
    for first in (0, 25, 50)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
    assert process.exitcode == 0
  cache = WebCache(path, read_only=True)
  for n in range(100):
    assert cache.get(dataclasses.replace(KEY, query=str(n))) == n
  cache.close()


def test_a_killed_process_leaves_whole_answers(path):
  code = f"""
    import dataclasses, pathlib
    from rapo_jax.tools.web_cache import Key, WebCache
    cache = WebCache(pathlib.Path({str(path)!r}))
    n = 0
    while True:
      cache.add(Key("search", "x", str(n)), "v" * 10_000)
      n += 1
      print(n, flush=True)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    encoding="utf-8",
  )
  assert process.stdout is not None
  for _ in range(20):
    done = int(process.stdout.readline())
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  cache = WebCache(path)
  kept = [cache.get(Key("search", "x", str(n))) for n in range(done)]
  assert kept == ["v" * 10_000] * done
  cache.add(KEY, "more")
  assert cache.get(KEY) == "more"
  cache.close()


def test_what_is_no_cache(tmp_path, path):
  with pytest.raises(InputError, match="does not: record it first"):
    WebCache(path, read_only=True)
  text = tmp_path / "text"
  text.write_bytes(b"This is a text and no data base of any kind. " * 100)
  for read_only in (True, False):
    with pytest.raises(
      InputError, match=r"text must be a cache .*\(DatabaseErr"
    ):
      WebCache(text, read_only=read_only)
  with pytest.raises(InputError, match="must be a cache of the web"):
    WebCache(tmp_path)


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(path, caplog):
  WebCache(path).close()
  cache = WebCache(path, read_only=True)
  cache.add(KEY, 1)
  cache.add(KEY, 1)
  cache.close()
  assert caplog.text.count("An answer of the web is not kept") == 1


@pytest.mark.parametrize(
  ("config", "message"), [({"mode": "replay"}, "must have a path")]
)
def test_configs_that_are_none(config, message):
  with pytest.raises(InputError, match=message):
    CacheConfig(**config)


def test_off_neither_reads_nor_writes(path):
  assert open_cache(CacheConfig(str(path))) is None
  assert not path.exists()


def search(url: str, config: CacheConfig) -> WebSearch:
  return WebSearch(dataclasses.replace(SERPER, url=url), cache=config, top_k=2)


def test_record_asks_once_and_replay_never(path, monkeypatch):
  record = CacheConfig(str(path), "record")
  failing = reply({}, 400)
  with serving(scripted(failing, reply(FOUND))) as server:
    tool = search(server.url, record)
    # A failure is not kept.
    assert tool.call("a query").status == "failed"
    known = tool.call("a query")
    assert known.status == "ok"
    assert tool.call(" a  query ") == known
    tool.close()
    other = search(server.url, record)
    assert other.call("a query") == known
    other.close()
    assert len(server.asked) == 2
  assert tool.numbers() == {
    "calls": 2,
    "cost": 0.0,
    "cache_hits": 1,
    "errors": 1,
  }

  def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

  monkeypatch.delenv("SERPER_API_KEY")
  monkeypatch.setattr(socket, "socket", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr(socket, "create_connection", refuse)
  replay = search(server.url, CacheConfig(str(path), "replay"))
  assert replay.call("a query") == known
  missed = replay.call("another")
  assert missed.status == "refused"
  assert missed.text == (
    "The search service is replayed from a cache, which does not hold this."
  )
  assert replay.numbers()["calls"] == 0
  replay.close()


def test_replay_does_not_change_the_file(path):
  WebCache(path).close()
  before = path.read_bytes(), path.stat().st_mtime_ns
  replay = search("http://x", CacheConfig(str(path), "replay"))
  replay.call("x")
  replay.close()
  assert (path.read_bytes(), path.stat().st_mtime_ns) == before
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_breaks_while_it_is_used(path):
  tool = search("http://x", CacheConfig(str(path), "record"))
  base = sqlite3.connect(path)
  base.execute("DROP TABLE answers")
  base.close()
  with pytest.raises(InputError, match=r"web\.sqlite must be a cache"):
    tool.call("x")
  tool.close()


ARPO = {
  "search query: Who wrote it?": "Page 1: Ann.\nPage 2: Bob.",
  "Plain one": "Page 1: x",
  "search query: Plain one": "Page 1: other",
  "empty": "",
}


def test_answers_of_arpo_are_replayed_as_they_are(tmp_path, path):
  file = tmp_path / "search_cache.json"
  file.write_text(json.dumps(ARPO), encoding="utf-8")
  cache = WebCache(path)
  assert import_answers(cache, file) == 3
  assert cache.counts() == {(IMPORTED, ""): 3}
  assert cache.find("Who", 5) == [
    (Key(IMPORTED, "", "Who wrote it?"), "Page 1: Ann.\nPage 2: Bob.")
  ]
  cache.close()
  tool = search("http://x", CacheConfig(str(path), "replay"))
  texts = [tool.call(q).text for q in ("Who  wrote it?", "Plain one", "empty")]
  tool.close()
  assert texts == [
    "Page 1: Ann.\nPage 2: Bob.",
    "Page 1: x",
    "No document was found.",
  ]


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}', '{" ": "x"}', "{"])
def test_files_that_hold_no_answers(tmp_path, path, content):
  file = tmp_path / "wrong.json"
  file.write_text(content, encoding="utf-8")
  cache = WebCache(path)
  with pytest.raises(InputError, match=r"wrong\.json must"):
    import_answers(cache, file)
  assert cache.counts() == {}
  cache.close()
