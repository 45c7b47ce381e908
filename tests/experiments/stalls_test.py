"""A host that computes for ever is found, and all say where they stand."""

import threading
import time

import pytest

from experiments import hosts, stalls
from rapo_jax import hosts as library
from tests.hosts.link_test import free_port


@pytest.fixture
def teams(tmp_path, monkeypatch):
  """The teams of two hosts that have joined, and what ended each of them."""
  ended = {}

  def end(self, text, status):
    ended[self.link.place.index] = text, status

  monkeypatch.setattr(hosts.Team, "_end_process", end)
  monkeypatch.setattr(hosts, "_teams", [])
  monkeypatch.setattr(hosts, "_LEAVE_S", 0.3)
  monkeypatch.setenv(stalls.STALL_VARIABLE, "0.5")
  address = ("localhost", free_port())
  made = [hosts.Team(library.Place(address, 2, index)) for index in range(2)]
  joining = [
    threading.Thread(target=library.join, args=(team.link, tmp_path))
    for team in made
  ]
  for thread in joining:
    thread.start()
  for thread in joining:
    thread.join()
  yield made, ended
  for team in made:
    # An end that is told is no loss, which would end this process.
    team._told = True
  for team in made:
    team.link.close()


def _wait_for(ended, count):
  until = time.monotonic() + 30
  while len(ended) < count and time.monotonic() < until:
    time.sleep(0.02)


@pytest.mark.parametrize("index", [0, 1])
def test_all_hosts_end_with_where_each_one_stands(index, teams):
  made, ended = teams
  doing = library.Doing("package.module:update", time.monotonic())
  for number, team in enumerate(made):
    team.watch(lambda mine=number == index: doing if mine else None)
  _wait_for(ended, 2)
  assert set(ended) == {0, 1}
  for text, status in ended.values():
    assert status == hosts.HOST_STATUS
    lines = text.splitlines()
    assert "computes for ever" in lines[0]
    for number in range(2):
      assert lines[1 + number].strip().startswith(f"host {number}")
      busy = "in package.module:update for" in lines[1 + number]
      assert busy == (number == index)
    # All of this test is in one process, whose main thread waits above.
    assert "(_wait_for)" in text


def test_functions_that_end_are_no_stall(teams):
  made, ended = teams
  for team in made:
    # A new one each time it is asked.
    team.watch(lambda: library.Doing("f", time.monotonic()))
  time.sleep(1.2)
  assert ended == {}
