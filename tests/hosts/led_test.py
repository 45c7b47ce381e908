"""What the leader calls, a follower calls with what is its own."""

import gc

import numpy as np
import pytest

from rapo_jax import hosts
from rapo_jax.errors import InputError


@hosts.held()
class Model:
  def __init__(self, values):
    self.values = values

  @hosts.led
  def add(self, number):
    self.values = self.values + number
    return float(self.values.sum())


class State(tuple):
  """A model and a count, as a value that cannot be referred to weakly."""

  __slots__ = ()

  @property
  def model(self):
    return self[0]


hosts.held(lambda state: state.model)(State)


@hosts.led
def make(config, values):
  del config
  return Model(values)


@hosts.led
def begin(model, count):
  return State((model, count)), "figures"


@hosts.led
def step(state):
  copied = double(state.model)  # Led itself: runs within this one.
  return State((copied, state[1] + 1))


@hosts.led
def double(model):
  return Model(2 * model.values)


@hosts.led
def fails(model):
  raise OSError(f"no room for {model.values}")


CONFIG = {"name": "all have it"}


class Post:
  """Keeps what is sent to each of two other hosts; has what they answer."""

  def __init__(self, sent, index=0):
    self.sent = sent
    self.place = hosts.Place(("host0", 80), 3, index)
    self.others = []
    self.answers = []

  def send(self, message):
    self.sent.append(message)
    self.others.append(message)

  def send_to(self, index, message):
    [None, self.sent, self.others][index].append(message)

  def receive(self):
    return self.answers.pop(0)


@pytest.fixture
def sent():
  return []


@pytest.fixture
def post(sent):
  return Post(sent)


@pytest.fixture
def leading(post):
  with hosts.leading(hosts.Leader(post, [CONFIG])) as leader:
    yield leader


def follow(sent, follower=None):
  follower = follower or hosts.Follower(Post([]), [CONFIG])
  while sent:
    follower.run(sent.pop(0))
  return list(follower._things.values())


def test_without_a_leader_it_is_a_plain_call(sent):
  assert make(CONFIG, np.ones(2)).add(1.0) == 4.0
  assert sent == []


def test_a_follower_ends_with_what_the_leader_has(leading, sent):
  model = make(CONFIG, np.arange(3.0))
  assert model.add(2.0) == 9.0
  state, figures = begin(model, 5)
  state = step(state)
  assert figures == "figures"
  assert len(sent) == 4
  things = follow(sent)
  assert [type(t) for t in things] == [dict, Model, State, Model, State, Model]
  for own, theirs in ((model, things[1]), (state.model, things[-1])):
    assert own is not theirs
    np.testing.assert_array_equal(own.values, theirs.values)
  assert things[-2][1] == state[1] == 6


def test_what_others_do_not_have_is_called_here_alone(leading, sent):
  assert Model(np.ones(1)).add(1.0) == 2.0
  assert double(Model(np.ones(1))).values == 2.0
  assert sent == []


def test_what_the_leader_drops_is_dropped_everywhere(leading, sent):
  follower = hosts.Follower(Post([]), [CONFIG])
  model = make(CONFIG, np.ones(2))
  state, _ = begin(model, 0)
  assert len(follow(sent, follower)) == 4
  del state, model
  gc.collect()
  # Another one may now have the address of the first.
  other = make(CONFIG, np.zeros(2))
  other.add(1.0)
  config, left = follow(sent, follower)
  assert config is CONFIG
  np.testing.assert_array_equal(left.values, other.values)


def test_an_equal_object_that_all_have_counts_as_theirs(leading, sent):
  make(dict(CONFIG), np.ones(2))
  assert len(sent) == 1
  make({"name": "another"}, np.ones(2)).add(1)
  assert len(sent) == 1


def test_an_error_goes_through_and_the_next_call_works(leading, sent):
  model = make(CONFIG, np.ones(1))
  with pytest.raises(OSError, match="no room"):
    fails(model)
  model.add(1.0)
  follower = hosts.Follower(Post([]), [CONFIG])
  follower.run(sent[0])
  with pytest.raises(OSError, match="no room"):
    follower.run(sent[1])
  follower.run(sent[2])


def test_a_function_that_is_not_led_is_not_called():
  content = hosts.encode(
    {"function": "os:system", "args": ["true"], "kwargs": {}, "dropped": []}
  )
  with pytest.raises(InputError, match="no such function"):
    hosts.Follower(Post([])).run(content)


def test_an_argument_that_cannot_be_sent_is_named(leading):
  model = make(CONFIG, np.ones(1))
  with pytest.raises(InputError, match="plain values"):
    model.add(object())


@hosts.led
def place(model, own):
  model.values = model.values + own
  return hosts.gather(model.values.tolist())


def test_each_host_gets_its_own_and_the_leader_all_results(leading, post, sent):
  model = make(CONFIG, np.zeros(1))
  posts = [Post([]) for _ in range(2)]
  followers = [hosts.Follower(own, [CONFIG]) for own in posts]
  # The second answers before the first.
  post.answers = [(2, hosts.encode([3.0])), (1, hosts.encode([2.0]))]
  found = place(model, hosts.PerHost((1.0, 2.0, 3.0)))
  assert found == [[1.0], [2.0], [3.0]]
  for follower, messages in zip(followers, (sent, post.others), strict=True):
    for message in messages:
      follower.run(message)
  answers = [hosts.decode(one.sent[-1]) for one in posts]
  assert answers == [[2.0], [3.0]]


def test_a_host_that_is_alone_gathers_its_own():
  assert hosts.gather("a") == ["a"]
  assert hosts.count() == 1
  assert hosts.share_of(7) == 7


@hosts.led
def shares(model, totals):
  return hosts.gather([hosts.count(), *map(hosts.share_of, totals)])


def test_parts_of_a_number_add_up(leading, post, sent):
  model = make(CONFIG, np.zeros(1))
  post.answers = [(1, hosts.encode(None)), (2, hosts.encode(None))]
  found = [shares(model, [0, 1, 8])[0]]
  for index in (1, 2):
    own = Post([], index)
    follower = hosts.Follower(own, [CONFIG])
    for message in sent:
      follower.run(message)
    found.append(hosts.decode(own.sent[-1]))
  assert [one[0] for one in found] == [3, 3, 3]
  assert [sum(parts) for parts in zip(*found, strict=True)][1:] == [0, 1, 8]
  assert [one[3] for one in found] == [3, 3, 2]


def test_what_a_host_does_is_the_innermost_function(leading):
  seen = []

  @hosts.led
  def inner(model):
    seen.append(leading.doing)

  @hosts.led
  def outer(model):
    seen.append(leading.doing)
    inner(model)
    seen.append(leading.doing)

  outer(make(CONFIG, np.ones(1)))
  first, second, third = seen
  assert first.function == third.function != second.function
  # What a function has called did end: it goes on.
  assert first.began <= second.began <= third.began > first.began
  assert leading.doing is None
