"""A buffer that grows: what is found, and what is found again."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax import hosts, retrieval
from rapo_jax.retrieval.buffer import growing as growing_lib
from rapo_jax.retrieval.buffer import store
from tests.hosts import loopback
from tests.retrieval.index.indexes import CountedIndex

CONFIG = retrieval.RetrievalConfig(top_k=1)


def make_traces(topic, first=0, reward=0.5, steps=3, source="strong"):
  return retrieval.step_traces(
    f"A question about {topic}?",
    [f"<think> {topic} step {t} </think>" for t in range(steps)],
    reward=reward,
    source=source,
    query_id=topic,
    first_trace_id=first,
  )


def found(buffer, traces, config=CONFIG):
  """Ids of the traces that the histories of some traces find."""
  hits = buffer.retrieve(
    [t.question for t in traces], [t.history for t in traces], config=config
  )
  return [hit.trace.trace_id for hit in hits]


@pytest.fixture
def base(encoder, tmp_path):
  traces = make_traces("rivers") + make_traces("primes", first=3)
  buffer = retrieval.StepTraceBuffer.build(traces, encoder)
  buffer.save(tmp_path / "base")
  return retrieval.StepTraceBuffer.load(tmp_path / "base", encoder)


@pytest.fixture
def growing(base, tmp_path):
  return retrieval.GrowingBuffer(base, tmp_path / "grown")


class TestTailedIndex:
  @pytest.mark.parametrize("num_main", [0, 1, 7, 20])
  @pytest.mark.parametrize("k", [1, 3, 30])
  def test_finds_what_one_index_of_all_finds(self, num_main, k):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((27, 4), dtype=np.float32)
    vectors[5] = vectors[25]  # A tie over the seam.
    queries = np.concatenate(
      [rng.standard_normal((3, 4), dtype=np.float32), vectors[25:26]]
    )
    main = retrieval.ExactIndex.build(
      vectors[:num_main], encoder_sha256="e" * 64
    )
    index = growing_lib.TailedIndex(main, vectors[num_main:])
    whole = retrieval.ExactIndex.build(vectors)
    got, expected = index.search(queries, k), whole.search(queries, k)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.scores, expected.scores)
    assert len(index) == 27
    assert index.encoder_sha256 == "e" * 64
    assert index.parameters == {**main.parameters, "tail": 27 - num_main}

  def test_is_not_saved(self, tmp_path):
    main = retrieval.ExactIndex.build(np.eye(2, dtype=np.float32))
    index = growing_lib.TailedIndex(main, np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="merge the buffer first"):
      index.save(tmp_path / "index")


class TestGrowing:
  def test_what_is_added_is_found_at_once(self, growing, base):
    new = make_traces("films", first=growing.next_trace_id)
    assert growing.version == base.version == 1
    before = found(growing, new)
    assert max(before) < 6
    growing.add(new, update=1)
    assert (growing.version, len(growing), growing.tail_traces) == (2, 9, 3)
    assert found(growing, new) == [6, 7, 8]
    assert growing.next_trace_id == 9
    # The others are found as before, and the base knows nothing of it.
    old = make_traces("rivers")
    assert found(growing, old) == found(base, old) == [0, 1, 2]
    assert len(base) == 6

  def test_of_one_key_the_better_trace_wins(self, growing):
    # The same histories, a better outcome: their keys are in the main index.
    better = make_traces("rivers", first=6, reward=0.9, source="policy")
    growing.add(better, update=1)
    assert growing._buffer.index is growing._main.index
    assert found(growing, better) == [6, 7, 8]

  def test_nothing_added_is_no_version(self, growing, tmp_path):
    growing.add([], update=1)
    growing.merge(update=1)
    assert growing.version == 1
    assert list((tmp_path / "grown").iterdir()) == []

  def test_ids_go_on(self, growing):
    with pytest.raises(ValueError, match=r"ids from 6 on.*got 5"):
      growing.add(make_traces("films", first=5), update=1)

  def test_a_buffer_in_memory_cannot_grow(self, encoder, tmp_path):
    buffer = retrieval.StepTraceBuffer.build([], encoder)
    with pytest.raises(ValueError, match="save it and load it again"):
      retrieval.GrowingBuffer(buffer, tmp_path)

  def test_an_empty_buffer_grows(self, encoder, tmp_path):
    retrieval.StepTraceBuffer.build([], encoder).save(tmp_path / "empty")
    base = retrieval.StepTraceBuffer.load(tmp_path / "empty", encoder)
    growing = retrieval.GrowingBuffer(base, tmp_path / "grown")
    new = make_traces("films")
    growing.add(new, update=3)
    assert found(growing, new) == [0, 1, 2]
    growing.merge(update=3)
    assert found(growing, new) == [0, 1, 2]


class TestMerge:
  def test_finds_the_same_from_one_index(self, growing, encoder, tmp_path):
    new = make_traces("films", first=6, reward=0.9)
    growing.add(new, update=1)
    again = make_traces("rivers", first=9, reward=0.7)
    growing.add(again, update=2)
    everything = [*make_traces("primes"), *new, *again]
    config = retrieval.RetrievalConfig()
    before = found(growing, everything, config)
    growing.merge(update=2)
    assert (growing.version, growing.tail_traces, len(growing)) == (3, 0, 12)
    assert found(growing, everything, config) == before
    merged = tmp_path / "grown" / "merged-000002"
    assert store.verify(merged) == []
    assert store.read_manifest(merged).version == 3
    assert list(store.iter_traces(merged))[6:] == [*new, *again]
    growing.add(make_traces("birds", first=12), update=3)
    assert growing.version == 4
    assert found(growing, make_traces("birds")) == [12, 13, 14]


class TestRestore:
  def steps(self, growing, first, last):
    """Additions of updates, two merges on the way, and what is found."""
    seen = []
    for update in range(first, last + 1):
      seen.append(
        (growing.version, found(growing, make_traces("things and birds")))
      )
      if update != 3:
        topic = f"thing {update} and birds"
        new = make_traces(topic, growing.next_trace_id, reward=update / 10)
        growing.add(new, update=update)
      if update % 2 == 0:
        growing.merge(update=update)
    return seen

  @pytest.mark.parametrize("update", range(6))
  def test_going_on_from_any_update_finds_the_same(
    self, base, tmp_path, update, encoder
  ):
    whole = retrieval.GrowingBuffer(base, tmp_path / "whole")
    expected = self.steps(whole, 1, 5)
    killed = retrieval.GrowingBuffer(base, tmp_path / "killed")
    assert self.steps(killed, 1, 5) == expected
    del killed
    again = retrieval.GrowingBuffer(base, tmp_path / "killed")
    again.restore(update)
    assert self.steps(again, update + 1, 5) == expected[update:]
    assert len(again) == len(whole)
    assert again.version == whole.version

  @pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
  def test_a_broken_addition_is_refused(self, growing, part, tmp_path):
    growing.add(make_traces("films", first=6), update=1)
    path = tmp_path / "grown" / "added-000001.parquet"
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"added-000001.parquet must be"):
      growing.restore(1)
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"added-000001.parquet must be"):
      growing.restore(1)

  @pytest.mark.parametrize(
    "change",
    [
      lambda table: table.drop_columns(["vector"]),
      lambda table: table.drop_columns(["step"]),
      lambda table: table.select(["vector"]),
      lambda table: table.slice(0, 0),
      lambda table: table.set_column(
        table.num_columns - 1, "vector", pa.array([[1.0, 0.0]] * len(table))
      ),
    ],
  )
  def test_a_file_that_is_no_addition_is_refused(
    self, growing, change, tmp_path
  ):
    growing.add(make_traces("films", first=6), update=1)
    path = tmp_path / "grown" / "added-000001.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=r"added-000001.parquet must be an"):
      growing.restore(1)

  def test_vectors_are_not_computed_again(self, growing, base, monkeypatch):
    self.steps(growing, 1, 3)
    expected = found(growing, make_traces("birds"))

    def fail(texts):
      raise AssertionError(texts)

    again = retrieval.GrowingBuffer(base, growing._folder)
    monkeypatch.setattr(base.encoder, "encode", fail)
    again.restore(3)
    monkeypatch.undo()
    assert found(again, make_traces("birds")) == expected

  def test_a_merged_buffer_is_taken_and_not_built_again(self, base, tmp_path):
    CountedIndex.built = 0
    for _ in range(2):
      growing = retrieval.GrowingBuffer(
        base, tmp_path / "grown", index_cls=CountedIndex
      )
      growing.restore(1)
      self.steps(growing, 2, 4)
    assert CountedIndex.built == 2  # Of updates 2 and 4, once each.

  def test_another_merged_buffer_is_replaced(self, base, tmp_path):
    CountedIndex.built = 0
    for topic in ("films", "birds"):
      growing = retrieval.GrowingBuffer(
        base, tmp_path / "grown", index_cls=CountedIndex
      )
      growing.restore(0)
      growing.add(make_traces(topic, first=6), update=1)
      growing.merge(update=1)
      assert found(growing, make_traces(topic)) == [6, 7, 8]
    assert CountedIndex.built == 2

  def test_the_digest_is_of_what_it_is_restored_from(self, growing, base):
    digests = {}
    for number in range(1, 5):
      self.steps(growing, number, number)
      digests[number] = growing.digest()
    # Update 3 adds nothing.
    assert digests[2] == digests[3]
    assert len(set(digests.values())) == 3
    again = retrieval.GrowingBuffer(base, growing._folder)
    for number in (4, 3, 1):
      again.restore(number)
      assert again.digest() == digests[number], number
    path = growing._folder / "added-000001.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    assert again.digest() != digests[1]

  def test_what_is_not_needed_is_deleted(self, growing, tmp_path):
    self.steps(growing, 1, 5)
    names = lambda: sorted(p.name for p in (tmp_path / "grown").iterdir())  # noqa: E731
    growing.forget_before(1)
    assert len(names()) == 6
    growing.forget_before(3)
    assert names() == [
      "added-000004.parquet",
      "added-000005.parquet",
      "merged-000002",
      "merged-000004",
    ]
    growing.restore(3)
    assert growing.version == 3


@hosts.led
def load(encoder, folder):
  return retrieval.StepTraceBuffer.load(folder, encoder)


@hosts.led
def grow(base, folder):
  return retrieval.GrowingBuffer(base, folder)


def test_another_host_has_what_the_leader_adds(base, encoder, tmp_path):
  with loopback.two_hosts(encoder) as follower:
    growing = grow(load(encoder, base.directory), tmp_path / "grown")
    [other] = loopback.held(follower, retrieval.GrowingBuffer)
    assert other is not growing

    def check(*topics):
      assert (other.version, len(other)) == (growing.version, len(growing))
      assert other.digest() == growing.digest()
      for topic in topics:
        traces = make_traces(topic)
        assert found(other, traces) == found(growing, traces)

    topics = ["films", "birds", "wells"]
    for update, topic in enumerate(topics, start=1):
      new = make_traces(topic, first=growing.next_trace_id)
      growing.add(new, update=update)
      check(*topics[:update])
    assert len(other) == 15
    growing.merge(update=2)
    check(*topics)
    growing.forget_before(3)
    growing.restore(0)
    assert len(other) == 6
    check("rivers")
