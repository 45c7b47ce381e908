from __future__ import annotations

import pytest

from rapo_jax.corpora import plan as plan_lib
from rapo_jax.corpora.plan import Plan, Rates

SAMPLE = ["one two three four", "one one one one"]


def test_a_plan_grows_with_the_passages():
  small, large = (
    Plan.of(SAMPLE, count, Rates(10.0), 384) for count in (1_000_000, 2_000_000)
  )
  assert small.seconds["embed"] == 100_000
  for name, seconds in small.seconds.items():
    assert large.seconds[name] == pytest.approx(2 * seconds)
  for name, size in small.disk_bytes.items():
    assert large.disk_bytes[name] == pytest.approx(2 * size)
  assert large.memory_bytes > small.memory_bytes
  assert large.peak_disk_bytes > sum(large.disk_bytes.values())


def test_distinct_words_of_a_passage_are_what_bm25_holds():
  plan = Plan.of(SAMPLE, 2, Rates(None), 1)
  assert plan.disk_bytes["bm25"] == 5 * plan_lib.BM25_DISK_BYTES
  assert "index" not in plan.disk_bytes
  assert "embed" not in plan.seconds


def test_more_cores_embed_faster_alone():
  one, eight = (Plan.of(SAMPLE, 100, Rates(5.0, n), 4) for n in (1, 8))
  assert eight.seconds["embed"] == one.seconds["embed"] / 8
  assert eight.seconds["words"] == one.seconds["words"]


def test_what_is_left_out_is_not_planned():
  plan = Plan.of(SAMPLE, 100, Rates(5.0), 4, words=False)
  assert {*plan.seconds} == {"read", "embed", "index"}
  assert {*plan.disk_bytes} == {"texts", "index"}


def test_lines_are_for_people():
  lines = Plan.of(SAMPLE, 21_000_000, Rates(1000.0), 384).lines()
  assert lines[0] == "passages: about 21,000,000"
  assert "embed 5.8 h" in lines[1]
  assert " GB" in lines[2]
  assert "while it is built" in lines[3]


@pytest.mark.parametrize("cores", [0.0, -1.0, float("nan"), float("inf")])
def test_cores_that_cannot_be(cores):
  with pytest.raises(ValueError, match="cores must be above 0"):
    Rates(1.0, cores)
