"""How a buffer is served. Apart from `server`, which needs starlette."""

from __future__ import annotations

import dataclasses

from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval import RetrievalConfig, protocol


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  """How a buffer is served.

  Attributes:
    limits: what one request may ask for.
    defaults: what it gets where it does not say.
    retrieval: how a trace is chosen where a request wants one chosen.
    max_batch: queries that are embedded and searched at once; a request with
      more is a batch of its own.
    max_wait_s: for how long an idle server waits for more requests to batch.
    max_queue: queries that may wait or be under way. A single request is
      always let in where nothing waits.
    timeout_s: in which a request is read, searched and answered. Search-R1
      waits for ever, RAPO's authors for 30 s and then ask again.
  """

  limits: protocol.Limits = protocol.Limits()
  defaults: protocol.Defaults = protocol.Defaults()
  retrieval: RetrievalConfig = RetrievalConfig()
  max_batch: int = 64
  max_wait_s: float = 0.005
  max_queue: int = 16_384
  timeout_s: float = 120.0

  def __post_init__(self) -> None:
    if not 1 <= self.defaults.topk <= self.limits.max_topk:
      raise ValueError(
        f"The topk of a request that gives none must lie between 1 and max_topk"
        f" ({self.limits.max_topk}), got {self.defaults.topk}."
      )
    check_numbers(self, "max_batch", "max_queue", at_least=1)
    check_numbers(self, "max_wait_s", at_least=0, unit="seconds")
    check_numbers(self, "timeout_s", above=0, unit="seconds")
