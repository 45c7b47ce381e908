"""How a buffer is served. Apart from `server`, which needs starlette."""

from __future__ import annotations

import dataclasses

from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.retrieval.serving import protocol


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  """How a buffer is served.

  Attributes:
    limits: what one request may ask for.
    defaults: what it gets where it does not say.
    retrieval: how a trace is chosen where a request wants one chosen.
    max_batch: queries that are embedded and searched at once. Clients take
      turns, by parts of a quarter of a batch.
    max_batch_s: longest time of a batch, estimated from earlier ones; later
      requests wait no longer. A single part may take more.
    max_wait_s: for how long an idle server waits for more requests to batch.
    max_queue: queries that may wait or be under way. A single request is
      always let in where nothing waits.
    timeout_s: in which a request is read, searched and answered. After it an
      answer that its client leaves unread is dropped. Search-R1 waits for ever,
      RAPO's authors for 30 s and then ask again.
    header_timeout_s: in which the head of a request has to come.
    max_connections: open at a time. One more closes one that waits for nothing,
      or is refused where all wait for answers.
  """

  limits: protocol.Limits = protocol.Limits()
  defaults: protocol.Defaults = protocol.Defaults()
  retrieval: RetrievalConfig = RetrievalConfig()
  max_batch: int = 64
  max_batch_s: float = 0.5
  max_wait_s: float = 0.005
  max_queue: int = 16_384
  timeout_s: float = 120.0
  header_timeout_s: float = 10.0
  max_connections: int = 1024

  @property
  def part_queries(self) -> int:
    """Queries of one client in a row."""
    return max(1, self.max_batch // 4)

  def __post_init__(self) -> None:
    if not 1 <= self.defaults.topk <= self.limits.max_topk:
      raise InputError(
        f"The topk of a request that gives none must lie between 1 and max_topk"
        f" ({self.limits.max_topk}), got {self.defaults.topk}."
      )
    check_numbers(self, "max_batch", "max_queue", "max_connections", at_least=1)
    check_numbers(self, "max_wait_s", at_least=0, unit="seconds")
    check_numbers(
      self,
      "timeout_s",
      "header_timeout_s",
      "max_batch_s",
      above=0,
      unit="seconds",
    )
