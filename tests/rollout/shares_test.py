"""Slots and questions are shared evenly, and no question lies on two hosts."""

import jax
import numpy as np
import pytest

from rapo_jax.data import Query
from rapo_jax.models import sharding
from rapo_jax.rollout import RolloutConfig
from rapo_jax.rollout.exchange import Exchange
from rapo_jax.rollout.requests import group_requests
from rapo_jax.rollout.shares import Shares, of_all_hosts
from tests.hosts.meshes import mesh_of


@pytest.mark.parametrize(
  ("processes", "tensor", "owners"),
  [
    # Parts lie within hosts.
    ((0, 0, 1, 1), 1, (0, 0, 1, 1)),
    ((0, 0, 1, 1), 2, (0, 1)),
    # Parts lie across hosts: each host owns as many.
    ((0, 1, 0, 1, 0, 1, 0, 1), 2, (0, 1, 0, 1)),
    # Fewer parts than hosts.
    ((0, 1, 2, 3), 4, (0,)),
    ((0, 1, 2, 3), 2, (0, 2)),
    # In any order.
    ((1, 0, 2), 1, (1, 0, 2)),
  ],
)
def test_each_part_has_one_owner_that_has_devices_of_it(
  processes, tensor, owners, monkeypatch
):
  monkeypatch.setattr(jax, "process_count", lambda: max(processes) + 1)
  shares = Shares.of(mesh_of(processes, tensor))
  assert shares.owners == owners
  assert shares.count == max(processes) + 1


def test_places_find_the_parts_that_hosts_list_one_by_one():
  shares = Shares((1, 0, 2, 1), 3, 1)
  assert shares.own == (0, 3)
  assert shares.most == 2
  listed = [[1, None], [0, 3], [2, None]]
  flat = [part for parts in listed for part in parts]
  assert [flat[place] for place in shares.places] == [0, 1, 2, 3]


@pytest.mark.parametrize("prefill_rows", [1, 2, 3, 4])
def test_a_host_has_its_part_of_the_slots_and_prompts(prefill_rows):
  config = RolloutConfig(num_slots=12, prefill_rows=prefill_rows)
  of_all = of_all_hosts(config, 2)
  assert of_all.num_slots == 12
  own = [Shares((0, 0, 1), 2, host).of_one(config) for host in range(2)]
  assert [one.num_slots for one in own] == [8, 4]
  # Room for all of theirs, and for no fewer than asked for.
  rows = sum(one.prefill_rows for one in own)
  assert rows == of_all.prefill_rows >= prefill_rows
  # A host without slots has the shapes of one.
  assert Shares((0, 1), 3, 2).of_one(config).num_slots == 6


def requests(*sizes):
  queries = [
    Query(f"q{n}", "", ("a",), ({"role": "user", "content": ""},), "t")
    for n in range(len(sizes))
  ]
  made = group_requests(
    queries,
    [np.array([1])] * len(queries),
    num_generations=max(sizes),
    num_hybrid=0,
  )
  # Groups need not be of one size, nor stand together.
  made = [r for r in made if r.index < sizes[r.group_id]]
  return sorted(made, key=lambda r: (r.index, r.group_id))


OWNERS = [(0, 1), (0, 0, 1), (2, 0), (1,)]


def dealt_to(owners, asked, **how):
  """Hosts of each question, and trajectories a part of each host with parts."""
  dealt = Shares(owners, 3, 0).dealt(asked, **how)
  assert sorted(n for own in dealt for n in own) == list(range(len(asked)))
  assert all(not dealt[host] for host in {0, 1, 2} - {*owners})
  hosts_of = {}
  for host, own in enumerate(dealt):
    for number in own:
      hosts_of.setdefault(asked[number].group_id, set()).add(host)
  return hosts_of, [len(dealt[h]) / owners.count(h) for h in {*owners}]


@pytest.mark.parametrize("owners", OWNERS)
def test_questions_that_have_to_be_whole_are_dealt_whole(owners):
  hosts_of, loads = dealt_to(
    owners, requests(4, 4, 1, 4, 2, 4, 4, 3), whole=True
  )
  assert all(len(found) == 1 for found in hosts_of.values())
  assert max(loads) - min(loads) <= 4


@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("sizes", [(4, 4, 1, 4, 2, 4, 4, 3), (5,), (1, 1)])
def test_no_host_has_more_than_its_share(owners, sizes):
  hosts_of, loads = dealt_to(owners, requests(*sizes), whole=False)
  assert max(loads) - min(loads) <= 1
  # A question is cut where one host's share ends and the next one's begins.
  assert sum(len(found) - 1 for found in hosts_of.values()) < len({*owners})


def test_questions_stay_whole_where_shares_are():
  hosts_of, _ = dealt_to((0, 1), requests(4, 4, 4, 4), whole=False)
  assert list(hosts_of.values()) == [{0}, {0}, {1}, {1}]


def test_a_host_that_is_alone_gets_back_what_it_hands_out():
  exchange = Exchange(sharding.make_mesh(devices=jax.devices()[:1]))
  signed = np.arange(-6, 6, dtype=np.int32).reshape(3, 2, 2)
  unsigned = np.array([[2**32 - 1], [0], [7]], np.uint32)
  first, second = exchange([signed, unsigned], (2, 0))
  assert (first.dtype, second.dtype) == (np.int32, np.uint32)
  np.testing.assert_array_equal(first, np.concatenate([signed[2], signed[0]]))
  np.testing.assert_array_equal(second, [7, 2**32 - 1])
