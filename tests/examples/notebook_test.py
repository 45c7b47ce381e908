"""The notebook: it is short, holds no output, and runs from top to bottom."""

import ast
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "rapo_in_ten_minutes.ipynb"
TINY = (
  "tasks.multihop.world.num_train=8",
  "tasks.multihop.world.num_held_out=4",
  "tasks.multihop.agents.rows=4",
  "tasks.multihop.agents.num_layers=1",
  "tasks.multihop.agents.clean.num_steps=60",
  "tasks.multihop.agents.expert.num_steps=10",
  "tasks.multihop.agents.corrupted.num_steps=10",
  "buffer.num_trajectories=2",
  "buffer.top_k_trajectories=2",
  # The agents know little more than the format: any step may be retrieved.
  "retrieval.min_reward=-2",
  "retrieval.min_similarity=-1",
  "rollout.num_generations=4",
  "rollout.num_hybrid=2",
  "rollout.retrieval_prob=1",
  "rollout.num_slots=16",
  "update.queries_per_update=2",
  "update.queries_per_minibatch=2",
  "train.num_updates=1",
  "train.eval_every=1",
  "train.log_trajectories_every=1",
  "evaluation.num_samples=1",
  "logging.tensorboard=false",
)


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
  return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_short_and_holds_no_output(notebook):
  nbformat.validate(notebook)
  for cell in code_cells(notebook):
    assert not cell.outputs
    assert cell.execution_count is None
    assert len(cell.source.splitlines()) <= 15
    ast.parse(cell.source)
  assert NOTEBOOK.stat().st_size < 20_000


def test_its_settings_are_fields_of_the_quickstart(notebook):
  names: dict[str, list[str]] = {}
  exec(code_cells(notebook)[0].source, names)
  overrides = [*names["SETTINGS"], *(f"{flags.PREFIX}{t}" for t in TINY)]
  config = flags.apply_overrides(flags.load_config("quickstart"), overrides)
  assert config.train.methods == ("grpo", "rapo", "hybrid")
  assert config.train.num_updates == 1


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
  search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  monkeypatch.setenv("PYTHONPATH", search)
  monkeypatch.setenv("MPLBACKEND", "agg")
  parameters = code_cells(notebook)[0]
  assert "parameters" in parameters.metadata.tags
  added = [f"{flags.PREFIX}{setting}" for setting in TINY]
  parameters.source += f"\nSETTINGS += {added}"
  client = NotebookClient(
    notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  said = [
    output.text
    for cell in code_cells(notebook)
    for output in cell.outputs
    if output.output_type == "stream"
  ]
  whole = "".join(said)
  assert ", retrieved\n<retrieve>" in whole
  assert "retrieval_coef" in whole
  assert (tmp_path / "runs" / "ten_minutes" / "report.html").exists()
