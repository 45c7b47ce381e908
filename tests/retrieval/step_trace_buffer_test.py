import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax import retrieval
from rapo_jax.retrieval import step_trace_buffer as buffer_lib

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
      make_trace(7, history=("α <result> 1 </result>", "b"), reward=1.1),
      make_trace(3, reward=0.25, source="weak", step="x\n\ty"),
      make_trace(4, reward=0.5),
    ]
    buffer = retrieval.StepTraceBuffer.build(traces, encoder, index_cls)
    buffer.save(tmp_path / "a" / "buffer", num_tokens=123)
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = retrieval.StepTraceBuffer.load(tmp_path / "b" / "buffer", encoder)
    assert list(loaded) == traces
    questions, histories = [QUESTION] * 2, [(), ("b",)]
    config = retrieval.RetrievalConfig()
    assert loaded.retrieve(
      questions, histories, config=config
    ) == buffer.retrieve(questions, histories, config=config)
    manifest = json.loads((tmp_path / "b/buffer/manifest.json").read_text())
    assert manifest["num_traces"] == 3
    assert manifest["num_keys"] == 2
    assert manifest["num_tokens"] == 123
    assert manifest["sources"] == {"off_policy": 2, "weak": 1}
    assert manifest["encoder"]["sha256"] == encoder.sha256

  def test_an_empty_buffer_is_saved_too(self, encoder, index_cls, tmp_path):
    buffer = retrieval.StepTraceBuffer.build([], encoder, index_cls)
    buffer.save(tmp_path / "buffer")
    assert (
      len(retrieval.StepTraceBuffer.load(tmp_path / "buffer", encoder)) == 0
    )


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
    assert buffer._index.num_searches == 1

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
      ({"breaker_failures": 0}, "between 1 and breaker_window"),
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
    with pytest.raises(ValueError, match=rf"{name}.*build the buffer again"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_missing_and_added_files_are_named(self, encoder, saved):
    (saved / "traces.parquet").unlink()
    (saved / "index" / "extra.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"index/extra\.pkl, traces\.parquet"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_another_encoder_is_refused(self, encoder, saved):
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["encoder"] = {"id": "other-model", "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"other-model.*load the same encoder"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_another_format_is_refused(self, encoder, saved):
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": 99}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="version 99, this code reads 1"):
      retrieval.StepTraceBuffer.load(saved, encoder)

  def test_a_folder_without_a_buffer_is_refused(self, encoder, tmp_path):
    with pytest.raises(ValueError, match="no Step-Trace Buffer"):
      retrieval.StepTraceBuffer.load(tmp_path, encoder)

  def test_all_fields_are_stored(self):
    fields = {field.name for field in dataclasses.fields(retrieval.StepTrace)}
    assert buffer_lib._column_types().keys() == fields


class TestKeyText:
  def test_short_history_is_whole(self, encoder):
    key = retrieval.key_text("Q?", ["first step", "second step"], encoder)
    assert key == "Q?\nfirst step\nsecond step"

  def test_without_history_it_is_the_question(self, encoder):
    assert retrieval.key_text("Q?", [], encoder) == "Q?"

  def test_tags_are_left_out(self, encoder):
    step = "<think> a </think><search> b </search><result> c </result>"
    retrieved = f"<retrieve>{step}</retrieve>"
    expected = "Q?\na b c"
    assert retrieval.key_text("Q?", [step], encoder) == expected
    assert retrieval.key_text("Q?", [retrieved], encoder) == expected
    # Other markup is text.
    assert retrieval.key_text("Q?", ["<b>x</b>"], encoder) == "Q?\n<b>x</b>"

  def test_oldest_steps_go_first_and_then_words(self, encoder):
    # [CLS], [SEP], "q" and "?" leave 252 wordpieces; "city" is one, the
    # newest step takes 150 and of the one before it 102 of 150 stay.
    old, middle, new = ("river " * 150, "city " * 150, "bridge " * 150)
    key = retrieval.key_text("q?", [old, middle, new], encoder)
    question, kept_middle, kept_new = key.split("\n")
    assert question == "q?"
    assert kept_middle.split() == ["city"] * 102
    assert kept_new.split() == ["bridge"] * 150
    assert encoder.num_tokens(key) == 256

  def test_cut_at_a_word_and_not_inside_it(self, encoder):
    # "unbelievability" takes several wordpieces, of which the cut would
    # keep some.
    word = "unbelievability"
    assert len(encoder.tokenize(word)) > 2
    for extra in range(1, 6):
      step = word + " city" * (252 - extra)
      key = retrieval.key_text("q?", [step], encoder)
      kept = set(key.split("\n")[1].split())
      assert kept <= {word, "city"}
      assert encoder.num_tokens(key) <= 256

  def test_a_question_too_long_keeps_its_beginning(self, encoder):
    question = " ".join(f"word{i}" for i in range(400))
    assert retrieval.key_text(question, ["history"], encoder) == question
    cut = " ".join(question.split()[:250])
    with_history, without = encoder.encode(
      [retrieval.key_text(question, ["history"], encoder), cut]
    )
    assert with_history @ without > 0.999

  def test_text_without_spaces_is_cut_too(self, encoder):
    # Each ideograph is a word and a wordpiece; 252 fit beside "q?".
    key = retrieval.key_text("q?", ["水" * 300], encoder)
    assert key == "q?\n" + "水" * 252

  def test_a_word_that_does_not_fit_is_left_out(self, encoder):
    question = " ".join(["q"] * 253)
    assert encoder.num_tokens(question) == 255
    key = retrieval.key_text(question, ["unbelievability"], encoder)
    assert key == question

  @settings(max_examples=60, deadline=None)
  @given(
    question=st.text(max_size=60),
    history=st.lists(
      st.text(max_size=40).map(lambda text: f"{text} " * 12), max_size=5
    ),
  )
  def test_never_beyond_the_encoder_and_always_the_newest(
    self, encoder, question, history
  ):
    key = retrieval.key_text(question, history, encoder)
    assert key.startswith(question)
    assert encoder.num_tokens(key) <= encoder.max_tokens
    if history:
      newest = history[-1].replace("<retrieve>", "").strip(" \t\r\n")
      room = encoder.max_tokens - encoder.num_tokens(question)
      if len(encoder.tokenize(newest)) <= room:
        assert key.endswith(newest)


class TestStepTraces:
  def test_cut_into_steps(self):
    steps = [
      "<think> a </think><search> b </search><result> c </result>",
      "<retrieve><think> d </think></retrieve>",
      "<think> e </think><answer> \\boxed{f} </answer>",
    ]
    traces = retrieval.step_traces(
      "Q?", steps, reward=1, source="s", query_id="q7", first_trace_id=10
    )
    assert [trace.trace_id for trace in traces] == [10, 11, 12]
    assert [trace.step_index for trace in traces] == [0, 1, 2]
    assert [trace.answers for trace in traces] == [False, False, True]
    assert [trace.reward for trace in traces] == [1.0] * 3
    assert traces[1].step == "<think> d </think>"
    assert traces[0].history == ()
    assert traces[2].history == (steps[0], "<think> d </think>")
    assert {(t.question, t.source, t.query_id) for t in traces} == {
      ("Q?", "s", "q7")
    }

  def test_no_steps(self):
    assert not retrieval.step_traces(
      "Q?", [], reward=1.0, source="s", query_id="q", first_trace_id=0
    )


class TestSelectTopK:
  def test_best_of_each_question_stable(self):
    query_ids = ["a", "b", "a", "a", "b", "a"]
    rewards = [0.5, 0.0, 1.0, 0.5, 0.3, -1.0]
    # a: 1.0 (2), 0.5 (0), 0.5 (3); b: 0.3 (4). Zero and below never count.
    select = retrieval.select_top_k
    assert select(query_ids, rewards, k=2) == [0, 2, 4]
    assert select(query_ids, rewards, k=9) == [0, 2, 3, 4]
    assert select(query_ids, rewards, k=9, min_reward=0.4) == [0, 2, 3]
    assert select([], [], k=5) == []
