"""Finds the main text of web pages: a program, one line in, one line out.

It runs in a process of its own. A page may take any time and memory to read, or
crash the parser: who asks ends the process instead. It imports nothing of this
project, so that it starts within a second.
"""

from __future__ import annotations

import base64
import codecs
import json
import logging
import re
import resource
import sys
from typing import Any

_MEMORY_BYTES = 2 * 2**30
# How a page says its encoding, within its first bytes.
_CHARSET = re.compile(
  rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{1,40})", re.I
)
_HEAD_BYTES = 4096
_BLANK_LINES = re.compile(r"\n\s*\n\s*")
_MARKS = (
  (codecs.BOM_UTF8, "utf-8"),
  (codecs.BOM_UTF32_LE, "utf-32-le"),
  (codecs.BOM_UTF16_LE, "utf-16-le"),
  (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(content: bytes, charset: str) -> str:
  """The text of a page, whatever it says of its encoding.

  Args:
    content: the page, which may be cut within a character.
    charset: that the server names; "" for none.
  """
  for mark, name in _MARKS:
    if content.startswith(mark):
      return content[len(mark) :].decode(name, "replace")
  try:
    # What can be read as UTF-8 is UTF-8.
    return content.decode("utf-8")
  except UnicodeDecodeError as error:
    before = content[: error.start]
    # Its last character is cut.
    if error.start >= len(content) - 3 and not before.isascii():
      return before.decode("utf-8")
  found = _CHARSET.search(content[:_HEAD_BYTES])
  named = found[1].decode("ascii", "replace") if found else ""
  for name in (charset, named, "utf-8"):
    try:
      return content.decode(name, "replace")
    except (LookupError, ValueError):
      # No encoding, or one of bytes such as hex.
      continue
  return content.decode("latin-1")


def main_text(page: str, *, links: bool) -> tuple[str, str]:
  """Title and main text of a page; empty where there is none."""
  import trafilatura

  tree = trafilatura.load_html(page)
  if tree is None:
    # It refuses a part of a page.
    page = f"<html><body>{page}</body></html>"
    tree = trafilatura.load_html(page)
  if tree is None:
    return "", ""
  titles = [" ".join(one.text_content().split()) for one in tree.iter("title")]
  text = trafilatura.extract(
    tree,
    include_comments=False,
    include_links=links,
    # The best sentences are lost where precision is favoured.
    favor_recall=True,
  )
  if not (text or "").strip():
    text = _BLANK_LINES.sub("\n\n", trafilatura.html2txt(page))
  return (titles or [""])[0], (text or "").strip()


def answer(question: dict[str, Any]) -> dict[str, str]:
  """Title and text of a page."""
  content = base64.b64decode(question["content"])
  page = decoded(content, question["charset"])
  if not question["html"]:
    return {"title": "", "text": page.strip()}
  title, text = main_text(page, links=question["links"])
  return {"title": title, "text": text}


def main() -> None:
  """Answers each line, a JSON object, by another or by null."""
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
  logging.disable(logging.CRITICAL)
  # What a library prints must not be read as an answer.
  replies, sys.stdout = sys.stdout, sys.stderr
  main_text("<p>ready</p>", links=False)
  replies.write("ready\n")
  replies.flush()
  for line in sys.stdin:
    try:
      found = answer(json.loads(line))
    except (Exception, RecursionError):
      # What cannot be read as a page has no text.
      found = None
    replies.write(f"{json.dumps(found)}\n")
    replies.flush()


if __name__ == "__main__":
  main()
