"""Fork rules in the authors' scripted rounds; see `golden`.

Their rollouts of all questions share one numbering. Each new one gets the next
number: forks first, question by question, then those that begin afresh. A
rollout's first entropy lies under its number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rapo_jax.algorithms.forks import BalancedForks, EntropyForks
from rapo_jax.rollout.forks import Group, Member, step_uncertainty


@dataclasses.dataclass
class _Rollout:
  """One of the authors' rollouts: its question, and where it comes from."""

  question: int
  parent: int = -2
  born: int = -1


def same_entropies(
  arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> bool:
  """Whether steps are as unsure here, given the same tokens."""
  found = []
  top, counts = arrays["in_top_log_probs"], arrays["in_count"]
  for log_probs, count in zip(top, counts, strict=True):
    # Here entropies are of the whole vocabulary.
    entropies = -np.sum(np.exp(log_probs) * log_probs, axis=-1)[:count]
    found.append(
      step_uncertainty(
        entropies,
        vocabulary=arguments["vocab_size"],
        tokens=arguments["tokens"],
      )
    )
  return np.allclose(found, arrays["out_entropy"], rtol=1e-9, atol=1e-10)


def same_forks(
  algorithm: str,
  arguments: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> bool:
  """Whether the same rollouts are forked in the same rounds."""
  rollouts = _played(algorithm, arguments, arrays)
  for name, value in (
    ("out_parent", [r.parent for r in rollouts]),
    ("out_question", [r.question for r in rollouts]),
    ("out_born_at_round", [r.born for r in rollouts]),
  ):
    if not np.array_equal(arrays[name], value):
      return False
  counts = np.bincount([r.question for r in rollouts])
  return np.array_equal(arrays["out_rollouts_per_question"], counts)


def _played(
  algorithm: str,
  arguments: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> list[_Rollout]:
  rule = (BalancedForks if algorithm.startswith("AEPO") else EntropyForks)(
    initial=arguments["initial_rollouts"],
    copies=arguments["beam_size"] - 1,
    probability=arguments["branch_probability"],
    entropy_weight=arguments["entropy_weight"],
    at="next",
  )
  questions, leaves = arguments["questions"], arguments["n"]
  rollouts = [
    _Rollout(question)
    for question in range(questions)
    for _ in range(rule.roots(leaves))
  ]
  first = _left_over(arguments, arrays)
  streaks = [0] * questions
  for number, (active, entropies, goes_on) in enumerate(
    zip(
      arrays["in_active"],
      arrays["in_entropy"],
      arrays["in_goes_on"],
      strict=True,
    )
  ):
    draws = iter(arrays["in_draws"][number])
    for index in np.flatnonzero(active):
      first.setdefault(int(index), float(entropies[index]))
    going = active & goes_on
    started = [r.question for r in rollouts]
    live = dict.fromkeys(started[i] for i in np.flatnonzero(going))
    # Those with a rollout that goes on come first.
    order = [*live, *(q for q in range(questions) if q not in live)]
    added: list[_Rollout] = []
    for question in order:
      places = [i for i, q in enumerate(started) if q == question]
      members = [
        Member(
          (first.get(i, 0.0), float(entropies[i])),
          goes_on=bool(going[i]),
          wrote=bool(active[i]),
        )
        for i in places
      ]
      group = Group(members, leaves, streak=streaks[question])
      for fork in rule.forks(group, lambda *_, draws=draws: next(draws)):
        parent = -1 if fork.parent is None else places[fork.parent]
        added.append(_Rollout(question, parent, number))
    rollouts += added
    if added:
      grown = {r.question for r in added}
      streaks = [
        streak + 1 if question in grown else 0
        for question, streak in enumerate(streaks)
      ]
  return rollouts


def _left_over(
  arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[int, float]:
  """First entropies that an earlier batch left behind, by number."""
  for held in (arrays, arguments):
    for name, value in held.items():
      if "initial_entropy" not in name:
        continue
      if isinstance(value, dict):
        return {int(number): float(x) for number, x in value.items()}
      if isinstance(value, list | np.ndarray):
        found = np.asarray(value, float)
        return {
          int(number): float(found[number])
          for number in np.flatnonzero(np.isfinite(found))
        }
  return {}
