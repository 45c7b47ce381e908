"""Fork rules by hand."""

import math

import numpy as np
import pytest

from rapo_jax.algorithms.forks import BalancedForks, EntropyForks, TreeForks
from rapo_jax.errors import InputError
from rapo_jax.rollout.forks import Fork, Group, Member, step_uncertainty


def _drawn(table):
  """Draws by member and count; one that is not in the table fails."""
  return lambda place, count: table[place, count]


def test_uncertainty_is_a_sum_over_the_first_tokens():
  entropies = np.asarray([1.0, 2.0, 4.0])
  assert step_uncertainty(entropies, vocabulary=10, tokens=2) == pytest.approx(
    3 / math.log(10)
  )
  # A short step has less of it.
  assert step_uncertainty(entropies[:1], vocabulary=10) == pytest.approx(
    1 / math.log(10)
  )


def _members(*entropies, **changes):
  return [Member(own, **changes) for own in entropies]


def test_a_rise_of_entropy_makes_a_fork_likelier():
  # P = 0.5 + 0.2 * 1 = 0.7 for the first and 0.5 - 0.2 for the second. The
  # third has written nothing after a result, the fourth nothing of late.
  members = [
    *_members((2.0, 9.0, 3.0), (2.0, 1.0), (5.0,)),
    *_members((2.0, 9.0), wrote=False, goes_on=False),
  ]
  rule = EntropyForks()
  group = Group(members, leaves=8)
  # Forks begin before the step that was measured.
  assert rule.forks(group, lambda *_: 0.69) == [Fork(0, 2)]
  assert rule.forks(group, lambda *_: 0.71) == []
  assert rule.forks(group, lambda *_: 0.29) == [Fork(0, 2), Fork(1, 1)]


def test_forks_can_begin_after_the_step_that_was_measured():
  rule = EntropyForks(at="next")
  # The first step counts too; a fork compares with its own first step.
  members = [
    Member((5.0,)),
    Member((1.0, 2.0, 3.0), parent=0, shared_steps=1),
    Member((1.0, 9.0), goes_on=False),
  ]
  group = Group(members, leaves=8)
  assert rule.forks(group, lambda *_: 0.49) == [Fork(0, 1), Fork(1, 3)]
  assert rule.forks(group, lambda *_: 0.69) == [Fork(1, 3)]


def test_a_rollout_that_has_ended_can_be_forked_before_its_last_step():
  members = _members((1.0, 2.0), goes_on=False)
  assert EntropyForks().forks(Group(members, leaves=3), lambda *_: 0.6) == [
    Fork(0, 1)
  ]


@pytest.mark.parametrize("at", ["measured", "next"])
def test_forks_end_where_the_room_does(at):
  members = [
    *_members((1.0, 1.0), goes_on=False, wrote=False),
    *_members(*[(1.0, 1.0)] * 3),
  ]
  rule = EntropyForks(copies=2, at=at)
  # Room for three: two of the first, one of the next, and no further draw.
  table = {(1, 0): 0.0, (1, 1): 0.0, (2, 0): 0.0}
  forks = rule.forks(Group(members, leaves=7), _drawn(table))
  assert [fork.parent for fork in forks] == [1, 1, 2]
  assert rule.forks(Group(members, leaves=4), _drawn({})) == []


def test_a_question_that_has_ended_gets_one_more_rollout():
  ended = _members((1.0,), (1.0, 1.0), goes_on=False, wrote=False)
  assert EntropyForks().forks(Group(ended, leaves=9), _drawn({})) == [
    Fork(None, 0)
  ]
  assert EntropyForks().forks(Group(ended, leaves=2), _drawn({})) == []


@pytest.mark.parametrize(
  ("rule", "leaves", "roots"),
  [
    (EntropyForks(), 16, 8),
    (EntropyForks(), 1, 1),
    (EntropyForks(initial=6), 16, 6),
    (EntropyForks(initial=6), 4, 4),
    (TreeForks(), 6, 2),
    (TreeForks(trees=1, rounds=2), 7, 1),
  ],
)
def test_rollouts_that_begin_at_the_prompt(rule, leaves, roots):
  assert rule.roots(leaves) == roots


def test_forking_in_a_row_has_a_price():
  rule = BalancedForks()
  one = _members((1.0, 2.0))
  # (u + 0.2) (1 - 0.05 c) >= 0.5: u >= 0.3 at first, u >= 0.8 after 10 rounds.
  for streak, border in ((0, 0.3), (10, 0.8)):
    group = Group(one, leaves=8, streak=streak)
    assert rule.forks(group, lambda *_, u=border + 0.01: u) == [Fork(0, 1)]
    assert rule.forks(group, lambda *_, u=border - 0.01: u) == []
  assert rule.forks(Group(one, leaves=8, streak=20), lambda *_: 0.99) == []


@pytest.mark.parametrize(
  ("entropies", "roots"),
  [
    # 16 sigmoid(0.5 * 0) = 8; differences of 2 and -2 give 11.7 and 4.3.
    ([1.0, 1.0], 9),
    ([5.0, 1.0], 12),
    ([1.0, 5.0], 5),
    ([1000.0, 0.0], 16),
  ],
)
def test_a_rollout_before_says_how_many_begin(entropies, roots):
  assert BalancedForks().presampled_roots(16, entropies) == roots


def test_the_first_rollout_may_say_how_many_begin():
  rule = BalancedForks(presample=True)
  assert rule.roots(16) == 1
  going, ended = Member((5.0, 1.0)), Member((5.0, 1.0), goes_on=False)
  assert rule.forks(Group([going], leaves=16), _drawn({})) == []
  assert rule.forks(Group([ended], leaves=16), _drawn({})) == [Fork(None)] * 11
  # Then the rule is the same, and the round before has no price.
  members = [Member((1.0,), goes_on=False), *_members((1.0, 2.0))]
  for rounds, streak, border in ((1, 1, 0.3), (11, 11, 0.8), (12, 10, 0.8)):
    group = Group(members, leaves=16, rounds=rounds, streak=streak)
    above, below = border + 0.01, border - 0.01
    assert rule.forks(group, lambda *_, u=above: u) == [Fork(1, 1)]
    assert rule.forks(group, lambda *_, u=below: u) == []


def test_without_a_round_of_roots_the_first_fork_has_its_price():
  rule = BalancedForks(presample=True)
  # Far surer of the question than of what follows: no root is added.
  first = Member((0.0, 99.0), goes_on=False, wrote=False)
  assert rule.presampled_roots(3, first.entropies) == 1
  members = [first, *_members((1.0, 2.0))]
  group = Group(members, leaves=3, rounds=1, streak=1)
  # (u + 0.2) 0.95 >= 0.5 from 0.326 on; without the price from 0.3 on.
  assert rule.forks(group, lambda *_: 0.31) == []
  assert rule.forks(group, lambda *_: 0.33) == [Fork(1, 1)]


def test_without_copies_rollouts_begin_afresh():
  rule = EntropyForks(copies=0)
  group = Group(_members((1.0, 9.0)), leaves=4)
  assert rule.forks(group, lambda *_: 0.0) == []
  ended = Member((1.0, 9.0), goes_on=False)
  assert rule.forks(Group([ended], leaves=4), lambda *_: 0.0) == [Fork(None)]


def test_trees_grow_when_all_have_ended():
  rule = TreeForks(trees=2, rounds=1)
  # Nodes: the prompt and the steps that are not last.
  ended = _members((0.0,) * 3, (0.0,), goes_on=False)
  table = {(0, 0): 0.0, (0, 1): 0.99, (1, 0): 0.5, (1, 1): 0.0}
  assert rule.forks(Group(ended, leaves=6), _drawn(table)) == [
    Fork(0, 0),
    Fork(0, 2),
    Fork(1, 0),
    Fork(1, 0),
  ]
  going = [ended[0], Member()]
  assert rule.forks(Group(going, leaves=6), _drawn({})) == []
  assert rule.forks(Group(ended, leaves=6, rounds=1), _drawn({})) == []


def test_a_shared_node_is_drawn_once():
  rule = TreeForks(trees=1, rounds=3)
  # Nodes: the prompt, after step 0 and after step 1 of the first; after step 1
  # of its fork, which shares one step; nothing of a fork that is a leaf.
  members = [
    Member((0.0,) * 3, goes_on=False),
    Member((0.0,) * 3, parent=0, shared_steps=1, goes_on=False),
    Member((0.0,) * 3, parent=1, shared_steps=2, goes_on=False),
  ]
  found = [
    rule.forks(Group(members, leaves=4, rounds=2), _drawn({(0, 2): u}))
    for u in (0.1, 0.3, 0.6, 0.8)
  ]
  assert found == [[Fork(0, 0)], [Fork(0, 1)], [Fork(0, 2)], [Fork(1, 2)]]


def test_leaves_that_trees_do_not_have():
  with pytest.raises(
    InputError, match=r"have 2 \(1 \+ 1 N\) leaves, got num_generations = 7"
  ):
    TreeForks().roots(7)


@pytest.mark.parametrize(
  ("rule", "changes"),
  [
    (EntropyForks, {"initial": 0}),
    (EntropyForks, {"probability": 1.5}),
    (EntropyForks, {"entropy_weight": -0.1}),
    (EntropyForks, {"at": "end"}),
    (BalancedForks, {"streak_penalty": -0.1}),
    (BalancedForks, {"copies": -1}),
    (TreeForks, {"rounds": 0}),
  ],
)
def test_settings_out_of_range(rule, changes):
  with pytest.raises(InputError, match=next(iter(changes))):
    rule(**changes)
