"""Tools that misbehave in every way, and what their callers are told."""

import contextlib
import dataclasses
import logging
import subprocess
import sys
import textwrap
import threading

import hypothesis
import hypothesis.strategies as st
import pytest

from rapo_jax.rollout import RolloutConfig
from rapo_jax.rollout.config import check_tool_settings
from rapo_jax.rollout.tool_runner import Call, ToolRunner, wait_for_news
from rapo_jax.tools import CallPolicy, ToolResult, ToolStatus, call_policy

_MAX_CHARS = 1000
_SOON_S = 10.0  # How long a test waits for what comes at once.


class Clock:
  """Stands still until it is moved."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


@dataclasses.dataclass
class FakeTool:
  """Answers what it is told to, and counts."""

  answer: object = lambda argument: ToolResult(argument, ToolStatus.OK)
  name: str = "search"
  description: str = "<search> a query </search> looks it up."
  example: str = "<search> a </search>"
  batched: bool = False
  batches: list = dataclasses.field(default_factory=list)

  def call(self, argument):
    self.batches.append([argument])
    return self.answer(argument)

  def call_batch(self, arguments):
    self.batches.append(list(arguments))
    return [self.answer(argument) for argument in arguments]


@dataclasses.dataclass
class HangingTool:
  """Its calls hang until they are released; it tells when one has begun."""

  name: str = "search"
  description: str = "<search> a query </search> looks it up."
  example: str = "<search> a </search>"
  batched: bool = False
  begun: threading.Semaphore = dataclasses.field(
    default_factory=lambda: threading.Semaphore(0)
  )
  released: threading.Event = dataclasses.field(default_factory=threading.Event)
  running: int = 0
  most_running: int = 0
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def call(self, argument):
    with self.lock:
      self.running += 1
      self.most_running = max(self.most_running, self.running)
    self.begun.release()
    self.released.wait()
    with self.lock:
      self.running -= 1
    return ToolResult(argument, ToolStatus.OK)

  def call_batch(self, arguments):
    return [self.call(argument) for argument in arguments]

  def wait_for(self, count):
    for _ in range(count):
      assert self.begun.acquire(timeout=_SOON_S)


@pytest.fixture
def hanging():
  """A hanging tool that is released, and its threads joined, at the end."""
  tool = HangingTool()
  yield tool
  tool.released.set()
  _join()


def _join():
  for thread in threading.enumerate():
    if thread.name.startswith("tool-"):
      thread.join(_SOON_S)
      assert not thread.is_alive()


@contextlib.contextmanager
def _session(*tools, clock=None, **changes):
  changes = {"tool_backoff_s": 0.0} | changes
  runner = ToolRunner(
    {tool.name: tool for tool in tools},
    RolloutConfig(**changes),
    max_chars=_MAX_CHARS,
    clock=clock or Clock(),
  )
  with contextlib.closing(runner.session()) as session:
    yield session


def _call(argument="a", name="search", deadline=1e6):
  return Call(argument, name, argument, deadline, 0.0)


def _answers(session, count):
  """Waits for answers: results by argument."""
  answers = []
  while len(answers) < count:
    assert session.num_pending
    wait_for_news(session.changed, [session], _SOON_S)
    answers += session.take()
  assert len(answers) == count
  return {call.owner: result for call, result in answers}


def _statuses(answers):
  return {owner: str(result.status) for owner, result in answers.items()}


def test_single_calls_and_batches_are_answered():
  alone, batched = FakeTool(), FakeTool(name="open", batched=True)
  with _session(alone, batched) as session:
    session.submit([_call(a) for a in "ab"] + [_call(a, "open") for a in "cd"])
    answers = _answers(session, 4)
  assert {o: r.text for o, r in answers.items()} == {a: a for a in "abcd"}
  assert sorted(alone.batches) == [["a"], ["b"]]
  assert batched.batches == [["c", "d"]]
  assert session.stats["search"].counts["ok"] == 2
  assert session.num_pending == 0


def test_a_call_can_be_answered_without_a_tool():
  result = ToolResult("malformed", ToolStatus.ERROR)
  with _session(FakeTool()) as session:
    call = _call(name="")
    session.answer(call, result)
    wait_for_news(session.changed, [session], _SOON_S)
    assert session.take() == [(call, result)]


def _raise(error):
  raise error


class _Unprintable(Exception):
  def __str__(self):
    raise SystemExit


class _HostileText(str):
  def __getitem__(self, index):
    raise KeyError("no slice")


def _result(text=None, status=ToolStatus.OK):
  """A result of wrong types, which a tool of one's own may return."""
  result = ToolResult("", ToolStatus.OK)
  object.__setattr__(result, "text", text)
  object.__setattr__(result, "status", status)
  return result


_BROKEN = {
  "raises": (lambda: _raise(ValueError("bad")), "ValueError: bad"),
  "exits": (lambda: _raise(SystemExit(1)), "SystemExit: 1"),
  "interrupts": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt"),
  "unprintable": (lambda: _raise(_Unprintable()), "_Unprintable"),
  "long error": (lambda: _raise(OSError("x" * 10**6)), "OSError: xxx"),
  "none": (lambda: None, "returned NoneType, no ToolResult"),
  "bytes": (lambda: b"a", "returned bytes, no ToolResult"),
  "text": (lambda: "a", "returned str, no ToolResult"),
  "no text": (lambda: _result(None), "returned NoneType, no text"),
  "byte text": (lambda: _result(b"a"), "returned bytes, no text"),
  "status": (lambda: _result("a", "fine"), "'fine' is not a valid ToolStatus"),
  "hostile": (lambda: _result(_HostileText("a")), "KeyError: 'no slice'"),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", _BROKEN)
def test_a_broken_tool_is_an_answer(kind, batched):
  answer, message = _BROKEN[kind]
  tool = FakeTool(lambda argument: answer(), batched=batched)
  with _session(tool) as session:
    session.submit([_call()])
    [result] = _answers(session, 1).values()
  assert result.status is ToolStatus.FAILED
  assert result.text.startswith("search failed: ")
  assert message in result.text
  assert len(result.text) < 300
  assert session.stats["search"].counts["failed"] == 1


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (None, "call_batch returned NoneType, no list"),
    ("ab", "call_batch returned str, no list"),
    (iter([]), "no list"),
    ([], "call_batch returned 0 results for 2 calls"),
    ([ToolResult("a", ToolStatus.OK)] * 3, "3 results for 2 calls"),
  ],
)
def test_a_batch_with_other_than_a_result_a_call_fails(given, message):
  tool = FakeTool(batched=True)
  tool.call_batch = lambda arguments: given
  with _session(tool) as session:
    session.submit([_call("a"), _call("b")])
    answers = _answers(session, 2)
  assert _statuses(answers) == {"a": "failed", "b": "failed"}
  assert all(message in result.text for result in answers.values())


def test_only_the_first_failure_is_logged(caplog):
  tool = FakeTool(lambda argument: _raise(ValueError("bad")))
  with caplog.at_level(logging.WARNING), _session(tool) as session:
    session.submit([_call(a) for a in "abc"])
    _answers(session, 3)
  [record] = caplog.records
  assert record.exc_info


def test_text_is_cut_where_the_tool_returns_it():
  tool = FakeTool(lambda a: ToolResult("x" * 10**8, ToolStatus.OK))
  with _session(tool) as session:
    session.submit([_call()])
    [result] = _answers(session, 1).values()
  assert result == ToolResult("x" * _MAX_CHARS, ToolStatus.OK)


# Batches, one argument of which is bad.


def _fails_at(bad):
  return lambda a: (
    _raise(ValueError(a)) if a in bad else ToolResult(a, ToolStatus.OK)
  )


def test_one_bad_argument_leaves_the_others_of_an_idempotent_tool():
  tool = FakeTool(_fails_at("b"), batched=True)
  tool.idempotent, tool.retries = True, 1
  with _session(tool) as session:
    session.submit([_call(a) for a in "abc"])
    answers = _answers(session, 3)
  assert _statuses(answers) == {"a": "ok", "b": "failed", "c": "ok"}
  assert tool.batches[0] == ["a", "b", "c"]
  # Alone, and the one that fails once more.
  assert sorted(tool.batches[1:]) == [["a"], ["b"], ["b"], ["c"]]
  assert session.stats["search"].retries == 4


def test_only_the_calls_that_failed_are_made_again():
  tool = FakeTool(batched=True)
  tool.idempotent, tool.retries = True, 0
  ok = ToolResult("a", ToolStatus.OK)
  tool.call_batch = lambda arguments: (
    tool.batches.append(arguments) or [ok, None][: len(arguments)]
  )
  with _session(tool) as session:
    session.submit([_call("a"), _call("b")])
    answers = _answers(session, 2)
  assert _statuses(answers) == {"a": "ok", "b": "ok"}
  assert tool.batches == [["a", "b"], ["b"]]


def test_a_batch_of_another_tool_fails_as_a_whole_and_once():
  tool = FakeTool(_fails_at("b"), batched=True)
  with _session(tool, tool_retries=5) as session:
    session.submit([_call(a) for a in "abc"])
    answers = _answers(session, 3)
  assert set(_statuses(answers).values()) == {"failed"}
  assert len(tool.batches) == 1


# Retries.


def _fails_times(count):
  left = iter(range(count))
  return lambda a: (
    ToolResult(a, ToolStatus.OK)
    if next(left, None) is None
    else _raise(OSError("not now"))
  )


@pytest.mark.parametrize(
  ("idempotent", "retries", "failures", "status", "attempts"),
  [
    (True, None, 2, "ok", 3),  # Two by the config.
    (True, None, 3, "failed", 3),
    (True, 3, 3, "ok", 4),  # What the tool says goes before.
    (True, 0, 1, "failed", 1),
    (False, None, 1, "failed", 1),
    (False, 3, 1, "failed", 1),
  ],
)
def test_a_failed_call_is_made_again_where_that_is_safe(
  idempotent, retries, failures, status, attempts
):
  tool = FakeTool(_fails_times(failures))
  tool.idempotent, tool.retries = idempotent, retries
  with _session(tool, tool_retries=2) as session:
    session.submit([_call()])
    [result] = _answers(session, 1).values()
  assert result.status == status
  assert len(tool.batches) == attempts
  assert session.stats["search"].retries == attempts - 1
  assert sum(session.stats["search"].counts.values()) == 1


@pytest.mark.parametrize("status", [ToolStatus.ERROR, ToolStatus.TIMEOUT])
def test_what_is_no_fault_of_the_tool_is_not_tried_again(status):
  tool = FakeTool(lambda a: ToolResult(a, status))
  tool.idempotent = True
  with _session(tool) as session:
    session.submit([_call()])
    assert _answers(session, 1)["a"].status is status
  assert len(tool.batches) == 1


def test_no_retry_begins_after_the_deadline():
  tool = FakeTool(_fails_times(1))
  tool.idempotent = True
  # The pause alone would be longer than the call may take.
  with _session(tool, tool_timeout_s=30.0, tool_backoff_s=30.0) as session:
    session.submit([_call()])
    assert _answers(session, 1)["a"].status is ToolStatus.FAILED
  assert len(tool.batches) == 1


def test_a_call_that_was_given_up_is_not_tried_again():
  backs_off = threading.Event()

  class ReadClock(Clock):
    def __call__(self):
      now = self.now
      # A thread reads it when its call has failed.
      if threading.current_thread() is not threading.main_thread():
        backs_off.set()
      return now

  clock = ReadClock()
  tool = FakeTool(lambda a: _raise(OSError("not now")))
  tool.idempotent = True
  with _session(
    tool, clock=clock, tool_timeout_s=1000.0, tool_backoff_s=900.0
  ) as session:
    session.submit([_call()])
    assert backs_off.wait(_SOON_S)
    clock.now = 1001.0
    [(_, result)] = session.take()
    _join()  # Not after 900 s.
  assert result.status is ToolStatus.LATE
  assert len(tool.batches) == 1


# Deadlines and threads that hang.


def test_a_tool_that_hangs_does_not_starve_the_others(hanging):
  other = FakeTool(name="open")
  with _session(hanging, other, tool_threads=2) as session:
    session.submit([_call(str(i)) for i in range(10)])
    hanging.wait_for(2)
    session.submit([_call(a, "open") for a in "abc"])
    assert set(_answers(session, 3)) == {"a", "b", "c"}


def test_threads_that_hang_are_replaced_counted_and_bounded(hanging, caplog):
  clock = Clock()
  limits = {"tool_threads": 1, "tool_timeout_s": 30.0, "max_hung_calls": 2}
  with _session(hanging, clock=clock, **limits) as session:
    for argument in "ab":
      session.submit([_call(argument)])
      hanging.wait_for(1)
      clock.now += 29.0
      assert not session.take()
      clock.now += 2.0
      [(call, result)] = session.take()
      assert call.owner == argument
      assert result.status is ToolStatus.LATE
      assert result.text == "no answer within 30 s"
    session.submit([_call("c")])
    [(_, result)] = session.take()
    assert result.status is ToolStatus.REFUSED
    assert "2 earlier calls have not come back" in result.text
    assert "are refused until one comes back" in caplog.text
    session.close()
    assert session.stats["search"].hung == 2
    # Once they come back, their answers are dropped and calls are made again.
    hanging.released.set()
    _join()
    session.submit([_call("d")])
    assert _statuses(_answers(session, 1)) == {"d": "ok"}
  assert session.stats["search"].hung == 0
  counts = session.stats["search"].counts
  assert (counts["late"], counts["refused"], counts["ok"]) == (2, 1, 1)


def test_calls_that_wait_are_refused_once_too_many_hang(hanging):
  clock = Clock()
  with _session(
    hanging, clock=clock, tool_threads=1, max_hung_calls=1
  ) as session:
    session.submit([_call(a) for a in "abc"])
    hanging.wait_for(1)
    clock.now = 31.0
    statuses = _statuses({c.owner: r for c, r in session.take()})
  assert statuses == {"a": "late", "b": "refused", "c": "refused"}


def test_waiting_for_a_thread_does_not_count_against_a_call(hanging):
  clock = Clock()
  with _session(hanging, clock=clock, tool_threads=1) as session:
    session.submit([_call("a"), _call("b")])
    hanging.wait_for(1)
    clock.now = 20.0
    hanging.released.set()
    assert set(_answers(session, 2)) == {"a", "b"}
  assert sorted(session.stats["search"].waited_seconds) == [0.0, 20.0]
  assert sorted(session.stats["search"].seconds) == [0.0, 20.0]


def test_a_trajectorys_deadline_takes_no_other_call_of_its_batch(hanging):
  hanging.batched = True
  clock = Clock()
  with _session(hanging, clock=clock) as session:
    session.submit([_call("a", deadline=5.0), _call("b")])
    hanging.wait_for(1)
    clock.now = 6.0
    [(call, result)] = session.take()
    assert (call.owner, result.status) == ("a", ToolStatus.LATE)
    assert result.text == "no answer within the trajectory's time"
    hanging.released.set()
    assert _statuses(_answers(session, 1)) == {"b": "ok"}
    assert session.stats["search"].hung == 0


def test_a_call_whose_trajectory_ended_while_it_waited_is_not_made(hanging):
  clock = Clock()
  with _session(hanging, clock=clock, tool_threads=1) as session:
    session.submit([_call("a"), _call("b", deadline=5.0)])
    hanging.wait_for(1)
    clock.now = 6.0
    assert [call.owner for call, _ in session.take()] == ["b"]
    hanging.released.set()
    assert set(_answers(session, 1)) == {"a"}
  _join()
  assert not hanging.begun.acquire(blocking=False)
  assert session.stats["search"].hung == 0


def test_a_closed_session_leaves_no_answer_to_the_next(hanging):
  runner = ToolRunner(
    {"search": hanging}, RolloutConfig(tool_threads=1), max_chars=_MAX_CHARS
  )
  first = runner.session()
  first.submit([_call("a"), _call("b")])
  hanging.wait_for(1)
  first.close()
  assert first.stats["search"].hung == 1
  second = runner.session()
  second.submit([_call("c")])
  hanging.wait_for(1)  # In a new thread; "b" is not made any more.
  hanging.released.set()
  assert set(_answers(second, 1)) == {"c"}
  second.close()


@pytest.mark.parametrize(
  ("stated", "limits", "most"),
  [(None, (), 3), (2, (), 2), (5, (("search", 1),), 1)],
)
def test_calls_under_way_are_limited_by_tool(stated, limits, most, hanging):
  hanging.max_concurrency = stated
  with _session(hanging, tool_threads=3, tool_limits=limits) as session:
    session.submit([_call(str(i)) for i in range(6)])
    hanging.wait_for(most)
    hanging.released.set()
    _answers(session, 6)
  assert hanging.most_running == most


@pytest.mark.parametrize(
  ("stated", "configured", "timeout_s"),
  [(None, (), 30), (5.0, (), 5), (5.0, (("search", 7.0),), 7)],
)
def test_deadlines_are_the_tools_or_the_configs(
  stated, configured, timeout_s, hanging
):
  hanging.timeout_s = stated
  clock = Clock()
  with _session(hanging, clock=clock, tool_timeouts_s=configured) as session:
    session.submit([_call()])
    hanging.wait_for(1)
    clock.now = timeout_s - 0.1
    assert not session.take()
    clock.now = timeout_s + 0.1
    [(_, result)] = session.take()
  assert result.text == f"no answer within {timeout_s} s"


def test_without_threads_calls_are_refused(monkeypatch):
  def refuse(self):
    raise RuntimeError("can't start new thread")

  monkeypatch.setattr(threading.Thread, "start", refuse)
  with _session(FakeTool()) as session:
    session.submit([_call()])
    [(_, result)] = session.take()
  assert result.status is ToolStatus.REFUSED
  assert "the system gives no more threads" in result.text


def test_a_hanging_call_does_not_keep_the_interpreter_from_its_exit():
  program = """
    import threading
    from rapo_jax.rollout import RolloutConfig
    from rapo_jax.rollout.tool_runner import Call, ToolRunner, wait_for_news

    begun = threading.Event()

    class Tool:
      name, batched = "search", False

      def call(self, argument):
        begun.set()
        threading.Event().wait()

      def call_batch(self, arguments):
        return [self.call(argument) for argument in arguments]

    runner = ToolRunner({"search": Tool()}, RolloutConfig(), max_chars=9)
    runner.session().submit([Call(None, "search", "a", 1e9, 0.0)])
    assert begun.wait(10)
    print("done")
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)],
    capture_output=True,
    encoding="utf-8",
    timeout=120,
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# All of it at once.

_KINDS = st.sampled_from(["ok", "error", *_BROKEN])


@hypothesis.given(
  kinds=st.lists(st.tuples(_KINDS, st.sampled_from(["search", "open"]))),
  idempotent=st.booleans(),
  lengths=st.sampled_from([0, 1, -1]),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_call_has_one_answer(kinds, idempotent, lengths):
  def answer(argument):
    kind = argument.partition("|")[0]
    if kind in _BROKEN:
      return _BROKEN[kind][0]()
    return ToolResult(argument, ToolStatus(kind))

  class Batched(FakeTool):
    def call_batch(self, arguments):
      results = super().call_batch(arguments)
      return results + results[:1] if lengths > 0 else results[: lengths or 99]

  tools = [FakeTool(answer), Batched(answer, name="open", batched=True)]
  for tool in tools:
    tool.idempotent = idempotent
  with _session(*tools, tool_threads=3) as session:
    calls = [
      _call(f"{kind}|{number}", name)
      for number, (kind, name) in enumerate(kinds)
    ]
    session.submit(calls)
    answers = _answers(session, len(calls))
    assert set(answers) == {call.owner for call in calls}
    for call in calls:
      kind, result = call.owner.partition("|")[0], answers[call.owner]
      assert type(result.text) is str
      expected = "failed" if kind in _BROKEN else kind
      if call.name == "search":
        assert result.status == expected
      else:  # Its batch may have failed.
        assert result.status in (expected, "failed")
    for name, stats in session.stats.items():
      made = sum(call.name == name for call in calls)
      assert sum(stats.counts.values()) == made
      assert len(stats.seconds) == len(stats.waited_seconds) == made
      assert all(value >= 0 for value in stats.numbers().values())
    assert session.num_pending == 0


def test_stats_as_numbers():
  clock = Clock()

  def answer(argument):
    clock.now += float(argument)
    return ToolResult(argument, ToolStatus.OK)

  with _session(FakeTool(answer), clock=clock, tool_threads=1) as session:
    for seconds in ("1", "2", "3"):
      session.submit([_call(seconds)])
      _answers(session, 1)
  numbers = session.stats["search"].numbers()
  assert numbers["ok"] == 3
  assert numbers["seconds_p50"] == 2
  assert numbers["seconds_p95"] == pytest.approx(2.9)  # 2 + 0.9 · (3 - 2).
  assert numbers["seconds_max"] == 3
  assert numbers["waited_seconds_max"] == 0


# What a tool and a config may say.


def test_a_policy_is_read_from_attributes():
  tool = FakeTool()
  assert call_policy(tool) == CallPolicy()
  tool.idempotent, tool.timeout_s = True, 3.0
  assert call_policy(tool) == CallPolicy(idempotent=True, timeout_s=3.0)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("retries", -1, "retries must be at least 0, got -1"),
    ("max_concurrency", 0, "max_concurrency must be at least 1, got 0"),
    ("timeout_s", 0.0, "timeout_s must be > 0 seconds, got 0.0"),
  ],
)
def test_a_policy_out_of_range_is_refused(name, value, message):
  tool = FakeTool()
  setattr(tool, name, value)
  with pytest.raises(ValueError, match=message), _session(tool):
    pass


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"tool_limits": (("search", 1),) * 2},
      "each tool once, got search, search",
    ),
    ({"tool_limits": (("open", 0),)}, "at least 1, got 0 for open"),
    ({"tool_timeouts_s": (("open", 0.0),)}, "> 0, got 0.0 for open"),
    ({"tool_retries": -1}, "tool_retries must be at least 0"),
    ({"max_hung_calls": 0}, "max_hung_calls must be at least 1"),
    ({"max_malformed_calls": 0}, "max_malformed_calls must be at least 1"),
  ],
)
def test_a_config_out_of_range_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    RolloutConfig(**changes)


@pytest.mark.parametrize("name", ["tool_limits", "tool_timeouts_s"])
def test_a_setting_for_a_tool_that_is_not_there_is_refused(name):
  config = RolloutConfig(**{name: (("serch", 1),)})
  check_tool_settings(config, ("serch",))
  with pytest.raises(
    ValueError, match=rf"{name} .*\(search, open\), got serch"
  ):
    check_tool_settings(config, ("search", "open"))


class CountingTool(FakeTool):
  """Counts what it costs, under names of its own and one of ours."""

  def numbers(self):
    return {"cost": 0.25, "ok": 99}


def test_what_a_tool_counts_is_among_the_numbers():
  with _session(CountingTool()) as session:
    pass
  numbers = session.stats["search"].numbers()
  assert numbers["cost"] == 0.25
  assert numbers["ok"] == 0


def test_a_tool_whose_numbers_fail_costs_no_rollout(caplog):
  tool = CountingTool()
  tool.numbers = lambda: 1 / 0
  with _session(tool) as session:
    pass
  assert session.stats["search"].own == {}
  assert "numbers() of search failed" in caplog.text
