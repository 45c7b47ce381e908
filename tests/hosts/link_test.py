"""Hosts find each other, or say which of them is missing."""

import concurrent.futures
import contextlib
import queue
import socket
import threading
import time

import pytest

from experiments.hosts import free_port
from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.hosts import link as link_lib


class Ends:
  """Links of several hosts in one process, and what each has noticed."""

  def __init__(self, count, folder, *, joining=None, timeout_s=20.0):
    port = free_port()
    self.lost = [queue.SimpleQueue() for _ in range(count)]
    self.urgent = [queue.SimpleQueue() for _ in range(count)]
    self.links = [
      hosts.Link(
        hosts.Place(("localhost", port), count, index),
        self._urgent(index),
        self.lost[index].put,
      )
      for index in range(count)
    ]
    folders = folder if isinstance(folder, list) else [folder] * count
    self._pool = concurrent.futures.ThreadPoolExecutor(count)
    self.joined = {
      index: self._pool.submit(
        hosts.join, self.links[index], folders[index], timeout_s=timeout_s
      )
      for index in (range(count) if joining is None else joining)
    }

  def _urgent(self, index):
    def heard(other, message):
      if isinstance(message, dict) and message.get("urgent"):
        self.urgent[index].put((other, message))
        return True
      return False

    return heard

  def all(self):
    for one in self.joined.values():
      one.result(timeout=30)
    return self

  def close(self):
    for link in self.links:
      link.close()
    self._pool.shutdown(wait=False)


@pytest.fixture
def ends():
  opened = []

  def open_ends(*args, **kwargs):
    opened.append(Ends(*args, **kwargs))
    return opened[-1]

  yield open_ends
  for one in opened:
    one.close()


def test_messages_arrive_in_order_and_urgent_ones_at_once(ends, tmp_path):
  three = ends(3, tmp_path).all()
  leader, *others = three.links
  assert list(tmp_path.iterdir()) == []
  for number in range(20):
    leader.send({"number": number})
  leader.send(b"raw" * 100_000)
  leader.send({"urgent": 1})
  for index, other in enumerate(others, 1):
    seen = [other.messages.get(timeout=5) for _ in range(21)]
    assert [m["number"] for _, m in seen[:20]] == list(range(20))
    assert seen[20] == (0, b"raw" * 100_000)
    assert three.urgent[index].get(timeout=5) == (0, {"urgent": 1})
    other.send({"from": index})
  heard = sorted(leader.messages.get(timeout=5)[0] for _ in others)
  assert heard == [1, 2]


def test_a_host_that_does_not_come_is_named(ends, tmp_path):
  late = ends(3, tmp_path, joining=[0, 2], timeout_s=2.0)
  late.joined[2].result(timeout=10)
  with pytest.raises(InputError, match="these have not: host 1"):
    late.joined[0].result(timeout=10)


def test_a_leader_that_does_not_come_is_said_to_be_missing(ends, tmp_path):
  alone = ends(2, tmp_path, joining=[1], timeout_s=1.0)
  with pytest.raises(InputError, match="host 0 must answer at localhost"):
    alone.joined[1].result(timeout=10)


def test_a_folder_that_is_not_shared_is_refused_on_both(
  ends, tmp_path, monkeypatch
):
  monkeypatch.setattr(link_lib, "_SEE_S", 1.0)
  folders = [tmp_path / name for name in ("one", "other")]
  for folder in folders:
    folder.mkdir()
  two = ends(2, folders)
  for one in two.joined.values():
    with pytest.raises(InputError, match="file system that all hosts share"):
      one.result(timeout=10)


def test_another_number_of_hosts_is_refused(ends, tmp_path):
  two = ends(2, tmp_path, joining=[0], timeout_s=3.0)
  port = two.links[0].place.address[1]
  place = hosts.Place(("localhost", port), 3, 1)
  with pytest.raises(InputError, match="host 0 has 2, host 1 has 3"):
    hosts.join(hosts.Link(place, lambda *_: False, print), tmp_path)


def test_a_stranger_is_not_let_in(ends, tmp_path):
  two = ends(2, tmp_path, joining=[0], timeout_s=20.0)
  address = two.links[0].place.address
  for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\0\0\0\0\x02{}"):
    until = time.monotonic() + 5
    while time.monotonic() < until:
      try:
        stream = socket.create_connection(address)
        break
      except OSError:
        time.sleep(0.05)
    # The other side may have closed it already.
    with stream, contextlib.suppress(OSError):
      stream.sendall(said)
      stream.shutdown(socket.SHUT_WR)
      while stream.recv(1000):
        pass
  hosts.join(two.links[1], tmp_path, timeout_s=10)
  two.all()


def test_an_end_of_a_host_is_noticed_at_once(ends, tmp_path):
  three = ends(3, tmp_path).all()
  three.links[2].close()
  lost = three.lost[0].get(timeout=5)
  assert (lost.index, lost.name) == (2, socket.gethostname())
  assert "connection has ended" in lost.reason
  assert three.lost[1].empty()


def test_silence_is_a_loss(ends, tmp_path, monkeypatch):
  two = ends(2, tmp_path).all()
  # From now on the other one sends nothing.
  [connection] = two.links[1]._connections.values()
  monkeypatch.setattr(connection, "_send", lambda *_: None)
  monkeypatch.setattr(link_lib, "SILENCE_S", 0.5)
  lost = two.lost[0].get(timeout=15)
  assert lost.index == 1
  assert "said nothing for" in lost.reason


def test_messages_from_several_threads_stay_whole(ends, tmp_path):
  two = ends(2, tmp_path).all()

  def send(letter):
    for _ in range(50):
      two.links[0].send(letter * 10_000)

  threads = [threading.Thread(target=send, args=(x,)) for x in (b"a", b"b")]
  for thread in threads:
    thread.start()
  for _ in range(100):
    _, content = two.links[1].messages.get(timeout=5)
    assert content in (b"a" * 10_000, b"b" * 10_000)
  for thread in threads:
    thread.join()
