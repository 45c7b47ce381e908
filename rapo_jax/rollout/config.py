"""Settings of the rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_number, check_numbers


@hosts.travels
@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How trajectories are generated. All budgets count tokens.

  `top_k`, `top_p` and `min_p` filter, in this order, what may be drawn. They do
  not enter log-probabilities, entropies or ratios. Those are of the full
  measure, softmax of the logits over the temperature, in the sampler as in the
  trainer. So with a filter the policy that samples is not the one that is
  trained. No ratio corrects that: it starts at 1, where the filtered
  distribution gives each token 1 / (what is kept) of its probability. Even at
  advantage 1 throughout, an update then pushes probability into what the filter
  keeps, and entropy falls; a cut token is never tried. Train without filters
  unless that is wanted.

  Attributes:
    num_generations: rollouts of a query, G.
    num_hybrid: how many of them may retrieve, N_hybrid.
    retrieval_prob: probability that a hybrid rollout retrieves at a step
      boundary, its first step excepted.
    temperature: of sampling; > 0.
    top_k: draw from so many of the likeliest tokens; 0 for all.
    top_p: draw from the smallest set of tokens whose probability is at least p,
      of what `top_k` left, in (0, 1]; 1 for all.
    min_p: draw from tokens that are at least this many times as likely as the
      likeliest token, in [0, 1]; 0 for all. Of two tokens that are equally
      likely, no filter drops only one.
    dtype: of the weights and the KV cache that are sampled with. Training has
      to compute in the same, or log-probs differ.
    num_slots: sequences that decode side by side.
    prefill_rows: distinct prompts prefilled at a time.
    max_prompt_tokens: longer prompts are refused before the rollout.
    max_response_tokens: policy, observation and retrieved tokens together.
    max_step_tokens: policy tokens of one step.
    max_tool_tokens: observation tokens of one call, tags included; a longer
      result is cut.
    max_tool_calls: tool calls of one trajectory; the next one ends it.
    max_malformed_calls: calls in a row that could not be parsed; the last of
      them ends the trajectory. Until then the agent reads what was wrong. 4
      by default: three explanations have been read in vain by then.
    decode_chunk: tokens sampled between two looks by the host. A slot that
      stops, and an answer that comes, wait for the next look.
    insert_chunk: positions of one sequence that run through the model at a
      time. Prompts, observations and retrieved steps are cached in such chunks.
    insert_rows: sequences whose observations and retrieved steps are cached at
      a time. On a mesh that the slots are cut over, it counts for each slice.
      The other sequences do not run through the model. It is static; changing
      it changes rounding.
    tool_threads: calls of one tool under way at once, where neither the tool
      (`max_concurrency`) nor `tool_limits` says otherwise. No tool waits for
      the threads of another.
    tool_limits: the same for single tools, as (name, calls); goes before what
      the tool says.
    tool_timeout_s: deadline of one tool call, in seconds, where neither the
      tool (`timeout_s`) nor `tool_timeouts_s` says otherwise. Waiting for a
      thread does not count, retries do.
    tool_timeouts_s: the same for single tools, as (name, seconds); goes before
      what the tool says.
    tool_retries: times that a call is made again after its tool failed, within
      the call's deadline. A call that ran too long is not repeated, nor is an
      `error`, which is the agent's. Only for tools that are `idempotent` and do
      not have their own `retries`.
    tool_backoff_s: pause before the first of them; doubled for each further.
    max_hung_calls: threads of one tool that may hang in calls past their
      deadline. A thread cannot be ended from outside, so each is replaced by
      a new one; at this number further calls of the tool are refused until
      one comes back.
    gather_s: how long slots that could go on are held back, so that they go on
      together. They are held back only where as many or more wait for tools or
      retrieval. A program takes as long for one slot as for all.
    trajectory_timeout_s: a trajectory that waits for a tool longer than this
      after its admission ends as `timeout`.
  """

  num_generations: int = 16
  num_hybrid: int = 8
  retrieval_prob: float = 0.5
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  num_slots: int = 128
  prefill_rows: int = 8
  max_prompt_tokens: int = 1536
  max_response_tokens: int = 4096
  max_step_tokens: int = 1024
  max_tool_tokens: int = 1024
  max_tool_calls: int = 5
  max_malformed_calls: int = 4
  decode_chunk: int = 8
  insert_chunk: int = 32
  insert_rows: int = 8
  tool_threads: int = 32
  tool_limits: tuple[tuple[str, int], ...] = ()
  tool_timeout_s: float = 30.0
  tool_timeouts_s: tuple[tuple[str, float], ...] = ()
  tool_retries: int = 2
  tool_backoff_s: float = 0.1
  max_hung_calls: int = 32
  gather_s: float = 0.05
  trajectory_timeout_s: float = 600.0

  @property
  def max_steps(self) -> int:
    """Most steps of a trajectory: one that calls and one that is retrieved for
    every tool call, and the last."""
    return 2 * self.max_tool_calls + 1

  def __post_init__(self) -> None:
    check_numbers(
      self,
      "num_generations",
      "num_slots",
      "prefill_rows",
      "max_prompt_tokens",
      "max_response_tokens",
      "max_step_tokens",
      "max_tool_tokens",
      "decode_chunk",
      "insert_chunk",
      "insert_rows",
      "tool_threads",
      "max_malformed_calls",
      "max_hung_calls",
      at_least=1,
    )
    check_numbers(self, "max_tool_calls", "tool_retries", at_least=0)
    check_numbers(
      self, "tool_backoff_s", "gather_s", at_least=0, unit="seconds"
    )
    check_numbers(
      self, "tool_timeout_s", "trajectory_timeout_s", above=0, unit="seconds"
    )
    check_numbers(self, "retrieval_prob", at_least=0, at_most=1)
    check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
    if not 0 <= self.num_hybrid <= self.num_generations:
      raise InputError(
        "num_hybrid must lie between 0 and num_generations "
        f"({self.num_generations}), got {self.num_hybrid}: lower num_hybrid or "
        "raise num_generations."
      )
    _check_by_tool("tool_limits", self.tool_limits, at_least=1)
    _check_by_tool("tool_timeouts_s", self.tool_timeouts_s, above=0)


def check_sampling(
  temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
  """Checks how tokens are to be drawn; the arguments are those of the config.

  Raises:
    InputError: one is out of its range.
  """
  if temperature == 0:
    raise InputError(
      "temperature must be > 0, got 0: ask for greedy decoding where the "
      "rollout is started instead."
    )
  check_number("temperature", temperature, above=0)
  check_number("top_k", top_k, at_least=0)
  check_number("top_p", top_p, above=0, at_most=1)
  check_number("min_p", min_p, at_least=0, at_most=1)


def check_tool_settings(config: RolloutConfig, tools: Collection[str]) -> None:
  """Checks that settings of single tools name tools that there are.

  Args:
    config: of the rollout.
    tools: names of the agent's tools.

  Raises:
    InputError: `tool_limits` or `tool_timeouts_s` names another tool.
  """
  for name in ("tool_limits", "tool_timeouts_s"):
    named = dict(getattr(config, name))
    unknown = [tool for tool in named if tool not in tools]
    if unknown:
      raise InputError(
        f"{name} may name tools of the agent ({', '.join(tools) or 'none'}), "
        f"got {', '.join(unknown)}: correct the names."
      )


def _check_by_tool(
  name: str,
  values: tuple[tuple[str, int], ...] | tuple[tuple[str, float], ...],
  *,
  at_least: float | None = None,
  above: float | None = None,
) -> None:
  tools = [tool for tool, _ in values]
  if len(set(tools)) < len(tools):
    raise InputError(
      f"{name} may name each tool once, got {', '.join(tools)}: correct the "
      "names."
    )
  for tool, value in values:
    check_number(name, value, at_least=at_least, above=above, of=tool)
