"""One whole GRPO update of a real model, beside google-tunix and TRL.

    .venv/bin/python -m benchmarks.whole_update --model models/smollm2-135m

Rollout, rewards and update: 8 questions of 8 rollouts each, one gradient step
on all of them, in float32, on two cores. Each library runs its own trainer as
its users do (`whole_update_peers/`; the settings are in the output). They run
in turns, one process each; peers live in environments of their own, which the
first run installs under `.cache/benchmarks`.

All have the same weights, prompts, reward and optimizer, and sample at
temperature 1 from all tokens. Every rollout has the same length: in the folder
that all load, the token that ends a text is a reserved one, which no policy
writes. So the turn's own end is a token like others.

Completions differ from library to library. What can be compared of the first
step is printed: the loss, which is 0 before the policy moves but for rounding;
the gradient norm; and how far the last norm's weights moved, over the learning
rate, which AdamW's first step makes 1.

The model is made by `experiments.pretrained` where --model names no folder.
Questions are GSM8K's with --data, else sums that are written here. On an
accelerator: `--accelerator --peers ours`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import peers, real_model
from experiments.tokenizer_files import load_tokenizer
from rapo_jax import data, models

_WORKERS = pathlib.Path(__file__).resolve().parent / "whole_update_peers"
_SCRIPTS = {
  peers.OURS: "ours.py",
  "trl": "trl_grpo.py",
  "tunix": "tunix_grpo.py",
}
_PARTS = ("rollout", "reward", "update")
_TARGET = 2.0


def _reserved(tokenizer: Any, ends: set[int]) -> list[str]:
  """Two control tokens that no text holds, to end and to pad with."""
  ids = tokenizer.get_added_vocab()
  free = sorted((i, text) for text, i in ids.items() if i not in ends)
  if len(free) < 2:
    raise ValueError("the tokenizer must have two control tokens to spare.")
  return [text for _, text in free[-2:]]


def write_problem(
  folder: pathlib.Path,
  model: pathlib.Path,
  questions: Sequence[tuple[str, str]],
  settings: Mapping[str, Any],
  num_updates: int,
) -> None:
  """Model, prompts and settings that all workers read.

  Args:
    folder: to write to.
    model: the model's folder, which stays as it is.
    questions: of which those with short prompts are taken.
    settings: sizes of an update, and the optimizer's numbers.
    num_updates: that there have to be questions for.
  """
  copied = folder / "model"
  copied.mkdir()
  for file in model.iterdir():
    if file.suffix == ".safetensors":
      (copied / file.name).symlink_to(file.resolve())
    elif file.suffix in (".json", ".txt"):
      shutil.copy(file, copied)
  tokenizer = load_tokenizer(model)
  ends = {*models.end_token_ids(model), *data.end_ids(tokenizer)}
  end, pad = _reserved(tokenizer, ends)
  # No template either, which would name the turn's end.
  changed = {"eos_token": end, "pad_token": pad}
  _change(copied / "tokenizer_config.json", changed, drop="chat_template")
  ids = {
    "eos_token_id": tokenizer.convert_tokens_to_ids(end),
    "pad_token_id": tokenizer.convert_tokens_to_ids(pad),
  }
  for name in ("config.json", "generation_config.json"):
    _change(copied / name, ids)
  prompts, answers = [], []
  for question, answer in questions:
    text = tokenizer.apply_chat_template(
      [{"role": "user", "content": question}],
      add_generation_prompt=True,
      tokenize=False,
    )
    count = len(tokenizer.encode(text, add_special_tokens=False))
    if count <= settings["prompt_tokens"]:
      prompts.append(text)
      answers.append(answer)
  wanted = num_updates * settings["questions"]
  if len(prompts) < wanted:
    raise ValueError(
      f"{wanted} questions are needed, and {len(prompts)} are short enough: "
      "raise --prompt-tokens."
    )
  content = {
    "settings": dict(settings),
    "prompts": prompts[:wanted],
    "answers": answers[:wanted],
  }
  (folder / "problem.json").write_text(json.dumps(content), encoding="utf-8")


def _change(
  path: pathlib.Path, values: Mapping[str, Any], drop: str = ""
) -> None:
  content = json.loads(path.read_text(encoding="utf-8"))
  content |= values
  content.pop(drop, None)
  path.write_text(json.dumps(content), encoding="utf-8")


def start(
  names: Sequence[str], folder: pathlib.Path, cores: Sequence[int]
) -> tuple[dict[str, peers.Worker], dict[str, str]]:
  """A process for each library, and why others are left out.

  Args:
    names: of the libraries.
    folder: of the problem.
    cores: that all run on, in turns; none on an accelerator.
  """
  workers: dict[str, peers.Worker] = {}
  left_out: dict[str, str] = {}
  # The next worker finds the memory that this one does not use.
  variables = {} if cores else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  for name in names:
    try:
      peers.environment(name)
    except subprocess.CalledProcessError as error:
      left_out[name] = f"its environment cannot be made: {error}"
      continue
    workers[name] = peers.Worker(
      name,
      _WORKERS / _SCRIPTS[name],
      folder,
      cores=cores,
      variables=variables,
    )
  return workers, left_out


def measure(
  workers: Mapping[str, peers.Worker], repeats: int
) -> dict[str, Any]:
  """Medians over turns, after one turn of each that compiles."""
  turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
  first: dict[str, dict[str, Any]] = {}
  for turn in range(repeats + 1):
    for name, worker in workers.items():
      answer = worker.run("update")
      print(turn, name, answer, file=sys.stderr, flush=True)
      if turn:
        turns[name].append(answer)
      else:
        first[name] = {
          "moved_over_learning_rate": round(worker.run("moved")["result"], 3),
          "seconds_with_compiling": round(answer["seconds"], 1),
        }
  described = {name: w.run("settings") for name, w in workers.items()}
  for name, worker in workers.items():
    first[name] |= worker.run("first")["result"]
    worker.close()
  results = {n: [run["result"] for run in runs] for n, runs in turns.items()}
  return {
    "by_wall_time": ratios(peers.medians(turns, "seconds")),
    "by_cpu_time": ratios(peers.medians(turns, "cpu_seconds")),
    "parts_s": {
      name: {
        part: round(statistics.median(r[part] for r in runs), 3)
        for part in _PARTS
      }
      for name, runs in results.items()
    },
    "generated_tokens": {
      n: [int(r["generated_tokens"]) for r in runs]
      for n, runs in results.items()
    },
    "generated_tokens_per_s_of_rollout": {
      n: round(
        statistics.median(r["generated_tokens"] / r["rollout"] for r in runs)
      )
      for n, runs in results.items()
    },
    "mean_reward": {
      n: [round(r["mean_reward"], 4) for r in runs]
      for n, runs in results.items()
    },
    "seconds": {
      n: [round(run["seconds"], 2) for run in runs] for n, runs in turns.items()
    },
    "first_step": first,
    "settings": {n: answer["result"] for n, answer in described.items()},
    "versions": {n: answer["versions"] for n, answer in described.items()},
  }


def ratios(medians: Mapping[str, float]) -> dict[str, Any]:
  """Medians in seconds, and how many times as fast ours is."""
  ours = medians.get(peers.OURS)
  return {
    "median_s": {n: round(s, 2) for n, s in medians.items()},
    "ours_over": {
      n: round(s / ours, 3)
      for n, s in medians.items()
      if ours and n != peers.OURS
    },
  }


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  real_model.add_arguments(parser)
  parser.add_argument("--questions", type=int, default=8)
  parser.add_argument("--rollouts", type=int, default=8, help="of a question")
  parser.add_argument("--prompt-tokens", type=int, default=128, help="at most")
  parser.add_argument("--new-tokens", type=int, default=128)
  parser.add_argument(
    "--microbatch",
    type=int,
    default=8,
    help="rollouts of a micro-batch; whole groups for tunix",
  )
  parser.add_argument(
    "--remat",
    default="none",
    choices=typing.get_args(models.Remat),
    help="for peers, any but none is the recomputation of whole layers",
  )
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
  parser.add_argument(
    "--accelerator",
    action="store_true",
    help="take the device that each library finds, and pin no core",
  )
  parser.add_argument(
    "--peers",
    nargs="+",
    default=list(_SCRIPTS),
    choices=list(_SCRIPTS),
    help="who takes part",
  )
  return parser


def main() -> None:
  arguments = _parser().parse_args()
  settings = {
    "questions": arguments.questions,
    "rollouts": arguments.rollouts,
    "prompt_tokens": arguments.prompt_tokens,
    "new_tokens": arguments.new_tokens,
    "microbatch": arguments.microbatch,
    "remat": arguments.remat,
    "num_cores": len(arguments.cores),
    "learning_rate": 1e-6,
    "max_gradient_norm": 1.0,
    "clip_epsilon": 0.2,
  }
  cores = [] if arguments.accelerator else arguments.cores
  with tempfile.TemporaryDirectory() as path:
    write_problem(
      pathlib.Path(path),
      real_model.folder_of(arguments.model),
      real_model.read_questions(arguments.data),
      settings,
      # The first compiles; tunix asks for one more before it ends.
      arguments.repeats + 2,
    )
    workers, left_out = start(arguments.peers, pathlib.Path(path), cores)
    report = {
      "benchmark": "whole_update",
      "unit": "s",
      "model": pathlib.Path(arguments.model).name,
      "data": "gsm8k" if arguments.data else "sums",
      "sizes": settings,
      "target": _TARGET,
      **measure(workers, arguments.repeats),
      "left_out": left_out,
    }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
