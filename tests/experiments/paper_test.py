"""Figures in the layout of the paper's table."""

from __future__ import annotations

import pytest

from experiments import paper
from rapo_jax.datasets import DATA_SETS


def figures(value: float, **more):
  accuracy = {"mean": value, "interval": [0, 1]}
  return {"test": {"pass@1": accuracy, "f1": 0.5, "verdict": True} | more}


def test_it_has_fourteen_sets():
  names = [name for group in paper.GROUPS for name in group.sets]
  assert len({*names}) == 14
  assert {*names} <= {*DATA_SETS}


def test_an_average_is_over_all_sets_of_a_group():
  web = paper.GROUPS[1].sets
  results = {name: figures(0.1 * i) for i, name in enumerate(web)}
  found = paper.in_paper(results)
  assert [*found] == ["web"]
  assert found["web"]["average"] == pytest.approx(15.0)
  text = paper.format_paper(found)
  assert "average               4 of 4    15.0" in text
  assert "paper, Qwen2.5-7B       GRPO    15.1   RAPO    17.0" in text
  assert max(map(len, text.splitlines())) <= 72
  del results["gaia"]
  assert paper.in_paper(results)["web"]["average"] is None


def test_the_metric_is_the_set_s():
  results = {
    "gsm8k": figures(0.25),
    "musique": figures(0.25),
    "math": figures(1.0, verdict=False),
    "mine": figures(1.0),
  }
  sets = paper.in_paper(results)["reasoning"]["sets"]
  assert sets == {
    "GSM8K": {"metric": "pass@1", "value": 25.0},
    "MATH": {"metric": "pass@1", "value": None},
    "MuSiQue": {"metric": "f1", "value": 50.0},
  }


def test_without_a_set_of_the_paper_there_is_no_table():
  assert paper.in_paper({"mine": figures(1.0)}) == {}
  assert paper.format_paper({}) == ""
