"""Tests of the index: it finds what the logs hold, and follows them."""

from __future__ import annotations

import json
import os
import stat
import threading

import pytest

from experiments.viewer import index as index_lib
from experiments.viewer.index import Filters, TrajectoryIndex
from experiments.workdir import read_trajectories
from rapo_jax.errors import InputError
from tests.experiments import fake_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return fake_workdir.write(
    tmp_path_factory.mktemp("view") / "run",
    tasks=("multihop", "web"),
    methods=("grpo", "rapo"),
    seeds=(0, 1),
  )


@pytest.fixture(scope="module")
def index(workdir):
  index = TrajectoryIndex(workdir)
  assert index.refresh()
  return index


@pytest.fixture
def log(tmp_path):
  """An empty log, and what appends lines to it."""
  path = tmp_path / "run/train/task/rapo-seed0/trajectories.jsonl"
  path.parent.mkdir(parents=True)
  path.touch()
  return path


def _line(update, number, text="nothing"):
  return json.dumps(
    {
      "version": 1,
      "update": update,
      "hybrid": True,
      "policy_version": update - 1,
      "advantage": 0.5,
      "retrieval_reward": 0.0,
      "retrieved_fraction": 0.0,
      "query_id": "q",
      "question": "Which one?",
      "ground_truth": ["this"],
      "index": number,
      "finish_reason": "answer",
      "score": {
        "value": 1.0,
        "status": "ok",
        "answer": "this",
        "correct": True,
        "whole": True,
      },
      "segments": [
        {"kind": "prompt", "step_id": -1, "text": "system", "num_tokens": 3},
        {"kind": "policy", "step_id": 0, "text": text, "num_tokens": 7},
      ],
      "events": [],
    }
  )


def _append(path, *lines, end="\n"):
  with path.open("a", encoding="utf-8") as file:
    file.write("\n".join(lines) + end)


def _all_rows(index, filters=None, limit=50):
  """Page by page."""
  found, after = [], None
  while rows := index.rows(filters or Filters(), after=after, limit=limit):
    found += rows
    after = rows[-1]
  return found


def test_every_trajectory_is_listed_once_and_opened_as_it_was_logged(
  workdir, index
):
  logged = [
    (f"train/{task}/{method}-seed{seed}", record)
    for task in ("multihop", "web")
    for method in ("grpo", "rapo")
    for seed in (0, 1)
    for record in read_trajectories(
      workdir / f"train/{task}/{method}-seed{seed}"
    )
  ]
  rows = _all_rows(index)
  assert len(rows) == len(logged) == index.count(Filters()) == 8 * 48
  updates = [row.at_update for row in rows]
  assert updates == sorted(updates, reverse=True)
  found = {
    (row.run, row.at_update, row.query_id, row.number): row for row in rows
  }
  for run, record in logged:
    row = found[run, record.training.update, record.query_id, record.index]
    assert index.record(row) == record
    assert index.row(run, row.start) == row
    assert row.question == record.question
    assert row.score == record.score["value"]
    assert row.tokens == sum(s.num_tokens for s in record.segments[1:])


@pytest.mark.parametrize(
  ("filters", "passes"),
  [
    ({"task": "web"}, lambda r: r.task == "web"),
    ({"method": "rapo"}, lambda r: r.method == "rapo"),
    ({"seed": 1}, lambda r: r.seed == 1),
    (
      {"first_update": 2, "last_update": 10},
      lambda r: 2 <= r.at_update <= 10,
    ),
    ({"query_id": "web-train-1"}, lambda r: r.query_id == "web-train-1"),
    ({"reward_class": "right"}, lambda r: r.reward_class == "right"),
    ({"finish": "answer"}, lambda r: True),
    ({"finish": "length"}, lambda r: False),
    ({"hybrid": False}, lambda r: not r.hybrid),
    ({"retrieved": True}, lambda r: r.retrieved > 0),
    ({"tool_error": True}, lambda r: r.tool_errors > 0),
    (
      {"run": "train/web/rapo-seed1", "hybrid": True, "text": "Tamsin"},
      lambda r: r.run == "train/web/rapo-seed1" and r.hybrid,
    ),
  ],
)
def test_filters(index, filters, passes):
  wanted = [row for row in _all_rows(index) if passes(row)]
  assert _all_rows(index, Filters(**filters)) == wanted
  assert index.count(Filters(**filters)) == len(wanted)


def test_choices_are_what_the_logs_hold(index):
  choices = index.choices()
  assert choices["task"] == ["multihop", "web"]
  assert choices["method"] == ["grpo", "rapo"]
  assert choices["at_update"] == [1, 10, 20]
  assert set(choices) <= set(index_lib.Row._fields)


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("café", True),
    ("CAFE", True),
    ("noir café", True),
    ('"café noir"', True),
    ('"noir café"', False),
    ("caf", False),
    ("caf*", True),
    ("café tea", False),
    # Of the prompt, which all share.
    ("system", False),
    # Of the question.
    ("which", True),
    ("boxed{", True),
    ("NEAR(café AND", False),
    ('say "café no"*', True),
    ('un"closed', False),
  ],
)
def test_words_are_searched(log, text, found):
  _append(log, _line(1, 0, "I say café noir, \\boxed{ 42 }"))
  index = TrajectoryIndex(log.parents[3])
  index.refresh()
  assert index.count(Filters(text=text)) == found


@pytest.mark.parametrize("text", ['"', "…", "*", '""'])
def test_a_search_for_no_word_is_refused(index, text):
  with pytest.raises(InputError, match="must hold a word"):
    index.rows(Filters(text=text))


def test_lines_are_read_when_they_are_whole(log):
  index = TrajectoryIndex(log.parents[3])
  index.refresh()
  assert index.rows(Filters()) == []
  _append(log, _line(1, 0), _line(1, 1)[:50], end="")
  assert index.refresh()
  assert [row.number for row in index.rows(Filters())] == [0]
  _append(log, _line(1, 1)[50:], _line(2, 0))
  assert index.refresh()
  rows = index.rows(Filters())
  assert [(row.at_update, row.number) for row in rows] == [
    (2, 0),
    (1, 0),
    (1, 1),
  ]
  progress = index.progress()
  assert progress.read_bytes == progress.log_bytes == log.stat().st_size
  assert (progress.trajectories, progress.broken) == (3, ())


def test_a_log_that_a_resumed_run_cuts_is_read_again_from_there(
  log, monkeypatch
):
  index = TrajectoryIndex(log.parents[3])
  _append(log, _line(1, 0), _line(2, 0, "before"), _line(2, 1))
  index.refresh()
  (old, *_) = index.rows(Filters())
  lines = [_line(1, 0), _line(2, 0, "afterwards"), _line(2, 1), _line(2, 2)]
  log.write_text("\n".join(lines) + "\n", encoding="utf-8")
  assert index.record(old) is not None
  assert index.record(old._replace(number=1)) is None
  read, lines_from = [], index_lib.followed.lines_from

  def counted(path, place):
    for line in lines_from(path, place):
      read.append(line)
      yield line

  monkeypatch.setattr(index_lib.followed, "lines_from", counted)
  index.refresh()
  assert len(read) == 3
  assert index.count(Filters()) == 4
  assert index.count(Filters(text="before")) == 0
  assert index.count(Filters(text="afterwards")) == 1


@pytest.mark.parametrize("kept", range(6))
def test_whatever_is_cut_the_index_is_as_if_new(log, tmp_path, kept):
  index = TrajectoryIndex(log.parents[3])
  _append(log, *(_line(n, n) for n in range(5)), "damaged")
  index.refresh()
  lines = [
    *(_line(n, n) for n in range(kept)),
    *(_line(n, n, "other") for n in range(kept, 9)),
  ]
  log.write_text("\n".join(lines) + "\n", encoding="utf-8")
  index.refresh()
  new = TrajectoryIndex(log.parents[3], tmp_path / "new.sqlite3")
  new.refresh()
  for filters in (Filters(), Filters(text="other"), Filters(text="nothing")):
    assert index.rows(filters) == new.rows(filters)


def test_a_run_that_is_deleted_is_forgotten(log):
  index = TrajectoryIndex(log.parents[3])
  _append(log, _line(1, 0))
  index.refresh()
  (row,) = index.rows(Filters())
  log.unlink()
  assert index.record(row) is None
  index.refresh()
  assert index.rows(Filters()) == []


@pytest.mark.parametrize(
  "damage",
  [
    "{",
    "[]",
    '{"update": 3}',
    _line(1, 9).replace('"advantage": 0.5, ', ""),
    _line(1, 9).replace('"events": []', '"events": ["odd"]'),
    _line(1, 9).replace('"status": "ok", ', ""),
    _line(1, 9).replace('"version": 1', '"version": 99'),
    "\x00\xff",
  ],
)
def test_a_damaged_line_is_left_out_and_named(log, damage):
  _append(log, _line(1, 0), damage, _line(1, 1))
  index = TrajectoryIndex(log.parents[3])
  index.refresh()
  assert [row.number for row in index.rows(Filters())] == [0, 1]
  (message,) = index.progress().broken
  assert "trajectories.jsonl holds a line that is no trajectory" in message


def test_a_second_time_nothing_is_read(log, monkeypatch):
  _append(log, _line(1, 0))
  TrajectoryIndex(log.parents[3]).refresh()
  monkeypatch.setattr(index_lib.followed, "lines_from", None)
  again = TrajectoryIndex(log.parents[3])
  assert again.refresh()
  assert again.count(Filters()) == 1


def test_long_logs_are_read_in_parts(log, monkeypatch):
  monkeypatch.setattr(index_lib, "_BATCH_BYTES", 1)
  _append(log, *(_line(1, n) for n in range(5)))
  index = TrajectoryIndex(log.parents[3])
  assert not index.refresh(seconds=0)
  assert index.count(Filters()) == 1
  assert index.refresh()
  assert index.count(Filters()) == 5


def test_two_may_read_the_same_logs(log, monkeypatch):
  monkeypatch.setattr(index_lib, "_BATCH_BYTES", 1)
  _append(log, *(_line(1, n) for n in range(40)))
  root = log.parents[3]
  threads = [
    threading.Thread(target=TrajectoryIndex(root).refresh) for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  rows = TrajectoryIndex(root).rows(Filters())
  assert [row.number for row in rows] == [*range(40)]


def test_what_is_no_index_of_this_version_is_made_again(log):
  _append(log, _line(1, 0))
  path = log.parents[3] / index_lib.INDEX_FILE
  path.write_text("no database", encoding="utf-8")
  index = TrajectoryIndex(log.parents[3])
  index.refresh()
  assert index.count(Filters()) == 1
  # Logs are private, and so are their words.
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_has_its_index_among_the_caches(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
  monkeypatch.setattr(os, "access", lambda *_: False)
  path = index_lib.index_path(tmp_path)
  assert path.parent == tmp_path / "caches/rapo_jax/view"
  assert TrajectoryIndex(tmp_path).refresh()
  assert path.exists()
