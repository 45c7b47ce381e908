"""Damaged buffers: named by the value, and never a traceback."""

import io
import json
import math
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.buffer import manifest as manifest_lib
from rapo_jax.retrieval.buffer import store, trace_file

COLUMNS = trace_file.SCHEMA.names
FILES = ("traces.parquet", "index/index.json", "index/vectors.npy")
NESTED = "NESTED"


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory):
  traces = []
  for i in range(3):
    traces += retrieval.step_traces(
      f"Question {i}?",
      [f"<think> look {i} {t} </think>" for t in range(2)],
      reward=0.5 + i,
      source="strong",
      query_id=f"q{i}",
      first_trace_id=len(traces),
      trajectory_id=f"t{i}",
      extras={"i": i},
    )
  path = tmp_path_factory.mktemp("whole") / "buffer"
  retrieval.StepTraceBuffer.build(traces, encoder).save(path)
  assert store.verify(path) == []
  return path


@pytest.fixture
def saved(whole, tmp_path):
  return pathlib.Path(shutil.copytree(whole, tmp_path / "buffer"))


def manifest_of(path):
  return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def write_manifest(path, content):
  text = json.dumps(content).replace(
    json.dumps(NESTED), "[" * 50_000 + "]" * 50_000
  )
  (path / "manifest.json").write_text(text, encoding="utf-8")


def seal(path):
  """Makes sizes and checksums those of the files that are there."""
  files = manifest_lib.describe_files(path)
  content = manifest_of(path)
  content["files"] = {
    name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in files.items()
  }
  write_manifest(path, content)


def loads(path, encoder):
  """Opens a buffer and reads it; None, or what a user is told."""
  try:
    buffer = retrieval.StepTraceBuffer.load(path, encoder)
    list(buffer)
    buffer.neighbors(["Question 1?"], [[]], 2)
  except ValueError as error:
    return str(error)
  return None


def change_column(path, name, change):
  """Writes the traces with other values in a column."""
  table = pq.read_table(path / "traces.parquet")
  at = COLUMNS.index(name)
  values = change(table[name].to_pylist())
  field = table.schema.field(name)
  column = pa.array(values, field.type)
  pq.write_table(table.set_column(at, field, column), path / "traces.parquet")
  seal(path)


def first(value):
  return lambda values: [value, *values[1:]]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_null_is_named_by_column_and_trace(saved, encoder, name):
  change_column(saved, name, lambda values: [*values[:2], None, *values[3:]])
  text = "\n".join(store.verify(saved))
  trace = "None" if name == "trace_id" else "2"
  assert f"{name} must not be null: trace {trace}" in text or (
    f"the {name} of row 2 is null" in text
  )
  if name == "history":  # Too long to be looked at before it is needed.
    with pytest.raises(ValueError, match="history of trace 2 is null"):
      list(trace_file.StoredTraces(saved / "traces.parquet"))
  elif name != "key":  # Read by nothing but a merge.
    assert f"the {name} of row 2 is null" in loads(saved, encoder)


@pytest.mark.parametrize(
  ("name", "change", "problem"),
  [
    ("reward", first(math.nan), "the reward of row 0 is nan"),
    ("reward", first(-math.inf), "the reward of row 0 is -inf"),
    ("reward", first(7.0), "must have one reward: 1 have not, such as t0"),
    ("question", first("Another?"), "one question: 1 have not, such as t0"),
    ("question", first(" "), "question must not be blank: trace 0"),
    ("query_id", first("q9"), "one query_id: 1 have not, such as t0"),
    ("step", first(""), "step must not be blank: trace 0"),
    ("source", first(""), "source must not be blank: trace 0"),
    ("source", first("weak"), "the agents have strong: 3 trajectories, 5"),
    ("trace_id", first(1), "two traces have the id 1"),
    ("trace_id", first(-1), "trace_id must be at least 0: trace -1 has -1"),
    ("key_id", first(77), "the key ids of the traces are not 0 to 5"),
    ("key_id", first(-1), "key_id must be at least 0: trace 0 has -1"),
    ("key_id", lambda v: [v[1], v[0], *v[2:]], None),
    ("key_id", lambda v: [v[1], v[1], *v[2:]], "key_id must be the same for"),
    ("key", lambda v: [v[1], *v[1:]], "key_id must be the same for"),
    ("step_index", first(1), "number of steps in the history: trace 0 has 1"),
    ("step_index", first(-1), "step_index must be at least 0"),
    ("history", first(["a"]), "number of steps in the history: trace 0"),
    ("history", lambda v: [v[0], [None], *v[2:]], "history of trace 1 is null"),
    ("num_tokens", first(-3), "num_tokens must be at least 0: trace 0 has -3"),
    ("num_tokens", first(2**40), "the agents have strong: 3 traj"),
    ("trajectory_id", first("t1"), "steps of a trajectory must not have one"),
    ("extras", first("{"), "extras of trace 0 cannot be read (no JSON"),
    ("extras", first("[]"), "extras of trace 0 must be a JSON object"),
    ("extras", first("[" * 9999), "extras of trace 0 cannot be read (it is"),
    ("extras", first('{"a": NaN}'), "NaN is not a number"),
  ],
)  # fmt: skip
def test_a_value_is_named(saved, encoder, name, change, problem):
  change_column(saved, name, change)
  problems = store.verify(saved)
  if problem is None:  # Two keys swapped: no one but the encoder can tell.
    assert problems == []
  else:
    assert problem in "\n".join(problems)
  if problem and problem.startswith("the reward"):
    assert problem in loads(saved, encoder)
  if name == "extras":
    with pytest.raises(ValueError, match="extras of trace 0"):
      list(trace_file.StoredTraces(saved / "traces.parquet"))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_another_type_or_absent(saved, encoder, name):
  table = pq.read_table(saved / "traces.parquet")
  for other in (
    table.drop_columns([name]),
    table.set_column(
      COLUMNS.index(name), name, pa.array([b"x"] * len(table), pa.binary())
    ),
  ):
    pq.write_table(other, saved / "traces.parquet")
    seal(saved)
    assert "must have the columns" in "\n".join(store.verify(saved))
    assert "must have the columns" in loads(saved, encoder)


def test_text_that_is_no_utf8(saved):
  table = pq.read_table(saved / "traces.parquet")
  step = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
  at = COLUMNS.index("step")
  pq.write_table(table.set_column(at, "step", step), saved / "traces.parquet")
  seal(saved)
  assert "cannot be read to its end" in "\n".join(store.verify(saved))


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (lambda v: 1000 * v, "must have norm 1: 6 have not; row 0 has norm 1000"),
    (lambda v: 0 * v, "must have norm 1: 6 have not; row 0 has norm 0"),
    (lambda v: v * np.nan, "must be finite: 6 have not; row 0 has norm nan"),
    (lambda v: v[:-1], "there are 5 vectors instead of 6"),
    (lambda v: v.astype(np.float64), "must hold float32"),
    (lambda v: v.astype(np.int32), "must hold float32"),
    (lambda v: v[0], "must hold float32 of shape"),
    (lambda v: v[:, :0], "must hold float32 of shape"),
    (lambda v: np.asfortranarray(v), "row by row"),
    (lambda v: np.array([{}], object), "cannot be read"),
  ],
)  # fmt: skip
def test_vectors(saved, encoder, change, problem):
  path = saved / "index" / "vectors.npy"
  np.save(path, change(np.load(path)))
  seal(saved)
  assert problem in "\n".join(store.verify(saved))
  assert loads(saved, encoder) is not None


def npy(header):
  """A file of vectors with a header and one row."""
  head = header.encode()
  return b"\x93NUMPY\x01\0%s%s" % (len(head).to_bytes(2, "little"), head)


def npz():
  file = io.BytesIO()
  np.savez(file, vectors=np.ones((6, 8), np.float32))
  return file.getvalue()


@pytest.mark.parametrize(
  "content",
  [
    b"", b"PK\x03\x04", npz(), b"\x80\x04K\x01.",
    npy("{'descr': '<f4', 'shape': ("), npy("(" * 5000), npy("  {'descr"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8), }\n"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }\n"),
    npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**20}, 8)}}"),
  ],
)  # fmt: skip
def test_a_file_that_holds_no_vectors(saved, encoder, content):
  (saved / "index" / "vectors.npy").write_bytes(content)
  seal(saved)
  assert "vectors.npy cannot be read" in "\n".join(store.verify(saved))
  assert "vectors.npy cannot be read" in loads(saved, encoder)


@pytest.mark.parametrize(
  "text",
  [
    "{}", "[]", "null", "", "{", "\0", "[" * 99_999,
    '{"kind": 5}', '{"kind": "scann"}', '{"kind": "other"}',
    '{"kind": "exact", "encoder_sha256": 7}',
    '{"kind": "scann", "encoder_sha256": null}',
  ],
)  # fmt: skip
def test_an_index_that_says_something_else(saved, encoder, text):
  (saved / "index" / "index.json").write_text(text, encoding="utf-8")
  seal(saved)
  assert "index" in "\n".join(store.verify(saved))
  assert "index" in loads(saved, encoder)


@pytest.mark.parametrize("trees", [None, -1, 1, "0", 0.0])
def test_an_index_with_trees_that_are_not_there(saved, encoder, trees):
  path = saved / "index" / "index.json"
  meta = json.loads(path.read_text(encoding="utf-8")) | {"trees": trees}
  path.write_text(json.dumps(meta), encoding="utf-8")
  content = manifest_of(saved)
  content["index"]["trees"] = trees
  write_manifest(saved, content)
  seal(saved)
  if meta["kind"] == "scann":
    assert "trees" in "\n".join(store.verify(saved))
    assert "trees" in loads(saved, encoder)


def places(content, at=()):
  """The way to every value of a JSON object."""
  for name, value in content.items():
    yield (*at, name)
    if isinstance(value, dict):
      yield from places(value, (*at, name))


def test_every_field_of_the_manifest(whole, saved, encoder):
  content = manifest_of(whole)
  # Of these another value is as good: a name, and what is in no file.
  free = {("version",), ("encoder", "id"), ("encoder", "max_tokens")}
  for place in places(content):
    for value in (None, [], {}, "x", -1, 10**40, 1.5, NESTED, True, "absent"):
      changed = json.loads(json.dumps(content))
      inner = changed
      for name in place[:-1]:
        inner = inner[name]
      if value == "absent":
        del inner[place[-1]]
      else:
        inner[place[-1]] = value
      write_manifest(saved, changed)
      if not (place == ("encoder", "id") and value == "x"):
        assert store.verify(saved), (place, value)
      message = loads(saved, encoder)
      is_index = place[0] == "index" and value != NESTED
      if not is_index and place not in free and place[0] != "agents":
        assert message is not None, (place, value)


def test_a_manifest_with_more_than_it_has(saved, encoder):
  content = manifest_of(saved)
  write_manifest(saved, content | {"more": 1})
  assert "more is no field" in store.verify(saved)[0]
  content["files"]["../../outside"] = content["files"]["traces.parquet"]
  write_manifest(saved, content)
  assert (
    "paths within the folder, got '../../outside'" in (store.verify(saved)[0])
  )
  assert "paths within the folder" in loads(saved, encoder)


def damages(data, other):
  """Names and contents of a damaged file; None removes it."""
  yield "empty", b""
  yield "removed", None
  yield "swapped", other
  for part in (0.01, 0.3, 0.6, 0.99):
    at = int(len(data) * part)
    yield f"cut at {at}", data[:at]
    yield (
      f"flipped at {at}",
      data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :],
    )


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(whole, saved, encoder, name, sealed):
  """Found by size and checksum, and read without a traceback where not."""
  data = (whole / name).read_bytes()
  other = (whole / FILES[FILES.index(name) - 1]).read_bytes()
  for damage, content in damages(data, other):
    if content is None:
      (saved / name).unlink()
    else:
      (saved / name).write_bytes(content)
    if sealed:
      seal(saved)
    problems, message = store.verify(saved), loads(saved, encoder)
    if not sealed:
      assert any(p.startswith(name) for p in problems), damage
      assert name in message, damage


def test_a_file_that_is_not_named(saved, encoder):
  (saved / "index" / "more").write_bytes(b"")
  assert "index/more is not in the manifest" in store.verify(saved)
  assert "index/more is not in the manifest" in loads(saved, encoder)


def test_traces_that_no_file_can_hold(encoder, tmp_path):
  good, *_ = retrieval.step_traces(
    "Q?", ["a"], reward=1.0, source="s", query_id="q", first_trace_id=0
  )
  for name, value in (
    ("question", "half \ud83d"),
    ("step", " "),
    ("history", ("\ud83d",)),
    ("query_id", "\udcff"),
  ):
    bad = retrieval.StepTrace(**{**vars(good), name: value})
    writer = retrieval.BufferWriter(tmp_path / f"{name}-{value!a}", encoder)
    with pytest.raises(ValueError, match=f"{name} of trace 0"):
      writer.add([bad])
