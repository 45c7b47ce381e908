"""Tests of results and tables, on a made-up work folder and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import results as results_lib
from experiments import tables
from tests.experiments import fake_workdir


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
  return fake_workdir.write(tmp_path_factory.mktemp("fake") / "run")


@pytest.fixture(scope="module")
def fake_results(fake):
  return results_lib.write_results(fake)


def _write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content), encoding="utf-8")


def _evaluation(workdir, method, seed, sampled, task="t"):
  agent = method if seed is None else f"{method}-seed{seed}"
  _write(
    workdir / "evaluate" / task / f"{agent}.json",
    {
      "task": task,
      "agent": agent,
      "method": method,
      "seed": seed,
      "update": 2,
      "greedy": {q: int(v[0]) for q, v in sampled.items()},
      "sampled": sampled,
    },
  )


def _metrics(workdir, name, accuracies, task="t", **series):
  path = workdir / "train" / task / name / "metrics.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = []
  for update, accuracy in accuracies.items():
    row = {"update": update, "eval/accuracy": accuracy}
    if update:
      row |= {k.replace("__", "/"): v for k, v in series.items()}
    rows.append(json.dumps(row))
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_accuracy_and_difference_by_hand(tmp_path):
  _evaluation(tmp_path, "base", None, {"a": [0, 0], "b": [0, 1]})
  _evaluation(tmp_path, "grpo", 0, {"a": [1, 0], "b": [0, 0]})
  _evaluation(tmp_path, "grpo", 1, {"a": [0, 0], "b": [0, 0]})
  _evaluation(tmp_path, "rapo", 0, {"a": [1, 1], "b": [0, 0]})
  _evaluation(tmp_path, "rapo", 1, {"a": [1, 1], "b": [1, 1]})
  _evaluation(tmp_path, "rapo", 2, {"a": [1, 1], "b": [1, 1]})
  results = results_lib.compute_results(tmp_path)
  accuracy = results["accuracy"]["t"]
  assert accuracy["base"]["sampled"]["mean"] == 0.25
  assert accuracy["base"]["sampled"]["seeds"] == {}
  # (.5 + 0) / 2 and (0 + 0) / 2 over questions, then over seeds.
  assert accuracy["grpo"]["sampled"]["seeds"] == {"0": 0.25, "1": 0.0}
  assert accuracy["grpo"]["sampled"]["mean"] == 0.125
  assert accuracy["grpo"]["num_samples"] == 2
  # Seed 2 has no partner: (.5 - .25 + 1 - 0) / 2.
  difference = results["differences"]["rapo - grpo"]["t"]["sampled"]
  assert difference["seeds"] == {"0": 0.25, "1": 1.0}
  assert difference["mean"] == 0.625
  assert difference["num_seeds"] == 2
  assert results["differences"]["rapo - hybrid"] == {}


def test_pairs_share_questions_and_order_does_not_matter(tmp_path):
  _evaluation(tmp_path, "grpo", 0, {"b": [0], "a": [1], "only": [1]})
  _evaluation(tmp_path, "rapo", 0, {"a": [1], "b": [1]})
  results = results_lib.compute_results(tmp_path)
  difference = results["differences"]["rapo - grpo"]["t"]["sampled"]
  assert difference["num_questions"] == 2
  assert difference["mean"] == 0.5


def test_the_mean_over_tasks_weighs_tasks_alike(tmp_path):
  for method, value in (("grpo", 0), ("rapo", 1)):
    _evaluation(tmp_path, method, 0, {"a": [value]}, task="one")
    many = {str(i): [0] for i in range(9)}
    _evaluation(tmp_path, method, 0, many, task="two")
  _evaluation(tmp_path, "base", None, {"a": [1]}, task="one")
  results = results_lib.compute_results(tmp_path)
  difference = results["differences"]["rapo - grpo"]["mean"]["sampled"]
  assert difference["mean"] == 0.5
  # A method that one task lacks has no mean over tasks.
  assert "base" not in results["accuracy"]["mean"]


def test_updates_to_a_target():
  updates, accuracy = np.array([0, 5, 10, 15]), np.array([0.0, 0.2, 0.6, 0.4])
  # Between 5 (.2) and 10 (.6): .5 is three quarters of the way.
  assert results_lib.updates_to(updates, accuracy, 0.5) == pytest.approx(8.75)
  assert results_lib.updates_to(updates, accuracy, 0.6) == 10
  assert results_lib.updates_to(updates, accuracy, 0.0) == 0
  assert results_lib.updates_to(updates, accuracy, 0.7) is None


def test_speed_by_hand(tmp_path):
  _metrics(tmp_path, "grpo-seed0", {0: 0.0, 10: 0.4, 20: 0.8})
  _metrics(tmp_path, "rapo-seed0", {0: 0.0, 10: 1.0, 20: 1.0})
  learning = results_lib.compute_results(tmp_path)["learning"]["t"]
  assert learning["targets"] == {"half": 0.5, "grpo_final": 0.8}
  # GRPO: 10 + 10 * .1/.4 = 12.5; RAPO: 10 * .5 = 5.
  assert learning["speedup"]["half"] == {
    "ratio": pytest.approx(2.5),
    "bound": "exactly",
  }
  assert learning["speedup"]["grpo_final"]["ratio"] == pytest.approx(20 / 8)
  at = learning["methods"]["rapo"]["at_updates"]
  assert at == {
    "10": {"mean": 1.0, "seeds": {"0": 1.0}},
    "20": {"mean": 1.0, "seeds": {"0": 1.0}},
  }


@pytest.mark.parametrize(
  ("grpo", "rapo", "expected"),
  [
    (0.1, 1.0, "≥ 2.00×"),  # GRPO never; RAPO after 10 of 20.
    (1.0, 0.1, "≤ 0.50×"),
    (0.1, 0.1, "neither reached it"),
  ],
)
def test_speed_of_what_never_arrives_is_a_bound(tmp_path, grpo, rapo, expected):
  for method, final in (("grpo", grpo), ("rapo", rapo)):
    _metrics(tmp_path, f"{method}-seed0", {0: 0.0, 20: final})
  speedup = results_lib.compute_results(tmp_path)["learning"]["t"]["speedup"]
  assert tables.speedup_text(speedup["half"]) == expected


def test_cost_by_hand(tmp_path):
  _metrics(tmp_path, "grpo-seed0", {0: 0, 1: 0, 2: 0}, rollout__tool_calls=10)
  _metrics(tmp_path, "rapo-seed0", {0: 0, 1: 0}, rollout__tool_calls=8)
  cost = results_lib.compute_results(tmp_path)["cost"]
  name = "rollout/tool_calls"
  assert cost["t"]["methods"]["grpo"][name] == {"mean": 10, "first_update": 10}
  assert cost["mean"]["ratios"]["rapo / grpo"][name]["mean"] == 0.8
  # Not measured: null, not 0.
  assert cost["t"]["methods"]["grpo"]["rollout/seconds"]["mean"] is None


def test_training_keeps_the_largest_gap_and_the_live_share(fake_results):
  training = fake_results["training"]["compute"]["rapo"]
  assert training["mismatch/abs_log_prob_max"] == 2e-5
  assert 0 < training["groups/live_fraction"]["mean"] <= 1


def test_the_file_holds_the_results(fake, fake_results):
  assert (
    json.loads((fake / "results.json").read_text(encoding="utf-8"))
    == fake_results
  )
  assert fake_results["unfinished_runs"] == []


def test_the_table_shows_every_task_method_and_seed(fake_results):
  text = tables.format_table(fake_results)
  for word in ("compute", "multihop", "web", "mean", "off-policy", "seed 2"):
    assert word in text
  for number in fake_results["accuracy"]["web"]["grpo"]["sampled"]["seeds"]:
    value = fake_results["accuracy"]["web"]["grpo"]["sampled"]["seeds"][number]
    assert tables.percent(value) in text
  assert "Only 3 seeds a method" in text
  markdown = tables.format_markdown(fake_results)
  assert markdown.startswith(
    "| task | base | off-policy | GRPO | hybrid | RAPO"
  )
  assert "| mean |" in markdown


def test_an_empty_work_folder_says_so(tmp_path):
  results = results_lib.write_results(tmp_path)
  assert tables.format_table(results).startswith("No evaluation yet")
  assert tables.format_markdown(results).startswith("No evaluation yet")
  assert tables.headline(results)[0].startswith("No comparison yet")


def test_a_torn_or_missing_part_is_left_out(tmp_path):
  _evaluation(tmp_path, "base", None, {"a": [0]})
  results = results_lib.compute_results(tmp_path)
  text = tables.format_table(results)
  assert "base" in text
  assert "RAPO − GRPO" not in text


def _results(low, high, mean, seeds=5):
  estimate = {
    "mean": mean,
    "interval": [low, high],
    "num_seeds": seeds,
    "seeds": {str(i): mean for i in range(seeds)},
  }
  return {
    "tasks": ["a", "b"],
    "unfinished_runs": [],
    "differences": {
      "rapo - grpo": {t: {"sampled": estimate} for t in ("a", "b", "mean")}
    },
  }


@pytest.mark.parametrize(
  ("low", "high", "mean", "start"),
  [
    (0.01, 0.2, 0.1, "RAPO is ahead of GRPO by 10.0 points over 2 tasks"),
    (-0.2, -0.01, -0.1, "RAPO is behind GRPO by 10.0 points over 2 tasks"),
    (-0.1, 0.3, 0.1, "No clear difference: RAPO is ahead of GRPO by 10.0"),
    (-0.3, 0.1, -0.1, "No clear difference: RAPO is behind GRPO by 10.0"),
    (0.0, 0.0, 0.0, "No difference between RAPO and GRPO"),
  ],
)
def test_the_headline_is_honest(low, high, mean, start):
  lines = tables.headline(_results(low, high, mean))
  assert lines[0].startswith(start)
  assert not any("seed" in line for line in lines)


def test_the_headline_names_few_seeds():
  assert "Only 2 seeds" in tables.headline(_results(0.1, 0.2, 0.15, 2))[-1]
  assert "One seed" in tables.headline(_results(0.1, 0.2, 0.15, 1))[-1]
