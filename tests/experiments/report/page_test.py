"""Tests of the report: self-contained, escaped, complete, within its size."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from experiments.report import charts, samples
from experiments.report import page as report
from experiments.report import results as results_lib
from rapo_jax.records import SegmentRecord
from tests.experiments import fake_workdir


class _Page(html.parser.HTMLParser):
  """Elements, attributes and the text of scripts."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.scripts = [], [], []
    self._inside = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value) for name, value in attrs]
    self._inside = tag
    if tag == "script":
      self.scripts.append("")

  def handle_data(self, data):
    if self._inside == "script":
      self.scripts[-1] += data

  def handle_endtag(self, tag):
    self._inside = None


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return fake_workdir.write(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def runs(workdir):
  return results_lib.load_runs(workdir)


@pytest.fixture(scope="module")
def page(workdir):
  path = report.write_report(workdir)
  assert path == workdir / "report.html"
  return path.read_text(encoding="utf-8")


def test_nothing_comes_from_outside(page):
  parsed = _Page(page)
  assert "link" not in parsed.tags
  for _, name, value in parsed.attributes:
    assert name not in ("src", "srcset", "action", "data")
    if name == "href":
      assert value.startswith("#")
  assert "url(" not in page
  assert "@import" not in page
  assert "default-src 'none'" in page


def test_hostile_text_stays_text(page):
  parsed = _Page(page)
  assert "img" not in parsed.tags
  assert not [a for a in parsed.attributes if a[1].startswith("on")]
  # One for the data, one for the code: no text has closed either.
  assert len(parsed.scripts) == 2
  data = json.loads(parsed.scripts[0])
  texts = [
    step["text"]
    for group in data["groups"]
    for rollout in group["rollouts"]
    for step in rollout["steps"]
    if "text" in step
  ]
  assert any(fake_workdir.HOSTILE in text for text in texts)


def test_shows_every_task_method_and_the_config(page):
  for word in (
    "compute",
    "multihop",
    "web",
    "base agent",
    "off-policy agent",
    "GRPO",
    "hybrid alone",
    "RAPO",
    "config.train.learning_rate",
    "Only 3 seeds",
    "seconds of training",
    "generated tokens",
    "Score status by update",
    "0123456789ab (changed)",
    "8 × TPU v6 (tpu)",
    "jax 0.9.9",
    "scann not installed",
    "--workdir runs/t",
    "the multiples of 5",
    "at 15",
    "last start 2026-03-04 05:06 · commit 0123456789ab (changed)",
    "8 × TPU v6 (tpu) · jax 0.9.9",
    "5th to 95th percentile of the updates",
  ):
    assert word in page
  # Three tasks: three curves and seven diagnostics each, a dot chart each, and
  # the mean: dot chart, curve, three differences. A status chart a method.
  assert page.count("<figure>") == 3 * (3 + 7 + 1 + 3) + 1 + 1 + 3


def test_says_what_is_logged_and_not_that_all_is(page):
  text = " ".join(page.split())
  assert "holds every trajectory of the logged updates" in text
  assert "All of them are in" not in text


def test_warnings_are_listed_with_their_updates(tmp_path):
  workdir = fake_workdir.write(
    tmp_path / "run", tasks=("web",), methods=("rapo",), seeds=(0,)
  )
  path = workdir / "train" / "web" / "rapo-seed0" / "metrics.jsonl"
  rows = [
    json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
  ]
  for row in rows[3:7]:
    row["groups/live_fraction"] = 0.0
  path.write_text(
    "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
  )
  page = report.write_report(workdir).read_text(encoding="utf-8")
  assert "updates 3 to 6" in page
  assert "no group has rewards that differ" in page
  assert "One seed a method" in page
  assert "RAPO takes the base agent from" in page


def test_small_enough(page):
  assert len(page.encode()) < 3_000_000


def test_a_work_folder_without_anything_gives_a_page(tmp_path):
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "No comparison yet" in text
  assert "Nothing is evaluated yet" in text


def test_one_task_without_a_mean(tmp_path):
  workdir = fake_workdir.write(
    tmp_path / "run",
    tasks=("multihop",),
    methods=("grpo", "rapo"),
    seeds=(0,),
    num_updates=2,
    num_questions=5,
  )
  text = report.write_report(workdir).read_text(encoding="utf-8")
  assert "One seed a method" in text
  assert "<h3>Mean over tasks" not in text
  assert "hybrid alone" not in text
  assert "one seed, so no interval" in text


def test_a_method_alone_goes_from_the_base_agent_to_the_policy(tmp_path):
  workdir = fake_workdir.write(
    tmp_path / "run", tasks=("web",), methods=("rapo",), num_updates=200
  )
  text = report.write_report(workdir).read_text(encoding="utf-8")
  text = " ".join(text.split())
  assert re.search(r"<h1>RAPO takes the base agent from .* % to .* %", text)
  assert re.search(r"<strong>[\d.]+ → [\d.]+ %</strong>", text)
  for word in ("GRPO", "grpo", "hybrid alone", "Equal tokens", "÷", "None"):
    assert word not in re.sub(r"<style>.*?</style>|<script.*", "", text)
  # Reference points of the table follow the run, and are marked in the curve.
  for update in (50, 100, 150, 200):
    assert f"<th>at {update}</th>" in text
    assert f"RAPO, updates {update}:" in text
  assert "RAPO, updates 55:" not in text


def test_methods_of_one_s_own_are_told_apart(tmp_path):
  workdir = fake_workdir.write(
    tmp_path / "run", tasks=("web",), methods=("mine", "yours"), seeds=(0, 1)
  )
  results = results_lib.compute_results(workdir)
  assert results["colours"]["mine"] != results["colours"]["yours"]
  assert None not in results["colours"]["mine"]
  text = report.write_report(workdir, results).read_text(encoding="utf-8")
  assert "yours − mine" in text
  # A circle and a square in the legend.
  marks = re.findall(r'<(circle|path) class="mark m-(mine|yours)"', text)
  assert set(marks) == {("circle", "mine"), ("path", "yours")}


# Samples.


def test_samples_are_whole_groups_of_first_middle_and_last_updates(runs):
  groups = samples.sample_groups(runs)
  assert {g["update"] for g in groups} == {1, 10, 20}
  assert {len(g["rollouts"]) for g in groups} == {8}
  assert len({(g["task"], g["method"], g["seed"]) for g in groups}) == 27


@pytest.mark.parametrize("budget", [20_000, 200_000])
def test_samples_keep_to_the_budget_and_cover_the_methods(runs, budget):
  groups = samples.sample_groups(runs, budget)
  assert groups
  assert sum(len(json.dumps(g)) for g in groups) <= budget
  if budget >= 200_000:
    assert {(g["task"], g["method"]) for g in groups} == {
      (t, m) for t in fake_workdir.TASKS for m in fake_workdir.METHODS
    }


def test_one_group_over_the_budget_is_cut_to_what_fits(runs):
  groups = samples.sample_groups(runs, 6_000)
  assert len(groups) == 1
  assert 0 < len(groups[0]["rollouts"]) < 8


def test_a_retrieved_step_carries_its_event_and_its_effect(runs):
  groups = samples.sample_groups(runs)
  steps = [s for g in groups for r in g["rollouts"] for s in r["steps"]]
  retrieved = [s for s in steps if s["kind"] == "retrieved"]
  assert retrieved
  assert {s["source"] for s in retrieved} == {"off_policy"}
  assert all("z" in s for s in retrieved)
  assert {s["effect"] for s in retrieved} == {0.5}
  assert any(s.get("outcome") == "no_room" for s in steps)
  tools = [s for s in steps if s["kind"] == "observation"]
  assert {(s["tool"], s["status"]) for s in tools} == {("search", "ok")}


def test_retrieval_effect_by_hand():
  segments = [
    SegmentRecord("policy", 0, "", entropy=1.0),
    SegmentRecord("observation", 0, ""),
    SegmentRecord("retrieved", 1, ""),
    SegmentRecord("retrieved", 2, ""),
    SegmentRecord("policy", 3, "", entropy=0.5),
  ]
  # dH = -(.5 - 1) / 1 = .5; tanh(1) * 1 = .7616, for both of a pair.
  effect = {"before": 1.0, "after": 0.5, "z": 0.7616}
  assert samples.retrieval_effect(segments, 2) == effect
  assert samples.retrieval_effect(segments, 3) == effect
  assert samples.retrieval_effect(segments[:4], 2) == {}


@pytest.mark.parametrize(
  ("correct", "whole", "value", "expected"),
  [
    (True, True, 0.2, "right"),
    (False, True, 0.4, "partly"),
    (False, True, 0.0, "wrong"),
    (False, False, -1.0, "broken"),
  ],
)
def test_reward_class(correct, whole, value, expected):
  score = {"correct": correct, "whole": whole, "value": value}
  assert samples.reward_class(score) == expected


# Charts.


def test_line_chart_places_points_by_hand():
  chart = charts.line_chart(
    [charts.Lines("grpo", "GRPO", {"0": [(0, 0)]}, [(0.0, 0.0), (10.0, 1.0)])],
    x_label="updates",
    y_label="accuracy",
    y_range=(0.0, 1.0),
  )
  # Left 44 to right 340 - 12; bottom 216 - 38 to top 10.
  assert 'd="M44.0 178.0L328.0 10.0"' in chart
  assert 'class="bold m-grpo"' in chart


def test_charts_escape_names():
  row = {"mean": 0.1, "interval": [0.0, 0.2], "seeds": {"<b>": 0.1}}
  chart = charts.difference_chart([("<i>&", row)], title='"><script>')
  assert not re.search(r"<(i|b|script)>", chart)


def test_share_chart_stacks_by_hand():
  counts = [0] * len(charts.STATUSES)
  counts[0], counts[1] = 3, 1
  chart = charts.share_chart([(1, counts), (2, counts)], title="t")
  # Left 44, right 328, floor 178, top 10: three quarters is y = 52.
  assert 'class="band b-0 s-ok" d="M186.0 178.0L328.0 178.0L328.0 52.0' in chart
  assert chart.count('<path class="band') == 2
  one = charts.share_chart([(1, counts)], title="t")
  assert 'd="M44.0 178.0L328.0 178.0L328.0 52.0L44.0 52.0z"' in one


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0, 1e-9])
def test_a_flat_line_has_a_chart(value):
  lines = charts.Lines("rapo", "RAPO", {}, [(1.0, value), (2.0, value)])
  chart = charts.line_chart([lines], x_label="x", y_label="y")
  assert "nan" not in chart.lower()


def test_no_points_no_chart():
  assert charts.line_chart([], x_label="x", y_label="y") == ""


@pytest.mark.parametrize(
  ("value", "text"),
  [(0, "0"), (12_500, "12.5k"), (3.1e6, "3.1M"), (-0.25, "−0.25")],
)
def test_numbers(value, text):
  assert charts.number(value) == text
