"""What the hosts add to a round, between the programs of their devices.

Each host runs the loop of its own slots, with tools and retrieval. Between two
rollouts one of them scores and packs the trajectories of all (docs/pods.md). Of
more hosts each has a smaller part of a round's trajectories; that one host has
not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from experiments.planner import chips

LOOP_MS, RETRIEVAL_MS = 6.5, 32.0
"""Milliseconds a trajectory of the loop, and of embedding and searching.

Both on one core of an Intel Xeon, with steps of 16 to 112 tokens, five tool
calls, and half of the trajectories hybrid. The loop: 6.0 to 6.8 over three
turns of 64 trajectories, `python -m benchmarks.host_scaling --questions 4`.
Embedding: 27 ms of a core a history, 19 of them for 16 trajectories
(`benchmarks.rollout_host`, docs/benchmarks.md). More cores make it faster, not
the loop.
"""

LEADER_MS = 2.0
"""Milliseconds a trajectory in which one host scores, packs and sends it.

1.95 for 2,793 tokens in those of SmolLM2, with the recipe's reward, beside
another program: `python -m benchmarks.score_and_pack`. Decoding the text takes
most of it.
"""

SMALL_SHARE = 0.05
"""Share of a round up to which what one host does for all is taken as small."""


@dataclasses.dataclass(frozen=True)
class HostTime:
  """The hosts' part of a round, by one kind of chip.

  Weak scaling: so many times the devices get so many times the trajectories.
  The time of the devices and of each host's loop stays; that of the host that
  scores and packs for all grows.

  Attributes:
    loop_s: in which a host's loop runs, and no device program.
    retrieval_s: in which it waits for retrieval, which runs in a thread beside
      decoding: what it takes longer than that.
    leader_s: in which one host scores and packs, and the devices wait.
    small_share_devices: from how many on that takes `SMALL_SHARE` of a round;
      None for no number.
    half_devices: from how many on it takes as long as all else; None for no
      number.
  """

  loop_s: float
  retrieval_s: float
  leader_s: float
  small_share_devices: int | None
  half_devices: int | None

  @property
  def seconds(self) -> float:
    """All that the hosts add to a round."""
    return self.loop_s + self.retrieval_s + self.leader_s


def host_times(
  *,
  devices: int,
  device_seconds: Mapping[str, float],
  decode_seconds: Mapping[str, float],
  trajectories: int,
  loop_ms: float = LOOP_MS,
  retrieval_ms: float = RETRIEVAL_MS,
  leader_ms: float = LEADER_MS,
) -> dict[str, HostTime]:
  """What the hosts add to a round, and where weak scaling ends, by chip.

  Args:
    devices: that the round runs on.
    device_seconds: of their programs in a round, by chip.
    decode_seconds: of those that decode alone, by chip.
    trajectories: of the round.
    loop_ms: milliseconds of the loop for a trajectory.
    retrieval_ms: of embedding and searching for one; 0 without retrieval.
    leader_ms: of scoring and packing one.
  """
  leader_s = trajectories * leader_ms / 1e3

  def devices_at(limit_s: float) -> int | None:
    """From how many on that host takes so long."""
    return math.ceil(devices * limit_s / leader_s) if leader_s else None

  def one(chip: str, device_s: float, decode_s: float) -> HostTime:
    hosts = math.ceil(devices / chips.CHIPS[chip].host)
    # Those of the host that has most.
    own_s = math.ceil(trajectories / hosts) / 1e3
    loop_s = own_s * loop_ms
    retrieval_s = max(0.0, own_s * retrieval_ms - decode_s)
    others_s = device_s + loop_s + retrieval_s
    return HostTime(
      loop_s=loop_s,
      retrieval_s=retrieval_s,
      leader_s=leader_s,
      small_share_devices=devices_at(
        others_s * SMALL_SHARE / (1 - SMALL_SHARE)
      ),
      half_devices=devices_at(others_s),
    )

  return {
    name: one(name, seconds, decode_seconds[name])
    for name, seconds in device_seconds.items()
  }


def weak_scaling(time: HostTime, chip: str) -> str:
  """Up to how many devices one host can score and pack for all, in words.

  Args:
    time: of the hosts, by the kind of chip.
    chip: its name.
  """

  def number(devices: int) -> str:
    hosts = math.ceil(devices / chips.CHIPS[chip].host)
    return f"{devices:,} {chip} ({hosts:,} host{'s' * (hosts > 1)})"

  if time.small_share_devices is None or time.half_devices is None:
    return "What one host does for all takes no time."
  return (
    "With as many more trajectories as devices, host 0 takes "
    f"{SMALL_SHARE:.0%} of a round to score and pack them at "
    f"{number(time.small_share_devices)}, and as long as all else at "
    f"{number(time.half_devices)}: there weak scaling ends."
  )
