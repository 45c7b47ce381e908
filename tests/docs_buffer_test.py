"""The Python of the documents on buffers, run on a buffer of three steps."""

import importlib.util
import re

import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.readme_test import blocks
from tests.retrieval import loopback, tiny_bert

# Readers of Parquet that a user may have and the tests do not install.
READERS = ("pandas", "duckdb", "polars")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  folder = tiny_bert.write_folder(tmp_path_factory.mktemp("docs") / "encoder")
  return retrieval.SentenceEncoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def buffers(encoder, tmp_path_factory):
  """Folders of two buffers, `a` and `b`."""
  root = tmp_path_factory.mktemp("docs")
  for first, name in enumerate("ab"):
    traces = retrieval.step_traces(
      "Whose 'tower' is it?",
      ["Look it up.", "Read on.", "It is hers."],
      reward=1.0,
      source=name,
      query_id="q0",
      first_trace_id=3 * first,
    )
    retrieval.StepTraceBuffer.build(traces, encoder).save(root / name)
  return root


@pytest.fixture(autouse=True)
def _a_tiny_encoder(encoder, monkeypatch):
  monkeypatch.setattr(
    retrieval.SentenceEncoder, "from_pretrained", lambda: encoder
  )


def run(block: str, **names: object) -> None:
  exec(compile(block, "document", "exec"), {"__name__": "__main__", **names})


@pytest.mark.parametrize(
  "block", blocks("docs/buffer.md", "python"), ids=lambda text: text.split()[1]
)
def test_a_buffer_is_read_and_written(block, buffers, tmp_path):
  for reader in READERS:
    if f"import {reader}" in block and not importlib.util.find_spec(reader):
      pytest.skip(f"{reader} is not installed")
  folders = {
    "<buffer>": buffers / "a",
    "<a>": buffers / "a",
    "<b>": buffers / "b",
    "<new>": tmp_path / "new",
    "<both>": tmp_path / "both",
  }
  code = re.sub("<[a-z]+>", lambda match: str(folders[match[0]]), block)
  traces = [loopback.make_trace("Who wrote Emma?")]
  run(code, traces=traces)


def test_a_server_is_asked(buffers, encoder, capsys):
  (block,) = blocks("docs/serving.md", "python")
  buffer = retrieval.StepTraceBuffer.load(buffers / "a", encoder)
  with loopback.serving(server.buffer_app(buffer, ServerConfig())) as url:
    run(block.replace("http://node7:8000", url))
  assert capsys.readouterr().out == "3\n"
