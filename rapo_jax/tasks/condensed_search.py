"""Search whose documents a model condenses, as a tool of a task."""

from __future__ import annotations

import dataclasses

from rapo_jax import web_address
from rapo_jax.chat_endpoint import KEY_VARIABLE
from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.tools import SearchSpec, Services
from rapo_jax.tools import Tool
from rapo_jax.tools.condensed_search import (
  CondensedSearchTool,
  EndpointReader,
)


@dataclasses.dataclass(frozen=True)
class CondensedSearchSpec(SearchSpec):
  """Search-o1's search; see `CondensedSearchTool`.

  Attributes:
    url: of an OpenAI-compatible endpoint, up to `/v1`.
    model: its name there: in the paper, the policy itself.
    max_characters: of the documents of a search that the model reads.
    temperature: at which it writes.
    top_p: share of the probability that is sampled from.
    max_tokens: most tokens that it writes of a search.
    timeout_s: of a request, in seconds.

  Raises:
    InputError: for an address that is none, or a value out of range.
  """

  url: str = "http://127.0.0.1:8000/v1"
  model: str = "policy"
  max_characters: int = 30_000
  temperature: float = 0.7
  top_p: float = 0.8
  max_tokens: int = 1024
  timeout_s: float = 60.0

  def __post_init__(self) -> None:
    super().__post_init__()
    web_address.check_address(
      self.url, "an endpoint", f"Set {KEY_VARIABLE} in the environment."
    )
    check_numbers(self, "max_characters", "max_tokens", at_least=1)
    check_numbers(self, "temperature", at_least=0)
    check_numbers(self, "top_p", above=0, at_most=1)
    check_numbers(self, "timeout_s", above=0, unit="seconds")

  def start(self, services: Services, /) -> Tool:
    """Opens the corpus, and a client of the endpoint."""

    def open_reader() -> EndpointReader:
      return EndpointReader(
        self.url,
        self.model,
        temperature=self.temperature,
        top_p=self.top_p,
        max_tokens=self.max_tokens,
        timeout_s=self.timeout_s,
      )

    reader = services.opened(self, open_reader)
    return CondensedSearchTool(
      super().start(services), reader, self.max_characters
    )
