"""What one host adds to a round, which runs the loop of all hosts.

The first host alone runs the loop between device programs, the tools, and the
queries of retrieval (docs/pods.md). Its work grows with the trajectories of a
round. More devices do not shorten it.
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
"""Share of a round up to which the loop is taken to be small."""


@dataclasses.dataclass(frozen=True)
class HostTime:
  """The host's part of a round, by one kind of chip.

  Weak scaling: so many times the devices get so many times the trajectories.
  The devices' time of a round stays, the host's grows.

  Attributes:
    loop_s: in which the host's loop runs, and no device program.
    retrieval_s: in which the host waits for retrieval, which runs in a thread
      beside decoding: what it takes longer than that.
    small_share_devices: from how many on the loop takes `SMALL_SHARE` of the
      devices' and its own time; None for no number.
    half_devices: from how many on it takes as long as they; None for no number.
    retrieval_devices: from how many on retrieval takes as long as decoding;
      None for no number.
  """

  loop_s: float
  retrieval_s: float
  small_share_devices: int | None
  half_devices: int | None
  retrieval_devices: int | None

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

  def devices_at(limit_s: float, seconds: float) -> int | None:
    """From how many on what now takes `seconds` takes `limit_s`."""
    return math.ceil(devices * limit_s / seconds) if seconds else None

  def one(device_s: float, decode_s: float) -> HostTime:
    small_s = device_s * SMALL_SHARE / (1 - SMALL_SHARE)
    return HostTime(
      loop_s=loop_s,
      retrieval_s=max(0.0, retrieval_s - decode_s),
      small_share_devices=devices_at(small_s, loop_s),
      half_devices=devices_at(device_s, loop_s),
      retrieval_devices=devices_at(decode_s, retrieval_s),
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

  said = "One host can run the loop of any number of devices."
  if time.small_share_devices is not None and time.half_devices is not None:
    said = (
      "With as many more trajectories as devices, the host loop takes "
      f"{SMALL_SHARE:.0%} of a round at {number(time.small_share_devices)}, "
      f"and as long as the devices at {number(time.half_devices)}: there weak "
      "scaling ends."
    )
  if time.retrieval_devices is not None:
    said += (
      " Retrieval takes as long as decoding at "
      f"{number(time.retrieval_devices)}."
    )
  return said
