"""What the one host adds to a round that runs the loop for all.

The first host alone runs the loop between device programs, the tools, and the
queries of retrieval (docs/pods.md). Its work grows with the trajectories of a
round, and more devices do not help.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

LOOP_MS, RETRIEVAL_MS = 8.0, 32.0
"""Milliseconds a trajectory of the loop, and of embedding and searching.

Both on one core of an Intel Xeon that others used too, with steps of 16 to 112
tokens, five tool calls, and half of the trajectories hybrid. The loop: `python
-m benchmarks.host_scaling --questions 4`, 64 trajectories. Embedding: 27 ms of
a core a history, 19 of them for 16 trajectories (`benchmarks.rollout_host`,
docs/benchmarks.md). More cores make it faster, not the loop.
"""

SMALL_SHARE = 0.05
"""Share of a round that the host may take before it is worth a thought."""


@dataclasses.dataclass(frozen=True)
class HostTime:
  """The host's part of a round, by one kind of chip.

  Weak scaling: so many times the devices get so many times the trajectories.
  The devices' time of a round stays, the host's grows.

  Attributes:
    loop_s: in which the host's loop runs, and no device program.
    retrieval_s: in which the host waits for retrieval, which runs in a thread
      beside decoding: what it takes longer than that.
    small_share_devices: from how many on the host takes `SMALL_SHARE` of a
      round; None for no number.
    half_devices: from how many on it takes as long as the devices, half of a
      round; None for no number.
  """

  loop_s: float
  retrieval_s: float
  small_share_devices: int | None
  half_devices: int | None

  @property
  def seconds(self) -> float:
    """All that the host adds to a round."""
    return self.loop_s + self.retrieval_s


def host_times(
  *,
  devices: int,
  device_seconds: Mapping[str, float],
  decode_seconds: Mapping[str, float],
  trajectories: int,
  loop_ms: float = LOOP_MS,
  retrieval_ms: float = RETRIEVAL_MS,
) -> dict[str, HostTime]:
  """What the host adds to a round, and where weak scaling ends, by chip.

  Args:
    devices: that the round runs on.
    device_seconds: of their programs in a round, by chip.
    decode_seconds: of those that decode alone, by chip.
    trajectories: of the round.
    loop_ms: milliseconds of the loop for a trajectory.
    retrieval_ms: of embedding and searching for one; 0 without retrieval.
  """
  loop_s = trajectories * loop_ms / 1e3
  retrieval_s = trajectories * retrieval_ms / 1e3

  def devices_at(seconds: float, decode_s: float) -> int | None:
    """From how many on the host adds so much."""
    times = seconds / loop_s if loop_s else math.inf
    if times * retrieval_s > decode_s:
      times = (seconds + decode_s) / (loop_s + retrieval_s)
    return math.ceil(times * devices) if math.isfinite(times) else None

  def one(device_s: float, decode_s: float) -> HostTime:
    small = device_s * SMALL_SHARE / (1 - SMALL_SHARE)
    return HostTime(
      loop_s,
      max(0.0, retrieval_s - decode_s),
      devices_at(small, decode_s),
      devices_at(device_s, decode_s),
    )

  return {
    name: one(seconds, decode_seconds[name])
    for name, seconds in device_seconds.items()
  }


def weak_scaling(time: HostTime, chip: str, devices_a_host: int) -> str:
  """Up to how many devices one host can run the loop of all, in words.

  Args:
    time: of the host, by the kind of chip.
    chip: its name.
    devices_a_host: that a host drives.
  """

  def number(devices: int) -> str:
    hosts = math.ceil(devices / devices_a_host)
    return f"{devices:,} {chip} ({hosts:,} host{'s' * (hosts > 1)})"

  if time.small_share_devices is None or time.half_devices is None:
    return "One host can run the loop of any number of devices"
  return (
    "With as many more trajectories as devices, the host takes "
    f"{SMALL_SHARE:.0%} of a round at {number(time.small_share_devices)}, and "
    "as long as the devices at "
    f"{number(time.half_devices)}: there weak scaling ends"
  )
