import json

import numpy as np
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.buffer import trace_file

QUESTION = "Which city has the tallest tower?"


def make_trace(
  trace_id, *, reward=1.0, question=QUESTION, history=(), **kwargs
):
  return retrieval.StepTrace(
    question=question,
    history=tuple(history),
    step=kwargs.pop("step", f"step {trace_id}"),
    reward=reward,
    source=kwargs.pop("source", "off_policy"),
    trace_id=trace_id,
    query_id="q0",
    step_index=len(history),
    answers=False,
    **kwargs,
  )


def change_manifest(directory, **changes):
  path = directory / "manifest.json"
  path.write_text(
    json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
    encoding="utf-8",
  )


class FakeIndex:
  """Gives prepared neighbours, or raises a prepared error."""

  encoder_sha256 = None

  def __init__(self, ids=(), scores=(), error=None):
    self.ids, self.scores, self.error = ids, scores, error
    self.num_searches = 0
    self.parameters = {"kind": "fake", "recall": 1.0}

  def __len__(self):
    return len(self.ids)

  def search(self, queries, num_neighbors):
    self.num_searches += 1
    if self.error:
      raise self.error
    rows = len(queries)
    return retrieval.Neighbors(
      ids=np.tile(np.array(self.ids, np.int64), (rows, 1)),
      scores=np.tile(np.array(self.scores, np.float32), (rows, 1)),
    )

  def save(self, path):
    raise NotImplementedError


def fake_buffer(encoder, rewards, scores, key_ids=None, ids=None):
  traces = [make_trace(i, reward=reward) for i, reward in enumerate(rewards)]
  key_ids = list(range(len(rewards))) if key_ids is None else key_ids
  ids = list(range(len(scores))) if ids is None else ids
  index = FakeIndex(ids, scores)
  return retrieval.StepTraceBuffer(traces, key_ids, index, encoder)


class TestChoice:
  """Top-k by similarity, then reward, then similarity."""

  @pytest.mark.parametrize(
    ("rewards", "scores", "chosen"),
    [
      ([0.5, 1.0, 0.9], [0.9, 0.8, 0.7], 1),  # The highest reward.
      ([0.5, 1.0, 1.0], [0.9, 0.8, 0.7], 1),  # Ties by similarity.
      ([1.0, 1.0, 1.0], [0.9, 0.9, 0.9], 0),  # Full ties by order.
      ([0.0, -1.0, 0.2], [0.9, 0.8, 0.7], 2),  # Rewards <= 0 are out.
    ],
  )
  def test_chosen(self, encoder, rewards, scores, chosen):
    buffer = fake_buffer(encoder, rewards, scores)
    (hit,) = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig()
    )
    assert hit.trace.trace_id == chosen
    assert hit.similarity == pytest.approx(scores[chosen])

  def test_a_better_trace_beyond_top_k_is_not_considered(self, encoder):
    # Keys 0 and 1 hold two traces each: top-3 takes both of key 0 and the
    # better one of key 1, id 3; the worse one, id 2, and key 2 are out.
    buffer = fake_buffer(
      encoder,
      rewards=[0.1, 0.2, 0.3, 0.4, 1.0],
      key_ids=[0, 0, 1, 1, 2],
      scores=[0.9, 0.8, 0.7],
    )
    (hit,) = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig(top_k=3)
    )
    assert hit.trace.trace_id == 3
    # The others that were considered, by similarity and then by reward.
    assert [(o.trace_id, o.reward) for o in hit.others] == [(1, 0.2), (0, 0.1)]
    assert [o.similarity for o in hit.others] == pytest.approx([0.9, 0.9])

  def test_of_one_key_the_higher_rewards_are_considered(self, encoder):
    buffer = fake_buffer(
      encoder,
      rewards=[0.1, 0.2, 0.3, 0.9],
      key_ids=[0, 0, 0, 0],
      scores=[0.9],
    )
    (hit,) = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig(top_k=1)
    )
    assert hit.trace.trace_id == 3

  def test_no_more_than_four_others_are_named(self, encoder):
    buffer = fake_buffer(encoder, [1.0] * 8, [0.9 - i / 10 for i in range(8)])
    (hit,) = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig(top_k=8)
    )
    assert [other.trace_id for other in hit.others] == [1, 2, 3, 4]

  def test_noise_leaves_the_nearest_as_others(self, encoder):
    buffer = fake_buffer(encoder, [1.0, 0.5, 0.25], [0.9, 0.8, 0.7])
    config = retrieval.RetrievalConfig(top_k=2, noise_prob=1.0)
    hits = buffer.retrieve(
      [QUESTION] * 20, [()] * 20, config=config, keys=[[i] for i in range(20)]
    )
    assert {hit.trace.trace_id for hit in hits} == {0, 1, 2}
    for hit in hits:
      assert hit.trace.trace_id not in [o.trace_id for o in hit.others]
      assert {o.trace_id for o in hit.others} == {0, 1} - {hit.trace.trace_id}

  def test_neighbors_are_those_considered(self, encoder):
    # As above: key 0 has the traces 0 and 1, key 1 has 2 and 3.
    buffer = fake_buffer(
      encoder,
      rewards=[0.1, 0.2, 0.3, 0.4, 1.0],
      key_ids=[0, 0, 1, 1, 2],
      scores=[0.875, 0.75, 0.5],
    )
    hits, same = buffer.neighbors([QUESTION] * 2, [(), ()], 3)
    assert hits == same
    assert [(hit.trace.trace_id, hit.similarity) for hit in hits] == [
      *((1, 0.875), (0, 0.875), (3, 0.75))
    ]
    assert buffer.neighbors([], [], 3) == []
    with pytest.raises(ValueError, match="1 questions and 0 histories"):
      buffer.neighbors([QUESTION], [], 3)

  def test_thresholds(self, encoder):
    buffer = fake_buffer(encoder, [0.5, 1.0], [0.75, 0.25])
    ask = lambda **kwargs: buffer.retrieve(  # noqa: E731
      [QUESTION], [()], config=retrieval.RetrievalConfig(**kwargs)
    )[0]
    assert ask(min_similarity=0.75).trace.trace_id == 0
    assert ask(min_similarity=0.76) == retrieval.Miss("below min_similarity")
    assert ask(min_reward=0.5).trace.trace_id == 1
    assert ask(min_reward=1.0) == retrieval.Miss("below min_reward")

  def test_padding_is_no_trace(self, encoder):
    buffer = fake_buffer(encoder, [1.0], [-np.inf], ids=[-1])
    outcomes = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig()
    )
    assert outcomes == [retrieval.Miss("below min_similarity")]


@pytest.mark.parametrize("index_cls", [retrieval.ExactIndex, None])
class TestRetrieve:
  def test_finds_the_step_after_the_same_history(self, encoder, index_cls):
    traces = []
    for topic in ("rivers of Europe", "prime numbers", "a film director"):
      traces += retrieval.step_traces(
        f"A question about {topic}?",
        [
          f"<think> {topic} {part} </think>" for part in ("plan", "look", "end")
        ],
        reward=1.0,
        source="strong",
        query_id=topic,
        first_trace_id=len(traces),
      )
    buffer = retrieval.StepTraceBuffer.build(traces, encoder, index_cls)
    outcomes = buffer.retrieve(
      [trace.question for trace in traces],
      [trace.history for trace in traces],
      config=retrieval.RetrievalConfig(top_k=1),
    )
    assert [outcome.trace for outcome in outcomes] == traces
    assert min(outcome.similarity for outcome in outcomes) > 0.999

  def test_empty_buffer_misses(self, encoder, index_cls):
    buffer = retrieval.StepTraceBuffer.build([], encoder, index_cls)
    assert len(buffer) == 0
    assert (
      buffer.retrieve(
        [QUESTION] * 2, [(), ("a",)], config=retrieval.RetrievalConfig()
      )
      == [retrieval.Miss("empty buffer")] * 2
    )

  def test_more_neighbors_than_there_are(self, encoder, index_cls):
    traces = [make_trace(i, reward=1.0) for i in range(3)]
    buffer = retrieval.StepTraceBuffer.build(traces, encoder, index_cls)
    (hits,) = buffer.neighbors([QUESTION], [()], 2**62)
    assert len(hits) == 3

  def test_no_questions(self, encoder, index_cls):
    buffer = retrieval.StepTraceBuffer.build(
      [make_trace(0)], encoder, index_cls
    )
    config = retrieval.RetrievalConfig()
    assert buffer.retrieve([], [], config=config) == []

  def test_saved_moved_and_loaded_it_is_the_same(
    self, encoder, index_cls, tmp_path
  ):
    traces = [
      make_trace(
        7,
        history=("α <result> 1 </result>", "b"),
        reward=1.1,
        trajectory_id="t/7",
        extras={"url": "ü", "n": [1, None]},
      ),
      make_trace(3, reward=0.25, source="weak", step="x\n\ty"),
      make_trace(4, reward=0.5),
    ]
    buffer = retrieval.StepTraceBuffer.build(traces, encoder, index_cls)
    buffer.save(tmp_path / "a" / "buffer")
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = retrieval.StepTraceBuffer.load(tmp_path / "b" / "buffer", encoder)
    assert list(loaded) == traces
    questions, histories = [QUESTION] * 2, [(), ("b",)]
    config = retrieval.RetrievalConfig()
    assert loaded.retrieve(
      questions, histories, config=config
    ) == buffer.retrieve(questions, histories, config=config)

  def test_an_empty_buffer_is_saved_too(self, encoder, index_cls, tmp_path):
    buffer = retrieval.StepTraceBuffer.build([], encoder, index_cls)
    buffer.save(tmp_path / "buffer")
    assert (
      len(retrieval.StepTraceBuffer.load(tmp_path / "buffer", encoder)) == 0
    )


class TestNoise:
  @pytest.fixture
  def buffer(self, encoder):
    # Trace 3 is below min_reward; 0 is always found.
    return fake_buffer(encoder, [1.0, 0.2, 0.3, -1.0], [0.9], ids=[0])

  def retrieve(self, buffer, keys, **kwargs):
    config = retrieval.RetrievalConfig(**kwargs)
    count = len(keys)
    return buffer.retrieve(
      [QUESTION] * count, [()] * count, config=config, keys=keys
    )

  def test_always(self, buffer):
    keys = [(7, i) for i in range(300)]
    hits = self.retrieve(buffer, keys, noise_prob=1.0)
    ids = np.array([hit.trace.trace_id for hit in hits])
    # Uniform over three: 100 each, with a deviation of sqrt(300 * 2/9) = 8.2.
    counts = np.bincount(ids, minlength=4)
    assert counts[3] == 0
    assert (abs(counts[:3] - 100) < 35).all()
    assert {hit.similarity for hit in hits} == {None}
    assert {hit.text for hit in hits} == {"step 0", "step 1", "step 2"}

  def test_sometimes(self, buffer):
    keys = [(7, i) for i in range(300)]
    hits = self.retrieve(buffer, keys, noise_prob=0.2)
    # 60 of 300, with a deviation of sqrt(300 * .16) = 6.9.
    assert abs(sum(hit.similarity is None for hit in hits) - 60) < 30

  def test_never(self, buffer):
    keys = [(7, i) for i in range(20)]
    hits = self.retrieve(buffer, keys)
    assert {hit.trace.trace_id for hit in hits} == {0}
    assert hits == buffer.retrieve(
      [QUESTION] * 20, [()] * 20, config=retrieval.RetrievalConfig()
    )

  def test_a_draw_is_of_its_key_and_not_of_the_batch(self, buffer):
    keys = [(7, i) for i in range(30)]
    together = self.retrieve(buffer, keys, noise_prob=0.5)
    alone = [self.retrieve(buffer, [key], noise_prob=0.5)[0] for key in keys]
    assert together == alone
    assert self.retrieve(buffer, keys[::-1], noise_prob=0.5) == together[::-1]
    others = self.retrieve(buffer, [(8, i) for i in range(30)], noise_prob=0.5)
    assert others != together

  def test_a_miss_stays_a_miss(self, buffer):
    (outcome,) = self.retrieve(
      buffer, [(0,)], noise_prob=1.0, min_similarity=0.95
    )
    assert outcome == retrieval.Miss("below min_similarity")

  def test_it_needs_keys(self, buffer):
    config = retrieval.RetrievalConfig(noise_prob=0.5)
    with pytest.raises(
      ValueError, match=r"one key a question.*got 0 keys and 1"
    ):
      buffer.retrieve([QUESTION], [()], config=config)


class TestTrajectories:
  STEPS = (
    "<search> a </search>",
    "<search> b </search>",
    "<answer> c </answer>",
  )

  def traces(self):
    found = []
    for name, steps in (("x", self.STEPS), ("y", self.STEPS[:2])):
      found += retrieval.step_traces(
        f"Question {name}?",
        steps,
        reward=1.0,
        source="strong",
        query_id=name,
        first_trace_id=len(found),
        trajectory_id=name,
      )
    return found

  @pytest.mark.parametrize("stored", [False, True])
  def test_the_whole_trajectory_is_given(self, encoder, tmp_path, stored):
    # In no order, and without the first step of x.
    traces = [self.traces()[i] for i in (2, 4, 1, 3)]
    buffer = retrieval.StepTraceBuffer.build(traces, encoder)
    if stored:
      buffer.save(tmp_path / "buffer")
      buffer = retrieval.StepTraceBuffer.load(tmp_path / "buffer", encoder)
    config = retrieval.RetrievalConfig(top_k=1, granularity="trajectory")
    hits = buffer.retrieve(
      [trace.question for trace in traces],
      [trace.history for trace in traces],
      config=config,
    )
    assert [hit.trace for hit in hits] == traces
    x, y = "\n".join(self.STEPS), "\n".join(self.STEPS[:2])
    assert [hit.text for hit in hits] == [x, y, x, y]
    assert [hit.answers for hit in hits] == [True, False, True, False]

  def test_steps_of_no_known_trajectory_stand_alone(self, encoder):
    traces = [
      make_trace(0, history=("a",), step="b"),
      make_trace(1, history=("a", "b"), step="c"),
      make_trace(2, history=("z",), step="y", trajectory_id="t", source="p"),
      make_trace(3, history=("z", "y"), step="x", trajectory_id="t"),
    ]
    buffer = retrieval.StepTraceBuffer.build(traces, encoder)
    config = retrieval.RetrievalConfig(top_k=1, granularity="trajectory")
    hits = buffer.retrieve(
      [QUESTION] * 4, [trace.history for trace in traces], config=config
    )
    # Trajectory "t" is one of the agent p, and another one of off_policy.
    assert [hit.text for hit in hits] == ["a\nb", "a\nb\nc", "z\ny", "z\ny\nx"]


class TestFailures:
  @pytest.mark.parametrize(
    "error", [RuntimeError("gone"), ValueError("bad"), OSError("read")]
  )
  def test_a_failed_search_is_data(self, encoder, error):
    buffer = retrieval.StepTraceBuffer(
      [make_trace(0)], [0], FakeIndex(error=error), encoder
    )
    outcomes = buffer.retrieve(
      [QUESTION] * 2, [(), ()], config=retrieval.RetrievalConfig()
    )
    reason = f"{type(error).__name__}: {error}"
    assert outcomes == [retrieval.Failed(reason)] * 2

  def test_an_encoder_that_fails_is_data_too(self, encoder, monkeypatch):
    def fail(texts):
      raise RuntimeError("out of memory")

    buffer = fake_buffer(encoder, [1.0], [0.5])
    monkeypatch.setattr(encoder, "encode_queries", fail)
    (outcome,) = buffer.retrieve(
      [QUESTION], [()], config=retrieval.RetrievalConfig()
    )
    assert outcome == retrieval.Failed("RuntimeError: out of memory")

  def test_other_errors_are_not_hidden(self, encoder):
    buffer = retrieval.StepTraceBuffer(
      [make_trace(0)], [0], FakeIndex(error=KeyError("a bug")), encoder
    )
    with pytest.raises(KeyError, match="a bug"):
      buffer.retrieve([QUESTION], [()], config=retrieval.RetrievalConfig())

  def test_all_histories_are_one_search(self, encoder):
    buffer = fake_buffer(encoder, [1.0], [0.5])
    buffer.retrieve(
      [QUESTION] * 9, [()] * 9, config=retrieval.RetrievalConfig()
    )
    assert buffer.index.num_searches == 1

  def test_unequal_numbers_are_refused(self, encoder):
    buffer = fake_buffer(encoder, [1.0], [0.5])
    with pytest.raises(ValueError, match="1 questions and 2 histories"):
      buffer.retrieve([QUESTION], [(), ()], config=retrieval.RetrievalConfig())

  def test_one_id_twice_is_refused(self, encoder):
    with pytest.raises(ValueError, match=r"id 5.*first_trace_id"):
      retrieval.StepTraceBuffer.build([make_trace(5)] * 2, encoder)

  def test_a_reward_that_is_no_number_is_refused(self, encoder):
    with pytest.raises(ValueError, match="trace 5 is nan"):
      retrieval.StepTraceBuffer.build(
        [make_trace(5, reward=float("nan"))], encoder
      )

  @pytest.mark.parametrize(
    ("kwargs", "message"),
    [
      ({"top_k": 0}, "top_k"),
      ({"min_similarity": 2.0}, "min_similarity"),
      ({"noise_prob": 1.5}, r"noise_prob must lie in \[0, 1\]"),
      ({"breaker_failures": 0}, "breaker_failures must be at least 1, got 0"),
      ({"breaker_failures": 9}, r"breaker_window \(8\), got 9"),
      ({"breaker_cooldown_s": -1.0}, "at least 0 seconds, got -1"),
    ],
  )
  def test_config_is_checked(self, kwargs, message):
    with pytest.raises(ValueError, match=message):
      retrieval.RetrievalConfig(**kwargs)


class TestLoad:
  @pytest.fixture
  def saved(self, encoder, tmp_path):
    buffer = retrieval.StepTraceBuffer.build([make_trace(0)], encoder)
    buffer.save(tmp_path / "buffer")
    return tmp_path / "buffer"

  @pytest.mark.parametrize("name", ["traces.parquet", "index/vectors.npy"])
  def test_a_changed_file_is_named(self, encoder, saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-1] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} has another checksum"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  @pytest.mark.parametrize("name", ["traces.parquet", "index/vectors.npy"])
  def test_a_file_cut_short_is_named(self, encoder, saved, name):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-7])
    with pytest.raises(
      ValueError,
      match=rf"{name} has {len(data) - 7} bytes instead of {len(data)}.*"
      r"build the buffer again.*experiments\.buffer verify",
    ):
      retrieval.StepTraceBuffer.load(saved, encoder, checksums=False)

  def test_missing_and_added_files_are_named(self, encoder, saved):
    (saved / "traces.parquet").unlink()
    (saved / "index" / "extra.pkl").write_bytes(b"")
    with pytest.raises(
      ValueError,
      match=r"index/extra\.pkl is not in the manifest; traces\.parquet is miss",
    ):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_another_encoder_is_refused(self, encoder, saved):
    change_manifest(
      saved, encoder={"id": "other", "sha256": "0" * 64, "max_tokens": 9}
    )
    with pytest.raises(ValueError, match=r"other.*load the same encoder"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  @pytest.mark.parametrize("name", ["num_traces", "num_keys"])
  def test_counts_that_differ_are_told(self, encoder, saved, name):
    change_manifest(saved, **{name: 3})
    with pytest.raises(ValueError, match=r"1 .* instead of 3"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_a_partial_build_beside_a_whole_buffer_is_told(
    self, encoder, saved, caplog
  ):
    saved.with_name("buffer.partial").mkdir()
    assert len(retrieval.StepTraceBuffer.load(saved, encoder)) == 1
    assert "interrupted build" in caplog.text

  def test_one_trace_is_made_for_a_hit(self, encoder, saved, monkeypatch):
    decoded = []
    traces_of = trace_file.traces_of
    monkeypatch.setattr(
      trace_file,
      "traces_of",
      lambda table: decoded.append(len(table)) or traces_of(table),
    )
    buffer = retrieval.StepTraceBuffer.load(saved, encoder)
    decoded.clear()  # The type checker of tests looks at one or another.
    config = retrieval.RetrievalConfig()
    (hit,) = buffer.retrieve([QUESTION], [()], config=config)
    assert hit.trace == make_trace(0)
    assert decoded == [1]
