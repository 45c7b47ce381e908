"""Two hosts in one process: what the leader sends, the other does at once."""

import contextlib

from rapo_jax import hosts


class _Post:
  """Messages of one of two hosts."""

  def __init__(self, index, deliver):
    self.place = hosts.Place(("localhost", 80), 2, index)
    self.send = deliver
    self.received = []

  def send_to(self, index, message):
    assert index == 1
    self.send(message)

  def receive(self):
    return 1, self.received.pop(0)


@contextlib.contextmanager
def two_hosts(*shared):
  """This process leads, and follows too; gives the follower."""
  leading = _Post(0, lambda message: follower.run(message))
  follower = hosts.Follower(_Post(1, leading.received.append), shared)
  with hosts.leading(hosts.Leader(leading, shared)):
    yield follower
  assert not leading.received


def held(follower, kind):
  """The objects of a class that the follower keeps."""
  return [t for t in follower._things.values() if type(t) is kind]
