"""The model card of an export."""

import json

import pytest
import yaml

from experiments.model_card import model_card

METADATA = {
  "run": "multihop rapo-seed0",
  "algorithm": {"name": "rapo"},
  "base_agent": "abc",
  "buffer": None,
  "code": {"version": "0.1.0", "commit": "f" * 40, "source_sha256": "e" * 64},
  "config": {"tasks.multihop.name": "multihop", "objective.kl_coef": 0.0},
}
FIGURES = {
  "held_out": {
    "questions": 256,
    "greedy": 0.988,
    "pass@1": {"mean": 0.917, "interval": [0.896, 0.9365]},
  }
}


@pytest.fixture
def run(tmp_path):
  """A run's folder in a work folder, evaluated."""
  folder = tmp_path / "train" / "multihop" / "rapo-seed0"
  folder.mkdir(parents=True)
  (folder / "method.json").write_text('{"label": "RAPO"}', encoding="utf-8")
  evaluation = tmp_path / "evaluate" / "multihop" / "rapo-seed0.json"
  evaluation.parent.mkdir(parents=True)
  content = {
    "method": "rapo",
    "update": 20,
    "greedy": {},
    "sampled": {},
    "figures": FIGURES,
  }
  evaluation.write_text(json.dumps(content), encoding="utf-8")
  start = {
    "date": "2026-01-01",
    "command": "python -m experiments.run --config a|b",
    "commit": None,
    "versions": {},
    "platform": "",
    "devices": {"kind": "cpu", "count": 2},
    "config_hash": "123",
  }
  (tmp_path / "starts.jsonl").write_text(
    json.dumps(start) + "\n", encoding="utf-8"
  )
  return folder


def card_of(run, metadata=METADATA, **changes):
  arguments = {
    "update": 20,
    "base": "org/name",
    "dtype": "float32",
    "adapters": False,
  }
  return model_card(run, metadata, **{**arguments, **changes})


def test_a_card_says_what_was_trained_how_and_what_came_out(run):
  card = card_of(run)
  _, front, body = card.split("---\n", 2)
  assert yaml.safe_load(front) == {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "base_model": "org/name",
    "tags": ["rapo_jax", "reinforcement-learning", "rapo"],
  }
  assert "# org/name, trained with RAPO\n" in body
  for row in (
    "| run | `multihop rapo-seed0` |",
    "| updates | 20 |",
    "| weights | float32 |",
    "| base agent, SHA-256 | `abc` |",
    "| command | `python -m experiments.run --config a\\|b` |",
    "| config, hash | `123` |",
    "| devices | 2 × cpu |",
    "| tasks.multihop.name | `multihop` |",
    "| held_out | 256 | 98.8 | 91.7 | 89.6 to 93.7 |",
  ):
    assert f"{row}\n" in body
  assert "Step-Trace Buffer" not in body


def test_another_update_has_no_evaluation(run):
  assert "## Evaluation" in card_of(run)
  assert "## Evaluation" not in card_of(run, update=15)


def test_a_folder_is_no_hub_name(run, tmp_path):
  card = card_of(run, base=str(tmp_path / "train"), adapters=True)
  assert "base_model" not in card
  assert 'library_name: "peft"' in card
  assert "LoRA adapters of a policy that rapo_jax has trained from train." in (
    card
  )
  assert str(tmp_path) not in card


@pytest.mark.parametrize("folder", ["a/b/c", "/copied"])
def test_a_checkpoint_that_was_copied_away_has_a_card(tmp_path, folder):
  card = card_of(tmp_path / folder, {}, update=3)
  assert "# org/name, trained\n" in card
  assert "| updates | 3 |" in card
