"""Buffers on disk: written in a stream, resumed, read, checked, merged."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.buffer import store, trace_file
from rapo_jax.retrieval.buffer.manifest import AgentCounts

QUESTIONS = ("Which river is longest?", "How many primes are below ten?")


def make_traces(first=0, count=4, source="strong", words="look"):
  """Two or three steps of each of some trajectories."""
  traces = []
  for i in range(count):
    steps = [f"<think> {words} {i} {t} </think>" for t in range(2 + i % 2)]
    traces += retrieval.step_traces(
      QUESTIONS[i % 2],
      steps,
      reward=0.25 * (i + 1),
      source=source,
      query_id=f"q{i % 2}",
      first_trace_id=first + len(traces),
      trajectory_id=f"{words}-{i}",
      extras={"i": i} if i else None,
    )
  return traces


@pytest.fixture
def countdown(encoder, monkeypatch):
  """Makes the encoder fail after some texts; tells how many it was given."""

  class Countdown:
    texts = 0
    left = None

  state = Countdown()
  encode = encoder.encode

  def counted(texts):
    if state.left is not None:
      if state.left == 0:
        raise KeyboardInterrupt
      state.left -= 1
    state.texts += len(texts)
    return encode(texts)

  monkeypatch.setattr(encoder, "encode", counted)
  return state


def small_sizes(monkeypatch):
  monkeypatch.setattr(store, "BATCH_TRACES", 2)
  monkeypatch.setattr(store, "PART_TRACES", 3)
  monkeypatch.setattr(store, "CHUNK_KEYS", 2)
  monkeypatch.setattr(trace_file, "ROWS_PER_GROUP", 2)


def files_of(directory):
  return {
    path.relative_to(directory).as_posix(): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file()
  }


class TestBufferWriter:
  def test_writes_what_an_in_memory_buffer_saves(
    self, encoder, tmp_path, monkeypatch
  ):
    traces = make_traces()
    retrieval.StepTraceBuffer.build(traces, encoder).save(tmp_path / "saved")
    small_sizes(monkeypatch)
    writer = retrieval.BufferWriter(tmp_path / "streamed", encoder)
    writer.add(iter(traces[:5]))
    writer.add(traces[5:])
    progress = []
    manifest = writer.finish(lambda *told: progress.append(told))
    assert list(store.iter_traces(tmp_path / "streamed")) == traces
    assert [share for share, _ in progress] == sorted(s for s, _ in progress)
    assert progress[-1] == (1.0, "10 step traces")
    saved = store.read_manifest(tmp_path / "saved")
    assert manifest == store.read_manifest(tmp_path / "streamed")
    assert manifest.agents == saved.agents
    vectors = [
      np.asarray(store.key_vectors(tmp_path / name))
      for name in ("saved", "streamed")
    ]
    np.testing.assert_array_equal(*vectors)
    assert not (tmp_path / "streamed.partial").exists()
    assert store.verify(tmp_path / "streamed") == []

  def test_the_manifest_counts(self, encoder, tmp_path):
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    writer.add(make_traces())
    writer.add(make_traces(first=50, count=1, source="weak", words="go"))
    assert writer.next_trace_id == 52
    manifest = writer.finish()
    # Trajectories of 2, 3, 2 and 3 steps, each of three wordpieces: tags do
    # not count. Keys: 2 questions alone, then 2 of the first question and 2 of
    # the second after one step each, 2 after two; and one of the weak agent.
    assert manifest.agents == {
      "strong": AgentCounts(4, 10, 30),
      "weak": AgentCounts(1, 2, 6),
    }
    assert (manifest.num_traces, manifest.num_tokens) == (12, 36)
    assert manifest.num_keys == 2 + 2 + 2 + 2 + 1
    assert manifest.version == 1
    assert manifest.format_version == 2
    assert manifest.encoder.sha256 == encoder.sha256
    assert manifest.encoder.max_tokens == 256
    assert manifest.index["kind"] in ("scann", "exact")

  def test_columns_open_elsewhere(self, encoder, tmp_path):
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    writer.add(make_traces())
    writer.finish()
    table = pq.read_table(tmp_path / "buffer" / "traces.parquet")
    row = table.slice(4, 1).to_pylist()[0]
    assert row == {
      "trace_id": 4,
      "key_id": 4,
      "query_id": "q1",
      "question": QUESTIONS[1],
      "history": ["<think> look 1 0 </think>", "<think> look 1 1 </think>"],
      "key": f"{QUESTIONS[1]}\nlook 1 0\nlook 1 1",
      "step": "<think> look 1 2 </think>",
      "reward": 0.5,
      "source": "strong",
      "trajectory_id": "look-1",
      "step_index": 2,
      "num_tokens": 3,
      "answers": False,
      "extras": '{"i": 1}',
    }

  def test_without_traces(self, encoder, tmp_path):
    manifest = retrieval.BufferWriter(tmp_path / "buffer", encoder).finish()
    assert (manifest.num_traces, manifest.agents) == (0, {})
    assert store.verify(tmp_path / "buffer") == []
    assert (
      len(retrieval.StepTraceBuffer.load(tmp_path / "buffer", encoder)) == 0
    )

  def test_bad_traces_are_refused(self, encoder, tmp_path):
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    (first, *_) = make_traces()
    writer.add([first])
    with pytest.raises(ValueError, match="Two traces have the id 0"):
      writer.add([first])
    (bad, *_) = retrieval.step_traces(
      "Q?",
      ["a"],
      reward=1.0,
      source="s",
      query_id="q",
      first_trace_id=9,
      extras={"x": object()},
    )
    writer.add([bad])
    with pytest.raises(ValueError, match=r"values of JSON, those of trace 9"):
      writer.flush()


class TestResume:
  def test_adding_goes_on_where_a_part_was_closed(
    self, encoder, tmp_path, monkeypatch
  ):
    small_sizes(monkeypatch)
    traces = make_traces()
    path = tmp_path / "buffer"
    writer = retrieval.BufferWriter(path, encoder)
    writer.add(traces[:7])  # Parts hold 4; what is beyond the last is lost.
    del writer
    with pytest.raises(ValueError, match=r"interrupted build.*--resume"):
      retrieval.BufferWriter(path, encoder)
    with pytest.raises(ValueError, match=r"not built yet.*build --resume"):
      retrieval.StepTraceBuffer.load(path, encoder)
    writer = retrieval.BufferWriter(path, encoder, resume=True)
    assert writer.num_traces == 4
    assert writer.next_trace_id == 4
    assert writer.trajectory_ids == {"look-0", "look-1"}
    writer.add(traces[writer.num_traces :])
    manifest = writer.finish()
    assert list(store.iter_traces(path)) == traces
    whole = retrieval.BufferWriter(tmp_path / "whole", encoder)
    whole.add(traces)
    assert whole.finish() == manifest

  def test_flush_loses_nothing(self, encoder, tmp_path):
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    writer.add(make_traces()[:3])
    writer.flush()
    again = retrieval.BufferWriter(tmp_path / "buffer", encoder, resume=True)
    assert again.num_traces == 3

  def test_embedding_goes_on_where_it_was(
    self, encoder, tmp_path, monkeypatch, countdown
  ):
    small_sizes(monkeypatch)
    path = tmp_path / "buffer"
    writer = retrieval.BufferWriter(path, encoder)
    writer.add(make_traces())
    countdown.left = 2
    with pytest.raises(KeyboardInterrupt):
      writer.finish()
    assert countdown.texts == 4
    countdown.left = None
    writer = retrieval.BufferWriter(path, encoder, resume=True)
    shares = []
    manifest = writer.finish(lambda share, text: shares.append(share))
    assert countdown.texts == manifest.num_keys == 8
    # What was there before is not reported, as it would pass for a speed.
    assert shares[0] == 0.9 * 4 / 8
    assert store.verify(path) == []

  def test_more_may_be_added_after_embedding_began(
    self, encoder, tmp_path, monkeypatch, countdown
  ):
    small_sizes(monkeypatch)
    path = tmp_path / "buffer"
    traces = make_traces()
    writer = retrieval.BufferWriter(path, encoder)
    writer.add(traces[:5])  # Five keys; the last chunk has one.
    countdown.left = 3
    monkeypatch.setattr(store, "build_index", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
      writer.finish()
    monkeypatch.undo()
    writer = retrieval.BufferWriter(path, encoder, resume=True)
    writer.add(traces[5:])
    writer.finish()
    assert store.verify(path) == []
    whole = retrieval.StepTraceBuffer.build(traces, encoder)
    whole.save(tmp_path / "whole")
    np.testing.assert_array_equal(
      store.key_vectors(path), store.key_vectors(tmp_path / "whole")
    )

  def test_another_encoder_cannot_go_on(self, encoder, tmp_path):
    retrieval.BufferWriter(tmp_path / "buffer", encoder)
    state = tmp_path / "buffer.partial" / "build.json"
    state.write_text(json.dumps({"encoder_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(ValueError, match="must have been begun with"):
      retrieval.BufferWriter(tmp_path / "buffer", encoder, resume=True)

  @pytest.mark.parametrize("text", ["", "[]", '{"encoder_sha256": 1}'])
  def test_a_build_that_says_something_else(self, encoder, tmp_path, text):
    retrieval.BufferWriter(tmp_path / "buffer", encoder)
    state = tmp_path / "buffer.partial" / "build.json"
    state.write_text(text, encoding="utf-8")
    with pytest.raises(
      ValueError, match=r"build.json must|must have been begun"
    ):
      retrieval.BufferWriter(tmp_path / "buffer", encoder, resume=True)

  def test_a_part_cut_short_is_named(self, encoder, tmp_path):
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    writer.add(make_traces())
    writer.flush()
    part = tmp_path / "buffer.partial" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"part-00000.parquet must be"):
      retrieval.BufferWriter(tmp_path / "buffer", encoder, resume=True)

  def test_vectors_cut_short_are_computed_again(
    self, encoder, tmp_path, monkeypatch
  ):
    path = tmp_path / "buffer"
    writer = retrieval.BufferWriter(path, encoder)
    writer.add(make_traces())
    monkeypatch.setattr(store, "build_index", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
      writer.finish()
    monkeypatch.undo()
    vectors = tmp_path / "buffer.partial" / "vectors-00000.npy"
    vectors.write_bytes(vectors.read_bytes()[:-9])
    retrieval.BufferWriter(path, encoder, resume=True).finish()
    assert store.verify(path) == []

  def test_one_that_was_killed_as_it_began_begins_again(
    self, encoder, tmp_path
  ):
    partial = tmp_path / "buffer.partial"
    partial.mkdir()
    (partial / "build.json.partial").write_text("{", encoding="utf-8")
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder, resume=True)
    writer.add(make_traces())
    writer.finish()
    assert store.verify(tmp_path / "buffer") == []

  def test_a_link_is_followed_and_stays(self, encoder, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "buffer").symlink_to(tmp_path / "far" / "target")
    writer = retrieval.BufferWriter(tmp_path / "buffer", encoder)
    writer.add(make_traces())
    writer.finish()
    assert (tmp_path / "buffer").is_symlink()
    assert store.verify(tmp_path / "far" / "target") == []

  def test_what_was_there_stays_until_the_end(
    self, encoder, tmp_path, countdown
  ):
    path = tmp_path / "buffer"
    retrieval.StepTraceBuffer.build(make_traces(), encoder).save(path)
    before = files_of(path)
    writer = retrieval.BufferWriter(path, encoder)
    writer.add(make_traces(words="another"))
    countdown.left = 0
    with pytest.raises(KeyboardInterrupt):
      writer.finish()
    assert files_of(path) == before


def raise_interrupt(*_):
  raise KeyboardInterrupt


class TestReadManifest:
  @pytest.fixture
  def saved(self, encoder, tmp_path):
    buffer = retrieval.StepTraceBuffer.build(make_traces(), encoder)
    buffer.save(tmp_path / "buffer")
    return tmp_path / "buffer"

  def test_no_buffer(self, tmp_path):
    with pytest.raises(ValueError, match=r"no Step-Trace Buffer.*buffer build"):
      store.read_manifest(tmp_path)

  @pytest.mark.parametrize("version", [1, 99, None])
  def test_another_format(self, saved, version):
    path = saved / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {
      "format_version": version
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
      ValueError, match=rf"version {version}, this code reads 2.*Build it again"
    ):
      store.read_manifest(saved)

  @pytest.mark.parametrize(
    "text", ["", "[]", '{"format_version": 2', '{"format_version": 2}']
  )
  def test_a_broken_manifest(self, saved, text):
    (saved / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read.*buffer verify"):
      store.read_manifest(saved)


class TestVerify:
  @pytest.fixture
  def saved(self, encoder, tmp_path):
    buffer = retrieval.StepTraceBuffer.build(make_traces(), encoder)
    buffer.save(tmp_path / "buffer")
    return tmp_path / "buffer"

  def test_a_whole_buffer(self, saved):
    assert store.verify(saved) == []

  def test_no_buffer(self, tmp_path):
    (problem,) = store.verify(tmp_path)
    assert "no manifest.json" in problem

  def test_a_changed_byte(self, saved):
    path = saved / "index" / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "index/vectors.npy has another checksum" in store.verify(saved)

  def test_files_cut_short(self, saved):
    for name in ("traces.parquet", "index/vectors.npy"):
      data = (saved / name).read_bytes()
      (saved / name).write_bytes(data[:-100])
    text = "\n".join(store.verify(saved))
    assert "traces.parquet has" in text
    assert "must be a Parquet file of step traces" in text
    assert "the vectors cannot be read" in text

  def test_an_interrupted_build(self, saved):
    saved.with_name("buffer.partial").mkdir()
    (problem,) = store.verify(saved)
    assert "--resume" in problem

  def test_rows_that_are_wrong(self, saved):
    path = saved / "traces.parquet"
    table = pq.read_table(path)
    ids = table["trace_id"].to_pylist()
    keys = table["key_id"].to_pylist()
    table = table.set_column(0, "trace_id", [[1, *ids[1:]]])
    table = table.set_column(1, "key_id", [[77, *keys[1:]]])
    pq.write_table(table.slice(0, 9), path)
    problems = store.verify(saved)
    assert "traces.parquet has 9 traces instead of 10" in problems
    assert "the key ids of the traces are not 0 to 7" in problems
    assert "two traces have the id 1: trace 1" in problems
    assert any(p.startswith("the agents have strong: 4 tr") for p in problems)


class TestMerge:
  def test_nothing_is_embedded_again(self, encoder, tmp_path, countdown):
    first = make_traces()
    second = make_traces(source="weak", words="look") + make_traces(
      first=10, count=1, words="another"
    )
    for name, traces in (("a", first), ("b", second)):
      retrieval.StepTraceBuffer.build(traces, encoder).save(tmp_path / name)
    countdown.left = 0
    manifest = store.merge(
      [tmp_path / "a", tmp_path / "b"], tmp_path / "out", encoder
    )
    countdown.left = None
    assert store.verify(tmp_path / "out") == []
    assert manifest.version == 2
    assert manifest.agents["strong"].num_trajectories == 5
    assert manifest.agents["weak"].num_trajectories == 4
    assert manifest.num_keys == 9
    merged = list(store.iter_traces(tmp_path / "out"))
    assert [t.trace_id for t in merged] == list(range(22))
    assert [t.step for t in merged] == [t.step for t in [*first, *second]]
    # Both buffers have trajectories look-0 to look-3, one has another-0.
    assert [merged[i].trajectory_id for i in (0, 10, 20)] == [
      "look-0",
      "1:look-0",
      "another-0",
    ]
    whole = retrieval.StepTraceBuffer.build(merged, encoder)
    whole.save(tmp_path / "whole")
    np.testing.assert_array_equal(
      store.key_vectors(tmp_path / "out"), store.key_vectors(tmp_path / "whole")
    )

  @pytest.mark.parametrize("name", ["traces.parquet", "index/vectors.npy"])
  def test_a_damaged_buffer_is_not_merged(self, encoder, tmp_path, name):
    retrieval.StepTraceBuffer.build(make_traces(), encoder).save(tmp_path / "a")
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} has another checksum"):
      store.merge([tmp_path / "a"], tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()

  def test_of_another_encoder(self, encoder, tmp_path):
    retrieval.StepTraceBuffer.build([], encoder).save(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["encoder"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="do not compare"):
      store.merge([tmp_path / "a"], tmp_path / "out", encoder)
