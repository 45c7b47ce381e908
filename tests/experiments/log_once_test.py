"""A library that repeats itself is heard once."""

import io
import logging

from experiments import log_once


def test_a_hub_that_is_away_is_told_once_a_command():
  logger = logging.getLogger("huggingface_hub.utils._http")
  for _ in range(2):  # A second command hears it again.
    log_once.show_each_once()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    for attempt in range(1, 6):
      logger.warning("Name or service not known")
      logger.warning(f"Retrying in {2**attempt}s [Retry {attempt}/5].")
    logger.warning("something else")
    logger.removeHandler(handler)
    assert stream.getvalue().splitlines() == [
      "Name or service not known",
      "Retrying in 2s [Retry 1/5].",
      "something else",
    ]
