"""What the system refuses of a user's path is an input error."""

import pytest

from rapo_jax import errors


def test_a_missing_path_is_a_missing_input(tmp_path):
  path = tmp_path / "missing"
  with (
    pytest.raises(errors.MissingInputError, match=r"missing must exist.*check"),
    errors.accessing(path),
  ):
    path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [IsADirectoryError, PermissionError, OSError])
def test_another_refusal_is_an_input_error(kind):
  with (
    pytest.raises(
      errors.InputError, match=r"a/b must be usable.*reason"
    ) as raised,
    errors.accessing("a/b"),
  ):
    raise kind("reason")
  assert isinstance(raised.value.__cause__, kind)


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_bugs_pass_unchanged(kind):
  error = kind("a bug")
  with pytest.raises(kind) as raised, errors.accessing("a"):
    raise error
  assert raised.value is error


def test_an_input_error_passes_unchanged():
  error = errors.MissingInputError("a rule")
  with pytest.raises(errors.MissingInputError) as raised, errors.accessing("a"):
    raise error
  assert raised.value is error
