"""What a start records, and what it leaves out."""

import datetime
import json
import subprocess

import jax
import pytest

from experiments import provenance
from experiments.config import ExperimentConfig
from rapo_jax.errors import InputError


def test_says_when_with_what_and_on_what():
  start = provenance.describe(["--config", "a b.py"])
  date = datetime.datetime.fromisoformat(start["date"])
  assert date.utcoffset() == datetime.timedelta(0)
  assert start["command"] == "python -m experiments.run --config 'a b.py'"
  assert start["versions"]["jax"] == jax.__version__
  assert start["devices"]["count"] == jax.device_count()
  json.dumps(start, allow_nan=False)


@pytest.mark.parametrize(
  ("word", "shown"),
  [
    ("--config.buffer.url=http://me:pw@host/x", "http://…@host/x"),
    ("--config.buffer.url=https://h/x?token=abc&n=1", "token=…&n=1"),
    ("--config.buffer.url=https://h/x?api_key=abc", "api_key=…"),
  ],
)
def test_credentials_are_left_out(word, shown):
  command = provenance.describe([word])["command"]
  assert shown in command
  assert "pw" not in command
  assert "abc" not in command


@pytest.mark.parametrize(
  "word",
  ["--config.rollout.max_tool_tokens=5", "--config.encoder.key_prefix=q:"],
)
def test_fields_that_are_no_secrets_stay(word):
  assert word in provenance.describe([word])["command"]


def test_a_commit_is_told_with_its_changes(tmp_path, monkeypatch):
  def git(*arguments):
    subprocess.run(
      ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
      cwd=tmp_path,
      check=True,
      capture_output=True,
    )

  monkeypatch.setattr(provenance, "_ROOT", tmp_path.resolve())
  assert provenance._commit() is None
  git("init")
  git("commit", "--allow-empty", "-m", "first")
  found = provenance._commit()
  assert len(found["id"]) == 40
  assert found["changed"] is False
  (tmp_path / "new.py").write_text("", encoding="utf-8")
  assert provenance._commit() == found | {"changed": True}
  # Installed somewhere in another project's clone.
  monkeypatch.setattr(provenance, "_ROOT", (tmp_path / "inner").resolve())
  (tmp_path / "inner").mkdir()
  assert provenance._commit() is None


def test_starts_add_up_and_a_torn_one_is_left_out(tmp_path):
  assert provenance.read_starts(tmp_path) == []
  for name in ("one", "two"):
    provenance.append_start(
      tmp_path, ExperimentConfig(name=name), [f"--config={name}"]
    )
  with (tmp_path / provenance.STARTS_FILE).open("a", encoding="utf-8") as file:
    file.write('{"date": "20')
  assert _names(tmp_path) == ["one", "two"]
  provenance.append_start(
    tmp_path, ExperimentConfig(name="three"), ["--config=three"]
  )
  assert _names(tmp_path) == ["one", "two", "three"]


@pytest.mark.parametrize("line", ["{", "[]", "{}"])
def test_a_broken_start_is_named(line, tmp_path):
  path = tmp_path / provenance.STARTS_FILE
  path.write_text(f"{line}\n", encoding="utf-8")
  with pytest.raises(InputError, match=r"line 1 does not: .* delete the line"):
    provenance.read_starts(tmp_path)


def _names(folder):
  commands = [s["command"] for s in provenance.read_starts(folder)]
  return [c.rpartition("=")[2] for c in commands]
