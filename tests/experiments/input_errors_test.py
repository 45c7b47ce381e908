"""Whose mistake an error is: a line for the user's, a traceback for ours."""

import io
import sys

import pytest

from experiments import input_errors


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


def test_an_input_error_stays_the_one_it_is():
  error = input_errors.InputError("a rule")
  with (
    pytest.raises(input_errors.InputError) as caught,
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
