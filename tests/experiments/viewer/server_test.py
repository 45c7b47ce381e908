"""The viewer over loopback: what its page asks for, and what it refuses."""

from __future__ import annotations

import json
import math
import time

import httpx2
import pyarrow as pa
import pytest
from pyarrow import parquet

from experiments.report import methods
from experiments.viewer import curves as curves_lib
from experiments.viewer.index import Filters, TrajectoryIndex
from experiments.viewer.server import view_app
from rapo_jax.algorithms import ALGORITHMS
from tests.experiments import fake_workdir
from tests.retrieval import loopback


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return fake_workdir.write(
    tmp_path_factory.mktemp("view") / "run",
    tasks=("multihop",),
    methods=("grpo", "rapo"),
    seeds=(0, 1),
  )


@pytest.fixture(scope="module")
def index(workdir):
  index = TrajectoryIndex(workdir)
  index.refresh()
  return index


@pytest.fixture(scope="module")
def client(workdir, index):
  with (
    loopback.serving(view_app(workdir, index)) as url,
    httpx2.Client(
      base_url=f"{url}/{index.secret}/", timeout=60, trust_env=False
    ) as client,
  ):
    yield client


def _get(client, path, **parameters):
  response = client.get(path, params=parameters)
  assert response.status_code == 200, response.text
  return response.json()


def _error(client, path, **parameters):
  response = client.get(path, params=parameters)
  assert response.status_code == 400
  return response.json()["error"]


def test_the_page_and_its_parts_load_nothing_from_elsewhere(client):
  page = client.get("")
  assert page.headers["content-type"].startswith("text/html")
  policy = page.headers["content-security-policy"]
  assert policy.startswith("default-src 'none'; ")
  assert "unsafe" not in policy
  assert "http" not in page.text
  assert "testbed" in page.text
  for name in ("view.css", "view.js"):
    assert name in page.text
    part = client.get(name)
    assert part.status_code == 200
    assert part.headers["x-content-type-options"] == "nosniff"
    text = part.text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "url(" not in text


@pytest.mark.parametrize(
  "host", ["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", ""]
)
@pytest.mark.parametrize("path", ["", "view.js", "api/state"])
def test_another_host_s_name_is_refused(client, host, path):
  response = client.get(path, headers={"host": host})
  assert response.status_code == 400
  assert "trajectories" not in response.text


def test_who_does_not_know_the_secret_gets_nothing(client):
  root = str(client.base_url).rsplit("/", 2)[0]
  for path in ("/", "/api/state", "/view.js", "/wrong/api/state"):
    assert client.get(root + path).status_code == 404
  assert client.get(f"{root.replace('127.0.0.1', 'localhost')}/").status_code


def test_only_reading_is_served(client):
  assert client.post("api/state", json={}).status_code == 405


def test_state_says_what_is_indexed_and_what_can_be_chosen(client):
  state = _get(client, "api/state")
  assert state["trajectories"] == 4 * 48
  assert state["read_bytes"] == state["log_bytes"] > 0
  assert state["choices"]["method"] == ["grpo", "rapo"]
  assert state["troubles"] == []


def test_lists_go_on_and_each_row_opens(client):
  first = _get(client, "api/trajectories", method="rapo", seed="0")
  assert first["count"] == 48
  rows = first["rows"]
  rest = _get(
    client,
    "api/trajectories",
    method="rapo",
    seed="0",
    after=rows[19]["key"],
  )
  assert [row["key"] for row in rest["rows"]] == [
    row["key"] for row in rows[20:]
  ]
  row = rows[5]
  opened = _get(client, "api/trajectory", key=row["key"])
  assert opened["row"] == row
  assert opened["reward"] == row["score"]
  assert {other["query_id"] for other in opened["siblings"]} == {
    row["query_id"]
  }
  # Of two methods with two seeds and three updates.
  assert len(opened["siblings"]) == 4 * 3 * 8
  # Whole, other than in the report, and as text.
  texts = [step.get("text", "") for step in opened["steps"]]
  assert any(fake_workdir.HOSTILE in text for text in texts)


def test_a_retrieved_step_says_where_it_is_from(client):
  rows = _get(client, "api/trajectories", retrieved="1")["rows"]
  opened = _get(client, "api/trajectory", key=rows[0]["key"])
  (step, *_) = [s for s in opened["steps"] if s["kind"] == "retrieved"]
  assert (step["source"], step["trace_id"]) == ("off_policy", 17)
  assert step["similarity"] == 0.91


def test_a_link_to_what_is_gone_says_so(client):
  for key in ("", "train/x@3", "train/multihop/rapo-seed0@1", "@@", "x@-1"):
    assert "there is no trajectory" in _error(client, "api/trajectory", key=key)


@pytest.mark.parametrize(
  ("parameters", "message"),
  [
    ({"seed": "one"}, "seed must be a whole number"),
    ({"seed": "9" * 30}, "seed must be a whole number"),
    ({"hybrid": "yes"}, "hybrid must be 0 or 1"),
    ({"text": '"'}, "text must hold a word"),
    ({"after": "x"}, "there is no trajectory"),
  ],
)
def test_wrong_filters_are_refused(client, parameters, message):
  assert message in _error(client, "api/trajectories", **parameters)


def test_runs_have_labels_figures_and_warnings(client):
  overview = _get(client, "api/runs")
  runs = {run["run"]: run for run in overview["runs"]}
  run = runs["train/multihop/rapo-seed1"]
  assert (run["label"], run["seed"], run["finished"]) == ("RAPO", 1, True)
  assert (run["planned"], run["last"]["update"]) == (20, 20)
  assert run["colour"] == "#0067ad"
  assert "gradient_norm" in overview["metrics"]
  assert overview["troubles"] == []
  for warning in overview["warnings"]:
    assert warning["run"] in runs


def test_curves_of_many_metrics_over_each_axis(client):
  for x in curves_lib.X_AXES:
    response = client.get(
      "api/curves", params={"x": x, "name": ["reward/mean", "no such"]}
    )
    curves = response.json()
    assert curves["no such"] == {}
    assert len(curves["reward/mean"]) == 4
    for xs, ys in curves["reward/mean"].values():
      assert len(xs) == len(ys) == 20
      assert xs == sorted(xs)
  assert "x must be one of" in _error(client, "api/curves", x="loss")


def _one_run(tmp_path):
  """A work folder with one run of ten updates."""
  return fake_workdir.write(
    tmp_path / "run",
    tasks=("web",),
    methods=("rapo",),
    seeds=(0,),
    num_updates=10,
  )


def test_a_run_is_followed_while_it_trains(tmp_path):
  root = _one_run(tmp_path)
  folder = root / "train/web/rapo-seed0"
  log = (folder / "trajectories.jsonl").read_bytes()
  index = TrajectoryIndex(root)
  with (
    loopback.serving(view_app(root, index)) as url,
    httpx2.Client(
      base_url=f"{url}/{index.secret}/", timeout=60, trust_env=False
    ) as client,
  ):
    before = _get(client, "api/runs")["runs"][0]["last"]["update"]
    assert before == 10
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
      file.write('{"update": 11, "loss": null}\n{"update": 12')
    assert _get(client, "api/runs")["runs"][0]["last"]["update"] == 11
    with (folder / "trajectories.jsonl").open("ab") as file:
      file.write(log)
    end = time.monotonic() + 60
    while _get(client, "api/state")["trajectories"] != 2 * log.count(b"\n"):
      assert time.monotonic() < end
      time.sleep(0.05)


def test_the_key_of_a_retrieved_step_is_read_from_the_buffer(client, workdir):
  run = "train/multihop/rapo-seed0"
  asked = {"run": run, "trace_id": "17"}
  assert _get(client, "api/key", **asked) == {"key": None}
  buffer = workdir / "buffer/multihop"
  buffer.mkdir(parents=True)
  rows = [
    {
      "trace_id": number,
      "query_id": f"q{number}",
      "question": "Which?",
      "history": ["one"],
      "key": f"Which? one {number}",
      "step_index": 1,
      "step": f"two {number}",
    }
    for number in range(40)
  ]
  parquet.write_table(pa.Table.from_pylist(rows), buffer / "traces.parquet")
  found = _get(client, "api/key", **asked)["key"]
  assert (found["key"], found["step"]) == ("Which? one 17", "two 17")
  for other in ({"run": "train/x"}, {"trace_id": "99"}, {"trace_id": ""}):
    assert _get(client, "api/key", **{**asked, **other}) == {"key": None}


def test_a_cut_log_of_metrics_is_read_again_and_a_damaged_line_named(tmp_path):
  root = _one_run(tmp_path)
  path = root / "train/web/rapo-seed0/metrics.jsonl"
  curves = curves_lib.Curves(root)
  assert curves.overview()["runs"][0]["last"]["update"] == 10
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  path.write_text("".join(lines[:4]), encoding="utf-8")
  assert curves.overview()["runs"][0]["last"]["update"] == 3
  assert curves.curves("update", ["loss"])["loss"].popitem()[1][0] == [1, 2, 3]
  with path.open("a", encoding="utf-8") as file:
    file.write('{"update": 4, "loss": "x"}\n{"update": 5, "loss": 1}\n')
  overview = curves.overview()
  assert overview["runs"][0]["last"]["update"] == 5
  assert "no row of metrics" in overview["troubles"][0]


def test_a_long_curve_keeps_its_peaks(tmp_path):
  folder = tmp_path / "train/web/rapo-seed0"
  folder.mkdir(parents=True)
  rows = [
    {"update": n, "loss": 99.0 if n == 4321 else math.sin(n)}
    for n in range(10_000)
  ]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
  )
  curves = curves_lib.Curves(tmp_path).curves("update", ["loss"])
  ((xs, ys),) = curves["loss"].values()
  assert len(xs) <= curves_lib.MOST_POINTS + 2
  assert xs[ys.index(99.0)] == 4321
  assert (xs[0], xs[-1]) == (0, 9999)


def test_the_arms_of_a_study_are_side_by_side(tmp_path):
  for arm in ("small", "large"):
    folder = fake_workdir.write(
      tmp_path / "arms" / arm, tasks=("web",), methods=("rapo",), seeds=(0,)
    )
    methods.write_shown(folder / "train/web/rapo-seed0", ALGORITHMS["rapo"])
  arms = [
    {"name": name, "label": name.title(), "colours": None}
    for name in ("small", "large")
  ]
  (tmp_path / "study.json").write_text(
    json.dumps({"name": "size", "arms": arms}), encoding="utf-8"
  )
  index = TrajectoryIndex(tmp_path)
  index.refresh()
  assert index.choices()["method"] == ["rapo_large", "rapo_small"]
  rows = index.rows(Filters(method="rapo_small"))
  assert {row.run for row in rows} == {"arms/small/train/web/rapo-seed0"}
  assert index.record(rows[0]) is not None
  overview = curves_lib.Curves(tmp_path).overview()
  assert [run["label"] for run in overview["runs"]] == [
    "RAPO, Large",
    "RAPO, Small",
  ]


def test_a_folder_without_a_run_is_shown_empty(tmp_path):
  index = TrajectoryIndex(tmp_path)
  with (
    loopback.serving(view_app(tmp_path, index)) as url,
    httpx2.Client(
      base_url=f"{url}/{index.secret}/", timeout=60, trust_env=False
    ) as client,
  ):
    assert client.get("").status_code == 200
    assert _get(client, "api/trajectories") == {"rows": [], "count": 0}
    assert _get(client, "api/runs")["runs"] == []
