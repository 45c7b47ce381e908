"""Evaluates a model on tasks; no run and no other agent is needed.

    python -m experiments.evaluate --model Qwen/Qwen2.5-3B-Instruct \\
        --tasks gsm8k,math500 --output runs/evaluated

`--model` is a Hugging Face folder, a name on the hub, or a training checkpoint.
`--config.<path>=<value>` overrides any field, such as
`--config.tasks.gsm8k.path=<folder>` or `--config.evaluation.num_samples=16`.

Every answer is kept as it comes: started again with the same output, it goes on
behind the last one. `<output>/<task>.json` holds the figures, and
`<output>/paper.json` those of the paper's sets in the layout of its table.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import (
  checks,
  cli,
  config_places,
  flags,
  input_errors,
  layout,
  mirror,
  paper,
  places,
)
from experiments.config import ExperimentConfig
from experiments.dependencies import CHECKPOINTS_FOLDER
from experiments.devices import check_devices, use_compilation_cache
from experiments.export import export
from experiments.health import HealthStop
from experiments.help_text import HelpFormatter
from experiments.policies import load_agent, model_digest
from experiments.progress import Progress
from experiments.stages.evaluate import evaluate, evaluated_with
from experiments.stop_signal import StopSignal
from experiments.tasks import load_encoder, open_task, tried_questions
from experiments.workdir import Workdir, write_json
from rapo_jax import files
from rapo_jax.models import hub

_SHOWN = ("pass@1", "greedy", "em", "f1", "tool_fail_rate", "tokens", "calls")
NO_VERDICT_STATUS = 3
"""Exit status where too many tool calls failed for a verdict."""


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known, overrides = flags.parse_arguments(make_parser(), arguments)
  config = flags.load_config(known.config)
  if known.tasks is not None:
    overrides = [f"{flags.PREFIX}tasks={known.tasks}", *overrides]
  config = config_places.local_config(flags.apply_overrides(config, overrides))
  check_devices()
  with mirror.opened(known.output) as output:
    return _answer(config, output, known.model)


def _answer(config: ExperimentConfig, output: pathlib.Path, model: str) -> int:
  """Evaluates a model and shows what came out; returns the exit status."""
  files.make_private_folder(output)
  with files.locked(output / ".lock"):
    config = _with_model(config, _model_folder(model, output))
    checks.quick_checks(config, "evaluate")
    try:
      results = _evaluate(config, output, model)
    except HealthStop as stopped:
      print(f"error: {stopped}", file=sys.stderr)
      return NO_VERDICT_STATUS
  width = shutil.get_terminal_size((120, 24)).columns
  print(format_table(results, width))
  if beside := paper.in_paper(results):
    write_json(output / "paper.json", beside)
    print(f"\n{paper.format_paper(beside)}\n")
  print(f"answers and figures: {output}")
  verdict = all(
    one["verdict"] for sets in results.values() for one in sets.values()
  )
  return 0 if verdict else NO_VERDICT_STATUS


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.evaluate"),
    description=__doc__,
    epilog="Exit status: 0, or 3 where too many tool calls failed.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--model",
    type=places.text_argument,
    required=True,
    help="Hugging Face folder, hub name, or a run's checkpoints",
  )
  parser.add_argument(
    "--tasks", help="names of tasks, with commas (default: those of the config)"
  )
  parser.add_argument(
    "--output",
    type=places.workdir_argument,
    required=True,
    help="folder to write; gs://… or s3://… for one on a store",
  )
  parser.add_argument(
    "--config",
    type=places.text_argument,
    default="evaluation",
    help="config file with budgets and tools (default: evaluation)",
  )
  return parser


def _model_folder(model: str, output: pathlib.Path) -> pathlib.Path:
  """Folder of the model; a checkpoint is exported into the output first.

  Raises:
    InputError: it is not there, or broken.
  """
  path = pathlib.Path(model)
  is_checkpoint = CHECKPOINTS_FOLDER in (path.name, path.parent.name)
  if not is_checkpoint:
    return hub.local_folder(model)
  folder = output / "model"
  exported = export(path, folder, dtype="float32")
  print(f"{path}: the checkpoint of update {exported.update}")
  return folder


def _with_model(
  config: ExperimentConfig, folder: pathlib.Path
) -> ExperimentConfig:
  """The config with one agent, and with what it says of its prompts."""
  policy = dataclasses.replace(
    config.policy, base=str(folder), off_policy=None, lora=None
  )
  return dataclasses.replace(config, policy=policy)


def _evaluate(
  config: ExperimentConfig, output: pathlib.Path, name: str
) -> dict[str, dict[str, Any]]:
  """Figures of each evaluation set of each task."""
  use_compilation_cache()
  folder = pathlib.Path(str(config.policy.base))
  digest = model_digest(folder)
  results: dict[str, dict[str, Any]] = {}
  with (
    Progress(("evaluate",)) as progress,
    progress.stage("evaluate"),
    StopSignal("start it again to go on.", progress.note) as stop,
  ):
    # What is broken is found before hours are spent on the tasks before it.
    questions = {
      task.name: tried_questions(config, task.name) for task in config.tasks
    }
    model = load_agent(config, folder)
    encoder = load_encoder(config.encoder)
    total = len(config.tasks)
    for number, task in enumerate(config.tasks):

      def report(share: float, number: int = number, name: str = task.name):
        stop.check()
        progress.update(number + share, total, name)

      with open_task(
        *(config, Workdir(output), task.name, encoder),
        questions=questions[task.name],
      ) as opened:
        made_with = evaluated_with(config, task.name, digest, opened.evaluation)
        result = evaluate(
          config,
          opened,
          model,
          report,
          path=output / f"{task.name}.answers.jsonl",
          made_with=made_with,
        )
      result |= {"task": task.name, "model": name, "made_with": made_with}
      write_json(output / f"{task.name}.json", result)
      results[task.name] = result["figures"]
  return results


def format_table(
  results: Mapping[str, Mapping[str, Any]], width: int | None = None
) -> str:
  """A row for each evaluation set, and their mean.

  Args:
    results: figures of each set of each task.
    width: of the terminal; None for any.
  """
  header = ["task", "questions", *_SHOWN]
  rows = [header]
  means: list[float] = []
  for task, sets in results.items():
    for name, one in sets.items():
      label = task if len(sets) == 1 else f"{task}/{name}"
      rows.append([label, str(one["questions"]), *_cells(one)])
      if one["verdict"] and "pass@1" in one:
        means.append(one["pass@1"]["mean"])
  if len(rows) > 2 and len(means) == len(rows) - 1:
    mean = f"{100 * sum(means) / len(means):.1f}"
    rows.append(["mean", "", mean, *[""] * (len(_SHOWN) - 1)])
  used = [0, 1] + [
    i for i in range(2, len(header)) if any(row[i] for row in rows[1:])
  ]
  shown = [[row[i] for i in used] for row in rows]
  if width is None or layout.fits(shown, width):
    return layout.table(shown)
  sentences = [
    f"{row[0]}: "
    + ", ".join(f"{header[i]} {row[i]}" for i in used[1:] if row[i])
    for row in rows[1:]
  ]
  return layout.wrapped(sentences, width)


def _cells(one: Mapping[str, Any]) -> list[str]:
  shown = []
  for name in _SHOWN:
    value = one.get(name)
    if value is None:
      shown.append("")
    elif name == "pass@1" and not one["verdict"]:
      shown.append("no verdict")
    elif name == "pass@1":
      low, high = (100 * end for end in value["interval"])
      shown.append(f"{100 * value['mean']:.1f} [{low:.1f}, {high:.1f}]")
    elif name in ("tokens", "calls"):
      shown.append(f"{value:.1f}")
    else:
      shown.append(f"{100 * value:.1f}")
  return shown


if __name__ == "__main__":
  sys.exit(main())
