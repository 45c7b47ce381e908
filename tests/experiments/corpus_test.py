from __future__ import annotations

import gzip
import json
import pathlib
import shutil

import pytest

from experiments import corpus as corpus_cli
from experiments.config import EncoderConfig, ExperimentConfig, ToolsConfig
from experiments.tasks import running_tools
from rapo_jax import corpora
from rapo_jax.retrieval import SentenceEncoder
from rapo_jax.retrieval.buffer.manifest import partial_folder
from rapo_jax.tasks import FileTask, SearchSpec
from tests.retrieval import tiny_bert

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = [
  '"River"\nthe river of the city',
  '"Bridge"\nthe bridge is a passage of the city',
  '"Query"\nthe query is the query',
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return tiny_bert.write_folder(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture
def rows(tmp_path):
  path = tmp_path / "rows.jsonl.gz"
  lines = [
    json.dumps({"id": f"p{i}", "contents": t}) for i, t in enumerate(TEXTS)
  ]
  path.write_bytes(gzip.compress("\n".join(lines).encode()))
  return path


def run(*words):
  return corpus_cli.main([str(word) for word in words])


def test_build_search_and_check(rows, encoder, tmp_path, capsys):
  out = tmp_path / "out"
  assert not run(
    "build", "--input", rows, "--output", out, "--encoder", encoder
  )
  printed = capsys.readouterr().out
  # What it takes comes before anything is done.
  assert printed.index("passages: about 3") < printed.index("read: started")
  assert printed.index("memory: ") < printed.index("read: started")
  assert f"{out}: 3 passages" in printed
  for mode, first in (("bm25", "1. p1"), ("hybrid", "1. "), ("dense", "1. ")):
    assert not run(
      *("search", "--corpus", out, "bridge", "--mode", mode),
      *("--encoder", encoder, "--top_k", 1),
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(first)
    assert len(lines) == 2
  assert not run("check", "--corpus", out)
  assert "is as it was built" in capsys.readouterr().out
  path = out / "texts" / "contents.bin"
  path.write_bytes(path.read_bytes().replace(b"river", b"rivet"))
  assert run("check", "--corpus", out) == 1
  assert "contents.bin has another checksum" in capsys.readouterr().out


def test_words_alone_need_no_encoder(rows, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(corpus_cli, "load_encoder", None)
  out = tmp_path / "out"
  arguments = ("--input", rows, "--output", out, "--mode", "bm25")
  assert not run("build", *arguments)
  assert not run("search", "--corpus", out, "nothing", "--mode", "bm25")
  assert "no passage was found" in capsys.readouterr().out
  assert run("build", *arguments, "--replace", "--shard", "1/2") == 2
  assert "leave --shard out" in capsys.readouterr().err
  assert not run("build", *arguments, "--replace")
  arguments = ("--input", rows, "--output", tmp_path, "--mode", "bm25")
  assert run("build", *arguments, "--replace") == 2
  assert "a corpus to be replaced" in capsys.readouterr().err


def test_shards_and_chunks(rows, encoder, tmp_path, capsys):
  out = tmp_path / "out"
  arguments = ("--input", rows, "--output", out, "--encoder", encoder)
  arguments += ("--chunk_words", 3, "--overlap", 1)
  assert not run("build", *arguments, "--shard", "1/2")
  assert "shard 1/2 is embedded" in capsys.readouterr().out
  assert not out.exists()
  assert not run("build", *arguments)
  assert len(corpora.open_corpus(out)) == 8


def test_a_plan_builds_nothing(rows, encoder, tmp_path, capsys):
  out = tmp_path / "out"
  arguments = ("--input", rows, "--output", out, "--encoder", encoder)
  assert not run(
    "build", *arguments, "--plan", "--passages", 21_015_324, "--cores", 64
  )
  printed = capsys.readouterr().out
  assert printed.startswith("passages: about 21,015,324\ntime: ")
  assert not out.exists()
  assert not partial_folder(out).exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (("--input", "none.jsonl"), "no corpus at none.jsonl"),
    (("--overlap", "5"), "overlap must lie between 0 and"),
  ],
)
def test_bad_input_is_one_line(
  rows, encoder, tmp_path, capsys, change, message
):
  arguments = ("--input", rows, "--output", tmp_path / "out")
  assert run("build", *arguments, "--encoder", encoder, *change) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_shard_that_is_none(rows, tmp_path, shard):
  arguments = ("--input", rows, "--output", tmp_path / "out")
  with pytest.raises(SystemExit):
    run("build", *arguments, "--shard", shard)


def test_another_encoder_is_refused(rows, encoder, tmp_path, capsys):
  out = tmp_path / "out"
  run("build", "--input", rows, "--output", out, "--encoder", encoder)
  other = tiny_bert.write_folder(tmp_path / "other", seed=1)
  assert run("search", "--corpus", out, "x", "--encoder", other) == 2
  assert "must be searched with the encoder" in capsys.readouterr().err


def test_the_encoder_of_a_config(rows, encoder, tmp_path):
  out = tmp_path / "out"
  config = ROOT / "experiments" / "configs" / "quickstart.py"
  assert not run(
    *("build", "--input", rows, "--output", out, "--config", config),
    *(f"--config.encoder.path={encoder}", "--config.encoder.key_prefix=the "),
  )
  found = corpora.open_corpus(out).manifest.source.encoder
  expected = SentenceEncoder.from_pretrained(encoder, key_prefix="the ")
  assert found.sha256 == expected.sha256


def config_with(encoder, *tools):
  task = FileTask("towns", evaluation=("none.jsonl",), tools=tools)
  return ExperimentConfig(
    name="searched",
    tasks=(task,),
    encoder=EncoderConfig(path=str(encoder)),
    tools=ToolsConfig(search_top_k=1),
  )


@pytest.mark.parametrize("mode", corpora.MODES)
def test_a_task_searches_a_built_corpus_and_its_file(
  rows, encoder, tmp_path, mode
):
  out = tmp_path / "out"
  run("build", "--input", rows, "--output", out, "--encoder", encoder)
  loaded = SentenceEncoder.from_pretrained(encoder)
  for corpus in (out, rows):
    for top_k in (None, 2):
      spec = SearchSpec(str(corpus), mode, top_k)
      config = config_with(encoder, spec)
      with running_tools(config, "towns", loaded) as tools:
        text = tools["search"].call(TEXTS[1]).text
      expected = f"Doc 1: {TEXTS[1]}\nDoc 2: " if top_k else TEXTS[1]
      assert text.startswith(expected)


def test_a_task_refuses_a_corpus_of_another_encoder(rows, encoder, tmp_path):
  out = tmp_path / "out"
  run("build", "--input", rows, "--output", out, "--encoder", encoder)
  other = tiny_bert.write_folder(tmp_path / "other", seed=1)
  loaded = SentenceEncoder.from_pretrained(other)
  config = config_with(other, SearchSpec(str(out)))
  with (
    pytest.raises(ValueError, match="must be searched with the encoder"),
    running_tools(config, "towns", loaded),
  ):
    pass
  config = config_with(other, SearchSpec(str(out), "bm25"))
  with running_tools(config, "towns", loaded) as tools:
    assert tools["search"].call("bridge").text == TEXTS[1]


@pytest.mark.parametrize("wrong", [{"mode": "words"}, {"top_k": 0}])
def test_a_search_tool_that_cannot_be(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    SearchSpec("x", **wrong)


def test_what_is_broken_is_refused_at_opening(rows, encoder, tmp_path, capsys):
  out = tmp_path / "out"
  run("build", "--input", rows, "--output", out, "--encoder", encoder)
  shutil.rmtree(out / "bm25")
  assert run("search", "--corpus", out, "x", "--encoder", encoder) == 2
  assert "bm25/data.csc.index.npy is missing" in capsys.readouterr().err
