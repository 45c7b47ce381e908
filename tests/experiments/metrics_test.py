"""Tests of the metrics files."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest

from experiments import metrics
from rapo_jax.errors import InputError


def _write(directory, updates, **keywords):
  with metrics.MetricsWriter(
    directory, tensorboard=False, wandb=None, **keywords
  ) as writer:
    for update in updates:
      writer.write(update, {"loss": np.float32(update / 4)})


def test_rows_come_back(tmp_path):
  with metrics.MetricsWriter(
    tmp_path / "run", tensorboard=False, wandb=None
  ) as writer:
    writer.write(0, {"eval/accuracy": 0.25})
    writer.write(1, {"loss": math.nan, "rollout/tool_calls": np.int64(3)})
    # Flushed: a reader sees the row before the writer is closed.
    rows = metrics.read_metrics(tmp_path / "run")
  assert rows[0] == {"update": 0, "eval/accuracy": 0.25}
  assert rows[1]["rollout/tool_calls"] == 3
  assert math.isnan(rows[1]["loss"])
  text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
  assert "NaN" not in text


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
  _write(tmp_path, range(8))
  path = tmp_path / "metrics.jsonl"
  with path.open("a", encoding="utf-8") as file:
    file.write('{"update": 8, "lo')
  assert [row["update"] for row in metrics.read_metrics(path)][-1] == 7
  _write(tmp_path, range(6, 9), resumed_update=5)
  updates = [row["update"] for row in metrics.read_metrics(path)]
  assert updates == list(range(9))


def test_a_fresh_run_starts_an_empty_file(tmp_path):
  _write(tmp_path, range(3))
  _write(tmp_path, [0])
  assert len(metrics.read_metrics(tmp_path)) == 1


def test_truncate_rows_of_a_missing_file_is_nothing(tmp_path):
  metrics.truncate_rows(tmp_path / "none.jsonl", 3)
  assert metrics.read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"update": "1"}', "\0\0"])
def test_a_broken_line_is_named(line, tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"update": 0}}\n{line}\n', encoding="utf-8")
  with pytest.raises(InputError, match=r"jsonl must be .*line 2 is none.*dele"):
    metrics.read_metrics(path)
  with pytest.raises(InputError, match="line 2 is none"):
    metrics.truncate_rows(path, 0)


def test_lines_break_at_newlines_alone(tmp_path):
  # U+2028 and U+0085 end a line for str.splitlines, not for JSONL.
  path = tmp_path / "trajectories.jsonl"
  rows = [{"update": u, "text": "a\u2028b\u0085c"} for u in (1, 2)]
  path.write_text(
    "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
    encoding="utf-8",
  )
  metrics.truncate_rows(path, 1)
  assert [json.loads(path.read_text(encoding="utf-8"))] == rows[:1]


def test_tensorboard_files_hold_the_values(tmp_path):
  with metrics.MetricsWriter(tmp_path, tensorboard=True, wandb=None) as writer:
    writer.write(3, {"reward/mean": 0.5})
  (events,) = (tmp_path / "tensorboard").iterdir()
  content = events.read_bytes()
  assert b"reward/mean" in content


class _FakeRun:
  def __init__(self):
    self.rows, self.finished = [], False

  def log(self, values, step):
    self.rows.append((step, dict(values)))

  def finish(self):
    self.finished = True


def test_wandb_gets_the_rows_under_one_id_over_a_resume(tmp_path, monkeypatch):
  calls, run = [], _FakeRun()

  def init(**keywords):
    calls.append(keywords)
    return run

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  monkeypatch.setenv(metrics.WANDB_KEY, "canary-secret")
  config = metrics.WandbConfig(project="p")
  for resumed in (-1, 1):
    with metrics.MetricsWriter(
      tmp_path,
      tensorboard=False,
      wandb=config,
      resumed_update=resumed,
      config={"seed": 1},
    ) as writer:
      writer.write(resumed + 1, {"loss": 1.0})
  assert run.rows == [(0, {"loss": 1.0}), (2, {"loss": 1.0})]
  assert run.finished
  assert calls[0]["id"] == calls[1]["id"]
  assert calls[0]["config"] == {"seed": 1}
  assert "canary-secret" not in repr(calls)
  for path in tmp_path.rglob("*"):
    assert not path.is_file() or b"canary-secret" not in path.read_bytes()


def test_wandb_without_a_key_says_what_to_set(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
  monkeypatch.delenv(metrics.WANDB_KEY, raising=False)
  with pytest.raises(InputError, match="WANDB_API_KEY is not set: export it"):
    metrics.MetricsWriter(
      tmp_path, tensorboard=False, wandb=metrics.WandbConfig()
    )


def test_trackio_gets_the_rows_under_one_name_over_a_resume(
  tmp_path, monkeypatch
):
  calls, run = [], _FakeRun()

  def init(**keywords):
    calls.append(keywords)
    return run

  monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
  for resumed in (-1, 1):
    with metrics.MetricsWriter(
      tmp_path / "rapo-seed0",
      tensorboard=False,
      wandb=None,
      trackio=metrics.TrackioConfig(project="p", space_id="me/space"),
      resumed_update=resumed,
      config={"seed": 1},
    ) as writer:
      writer.write(resumed + 1, {"loss": 1.0})
  assert run.rows == [(0, {"loss": 1.0}), (2, {"loss": 1.0})]
  assert run.finished
  first, second = calls
  assert first == second
  assert first["name"].startswith("rapo-seed0-")
  assert first["resume"] == "allow"
  assert first["space_id"] == "me/space"


def test_trackio_missing_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "trackio", None)
  with pytest.raises(InputError, match=r"pip install 'trackio>="):
    metrics.check_trackio(metrics.TrackioConfig())
  metrics.check_trackio(None)


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r"pip install 'wandb>="):
    metrics.MetricsWriter(
      tmp_path, tensorboard=False, wandb=metrics.WandbConfig()
    )
