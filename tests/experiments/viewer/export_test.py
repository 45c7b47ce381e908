"""The page with its data in it: whole, self-contained, and what it holds."""

from __future__ import annotations

import json
import re

import pytest

from experiments import view
from experiments.viewer import export
from experiments.viewer.index import TrajectoryIndex
from tests.experiments import fake_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return fake_workdir.write(
    tmp_path_factory.mktemp("view") / "run",
    tasks=("multihop",),
    methods=("grpo", "rapo"),
    seeds=(0,),
  )


@pytest.fixture
def exported(workdir, tmp_path):
  """Exports; gives the page, its data, and what is returned."""

  def run(most):
    index = TrajectoryIndex(workdir)
    index.refresh()
    counts = export.write_page(workdir, index, tmp_path / "page", most)
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    return page, json.loads(data), counts

  return run


def test_the_page_holds_all_and_loads_nothing(exported):
  page, data, counts = exported(most=1000)
  assert counts == (96, 96)
  assert len(data["rows"]) == len(data["contents"]) == 96
  assert data["state"]["trajectories"] == data["state"]["total"] == 96
  assert len(data["runs"]["runs"]) == 2
  for x, curves in data["curves"].items():
    assert set(data["runs"]["metrics"]) == set(curves), x
  assert "default-src 'none'" in page
  assert not re.search(r'(src|href)="(?!#)', page)
  assert "url(" not in page
  assert "@import" not in page


def test_hostile_text_ends_no_script(exported):
  page, data, _ = exported(most=1000)
  assert page.count("</script>") == page.count("<script") == 2
  assert "<img" not in page
  texts = [
    step.get("text", "")
    for content in data["contents"].values()
    for step in content["steps"]
  ]
  assert any(fake_workdir.HOSTILE in text for text in texts)


def test_of_many_the_first_questions_of_every_run_and_update_are_kept(exported):
  _, data, counts = exported(most=48)
  assert counts == (48, 96)
  kept = {
    (row["run"], row["at_update"], row["query_id"]) for row in data["rows"]
  }
  # Two runs, three updates, and the first of two questions.
  assert len(kept) == 2 * 3
  assert {query for _, _, query in kept} == {"multihop-train-0"}
  assert data["state"]["choices"]["at_update"] == [1, 10, 20]


def test_the_command_says_what_it_wrote(workdir, tmp_path, capsys):
  folder = tmp_path / "new" / "page"
  words = [f"--workdir={workdir}", f"--export={folder}"]
  assert view.main([*words, "--most=10"]) == 0
  assert f"10 of 96 trajectories in {folder}/index.html" in (
    capsys.readouterr().out
  )
  assert view.main([*words, "--most=-1"]) == 2
  assert "--most must be at least 0" in capsys.readouterr().err
