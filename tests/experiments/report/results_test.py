"""Tests of results and tables, on a made-up work folder and by hand."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest
from rich import cells

from experiments.report import learning as learning_lib
from experiments.report import methods, tables
from experiments.report import results as results_lib
from rapo_jax.errors import InputError
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
  assert "rapo - hybrid" not in results["differences"]


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


def test_several_evaluation_sets_are_rows_of_their_own(tmp_path):
  for method, seed, easy, hard in (("base", None, 0, 0), ("rapo", 0, 1, 0)):
    _evaluation(tmp_path, method, seed, {"a": [easy], "b": [hard], "c": [hard]})
  for path in tmp_path.glob("evaluate/t/*.json"):
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"sets": {"easy": ["a"], "hard": ["b", "c"]}, "left_out": 1}
    _write(path, content)
  _metrics(tmp_path, "rapo-seed0", {0: 0.0, 1: 0.5})
  found = results_lib.compute_results(tmp_path)
  assert found["tasks"] == ["t", "t/easy", "t/hard"]
  means = {
    task: found["accuracy"][task]["rapo"]["sampled"]["mean"]
    for task in ("t/easy", "t/hard", "mean")
  }
  assert means == {"t/easy": 1.0, "t/hard": 0.0, "mean": 0.5}
  assert found["left_out"] == 2
  table = tables.format_table(found)
  assert "t/easy" in table
  assert "t/hard" in table


def test_updates_to_a_target():
  updates, accuracy = np.array([0, 5, 10, 15]), np.array([0.0, 0.2, 0.6, 0.4])
  # Between 5 (.2) and 10 (.6): .5 is three quarters of the way.
  assert learning_lib.updates_to(updates, accuracy, 0.5) == pytest.approx(8.75)
  assert learning_lib.updates_to(updates, accuracy, 0.6) == 10
  assert learning_lib.updates_to(updates, accuracy, 0.0) == 0
  assert learning_lib.updates_to(updates, accuracy, 0.7) is None


def _learned(workdir, grpo, rapo, seeds=2, final=0.8):
  """Curves of two methods, and evaluations in which both beat the base."""
  right = {str(i): [int(i < 10 * final)] for i in range(10)}
  _evaluation(workdir, "base", None, {key: [0] for key in right})
  for method, curve in (("grpo", grpo), ("rapo", rapo)):
    for seed in range(seeds):
      _metrics(workdir, f"{method}-seed{seed}", curve)
      _evaluation(workdir, method, seed, right)


def test_speed_by_hand(tmp_path):
  _learned(
    tmp_path,
    {0: 0.0, 10: 0.4, 20: 0.8},
    {0: 0.0, 10: 1.0, 20: 1.0},
  )
  results = results_lib.compute_results(tmp_path)
  learning = results["learning"]["t"]
  # Half of the way from 0 to RAPO's 1.0.
  assert learning["targets"] == {"halfway": 0.5, "reference_final": 0.8}
  # GRPO: 10 + 10 * .1/.4 = 12.5; RAPO: 10 * .5 = 5. All seeds are alike.
  assert learning["speedup"]["halfway"] == {
    "ratio": pytest.approx(2.5),
    "bound": "exactly",
    "interval": pytest.approx([1.25, 1.25]),
  }
  assert learning["speedup"]["reference_final"]["ratio"] == pytest.approx(
    20 / 8
  )
  at = learning["methods"]["rapo"]["at_updates"]
  assert at == {
    "10": {"mean": 1.0, "seeds": {"0": 1.0, "1": 1.0}},
    "20": {"mean": 1.0, "seeds": {"0": 1.0, "1": 1.0}},
  }


@pytest.mark.parametrize(
  ("grpo", "rapo", "expected"),
  [
    (0.1, 1.0, "≥ 2.00×"),  # GRPO never; RAPO after 10 of 20.
    (1.0, 0.1, "≤ 0.50×"),
  ],
)
def test_speed_of_what_never_arrives_is_a_bound(tmp_path, grpo, rapo, expected):
  _learned(tmp_path, {0: 0.0, 20: grpo}, {0: 0.0, 20: rapo})
  speedup = results_lib.compute_results(tmp_path)["learning"]["t"]["speedup"]
  assert tables.speedup_text(speedup["halfway"]) == expected


def test_noise_is_no_target_and_has_no_ratio(tmp_path):
  # One of 500 answers is right after 20 updates, as of the base agent before.
  noise = {str(i): [int(i == 7)] for i in range(500)}
  _evaluation(tmp_path, "base", None, {str(i): [0] for i in range(500)})
  for seed in (0, 1):
    _metrics(tmp_path, f"grpo-seed{seed}", {0: 0.0, 10: 0.0, 20: 0.002})
    _metrics(tmp_path, f"rapo-seed{seed}", {0: 0.0, 10: 0.01, 20: 0.002})
    _evaluation(tmp_path, "grpo", seed, noise)
    _evaluation(tmp_path, "rapo", seed, noise)
  results = results_lib.compute_results(tmp_path)
  assert results["learning"]["t"]["targets"] == {}
  text = tables.format_table(results)
  assert "×" not in text.split("Cost")[0]
  assert "No difference between RAPO and GRPO" in text


def test_a_speed_that_seeds_disagree_on_has_no_ratio(tmp_path):
  fast, slow = {0: 0.0, 10: 1.0, 20: 1.0}, {0: 0.0, 10: 0.0, 20: 1.0}
  _learned(tmp_path, fast, fast)
  _metrics(tmp_path, "grpo-seed0", slow)
  _metrics(tmp_path, "rapo-seed1", slow)
  results = results_lib.compute_results(tmp_path)
  low, high = results["learning"]["t"]["speedup"]["halfway"]["interval"]
  assert low < 1 < high
  lines = tables.speed_lines(results)
  assert lines
  assert not any("÷" in line for line in lines)


def test_one_seed_has_differences_and_no_interval(tmp_path):
  curve = {0: 0.0, 20: 0.8}
  _learned(tmp_path, curve, {0: 0.0, 10: 0.8, 20: 0.8}, seeds=1)
  results = results_lib.compute_results(tmp_path)
  assert results["accuracy"]["t"]["rapo"]["sampled"]["interval"] is None
  assert results["differences"]["rapo - base"]["t"]["sampled"] == {
    "mean": 0.8,
    "interval": None,
    "clear": True,
    "num_seeds": 1,
    "num_questions": 10,
    "seeds": {"0": 0.8},
  }
  # The base agent has no seed; its interval is over questions.
  assert results["accuracy"]["t"]["base"]["sampled"]["interval"] == [0.0, 0.0]
  text = tables.format_table(results)
  assert "one seed, so no interval" in text
  assert "95 % interval" not in text
  assert "÷ RAPO" not in text


@pytest.mark.parametrize(
  ("last", "every", "expected"),
  [
    (20, 5, [5, 10, 15, 20]),
    (200, 50, [50, 100, 150, 200]),
    (900, 50, [200, 450, 650, 900]),  # 225 and 675 lie between; the lower one.
    (2, 1, [1, 2]),
    (0, 1, []),
  ],
)
def test_reference_points_follow_the_run_s_length(
  tmp_path, last, every, expected
):
  _metrics(
    tmp_path, "rapo-seed0", dict.fromkeys(range(0, last + 1, every), 0.1)
  )
  learning = results_lib.compute_results(tmp_path)["learning"]["t"]
  assert learning["reference_updates"] == expected


@pytest.mark.parametrize("method", ["rapo", "grpo", "hybrid"])
def test_a_method_alone_is_held_against_the_base_agent(tmp_path, method):
  right = {str(i): [int(i < 6)] for i in range(10)}
  _evaluation(tmp_path, "base", None, {key: [0] for key in right})
  for seed in (0, 1):
    _evaluation(tmp_path, method, seed, right)
  results = results_lib.compute_results(tmp_path)
  lines = tables.headline(results)
  name = methods.label(results, method)
  assert lines[0].startswith(
    f"{name} takes the base agent from 0.0 % to 60.0 % on t, +60.0 points (95 %"
  )
  assert "Only 2 seeds" in lines[1]
  assert "− base [95 %]" in tables.format_table(results)
  # Nothing is compared with a method that is not there.
  assert results["pair"] is None
  assert results["reference"] is None
  board = tables.format_board(results)
  assert "−" not in board
  assert "None" not in board


def test_methods_of_one_s_own_are_compared_with_the_first_of_the_config(
  tmp_path,
):
  order = ["mine", "yours", "theirs"]
  _write(tmp_path / "config.json", {"train": {"methods": order}})
  for method, right in (("mine", 4), ("yours", 5), ("theirs", 9)):
    answers = {str(i): [int(i < right)] for i in range(10)}
    for seed in (0, 1):
      _evaluation(tmp_path, method, seed, answers)
      _metrics(
        tmp_path,
        f"{method}-seed{seed}",
        {0: 0.0, 10: right / 20, 20: right / 10},
        rollout__generated_tokens=100 * right,
      )
  _evaluation(tmp_path, "base", None, {str(i): [0] for i in range(10)})
  results = results_lib.compute_results(tmp_path)
  assert results["reference"] == "mine"
  assert results["pair"] == ["theirs", "mine"]
  # Alphabetical order of methods, and only pairs with the reference or base.
  assert list(results["differences"]) == [
    "theirs - mine",
    "yours - mine",
    "mine - base",
    "theirs - base",
    "yours - base",
  ]
  text = tables.format_table(results, 400)
  assert "theirs is ahead of mine by 50.0 points on t" in text
  assert "theirs is ahead in 2 of 2 pairs" in text
  # Half of the gain, .45: theirs after 10 updates; mine never, in 20.
  assert "(mine ÷ theirs: ≥ 2.00×)" in text
  assert "mine's final accuracy (40.0 %)" in text
  assert "Cost of theirs ÷ mine" in text
  assert "generated tokens 2.25× [2.25, 2.25]" in text
  for word in ("GRPO", "RAPO"):
    assert word not in text
  assert "− mine [95 %]" in tables.format_board(results, 200)


def test_rapo_without_grpo_is_compared_with_the_other_method(tmp_path):
  for method, right in (("rapo", 8), ("dapo", 2)):
    answers = {str(i): [int(i < right)] for i in range(10)}
    for seed in (0, 1):
      _evaluation(tmp_path, method, seed, answers)
  results = results_lib.compute_results(tmp_path)
  assert results["pair"] == ["rapo", "dapo"]
  assert tables.headline(results)[0].startswith("RAPO is ahead of DAPO by 60.0")


def test_a_gain_counts_from_the_warm_start(tmp_path):
  def answers(right):
    return {str(i): [int(i < right)] for i in range(10)}

  _evaluation(tmp_path, "base", None, answers(0))
  _evaluation(tmp_path, "warm_start", None, answers(6))
  for seed in (0, 1):
    _evaluation(tmp_path, "rapo", seed, answers(6))
    _metrics(tmp_path, f"rapo-seed{seed}", {0: 0.6, 10: 0.62, 20: 0.61})
  results = results_lib.compute_results(tmp_path)
  assert tables.headline(results)[0].startswith(
    "No clear change: RAPO takes the warm start from 60.0 % to 60.0 % on t"
  )
  # It is above the base agent, but has learned nothing in its updates.
  assert results["learning"]["t"]["targets"] == {}


def test_each_task_has_reference_points_of_its_own(tmp_path):
  for task, last in (("short", 20), ("long", 400)):
    curve = dict.fromkeys(range(0, last + 1, last // 20), 0.1)
    _metrics(tmp_path, "rapo-seed0", curve, task=task)
  learning = results_lib.compute_results(tmp_path)["learning"]
  assert learning["short"]["reference_updates"] == [5, 10, 15, 20]
  assert learning["long"]["reference_updates"] == [100, 200, 300, 400]


def test_a_method_that_has_not_changed_says_so(tmp_path):
  same = {str(i): [int(i < 3)] for i in range(10)}
  _evaluation(tmp_path, "base", None, same)
  for seed in (0, 1):
    _evaluation(tmp_path, "rapo", seed, same)
  results = results_lib.compute_results(tmp_path)
  assert tables.headline(results)[0].startswith("No clear change: RAPO")


def test_a_run_without_an_evaluation_has_a_headline(tmp_path):
  _metrics(tmp_path, "rapo-seed0", {0: 0.1, 10: 0.4})
  lines = tables.headline(results_lib.compute_results(tmp_path))
  assert "RAPO 10.0 % to 40.0 % in 10 updates" in lines[0]
  assert lines[1] == "Unfinished runs: t/rapo-seed0."
  for seed in range(1, 20):
    _metrics(tmp_path, f"rapo-seed{seed}", {0: 0.1, 10: 0.4})
  lines = tables.headline(results_lib.compute_results(tmp_path))
  assert "t/rapo-seed5 and 14 more." in lines[1]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_fits_the_terminal(fake_results, width):
  text = tables.format_table(fake_results, width)
  assert max(map(len, text.splitlines())) <= width
  for task in fake_results["tasks"]:
    for content in fake_results["accuracy"][task].values():
      assert tables.percent(content["sampled"]["mean"]) in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_long_names_fit_the_terminal_too(tmp_path, width):
  task = "a_task_whose_name_is_as_long_as_it_may_be_with_a_tail"
  order = [f"a_method_with_a_very_long_name_number_{i}" for i in range(9)]
  _write(tmp_path / "config.json", {"train": {"methods": order}})
  for other in (task, "検索の課題"):
    for number, method in enumerate(order):
      for seed in range(3):
        _metrics(tmp_path, f"{method}-seed{seed}", {0: 0.0, 5: 0.5}, other)
        folder = tmp_path / "train" / other / f"{method}-seed{seed}"
        _write(folder / "done.json", {})
        answers = {"a": [number % 2], "b": [1]}
        _evaluation(tmp_path, method, seed, answers, other)
  results = results_lib.compute_results(tmp_path)
  for text in (
    tables.format_table(results, width),
    tables.format_board(results, width),
  ):
    assert max(map(cells.cell_len, text.splitlines())) <= width
    # Names that are cut are still told apart.
    for number in range(9):
      assert f"number_{number}" in text or f"r_{number}" in text


# Warnings and provenance.


def test_warnings_of_runs_and_evaluations(tmp_path):
  _write(
    tmp_path / "config.json",
    {"train": {"health": {"warn_updates": 2}}, "rollout": {"num_hybrid": 2}},
  )
  updates = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}
  _metrics(
    tmp_path, "rapo-seed0", updates, rollout__retrievals=0, reward__accuracy=0.5
  )
  _metrics(
    tmp_path, "grpo-seed0", updates, rollout__retrievals=0, reward__accuracy=0.5
  )
  _evaluation(tmp_path, "rapo", 0, {"a": [0, 0]})
  path = tmp_path / "evaluate" / "t" / "rapo-seed0.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  statuses = {
    "score_statuses": {"think_unpaired": 9, "ok": 1},
    "format_whole": 1,
  }
  _write(path, content | statuses)
  results = results_lib.compute_results(tmp_path)
  found = {
    (w["run"], w["kind"], w["first"], w["last"]) for w in results["warnings"]
  }
  assert found == {
    ("rapo-seed0", "no_retrieval", 1, 3),
    ("rapo-seed0", "broken_format", 2, 2),
  }
  assert "90 % of the trajectories" in results["warnings"][-1]["text"]
  line = tables.warning_lines(results)[0]
  assert "t rapo-seed0 no_retrieval (updates 1 to 3)" in line


def test_a_stop_is_marked(tmp_path):
  updates = dict.fromkeys(range(11), 0.0)
  _metrics(tmp_path, "grpo-seed0", updates, groups__live_fraction=0)
  results = results_lib.compute_results(tmp_path)
  assert [w["stopped"] for w in results["warnings"]] == [True]
  assert (
    "no_signal (updates 1 to 10, stopped)" in tables.warning_lines(results)[0]
  )


def test_results_say_when_they_were_written_and_what_with(fake_results):
  written = datetime.datetime.fromisoformat(fake_results["written"])
  assert written.utcoffset() == datetime.timedelta(0)
  assert fake_results["provenance"] == [fake_workdir.START]


def test_cost_by_hand(tmp_path):
  costs = {"rollout__tool_calls": 10, "rollout__tool_seconds": 0.001}
  _metrics(tmp_path, "grpo-seed0", {0: 0, 1: 0, 2: 0}, **costs)
  costs = {"rollout__tool_calls": 8, "rollout__tool_seconds": 0.2}
  _metrics(tmp_path, "rapo-seed0", {0: 0, 1: 0}, **costs)
  cost = results_lib.compute_results(tmp_path)["cost"]
  name = "rollout/tool_calls"
  assert cost["t"]["methods"]["grpo"][name] == {
    "first_update": {"mean": 10, "spread": None, "seeds": {"0": 10}},
    "mean": {"mean": 10, "spread": [10, 10], "seeds": {"0": 10}},
  }
  ratios = cost["mean"]["ratios"]["rapo / grpo"]
  # One pair of seeds has no interval.
  assert ratios[name]["mean"] == {"ratio": 0.8, "interval": None}
  # A millisecond is nothing to be 200 times as long as.
  assert ratios["rollout/tool_seconds"]["mean"] is None
  # Not measured: null, not 0.
  seconds = cost["t"]["methods"]["grpo"]["rollout/seconds"]
  assert seconds["mean"] == {"mean": None, "spread": None, "seeds": {}}


def test_costs_have_a_spread_and_ratios_an_interval(tmp_path):
  tokens = {
    "grpo": ((100, 300), (120, 320)),
    "rapo": ((50, 150), (60, 160)),
    "dapo": ((200, 200), (60, 60)),
  }
  for method, seeds in tokens.items():
    for seed, updates in enumerate(seeds):
      path = tmp_path / "train" / "t" / f"{method}-seed{seed}/metrics.jsonl"
      path.parent.mkdir(parents=True)
      rows = [
        {"update": update, "rollout/generated_tokens": value}
        for update, value in enumerate(updates, 1)
      ]
      path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
  results = results_lib.compute_results(tmp_path)
  name = "rollout/generated_tokens"
  cost = results["cost"]["mean"]
  assert cost["methods"]["grpo"][name]["first_update"] == {
    "mean": 110,
    "spread": [100, 120],
    "seeds": {"0": 100, "1": 120},
  }
  whole = cost["methods"]["grpo"][name]["mean"]
  assert whole["mean"] == 210
  # Updates 100, 120, 300, 320: .15 of the way between the outer two.
  assert whole["spread"] == pytest.approx([103, 317])
  ratio = cost["ratios"]["rapo / grpo"][name]
  # Each pair halves the tokens.
  assert ratio["first_update"] == {"ratio": 0.5, "interval": [0.5, 0.5]}
  other = cost["ratios"]["dapo / grpo"][name]["first_update"]
  # 200 / 100 and 60 / 120: the seeds disagree.
  assert other["ratio"] == pytest.approx(260 / 220)
  assert other["interval"] == pytest.approx([0.5, 2.0])
  lines = tables.cost_lines(results)
  assert "generated tokens 0.50× [0.50, 0.50]" in lines[0]
  assert not any("DAPO" in line for line in lines)


def test_a_run_alone_has_costs_with_a_spread_and_no_ratio(tmp_path):
  path = tmp_path / "train" / "t" / "rapo-seed0" / "metrics.jsonl"
  path.parent.mkdir(parents=True)
  rows = [{"update": n, "rollout/seconds": 1.0 + n} for n in range(1, 12)]
  path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
  (line,) = tables.cost_lines(results_lib.compute_results(tmp_path))
  # Seconds 2 to 12, mean 7; .05 of the way in from each end.
  assert "rollout 7 s (2.5 to 11.5)" in line
  assert "×" not in line


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
  assert fake_results["left_out"] == 0


def test_the_table_shows_every_task_method_and_seed(fake_results):
  text = tables.format_table(fake_results, 200)
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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sampled": 1}'])
def test_a_broken_evaluation_is_named(text, tmp_path):
  _evaluation(tmp_path, "base", None, {"a": [0]})
  path = next(tmp_path.glob("evaluate/*/base.json"))
  path.write_text(text, encoding="utf-8")
  with pytest.raises(InputError, match=r"base.json must .* --stage=evaluate"):
    results_lib.compute_results(tmp_path)


def _results(low, high, mean, seeds=5):
  estimate = {
    "mean": mean,
    "interval": None if seeds == 1 else [low, high],
    "clear": low > 0 or high < 0,
    "num_seeds": seeds,
    "seeds": {str(i): mean for i in range(seeds)},
  }
  return {
    "tasks": ["a", "b"],
    "methods": ["grpo", "rapo"],
    "labels": {"grpo": "GRPO", "rapo": "RAPO"},
    "pair": ["rapo", "grpo"],
    "reference": "grpo",
    "best_other": "grpo",
    "unfinished_runs": [],
    "differences": {
      "rapo - grpo": {t: {"sampled": estimate} for t in ("a", "b", "mean")}
    },
  }


def test_a_run_under_way_does_not_cut_off_the_curve_of_others(tmp_path):
  for method in ("grpo", "rapo"):
    name = f"{method}-seed0"
    _metrics(tmp_path, name, {0: 0.0, 5: 0.5, 10: 0.8})
    _write(tmp_path / "train" / "t" / name / "done.json", {})
    _metrics(tmp_path, f"{method}-seed1", {0: 0.0})
    _evaluation(tmp_path, method, 0, {"a": [1], "b": [1]})
  _evaluation(tmp_path, "base", None, {"a": [0], "b": [0]})
  learning = results_lib.compute_results(tmp_path)["learning"]["t"]
  assert learning["methods"]["rapo"]["curve"]["updates"] == [0, 5, 10]
  # Where nothing has ended, what is there is shown.
  for method in ("grpo", "rapo"):
    (tmp_path / "train" / "t" / f"{method}-seed0" / "done.json").unlink()
  learning = results_lib.compute_results(tmp_path)["learning"]["t"]
  assert learning["methods"]["rapo"]["curve"]["updates"] == [0]


def test_the_best_of_the_others_is_named(tmp_path):
  for method, share in (("grpo", 0), ("luffy", 1), ("rapo", 0)):
    _evaluation(tmp_path, method, 0, {"a": [share], "b": [1]})
  # Forms of RAPO are no others.
  _evaluation(tmp_path, "hybrid", 0, {"a": [1], "b": [1]})
  _evaluation(tmp_path, "rapo_unsolved", 0, {"a": [1], "b": [1]})
  results = results_lib.compute_results(tmp_path)
  assert results["best_other"] == "luffy"
  assert results["differences"]["rapo - luffy"]["t"]["sampled"]["mean"] == -0.5
  lines = tables.headline(results)
  assert any(
    "50.0 points behind the best other method, LUFFY" in x for x in lines
  )


def test_what_the_system_cut_is_said():
  lines = tables.headline({**_results(0.01, 0.2, 0.1), "left_out": 3})
  assert lines[-1].startswith("The system cut 3 trajectories")


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
