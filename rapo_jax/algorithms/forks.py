"""Who is forked when: rules of methods that sample trees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.rollout.forks import Draw, Fork, Group, Member


@dataclasses.dataclass(frozen=True)
class EntropyForks:
  """ARPO (Dong et al., 2025): forks after steps that became less sure.

  When a rollout has written a step after a tool's result it is forked with
  probability `p + w (H - H_first)`, cut to [0, 1], in order, while there is
  room. A question of which none goes on, and none is forked, gets one more
  rollout from the prompt.

  The paper compares the step with the rollout's first one, and forks before it:
  `at="measured"`. The authors' code compares with the first step that the
  rollout wrote itself, in the first step too. It forks after the step and the
  result that follows: `at="next"`. From the second batch on it compares with
  what another question left behind, which is left out.

  Attributes:
    initial: rollouts that begin at the prompt; None for half of them.
    copies: most forks of a rollout at one boundary; with 0 nothing forks.
    probability: `p`.
    entropy_weight: `w`, per unit of `step_uncertainty`.
    at: "measured" or "next", see above.
  """

  initial: int | None = None
  copies: int = 1
  probability: float = 0.5
  entropy_weight: float = 0.2
  at: Literal["measured", "next"] = "measured"

  def __post_init__(self) -> None:
    check_numbers(self, "initial", at_least=1)
    check_numbers(self, "copies", at_least=0)
    check_numbers(self, "probability", at_least=0, at_most=1)
    check_numbers(self, "entropy_weight", at_least=0)
    if self.at not in ("measured", "next"):
      raise InputError(
        f"at must be measured or next, got {self.at!r}: correct it."
      )

  def roots(self, leaves: int) -> int:
    """See `ForkRule`."""
    if self.initial is None:
      return max(leaves // 2, 1)
    return min(self.initial, leaves)

  def slots(self, leaves: int) -> int:
    """See `ForkRule`; all may be alive."""
    return leaves

  def forks(self, group: Group, draw: Draw) -> list[Fork]:
    """See `ForkRule`."""
    added: list[Fork] = []
    for place, member in enumerate(group.members):
      fork, rise = self._fork(place, member)
      if fork is None:
        continue
      for count in range(min(self.copies, group.room - len(added))):
        if self.accepts(draw(place, count), rise, group.streak):
          added.append(fork)
    going = any(member.goes_on for member in group.members)
    return added or ([] if going or group.room <= 0 else [Fork(None)])

  def _fork(self, place: int, member: Member) -> tuple[Fork | None, float]:
    """The fork of a member, None if it has none now; and H - H_first."""
    if self.at == "next":
      if not member.goes_on:
        return None, 0.0
      first = member.entropies[member.shared_steps]
      return Fork(place, member.steps), member.entropies[-1] - first
    if not member.wrote or member.steps < 2:
      return None, 0.0
    rise = member.entropies[-1] - member.entropies[0]
    return Fork(place, member.steps - 1), rise

  def accepts(self, drawn: float, rise: float, streak: int) -> bool:
    """Whether a rollout is forked.

    Args:
      drawn: from [0, 1).
      rise: H - H_first.
      streak: see `Group`.
    """
    del streak
    return _clip(drawn - self.entropy_weight * rise) <= self.probability


@dataclasses.dataclass(frozen=True)
class BalancedForks(EntropyForks):
  """AEPO (Dong et al., 2025): ARPO's rule, with a price on forking in a row.

  A rollout is forked if `(u + w (H - H_first)) (1 - q c) >= p`, the left side
  cut to [0, 1]. `u` is drawn from [0, 1), and `c` counts the rounds in a row in
  which the question got a rollout. In the authors' code the count starts again
  only in rounds in which some question of the batch got one.

  Attributes:
    streak_penalty: `q`.
    presample: whether a question begins with one rollout, which says when it
      has ended how many begin at the prompt; then `initial` is not read. Both
      published scripts leave it out. Theirs drop that rollout, here it is the
      first of those that begin.
    presample_scale: of the difference in `presampled_roots`.
  """

  streak_penalty: float = 0.05
  presample: bool = False
  presample_scale: float = 0.5

  def __post_init__(self) -> None:
    super().__post_init__()
    check_numbers(self, "streak_penalty", "presample_scale", at_least=0)

  def roots(self, leaves: int) -> int:
    """See `ForkRule`."""
    return 1 if self.presample else super().roots(leaves)

  def forks(self, group: Group, draw: Draw) -> list[Fork]:
    """See `ForkRule`."""
    if not self.presample:
      return super().forks(group, draw)
    first = group.members[0]
    if first.goes_on:
      return []
    count = self.presampled_roots(group.leaves, first.entropies) - 1
    if count and len(group.members) == 1:
      return [Fork(None)] * count
    # The round in which rollouts began is not one of forks.
    streak = group.streak - (bool(count) and group.rounds == group.streak)
    return super().forks(
      dataclasses.replace(group, streak=max(streak, 0)), draw
    )

  def accepts(self, drawn: float, rise: float, streak: int) -> bool:
    """See `EntropyForks`."""
    factor = max(1 - self.streak_penalty * streak, 0.0)
    value = (drawn + self.entropy_weight * rise) * factor
    return _clip(value) >= self.probability

  def presampled_roots(
    self, leaves: int, step_entropies: Sequence[float]
  ) -> int:
    """Rollouts that begin at the prompt, told by one that was made before.

    `n sigmoid(s (H_root - H_mean))`, rounded down, plus 1: where the policy is
    less sure of the question than of its tools' results, more begin afresh.

    Args:
      leaves: n.
      step_entropies: `step_uncertainty` of the steps of that rollout. The
        first is the question's; the mean is over all of them.
    """
    difference = step_entropies[0] - float(np.mean(step_entropies))
    share = 1 / (1 + math.exp(-self.presample_scale * difference))
    return min(max(int(leaves * share) + 1, 1), leaves)


@dataclasses.dataclass(frozen=True)
class TreeForks:
  """Tree-GRPO (Ji et al., 2025): finished trees grow at random nodes.

  A question has `trees` rollouts. When all have ended, each tree grows as many
  rollouts as fill the group, in `rounds` equal parts. Each begins at a node
  that is drawn uniformly, with replacement, from the prompt and the steps that
  are not last.

  Attributes:
    trees: M.
    rounds: L.
  """

  trees: int = 2
  rounds: int = 1

  def __post_init__(self) -> None:
    check_numbers(self, "trees", "rounds", at_least=1)

  def branches(self, leaves: int) -> int:
    """N: rollouts that a tree grows in a round.

    Raises:
      InputError: these leaves cannot be shared out.
    """
    count, rest = divmod(leaves - self.trees, self.trees * self.rounds)
    if rest or count < 1:
      raise InputError(
        f"{self.trees} trees with N branches in each of {self.rounds} rounds "
        f"have {self.trees} (1 + {self.rounds} N) leaves, got num_generations "
        f"= {leaves}: choose another."
      )
    return count

  def roots(self, leaves: int) -> int:
    """See `ForkRule`."""
    self.branches(leaves)
    return self.trees

  def slots(self, leaves: int) -> int:
    """See `ForkRule`; trees that have grown need theirs no more."""
    if self.rounds > 1:
      return leaves
    return max(self.trees, self.trees * self.branches(leaves))

  def forks(self, group: Group, draw: Draw) -> list[Fork]:
    """See `ForkRule`."""
    members, branches = group.members, self.branches(group.leaves)
    if group.rounds >= self.rounds or any(m.goes_on for m in members):
      return []
    tree_of: list[int] = []
    nodes: dict[int, list[Fork]] = {}
    for place, member in enumerate(members):
      tree = place if member.parent is None else tree_of[member.parent]
      tree_of.append(tree)
      inner = range(member.shared_steps, member.steps - 1)
      nodes.setdefault(tree, [Fork(tree)]).extend(
        Fork(place, step + 1) for step in inner
      )
    return [
      of_tree[int(draw(tree, branches * group.rounds + count) * len(of_tree))]
      for tree, of_tree in nodes.items()
      for count in range(branches)
    ]


def _clip(value: float) -> float:
  return min(max(value, 0.0), 1.0)
