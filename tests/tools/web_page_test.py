"""Pages of the web, from a server on this machine."""

from __future__ import annotations

import gzip
import importlib.util
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.tools import CacheConfig, WebLimits, web_fetch
from rapo_jax.tools import web_page as page_lib
from rapo_jax.tools.page_server import decoded
from rapo_jax.tools.web_page import WebPage
from tests.tools.contract_test import ARGUMENTS
from tests.tools.web_server import Asked, Reply, serving

SENTENCE = "The bridge was designed by Ann Example and opened in the year 1931."
HTML = f"""<!doctype html><html><head><title>A bridge</title>
<style>p {{ color: red }}</style></head><body><nav><a href="/x">Menu</a></nav>
<article><h1>A bridge</h1><p>{SENTENCE}</p>
<p>It crosses the river below the old town, and <a href="/ann">Ann</a> wrote of
it. Trains crossed it until the flood of 1972 took its eastern pier away.</p>
</article><script>var hidden = 1;</script></body></html>""".encode()
QUICK = WebLimits(timeout_s=10, max_retries=0)


def typed(body: bytes, kind: str = "text/html", **options) -> Reply:
  headers = (("Content-Type", kind), *options.pop("headers", ()))
  return Reply(body, headers=headers, **options)


def moved(where: str) -> Reply:
  return Reply(b"", 302, (("Location", where),))


def site(asked: Asked) -> Reply:
  """The pages of the server, by their paths."""
  bomb = gzip.compress(b" " * 50_000_000)
  pages = {
    "/bridge": typed(HTML),
    "/zipped": typed(
      gzip.compress(HTML), headers=(("Content-Encoding", "gzip"),)
    ),
    "/bomb": typed(bomb, headers=(("Content-Encoding", "gzip"),)),
    "/no-gzip": typed(HTML, headers=(("Content-Encoding", "gzip"),)),
    "/plain": typed(b"a < b & c", "text/plain; charset=utf-8"),
    "/json": typed(b'{"a": 1}', "application/json"),
    "/untyped": Reply(HTML),
    "/pdf": typed(b"%PDF-1.7 ...", "application/pdf"),
    "/false-pdf": typed(b"%PDF-1.7 ...", "text/html"),
    "/image": typed(b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
    "/binary": typed(b"\0\1\2" * 100, "text/html"),
    "/empty": typed(b""),
    "/scripts": typed(b"<html><script>x()</script></html>"),
    "/latin": typed(
      "<p>Ein Brückenbogen über dem Fluss.".encode("latin-1"),
      "text/html; charset=latin-1",
    ),
    "/false-charset": typed(HTML, "text/html; charset=klingon"),
    "/deep": typed(b"<div>" * 200_000 + b"deep inside"),
    "/garbage": typed(b"<" * 100_000 + b"&#xD800; \x1b <p>"),
    "/missing": Reply(b"gone", 404),
    "/down": Reply(b"busy", 503),
    "/moved": moved("/bridge"),
    "/loop": moved("/loop"),
    "/to-file": moved("file:///etc/passwd"),
    "/slow": typed(HTML, delay_s=3),
    "/drip": typed(HTML, drip_s=0.3),
  }
  return pages.get(asked.path, Reply(b"", 404))


@pytest.fixture(scope="module")
def server():
  with serving(site) as served:
    yield served


@pytest.fixture(scope="module")
def tool():
  opened = WebPage(allow_private=True, limits=QUICK)
  yield opened
  opened.close()


def test_it_is_a_tool(tool):
  assert isinstance(tool, tools.Tool)
  assert tools.check_tools({"open": tool}).tool_names == ("open",)


def test_main_text_and_title(server, tool):
  result = tool.call(f" <{server.url}/bridge#part> ")
  assert result.status == "ok"
  assert result.text.startswith("A bridge")
  assert SENTENCE in result.text
  for absent in ("Menu", "hidden", "color", "/ann"):
    assert absent not in result.text


def test_links_of_a_page(server):
  tool = WebPage(links=True, allow_private=True, limits=QUICK)
  assert "(/ann)" in tool.call(f"{server.url}/bridge").text
  tool.close()


@pytest.mark.parametrize(
  ("path", "text"),
  [
    ("zipped", SENTENCE),
    ("untyped", SENTENCE),
    ("moved", SENTENCE),
    ("false-charset", SENTENCE),
    ("plain", "a < b & c"),
    ("json", '{"a": 1}'),
    ("latin", "Brückenbogen über"),
  ],
)
def test_pages_that_can_be_read(server, tool, path, text):
  result = tool.call(f"{server.url}/{path}")
  assert result.status == "ok"
  assert text in result.text


@pytest.mark.parametrize(
  ("path", "status", "text"),
  [
    ("pdf", "error", "The page is no text but 'application/pdf'."),
    ("false-pdf", "error", "The page is no text but 'application/pdf'."),
    ("image", "error", "The page is no text but 'binary data'."),
    ("binary", "error", "The page is no text but 'binary data'."),
    ("empty", "error", "The page has no text."),
    ("scripts", "error", "The page has no text."),
    ("missing", "error", "The page answered with status 404."),
    ("down", "failed", "The page answered with status 503."),
    ("no-gzip", "failed", "The page did not answer."),
    ("loop", "error", "The page redirects more than 5 times."),
    ("to-file", "error", "'file:///etc/passwd' must be a URL of http"),
  ],
)
def test_pages_that_cannot(server, tool, path, status, text):
  result = tool.call(f"{server.url}/{path}")
  assert result.status == status
  assert result.text.startswith(text)


@pytest.mark.parametrize("path", ["deep", "garbage", "bomb"])
def test_hostile_pages_end_in_time_and_harm_no_other(server, tool, path):
  began = time.monotonic()
  result = tool.call(f"{server.url}/{path}")
  assert time.monotonic() - began < 30
  assert result.status in ("ok", "error")
  assert tool.call(f"{server.url}/bridge").status == "ok"


def test_a_large_page_is_read_as_far_as_it_may(server):
  limits = WebLimits(timeout_s=10, max_bytes=HTML.index(b"It crosses"))
  tool = WebPage(allow_private=True, limits=limits)
  result = tool.call(f"{server.url}/bridge")
  tool.close()
  assert SENTENCE in result.text
  assert "crosses" not in result.text


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_slow_pages(server, path):
  tool = WebPage(allow_private=True, limits=WebLimits(timeout_s=0.5))
  began = time.monotonic()
  assert tool.call(f"{server.url}/{path}").status == "late"
  assert time.monotonic() - began < 3
  tool.close()


def test_a_head_that_drips():
  with socket.create_server(("127.0.0.1", 0)) as listening:

    def drip():
      connection, _ = listening.accept()
      with connection:
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100:
          time.sleep(0.1)
          try:
            connection.sendall(bytes((byte,)))
          except OSError:
            return

    thread = threading.Thread(target=drip)
    thread.start()
    tool = WebPage(allow_private=True, limits=WebLimits(timeout_s=0.5))
    began = time.monotonic()
    result = tool.call(f"http://127.0.0.1:{listening.getsockname()[1]}/")
    assert time.monotonic() - began < 3
    tool.close()
    thread.join()
  assert result.status == "late"


def test_a_server_that_speaks_no_tls_and_one_that_is_not_there(tool, server):
  https = server.url.replace("http:", "https:")
  assert tool.call(f"{https}/bridge").status == "failed"
  assert tool.call("http://127.0.0.1:9/").status == "failed"


@pytest.mark.parametrize(
  ("address", "public"),
  [
    ("93.184.216.34", True),
    ("2606:2800:220:1:248:1893:25c8:1946", True),
    ("::ffff:93.184.216.34", True),
    *((a, False) for a in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1")),
    *((a, False) for a in ("172.16.0.1", "192.168.1.1", "169.254.169.254")),
    *((a, False) for a in ("100.100.100.200", "168.63.129.16", "224.0.0.1")),
    *((a, False) for a in ("::1", "::", "fe80::1%eth0", "fd00:ec2::254")),
    *((a, False) for a in ("::ffff:127.0.0.1", "::ffff:169.254.169.254")),
    *((a, False) for a in ("2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1")),
  ],
)
def test_public_addresses(address, public):
  assert web_fetch.is_public(address) is public


@pytest.fixture(scope="module")
def walled():
  opened = WebPage(limits=QUICK)
  yield opened
  opened.close()


@pytest.mark.parametrize(
  "host", ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "0x7f.1"]
)
def test_private_hosts_are_refused(server, walled, host):
  before = len(server.asked)
  port = server.url.rpartition(":")[2]
  result = walled.call(f"http://{host}:{port}/bridge")
  assert result.status == "error"
  assert "no host of the public web" in result.text or "no URL" in result.text
  assert len(server.asked) == before


def test_private_hosts_behind_names_and_redirects(server, walled, monkeypatch):
  port = server.url.rpartition(":")[2]
  names = {"public.example": "127.0.0.1", "evil.example": "169.254.169.254"}

  def resolved(host, port, *_, **__):
    address = (names.get(host, host), port)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

  monkeypatch.setattr(socket, "getaddrinfo", resolved)
  monkeypatch.setattr(web_fetch, "is_public", lambda a: a == "127.0.0.1")
  page = f"http://public.example:{port}"
  assert walled.call(f"{page}/bridge").status == "ok"
  assert walled.call("http://evil.example/").text == (
    "'evil.example' is no host of the public web."
  )
  targets = iter([f"http://127.0.0.2:{port}/bridge", "//evil.example/x"])

  with serving(lambda asked: moved(next(targets))) as other:
    there = f"http://public.example:{other.url.rpartition(':')[2]}/"
    for _ in range(2):
      assert "no host of the public web" in walled.call(there).text


def test_a_host_that_is_not_there(monkeypatch):
  fault = socket.EAI_NONAME

  def resolved(host, port, *_, **__):
    if host == "nowhere.example":
      raise socket.gaierror(fault, "no name")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

  monkeypatch.setattr(socket, "getaddrinfo", resolved)
  monkeypatch.setattr(web_fetch, "is_public", lambda address: True)
  tool = WebPage(limits=QUICK)
  # No name has been found yet: the network may be down.
  assert tool.call("http://nowhere.example/").status == "failed"
  assert tool.call("http://127.0.0.1:9/").status == "failed"
  assert tool.call("http://nowhere.example/").status == "failed"
  assert tool.call("http://there.example:9/").status == "failed"
  # Now it is an agent's mistake.
  assert tool.call("http://nowhere.example/").text == (
    "There is no host 'nowhere.example'."
  )
  fault = socket.EAI_AGAIN
  assert tool.call("http://nowhere.example/").status == "failed"
  tool.close()


@pytest.mark.parametrize(
  ("argument", "text"),
  [
    ("", "The URL is empty."),
    (" <> ", "The URL is empty."),
    ("ftp://x/y", "'ftp://x/y' must be a URL of http"),
    ("file:///etc/passwd", "'file:///etc/passwd' must be a URL of http"),
    ("javascript:alert(1)", "'javascript:alert(1)' must be a URL"),
    ("http://me:pw@x/", "'http://me:pw@x/' must be a URL of http"),
    ("http://", "'http://' must be a URL of http"),
    ("http://x:99999/", "'http://x:99999/' is no URL."),
    ("http://[::1/", "'http://[::1/' is no URL."),
    ("x" * 2001, "The URL has more than 2000 characters."),
  ],
)
def test_arguments_that_are_no_address(walled, argument, text):
  result = walled.call(argument)
  assert result.status == "error"
  assert result.text.startswith(text)


@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_it_returns_whatever_the_argument(walled, argument, monkeypatch):
  def nobody(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "no name")

  monkeypatch.setattr(socket, "getaddrinfo", nobody)
  assert walled.call(argument).status in ("error", "failed")


def test_cookies_are_not_kept(tool):
  with serving(
    lambda asked: typed(HTML, headers=(("Set-Cookie", "a=canary"),))
  ) as other:
    for _ in range(2):
      tool.call(f"{other.url}/")
  assert all("cookie" not in asked.headers for asked in other.asked)


def test_pages_are_recorded_and_replayed(server, tmp_path, monkeypatch):
  path = str(tmp_path / "web.sqlite")
  recording = WebPage(
    allow_private=True, limits=QUICK, cache=CacheConfig(path, "record")
  )
  known = recording.call(f"{server.url}/bridge")
  assert recording.call(f"{server.url}/bridge#part") == known
  assert recording.call(f"{server.url}/missing").status == "error"
  recording.close()
  assert recording.numbers()["cache_hits"] == 1

  def refuse(*_, **__):
    raise AssertionError("a socket was opened")

  monkeypatch.setattr(socket, "socket", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr("subprocess.Popen", refuse)
  replaying = WebPage(cache=CacheConfig(path, "replay"))
  assert replaying.call(f"{server.url}/bridge") == known
  assert replaying.call(f"{server.url}/missing").status == "refused"
  replaying.close()


def test_the_budget_counts_redirects(server):
  tool = WebPage(allow_private=True, limits=WebLimits(max_calls=3))
  assert tool.call(f"{server.url}/moved").status == "ok"
  assert tool.call(f"{server.url}/moved").status == "refused"
  tool.close()
  assert tool.numbers()["calls"] == 3


def test_pages_are_read_side_by_side(server, tool):
  with ThreadPoolExecutor(8) as threads:
    results = list(threads.map(tool.call, [f"{server.url}/bridge"] * 16))
  assert {result.status for result in results} == {"ok"}


def test_a_page_that_ends_the_process(server, monkeypatch, tmp_path):
  program = tmp_path / "server.py"
  program.write_text(
    "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\n",
    encoding="utf-8",
  )
  monkeypatch.setattr(page_lib, "_SERVER", program)
  tool = WebPage(allow_private=True, limits=QUICK)
  results = [tool.call(f"{server.url}/bridge") for _ in range(2)]
  tool.close()
  assert {r.text for r in results} == {"The page cannot be read."}


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'bm25s>="):
    WebPage()


@pytest.mark.parametrize(
  ("content", "charset", "text"),
  [
    ("é".encode(), "latin-1", "é"),
    ("é".encode("latin-1"), "latin-1", "é"),
    ("éé".encode()[:-1], "", "é"),
    ("é".encode("utf-16"), "", "é"),
    (b"\xef\xbb\xbfx", "", "x"),
    ("<meta charset='koi8-r'>Ж".encode("koi8-r"), "", "Ж"),
    (b"\xe9\xe9", "hex", "\ufffd\ufffd"),
    (b"\xe9", "no such", "\ufffd"),
  ],
)
def test_encodings(content, charset, text):
  assert decoded(content, charset).endswith(text)
