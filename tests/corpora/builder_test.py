from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rapo_jax import corpora, files
from rapo_jax.corpora import builder as builder_lib
from rapo_jax.corpora.builder import build
from rapo_jax.retrieval.buffer.manifest import partial_folder
from tests.corpora.stand_in import HashEncoder, built, write_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
SILENT = lambda done, total, text: None  # noqa: E731


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(builder_lib, "CHUNK_PASSAGES", 10)


def digests(folder):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_the_manifest_says_what_it_is_made_from(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 25)
  encoder = HashEncoder()
  chunking = corpora.Chunking(2, 1)
  manifest = build(
    corpora.CorpusBuilder(path, tmp_path / "out", encoder, chunking=chunking)
  )
  source = manifest.source
  assert manifest == corpora.open_corpus(tmp_path / "out").manifest
  # Four words a passage, in chunks of two that share one.
  assert manifest.num_passages == encoder.num_embedded == 75
  assert source.chunking == chunking
  assert source.encoder.sha256 == encoder.sha256
  (info,) = source.input.values()
  assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert not partial_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("count", [3, 10, 11])
def test_vectors_are_those_of_the_passages(tmp_path, count):
  folder = built(tmp_path, count)
  corpus = corpora.open_corpus(folder)
  expected = HashEncoder().encode(list(corpus.documents)).astype(np.float16)
  np.testing.assert_array_equal(
    np.load(folder / "index" / "vectors.npy"), expected
  )


def test_a_build_goes_on_with_what_is_embedded(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 35)

  class Stops(HashEncoder):
    def encode(self, texts):
      if self.num_embedded == 20:
        raise KeyboardInterrupt
      return super().encode(texts)

  with pytest.raises(KeyboardInterrupt):
    build(corpora.CorpusBuilder(path, tmp_path / "out", Stops()))
  with pytest.raises(ValueError, match="is not built yet"):
    corpora.open_corpus(tmp_path / "out")
  with pytest.raises(ValueError, match="is not built yet"):
    corpora.open_documents(tmp_path / "out")
  encoder = HashEncoder()
  build(corpora.CorpusBuilder(path, tmp_path / "out", encoder))
  assert encoder.num_embedded == 15
  other = tmp_path / "other"
  build(corpora.CorpusBuilder(path, other, HashEncoder()))
  assert digests(tmp_path / "out") == digests(other)


@pytest.mark.parametrize("cut", [1, 400])
def test_a_truncated_file_of_vectors_is_computed_again(tmp_path, cut):
  path = write_rows(tmp_path / "rows.jsonl", 20)
  builder = corpora.CorpusBuilder(path, tmp_path / "out", HashEncoder())
  builder.read(SILENT)
  builder.embed(SILENT)
  (first, _) = sorted(partial_folder(tmp_path / "out").glob("vectors/*.npy"))
  first.write_bytes(first.read_bytes()[:-cut])
  encoder = HashEncoder()
  build(corpora.CorpusBuilder(path, tmp_path / "out", encoder))
  assert encoder.num_embedded == 10


def test_what_is_embedded_already_is_no_progress(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 20)
  builder = corpora.CorpusBuilder(path, tmp_path / "out", HashEncoder())
  builder.read(SILENT)
  builder.embed(SILENT)
  (_, second) = sorted(partial_folder(tmp_path / "out").glob("vectors/*.npy"))
  second.unlink()
  told = []
  builder.embed(lambda *numbers: told.append(numbers[:2]))
  # The first chunk would pass for a speed.
  assert told == [(1, 2), (2, 2)]


def test_shards_make_what_one_build_makes(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 35)
  out, other = tmp_path / "out", tmp_path / "other"
  sizes = []
  for number in (1, 2, 3):
    encoder = HashEncoder()
    builder = corpora.CorpusBuilder(path, out, encoder)
    builder.read(SILENT)
    builder.embed(SILENT, corpora.Shard(number, 3))
    sizes.append(encoder.num_embedded)
    if number < 3:
      with pytest.raises(ValueError, match="again without --shard"):
        builder.index()
  assert sizes == [15, 10, 10]
  encoder = HashEncoder()
  build(corpora.CorpusBuilder(path, out, encoder))
  assert encoder.num_embedded == 0
  build(corpora.CorpusBuilder(path, other, HashEncoder()))
  assert digests(out) == digests(other)


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2)])
def test_a_shard_that_is_not_there(number, count):
  with pytest.raises(ValueError, match="must be 1/N to N/N"):
    corpora.Shard(number, count)


def test_what_an_interrupted_build_was_begun_from(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 5)
  out = tmp_path / "out"
  corpora.CorpusBuilder(path, out, HashEncoder())
  corpora.CorpusBuilder(path, out, HashEncoder())
  for change in (
    {"encoder": HashEncoder("other")},
    {"mode": "dense"},
    {"chunking": corpora.Chunking(3)},
  ):
    arguments = {"encoder": HashEncoder(), **change}
    encoder = arguments.pop("encoder")
    with pytest.raises(ValueError, match="must have been begun with this"):
      corpora.CorpusBuilder(path, out, encoder, **arguments)
  write_rows(path, 6)
  with pytest.raises(ValueError, match="must have been begun with this"):
    corpora.CorpusBuilder(path, out, HashEncoder())


def test_what_is_there_is_replaced_only_if_asked(tmp_path):
  folder = built(tmp_path, 5)
  path = write_rows(tmp_path / "passages.jsonl", 6)
  with pytest.raises(ValueError, match="there is something at"):
    corpora.CorpusBuilder(path, folder, HashEncoder())
  builder = corpora.CorpusBuilder(path, folder, HashEncoder(), replace=True)
  assert len(corpora.open_corpus(folder)) == 5
  build(builder)
  assert len(corpora.open_corpus(folder)) == 6


@pytest.mark.parametrize("apart", [1, 2, 9])
def test_a_repeated_id_is_named_by_its_line(tmp_path, monkeypatch, apart):
  monkeypatch.setattr(builder_lib, "_ROWS", 4)
  path = write_rows(tmp_path / "rows.jsonl", 10)
  lines = path.read_text(encoding="utf-8").splitlines()
  lines.insert(apart, lines[0])
  path.write_text("\n".join(lines), encoding="utf-8")
  with pytest.raises(
    ValueError, match=rf"rows.jsonl:{apart + 1}: the id 'p0' is repeated"
  ):
    build(corpora.CorpusBuilder(path, tmp_path / "out", HashEncoder()))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"contents": "x"}', "rows.jsonl:3: expected"),
    ('{"id": 1}', "rows.jsonl:3: expected"),
    ("{", "rows.jsonl:3: no JSON"),
  ],
)
def test_a_broken_row_is_named_and_nothing_is_embedded(tmp_path, line, message):
  path = write_rows(tmp_path / "rows.jsonl", 2)
  path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
  encoder = HashEncoder()
  builder = corpora.CorpusBuilder(path, tmp_path / "out", encoder)
  with pytest.raises(ValueError, match=message):
    build(builder)
  assert encoder.num_embedded == 0


def test_no_passages_and_no_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    corpora.CorpusBuilder(tmp_path / "x", tmp_path / "out", HashEncoder())
  path = tmp_path / "rows.jsonl"
  path.write_text("\n", encoding="utf-8")
  with pytest.raises(ValueError, match="has no documents"):
    build(corpora.CorpusBuilder(path, tmp_path / "out", HashEncoder()))


def test_two_builds_of_one_folder_embed_each_passage_once(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 40)
  encoders = [HashEncoder(), HashEncoder()]
  builders = [
    corpora.CorpusBuilder(path, tmp_path / "out", encoder)
    for encoder in encoders
  ]

  def embed(builder):
    builder.read(SILENT)
    builder.embed(SILENT)

  threads = [threading.Thread(target=embed, args=(b,)) for b in builders]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sum(encoder.num_embedded for encoder in encoders) == 40
  builders[0].index()
  builders[1].index()
  builders[0].words(SILENT)
  builders[0].finish()
  assert len(corpora.open_corpus(tmp_path / "out")) == 40
  with pytest.raises(ValueError, match="ended the build"):
    builders[1].finish()


def test_a_stage_waits_for_another_process(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 4)
  builder = corpora.CorpusBuilder(path, tmp_path / "out", HashEncoder())
  thread = threading.Thread(target=builder.read, args=(SILENT,))
  with files.locked(partial_folder(tmp_path / "out") / "lock"):
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
  thread.join()


PROGRAM = """
import pathlib, sys, time
from rapo_jax import corpora
from rapo_jax.corpora import builder
from tests.corpora.stand_in import HashEncoder

class Slow(HashEncoder):
  def encode(self, texts):
    print("embedding", flush=True)
    time.sleep(0.05)
    return super().encode(texts)

builder.CHUNK_PASSAGES = 10
builder.build(
  corpora.CorpusBuilder(
    pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), Slow()
  )
)
"""


@pytest.mark.parametrize("chunks", [1, 3])
def test_killed_and_begun_again_it_is_the_same_bit_for_bit(tmp_path, chunks):
  path = write_rows(tmp_path / "rows.jsonl", 60)
  out, other = tmp_path / "out", tmp_path / "other"
  command = [sys.executable, "-c", PROGRAM, str(path), str(out)]
  with subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
  ) as process:
    for _ in range(chunks + 1):
      assert process.stdout.readline() == "embedding\n"
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not out.exists()
  encoder = HashEncoder()
  build(corpora.CorpusBuilder(path, out, encoder))
  assert 0 < encoder.num_embedded <= 60 - 10 * chunks
  build(corpora.CorpusBuilder(path, other, HashEncoder()))
  assert digests(out) == digests(other)


@pytest.mark.parametrize("stage", ["read", "embed", "index", "words"])
def test_it_stops_between_any_two_stages(tmp_path, stage):
  path = write_rows(tmp_path / "rows.jsonl", 12)
  out = tmp_path / "out"
  builder = corpora.CorpusBuilder(path, out, HashEncoder())
  for name in ("read", "embed", "index", "words"):
    arguments = () if name == "index" else (SILENT,)
    getattr(builder, name)(*arguments)
    if name == stage:
      break
  manifest = build(corpora.CorpusBuilder(path, out, HashEncoder()))
  assert dataclasses.asdict(manifest)["num_passages"] == 12
