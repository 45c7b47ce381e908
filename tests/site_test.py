"""The documentation site: it builds without a warning, and no link is broken.

A page may ask no other machine for anything, so that it can be read without a
network and tells nobody what is read.
"""

import functools
import html.parser
import http.server
import os
import pathlib
import re
import runpy
import subprocess
import sys
import threading
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Attributes that make a browser load something at once.
LOADING = ("src", "srcset", "data", "poster")


class Page(html.parser.HTMLParser):
  """What one page links to, loads and can be linked at."""

  def __init__(self, text: str):
    super().__init__()
    self.anchors: set[str] = set()
    self.links: list[str] = []
    self.loaded: list[str] = []
    self.prose: list[str] = []
    self._code = 0
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    given = {name: value for name, value in attributes if value}
    self._code += tag in ("code", "pre", "script", "style")
    if "id" in given:
      self.anchors.add(given["id"])
    if tag == "a" and "href" in given:
      self.links.append(given["href"])
    if tag == "link" and "href" in given:
      self.loaded.append(given["href"])
    self.loaded += [given[name] for name in LOADING if name in given]

  def handle_endtag(self, tag):
    self._code -= tag in ("code", "pre", "script", "style")

  def handle_data(self, data):
    if not self._code:
      self.prose.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
  """The site, built with every warning as an error."""
  folder = tmp_path_factory.mktemp("site")
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
    cwd=ROOT,
    env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    capture_output=True,
    encoding="utf-8",
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[pathlib.Path, Page]:
  """All pages but that of a wrong address, whose links begin at the root."""
  return {
    path: Page(path.read_text(encoding="utf-8"))
    for path in site.rglob("*.html")
    if path.name != "404.html"
  }


def wrong_target(
  pages: dict[pathlib.Path, Page], path: pathlib.Path, address: str
) -> bool:
  """Whether a page's link leads to a file or an anchor that is not there."""
  parts = urllib.parse.urlsplit(address)
  target = path
  if parts.path:
    target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
  anchor = urllib.parse.unquote(parts.fragment)
  if not target.is_file():
    return True
  return bool(anchor) and (
    target in pages and anchor not in {"__skip", *pages[target].anchors}
  )


def is_elsewhere(address: str) -> bool:
  parts = urllib.parse.urlsplit(address)
  return bool(parts.netloc) or parts.scheme not in ("", "data")


def test_no_link_is_broken(site, pages):
  assert len(pages) > 40
  broken = [
    f"{path.relative_to(site)}: {address}"
    for path, page in pages.items()
    for address in page.links + page.loaded
    if not is_elsewhere(address)
    and not address.startswith("data:")
    and wrong_target(pages, path, address)
  ]
  assert not broken


def test_nothing_is_loaded_from_elsewhere(site, pages):
  loaded = [
    f"{path.relative_to(site)}: {address}"
    for path, page in pages.items()
    for address in page.loaded
    if is_elsewhere(address)
  ]
  for path in site.rglob("*.css"):
    named = re.findall(
      r"url\(\s*[\"']?([^\"')]+)", path.read_text(encoding="utf-8")
    )
    loaded += [f"{path.name}: {name}" for name in filter(is_elsewhere, named)]
  assert not loaded


def test_all_markdown_was_understood(site, pages):
  """GitHub nests lists and code by fewer spaces than Python-Markdown."""
  left = re.compile(r"```|^\s*\|.*\|\s*$|^ *[-*] |\]\(", re.MULTILINE)
  assert not [
    f"{path.relative_to(site)}: {found[0]!r}"
    for path, page in pages.items()
    if (found := left.search("".join(page.prose)))
  ]


def test_every_package_has_a_page_of_its_own():
  named = runpy.run_path(str(ROOT / "scripts" / "docs_pages.py"))["API"]
  packages = {
    f"rapo_jax.{path.parent.name}"
    for path in (ROOT / "rapo_jax").glob("*/__init__.py")
  }
  assert packages <= set(named)


@pytest.fixture
def address(site):
  """Where a server on this machine shows the site."""
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=str(site)
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.slow
def test_a_browser_asks_no_other_machine(address):
  sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="playwright is not installed: pip install -e '.[browser]'",
  )
  from tests.experiments.viewer.browser_test import CHROMIUM, PHONE

  if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium")
  asked, wrong = [], []
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    page = browser.new_page(viewport=PHONE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name in ("index", "own_tool", "reference/rapo_jax.objectives"):
      page.goto(f"{address}/{name}.html", wait_until="networkidle")
      inside = "document.documentElement.scrollWidth <= innerWidth"
      assert page.evaluate(inside), f"{name} is wider than a phone"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.fill(".md-search__input", "retrieval_coef")
    page.wait_for_selector(".md-search-result__item")
    browser.close()
  assert not wrong
  elsewhere = (address, "data:", "blob:")
  assert not [url for url in asked if not url.startswith(elsewhere)]
