"""Opens a page of a small web by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.tools.base import ToolResult, ToolStatus, shorten


class OpenTool:
  """Answers a page id with the page's text.

  Attributes:
    name: "open".
    description: how to call it.
    example: a step that calls it.
  """

  name = "open"
  description = "<open> a page id </open> shows the page with that id."
  example = (
    "<think> Page p12 should say when. </think>"
    "<open> p12 </open>"
    "<result> … </result>"
  )
  batched = True
  idempotent = True

  def __init__(self, pages: Mapping[str, str]):
    """Creates the tool over `pages`, from id to text."""
    self._pages = pages

  def call(self, argument: str) -> ToolResult:
    """Opens one page; white space around its id does not count."""
    page_id = argument.strip()
    if not page_id:
      return ToolResult("The page id is empty.", ToolStatus.ERROR)
    page = self._pages.get(page_id)
    if page is None:
      return ToolResult(
        f"There is no page {shorten(page_id)!r}.", ToolStatus.ERROR
      )
    return ToolResult(page, ToolStatus.OK)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Opens pages, in order."""
    return [self.call(argument) for argument in arguments]
