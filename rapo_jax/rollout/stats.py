"""Where the time and the tokens of a rollout went."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rapo_jax import hosts
from rapo_jax.rollout.tool_runner import ToolStats

_Number = TypeVar("_Number", int, float)


@hosts.travels
@dataclasses.dataclass
class RolloutStats:
  """Where the time and the tokens of a rollout went.

  Attributes:
    seconds: wall time of the whole rollout.
    decode_seconds: time in which the device sampled.
    cache_seconds: time in which it prefilled and inserted.
    tool_seconds: time in which the host waited for tools.
    retrieval_seconds: time in which it waited between steps, for retrieval
      alone.
    retrieval_busy_seconds: time in which a thread embedded and searched.
    hosts_seconds: time in which it waited for the loops of other hosts.
    sampled_tokens: written by the policy.
    decode_positions: slots times the tokens that the longest of them gained,
      over all chunks.
    cached_tokens: prompt, observation and retrieved tokens that were cached.
    cache_positions: computed for them, padding included.
    forks: trajectories that began as copies of others.
    shared_tokens: tokens behind the prompt that they were given by copies, and
      nothing ran through the model for.
    twins: trajectories that were sampled once more without a retrieved step.
    twin_tokens: written by the policy in them; part of `sampled_tokens`.
    twin_seconds: time in which the device sampled them, by their share of the
      tokens of each chunk; part of `decode_seconds`.
    tools: what became of the calls of each tool, by name.
  """

  seconds: float = 0.0
  decode_seconds: float = 0.0
  cache_seconds: float = 0.0
  tool_seconds: float = 0.0
  retrieval_seconds: float = 0.0
  retrieval_busy_seconds: float = 0.0
  hosts_seconds: float = 0.0
  sampled_tokens: int = 0
  decode_positions: int = 0
  cached_tokens: int = 0
  cache_positions: int = 0
  forks: int = 0
  shared_tokens: int = 0
  twins: int = 0
  twin_tokens: int = 0
  twin_seconds: float = 0.0
  tools: dict[str, ToolStats] = dataclasses.field(default_factory=dict)

  @classmethod
  def in_turn(cls, stats: Sequence[RolloutStats]) -> RolloutStats:
    """Of several rollouts, one after another."""
    if len(stats) == 1:
      return stats[0]
    total = cls(**{name: sum(own) for name, own in _by_field(stats).items()})
    total.tools = {
      name: dataclasses.replace(
        _joined(calls),
        hung=max(c.hung for c in calls),
        # They count on from rollout to rollout.
        own=calls[-1].own,
      )
      for name, calls in _by_tool(stats).items()
    }
    return total

  @classmethod
  def side_by_side(cls, stats: Sequence[RolloutStats]) -> RolloutStats:
    """Of the hosts of one rollout: times are means over them."""
    total = cls(
      **{
        name: sum(own) / len(own) if name.endswith("seconds") else sum(own)
        for name, own in _by_field(stats).items()
      }
    )
    total.tools = {n: _joined(c) for n, c in _by_tool(stats).items()}
    return total

  def numbers(self) -> dict[str, float]:
    """Times, speed and shares by name.

    `device_idle_fraction` is the share of the time in which no device program
    ran, `host_seconds` the part of it without waiting. `slot_occupancy` is the
    share of decoded positions that gained a token. `padding_fraction` is the
    share of cached positions that were padding.
    """
    device = self.decode_seconds + self.cache_seconds
    waiting = self.tool_seconds + self.retrieval_seconds + self.hosts_seconds
    seconds = max(self.seconds, 1e-9)
    return {
      "seconds": self.seconds,
      "decode_seconds": self.decode_seconds,
      "cache_seconds": self.cache_seconds,
      "tool_seconds": self.tool_seconds,
      "retrieval_seconds": self.retrieval_seconds,
      "retrieval_busy_seconds": self.retrieval_busy_seconds,
      "hosts_seconds": self.hosts_seconds,
      "host_seconds": self.seconds - device - waiting,
      "forks": self.forks,
      "shared_tokens": self.shared_tokens,
      "tokens_per_second": self.sampled_tokens / seconds,
      "device_idle_fraction": 1 - device / seconds,
      "slot_occupancy": self.sampled_tokens / max(self.decode_positions, 1),
      "padding_fraction": 1 - self.cached_tokens / max(self.cache_positions, 1),
    }

  def tool_numbers(self) -> dict[str, float]:
    """Counts and times of each tool, as `tools/<tool>/<figure>`."""
    return {
      f"tools/{tool}/{name}": value
      for tool, stats in self.tools.items()
      for name, value in stats.numbers().items()
    }


def _by_field(stats: Sequence[RolloutStats]) -> dict[str, list[Any]]:
  names = [f.name for f in dataclasses.fields(RolloutStats)]
  return {n: [getattr(s, n) for s in stats] for n in names if n != "tools"}


def _by_tool(stats: Sequence[RolloutStats]) -> dict[str, list[ToolStats]]:
  names = {name: None for s in stats for name in s.tools}
  return {n: [s.tools[n] for s in stats if n in s.tools] for n in names}


def _joined(calls: Sequence[ToolStats]) -> ToolStats:
  """Of a tool that several hosts have, what became of all of its calls."""
  return ToolStats(
    counts=sums([c.counts for c in calls]),
    seconds=[x for c in calls for x in c.seconds],
    waited_seconds=[x for c in calls for x in c.waited_seconds],
    retries=sum(c.retries for c in calls),
    hung=sum(c.hung for c in calls),
    own=sums([c.own for c in calls]),
  )


def sums(numbers: Sequence[Mapping[str, _Number]]) -> dict[str, _Number]:
  """The sum of each number by name; one that is missing counts as 0."""
  found: dict[str, _Number] = {}
  for own in numbers:
    for name, value in own.items():
      found[name] = found[name] + value if name in found else value
  return found
