"""The model card of an export: what was trained, how, and what came out.

The form is Hugging Face's: `README.md` with metadata in YAML in front
(https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import provenance
from experiments.workdir import read_evaluation, read_json

FILE = "README.md"


def model_card(
  run: pathlib.Path,
  metadata: Mapping[str, Any],
  *,
  update: int,
  base: str,
  dtype: str,
  adapters: bool,
) -> str:
  """The text of a card.

  What the folders do not say is left out: a checkpoint may have been copied
  away from its work folder, or its run not been evaluated.

  Args:
    run: folder of the run that the checkpoint is of,
      `<workdir>/train/<task>/<run>`.
    metadata: of the checkpoint.
    update: number of the checkpoint's update.
    base: folder or hub name of the base agent.
    dtype: of the weights.
    adapters: whether these are adapters alone.
  """
  method = metadata.get("algorithm", {}).get("name")
  described = run / "method.json"
  label = read_json(described)["label"] if described.exists() else method
  is_folder = pathlib.Path(base).exists()
  name = pathlib.Path(base).name if is_folder else base
  front = {
    "library_name": "peft" if adapters else "transformers",
    "pipeline_tag": "text-generation",
    "base_model": None if is_folder else base,
    "tags": [t for t in ("rapo_jax", "reinforcement-learning", method) if t],
  }
  lines = [
    "---",
    # JSON is YAML, and quotes what has to be quoted.
    *(f"{k}: {json.dumps(value)}" for k, value in front.items() if value),
    "---",
    "",
    f"# {name}, trained" + (f" with {label}" if label else ""),
    "",
    ("LoRA adapters of" if adapters else "All weights of")
    + f" a policy that rapo_jax has trained from {name}. It is an agent: it "
    "thinks and calls tools in steps, between tags.",
    "",
    "| what | value |",
    "|---|---|",
    *(
      f"| {fact} | {value} |"
      for fact, value in _facts(run, metadata, update, dtype)
    ),
    *_evaluation(run, update),
  ]
  return "\n".join(lines) + "\n"


def _facts(
  run: pathlib.Path, metadata: Mapping[str, Any], update: int, dtype: str
) -> Iterator[tuple[str, str]]:
  """What was trained on what, and by which code."""
  if "run" in metadata:
    yield "run", _code(metadata["run"])
  yield "updates", str(update)
  yield "weights", dtype
  for name, label in (
    ("base_agent", "base agent, SHA-256"),
    ("buffer", "Step-Trace Buffer, SHA-256"),
    ("prompt_hash", "system prompt, hash"),
  ):
    if metadata.get(name):
      yield label, _code(metadata[name])
  if "code" in metadata:
    yield "code", f"rapo_jax {provenance.describe_code(metadata['code'])}"
  workdir = _workdir(run)
  starts = provenance.read_starts(workdir) if workdir is not None else []
  if starts:
    last = starts[-1]
    yield "command", _code(last["command"])
    yield "config, hash", _code(last.get("config_hash", ""))
    devices = last["devices"]
    yield "devices", f"{devices['count']} × {devices['kind']}"
  settings = metadata.get("config", {})
  for name, value in sorted(settings.items()):
    if name.startswith("tasks.") and name.endswith((".path", ".name")):
      yield name, _code(value)


def _evaluation(run: pathlib.Path, update: int) -> Iterator[str]:
  """Accuracy of this very update, if it was evaluated."""
  workdir = _workdir(run)
  if workdir is None:
    return
  path = workdir / "evaluate" / run.parent.name / f"{run.name}.json"
  if not path.exists():
    return
  content = read_evaluation(path)
  if content.get("update") != update:
    return
  yield ""
  yield "## Evaluation"
  yield ""
  yield "Without retrieval, in %. The interval is over questions."
  yield ""
  yield "| set | questions | greedy | pass@1, sampled | 95 % interval |"
  yield "|---|---:|---:|---:|---|"
  for name, figures in content["figures"].items():
    sampled = figures["pass@1"]
    low, high = (f"{100 * bound:.1f}" for bound in sampled["interval"])
    yield (
      f"| {name} | {figures['questions']} | {100 * figures['greedy']:.1f} "
      f"| {100 * sampled['mean']:.1f} | {low} to {high} |"
    )


def _workdir(run: pathlib.Path) -> pathlib.Path | None:
  """Where `<workdir>/train/<task>/<run>` lies; None if it is near the root."""
  return run.parents[2] if len(run.parents) > 2 else None


def _code(value: object) -> str:
  """As code in a table's cell."""
  return "`" + str(value).replace("|", "\\|").replace("`", "'") + "`"
