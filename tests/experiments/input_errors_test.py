"""Whose mistake an error is: a line for the user's, a traceback for ours."""

import errno
import io
import os
import sys

import jax
import pytest

from experiments import input_errors
from rapo_jax.errors import InputError


@input_errors.told_in_a_line
def command(outside: bool, error: BaseException) -> int:
  if outside:
    with input_errors.from_outside():
      raise error
  raise error


@pytest.mark.parametrize(
  "error", [ValueError("a rule"), FileNotFoundError("a rule")]
)
def test_what_comes_from_outside_is_a_line_and_its_notes(error, capsys):
  error.add_note("a remedy")
  assert command(True, error) == input_errors.EXIT_STATUS
  assert capsys.readouterr().err == "error: a rule\na remedy\n"


@pytest.mark.parametrize(
  ("outside", "error"),
  [(False, ValueError()), (False, OSError()), (True, TypeError())],
)
def test_everything_else_keeps_its_traceback(outside, error):
  with pytest.raises(type(error)):
    command(outside, error)


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
  assert command(False, error) == input_errors.EXIT_STATUS
  line = capsys.readouterr().err
  assert "/there/file" in line
  assert remedy in line


def test_a_full_disk_is_told_by_tensorstore_s_code_too(capsys):
  error = ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='28']")
  assert command(False, error) == input_errors.EXIT_STATUS
  assert "free some space there" in capsys.readouterr().err


def test_what_a_check_refuses_for_the_machine_s_sake_has_the_remedy(capsys):
  error = OSError(errno.EROFS, os.strerror(errno.EROFS), "/there")
  assert command(True, error) == input_errors.EXIT_STATUS
  assert "on a disk that can be written." in capsys.readouterr().err


def test_a_full_device_is_told_with_what_takes_less(capsys):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
  assert command(False, error) == input_errors.EXIT_STATUS
  assert "lower rollout.num_slots" in capsys.readouterr().err
  with pytest.raises(jax.errors.JaxRuntimeError):
    command(False, jax.errors.JaxRuntimeError("INTERNAL: a bug"))


def test_an_input_error_stays_the_one_it_is():
  error = InputError("a rule")
  with (
    pytest.raises(InputError) as caught,
    input_errors.from_outside(),
  ):
    raise error
  assert caught.value is error


def test_what_a_locale_cannot_write_is_written_otherwise(monkeypatch):
  raw = io.BytesIO()
  stdout = io.TextIOWrapper(raw, encoding="latin-1")
  monkeypatch.setattr(sys, "stdout", stdout)

  @input_errors.told_in_a_line
  def main() -> int:
    sys.stdout.write("é → 查\n")
    return 0

  assert main() == 0
  stdout.flush()
  assert raw.getvalue() == b"\xe9 \\u2192 \\u67e5\n"
