"""Whose mistake an error is: a line for the user's, a traceback for ours."""

import errno
import io
import os
import sys

import jax
import numpy as np
import pytest

from experiments import input_errors
from rapo_jax import text_files
from rapo_jax.corpora import load_corpus
from rapo_jax.errors import InputError, MissingInputError


@input_errors.report_input_errors
def command(error: BaseException) -> int:
  raise error


@pytest.mark.parametrize("kind", [InputError, MissingInputError])
def test_an_input_error_is_a_line_and_its_notes(kind, capsys):
  error = kind("a rule")
  error.add_note("a remedy")
  assert command(error) == input_errors.EXIT_STATUS
  assert capsys.readouterr().err == "error: a rule\na remedy\n"


@pytest.mark.parametrize(
  "error", [ValueError(), OSError(), FileNotFoundError(), TypeError()]
)
def test_everything_else_keeps_its_traceback(error):
  with pytest.raises(type(error)):
    command(error)


def test_a_bug_inside_a_loader_keeps_its_traceback(tmp_path, monkeypatch):
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text('{"id": "1", "contents": "text"}\n', encoding="utf-8")

  def broken(text):
    return np.zeros(2) + np.zeros(3)

  @input_errors.report_input_errors
  def main() -> int:
    return len(load_corpus(corpus))

  assert main() == 1
  monkeypatch.setattr(text_files, "parse_json", broken)
  with pytest.raises(ValueError, match="broadcast"):
    main()


@pytest.mark.parametrize(
  "name", ["missing.jsonl", "folder", "file/under.jsonl"]
)
def test_a_path_that_cannot_be_read_is_a_line(name, tmp_path, capsys):
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").write_text("", encoding="utf-8")

  @input_errors.report_input_errors
  def main() -> int:
    return len(list(text_files.json_lines(tmp_path / name)))

  assert main() == input_errors.EXIT_STATUS
  line = capsys.readouterr().err
  assert line.startswith(f"error: {tmp_path / name} must ")
  assert "check the path" in line


@pytest.mark.parametrize(
  ("number", "remedy"),
  [
    (errno.ENOSPC, "free some space there"),
    (errno.EROFS, "on a disk that can be written"),
    (errno.EACCES, "that you may read and write"),
  ],
)
def test_what_the_machine_refuses_is_a_line_with_a_remedy(
  number, remedy, capsys
):
  error = OSError(number, os.strerror(number), "/there/file")
  assert command(error) == input_errors.EXIT_STATUS
  line = capsys.readouterr().err
  assert "/there/file" in line
  assert remedy in line


def test_a_full_disk_is_told_by_tensorstore_s_code_too(capsys):
  error = ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='28']")
  assert command(error) == input_errors.EXIT_STATUS
  assert "free some space there" in capsys.readouterr().err


def test_a_full_device_is_told_with_what_takes_less(capsys):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
  assert command(error) == input_errors.EXIT_STATUS
  assert "lower rollout.num_slots" in capsys.readouterr().err
  with pytest.raises(jax.errors.JaxRuntimeError):
    command(jax.errors.JaxRuntimeError("INTERNAL: a bug"))


def test_what_a_locale_cannot_write_is_written_otherwise(monkeypatch):
  raw = io.BytesIO()
  stdout = io.TextIOWrapper(raw, encoding="latin-1")
  monkeypatch.setattr(sys, "stdout", stdout)

  @input_errors.report_input_errors
  def main() -> int:
    sys.stdout.write("é → 查\n")
    return 0

  assert main() == 0
  stdout.flush()
  assert raw.getvalue() == b"\xe9 \\u2192 \\u67e5\n"
