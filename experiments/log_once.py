"""What libraries warn of, once each on a terminal."""

from __future__ import annotations

import logging
import re

# A hub that is away is tried several times, with two warnings each time.
_REPEATERS = ("huggingface_hub.utils._http", "huggingface_hub.file_download")
# It has a handler of its own, beside the root logger's.
_LIBRARY = "huggingface_hub"


class OnceFilter(logging.Filter):
  """Lets a message pass once; numbers in it do not make another one."""

  def __init__(self) -> None:
    super().__init__()
    self._seen: set[str] = set()

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the record is to be shown."""
    message = re.sub(r"\d+", "#", record.getMessage())
    if message in self._seen:
      return False
    self._seen.add(message)
    return True


def show_each_once() -> None:
  """Shows each warning of a library that repeats itself once a command."""
  logging.getLogger(_LIBRARY).propagate = False
  for name in _REPEATERS:
    logger = logging.getLogger(name)
    for old in [f for f in logger.filters if isinstance(f, OnceFilter)]:
      logger.removeFilter(old)
    logger.addFilter(OnceFilter())
