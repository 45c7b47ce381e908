"""What makes a batch, and what becomes of who does not fit or wait."""

import asyncio
import threading
import time

import pytest

from rapo_jax.retrieval.serving.batcher import Batcher, OverloadedError


class Run:
  """Answers with the request's length, once it is let."""

  def __init__(self):
    self.batches = []
    self.open = threading.Event()
    self.open.set()

  def __call__(self, requests):
    self.batches.append(list(requests))
    assert self.open.wait(20)
    if "bug" in requests:
      raise KeyError("a bug")
    return [
      ValueError("bad") if request == "bad" else len(request)
      for request in requests
    ]


def make(run, *, max_batch=4, max_wait_s=0.0, max_queue=100):
  return Batcher(
    run, max_batch=max_batch, max_wait_s=max_wait_s, max_queue=max_queue
  )


async def submit(
  batcher, request, *, size=1, timeout_s=20.0, client=(None, None)
):
  batcher.check_room(size, client[0])
  return await batcher.submit(
    request, size=size, timeout_s=timeout_s, client=client
  )


async def until(condition):
  for _ in range(2_000):
    if condition():
      return
    await asyncio.sleep(0.005)
  raise AssertionError("it never was")


def test_what_arrives_during_a_batch_makes_the_next():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run) as batcher:
      first = asyncio.create_task(submit(batcher, "a"))
      await until(lambda: run.batches)
      others = [
        asyncio.create_task(submit(batcher, text))
        for text in ("bb", "ccc", "bad", "dddd", "e")
      ]
      await until(lambda: batcher.num_queued == 6)
      run.open.set()
      answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert run.batches == [["a"], ["bb", "ccc", "bad", "dddd"], ["e"]]
    assert batcher.num_batches == 3
    assert batcher.num_queued == 0
    assert [str(a) for a in answers] == ["1", "2", "3", "bad", "4", "1"]

  asyncio.run(scenario())


def test_an_idle_batcher_waits_a_little():
  async def scenario():
    run = Run()
    async with make(run, max_wait_s=10.0, max_batch=3) as batcher:
      await asyncio.gather(*(submit(batcher, t) for t in "abc"))
    assert run.batches == [["a", "b", "c"]]
    async with make(run, max_wait_s=0.05, max_batch=3) as batcher:
      await submit(batcher, "d")

  asyncio.run(scenario())


def test_a_large_request_is_a_batch_of_its_own():
  async def scenario():
    run = Run()
    async with make(run, max_wait_s=0.05) as batcher:
      await asyncio.gather(
        submit(batcher, "a"),
        submit(batcher, "large", size=9),
        submit(batcher, "b", size=4),
      )
    assert run.batches == [["a"], ["large"], ["b"]]

  asyncio.run(scenario())


def test_beyond_the_queue_it_refuses():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run, max_queue=3) as batcher:
      # Where nothing waits even what is larger than the queue is let in.
      first = asyncio.create_task(submit(batcher, "a", size=4))
      await until(lambda: run.batches)
      with pytest.raises(
        OverloadedError, match="4 queries wait, 1 more exceed"
      ):
        await submit(batcher, "b")
      run.open.set()
      await first
      assert await submit(batcher, "b") == 1

  asyncio.run(scenario())


def test_it_says_when_to_come_back():
  async def scenario():
    run = Run()
    async with make(run, max_queue=100) as batcher:
      await submit(batcher, "a")
      batcher._queries_per_s = 5.0
      run.open.clear()
      task = asyncio.create_task(submit(batcher, "b", size=98))
      await until(lambda: batcher.num_queued)
      with pytest.raises(OverloadedError) as caught:
        await submit(batcher, "c", size=3)
      assert caught.value.retry_after_s == 20
      run.open.set()
      await task

  asyncio.run(scenario())


def test_who_does_not_wait_is_not_run():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run) as batcher:
      first = asyncio.create_task(submit(batcher, "a"))
      await until(lambda: run.batches)
      with pytest.raises(TimeoutError):
        await submit(batcher, "b", timeout_s=0.02)
      # Nor is the one under way heard when its time is up.
      first.cancel()
      run.open.set()
      assert await submit(batcher, "ccc") == 3
    assert run.batches == [["a"], ["ccc"]]

  asyncio.run(scenario())


def test_a_bug_is_heard_by_all_and_the_next_batch_runs():
  async def scenario():
    async with make(Run(), max_wait_s=0.05) as batcher:
      answers = await asyncio.gather(
        submit(batcher, "bug"), submit(batcher, "a"), return_exceptions=True
      )
      assert [type(a) for a in answers] == [KeyError, KeyError]
      assert await submit(batcher, "a") == 1

  asyncio.run(scenario())


def test_closing_cancels_who_waits():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run) as batcher:
      tasks = [asyncio.create_task(submit(batcher, t)) for t in "abcdef"]
      await until(lambda: run.batches)
      run.open.set()
    # Those of the batch that was under way, too, and none by its time.
    answers = await asyncio.wait_for(
      asyncio.gather(*tasks, return_exceptions=True), 10
    )
    assert isinstance(answers[0], asyncio.CancelledError | int)
    assert isinstance(answers[-1], asyncio.CancelledError)

  asyncio.run(scenario())


def order_of(*jobs):
  """Batches of jobs (request, size, client) that came during another one."""

  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run, max_batch=4) as batcher:
      tasks = [asyncio.create_task(submit(batcher, "first"))]
      await until(lambda: run.batches)
      for request, size, client in jobs:
        tasks.append(
          asyncio.create_task(
            submit(batcher, request, size=size, client=client)
          )
        )
        await asyncio.sleep(0)
      await until(lambda: batcher.num_queued == 1 + sum(s for _, s, _ in jobs))
      run.open.set()
      await asyncio.gather(*tasks)
      assert (batcher._turns, batcher._waiting) == ({}, {})
      assert not batcher._queued_of
    return run.batches[1:]

  return asyncio.run(scenario())


def test_machines_take_turns():
  many = [(f"a{i}", 1, ("a", 1)) for i in range(6)]
  one = [("b", 1, ("b", 1)), ("c", 1, ("c", 1))]
  assert order_of(*many, *one) == [
    ["a0", "b", "c", "a1"],
    ["a2", "a3", "a4", "a5"],
  ]


def test_connections_of_a_machine_take_turns():
  many = [(f"a{i}", 2, ("a", 1)) for i in range(3)]
  others = [("b", 1, ("a", 2)), ("c", 1, ("b", 1))]
  # A turn of machine a goes to its first connection, the next to its second.
  assert order_of(*many, *others) == [["a0", "c", "b"], ["a1", "a2"]]


def test_what_does_not_fit_is_first_in_the_next_batch():
  jobs = [("a", 3, ("a", 1)), ("b", 3, ("b", 1)), ("c", 1, ("c", 1))]
  assert order_of(*jobs) == [["a"], ["b", "c"]]


def test_who_comes_during_a_batch_goes_before_who_was_in_it():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run, max_batch=2) as batcher:
      tasks = [
        asyncio.create_task(submit(batcher, f"a{i}", client=("a", 1)))
        for i in range(6)
      ]
      await until(lambda: run.batches)
      tasks.append(asyncio.create_task(submit(batcher, "b", client=("b", 1))))
      await until(lambda: batcher.num_queued == 7)
      run.open.set()
      await asyncio.gather(*tasks)
    assert run.batches == [["a0", "a1"], ["b", "a2"], ["a3", "a4"], ["a5"]]

  asyncio.run(scenario())


def test_a_batch_ends_where_it_would_take_too_long():
  async def scenario():
    run = Run()
    batcher = Batcher(
      run, max_batch=9, max_wait_s=0.0, max_queue=99, max_batch_s=0.5
    )
    async with batcher:
      ask = lambda text, cost: batcher.submit(  # noqa: E731
        text, size=1, timeout_s=20, cost=cost
      )
      await ask("first", 1.0)
      run.open.clear()
      tasks = [asyncio.create_task(ask("under way", 1.0))]
      await until(lambda: len(run.batches) == 2)
      tasks += [
        asyncio.create_task(ask(text, cost))
        for text, cost in (("a", 1), ("b", 3), ("c", 3), ("d", 9))
      ]
      await until(lambda: batcher.num_queued == 5)
      began = time.monotonic()
      while time.monotonic() - began < 0.1:
        await asyncio.sleep(0.01)
      run.open.set()
      await asyncio.gather(*tasks)
    # The one under way took at least 0.1 s for a cost of 1.
    assert run.batches[2] in (["a"], ["a", "b"])

  asyncio.run(scenario())


def test_one_machine_does_not_fill_the_queue():
  async def scenario():
    run = Run()
    run.open.clear()
    async with make(run, max_queue=8) as batcher:
      tasks = [
        asyncio.create_task(submit(batcher, "a", size=3, client=("a", i)))
        for i in range(2)
      ]
      await until(lambda: batcher.num_queued == 6)
      with pytest.raises(
        OverloadedError, match="6 queries of this client wait"
      ):
        await submit(batcher, "a", client=("a", 9))
      tasks.append(
        asyncio.create_task(submit(batcher, "b", size=2, client=("b", 1)))
      )
      await until(lambda: batcher.num_queued == 8)
      with pytest.raises(OverloadedError, match="8 queries wait, 1 more"):
        await submit(batcher, "c", client=("c", 1))
      run.open.set()
      await asyncio.gather(*tasks)

  asyncio.run(scenario())
