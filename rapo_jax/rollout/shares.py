"""Which host runs the loop of which slots, and of which trajectories.

A mesh cuts the slots into parts, by the rows of its grid. A part has devices of
one host or, where heads are cut over several, of more. One of these runs the
loop of its slots.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax

from rapo_jax import hosts
from rapo_jax.data import Query
from rapo_jax.models import sharding
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.rollout.requests import RolloutRequest
from rapo_jax.tools import ToolStatus
from rapo_jax.trajectory import (
  Candidate,
  FinishReason,
  RetrievalEvent,
  Source,
  TokenKind,
  ToolEvent,
  Trajectory,
)

# Requests go to the hosts that are to answer them, and trajectories come back.
for _cls in (
  *(Query, RolloutRequest),
  *(Trajectory, ToolEvent, RetrievalEvent, Candidate),
  *(FinishReason, Source, TokenKind, ToolStatus),
):
  hosts.travels(_cls)


def of_all_hosts(config: RolloutConfig, count: int) -> RolloutConfig:
  """Shapes of the device programs of several hosts: as many prompts for each.

  Args:
    config: of the rollout.
    count: number of hosts.
  """
  rows = -(-config.prefill_rows // count) * count
  return dataclasses.replace(config, prefill_rows=rows)


@dataclasses.dataclass(frozen=True)
class Shares:
  """The parts of the slots of each host, as one of them sees it.

  Attributes:
    owners: host of each part, in the order of the parts.
    count: number of hosts.
    host: this one.
  """

  owners: tuple[int, ...]
  count: int
  host: int

  @classmethod
  def of(cls, mesh: jax.sharding.Mesh) -> Shares:
    """Shares the parts of a mesh evenly among hosts that have their devices."""
    parts = mesh.devices.reshape(sharding.row_parts(mesh), -1)
    load: collections.Counter[int] = collections.Counter()
    owners = []
    for devices in parts:
      there = sorted({device.process_index for device in devices})
      owners.append(min(there, key=lambda host: (load[host], host)))
      load[owners[-1]] += 1
    return cls(tuple(owners), jax.process_count(), jax.process_index())

  def parts(self, host: int) -> tuple[int, ...]:
    """Parts of a host, in order."""
    return tuple(p for p, owner in enumerate(self.owners) if owner == host)

  @functools.cached_property
  def own(self) -> tuple[int, ...]:
    """Parts of this host, in order."""
    return self.parts(self.host)

  @functools.cached_property
  def most(self) -> int:
    """Parts of the host that has most."""
    return max(len(self.parts(host)) for host in range(self.count))

  @functools.cached_property
  def places(self) -> tuple[int, ...]:
    """Where each part stands, if all hosts list `most` parts one by one."""
    return tuple(
      owner * self.most + self.parts(owner).index(part)
      for part, owner in enumerate(self.owners)
    )

  def of_one(self, config: RolloutConfig) -> RolloutConfig:
    """Shapes of this host's loop, which has a part of the slots at least."""
    part_slots = config.num_slots // len(self.owners)
    rows = of_all_hosts(config, self.count).prefill_rows
    return dataclasses.replace(
      config,
      num_slots=part_slots * max(len(self.own), 1),
      prefill_rows=rows // self.count,
    )

  def dealt(
    self, requests: Sequence[RolloutRequest], *, whole: bool
  ) -> list[list[int]]:
    """Numbers of the requests of each host, evenly by their parts.

    A question's requests go to one host, or to the next ones where its share is
    less: more hosts than questions share them.

    Args:
      requests: in any order.
      whole: whether a question must lie on one host. The next one goes to the
        host that has fewest trajectories a part.
    """
    questions: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
      questions.setdefault(request.group_id, []).append(number)
    sizes = {host: len(self.parts(host)) for host in sorted({*self.owners})}
    dealt: list[list[int]] = [[] for _ in range(self.count)]
    if whole:
      for numbers in questions.values():
        host = min(sizes, key=lambda h: (len(dealt[h]) / sizes[h], h))
        dealt[host] += numbers
      return dealt
    in_order = [n for numbers in questions.values() for n in numbers]
    begin = parts = 0
    for host, size in sizes.items():
      parts += size
      end = len(in_order) * parts // len(self.owners)
      dealt[host] = in_order[begin:end]
      begin = end
    return dealt
