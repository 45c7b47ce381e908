"""Cost of an update, RAPO against GRPO, with the same weights and questions.

    python -m benchmarks.matched_policy --workdir runs/quickstart

Comparing whole runs misleads: a policy that answers early is cheap. So both
methods here roll out the same policy on the same questions, and nothing is
learned in between: every repetition starts from the same weights. Needs a work
folder whose stages before `train` are done. `--agents` names the policies:
`base`, `off_policy` or `warm_start`. The world's tools answer at once;
`--tool-latency 0.05` has each call take 50 ms longer, as real ones do. Prints
one JSON line with medians over repetitions and the ratio GRPO / RAPO of each
figure.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import jax

from experiments import checks, flags
from experiments.config import ExperimentConfig
from experiments.devices import use_compilation_cache
from experiments.flags import apply_overrides, load_config, parse_arguments
from experiments.policies import load_policy
from experiments.policy_shape import named_shape
from experiments.tasks import (
  OpenedTask,
  agent_paths,
  load_encoder,
  open_task,
)
from experiments.workdir import Workdir, read_json
from rapo_jax.data import order
from rapo_jax.retrieval import StepTraceBuffer
from rapo_jax.rollout import RolloutEngine
from rapo_jax.tools import Tool, ToolResult
from rapo_jax.training import Trainer, init_train_state

FIGURES = (
  "rollout/generated_tokens",
  "rollout/tool_calls",
  "rollout/response_tokens",
  "rollout/seconds",
  "rollout/decode_seconds",
  "rollout/cache_seconds",
  "rollout/tool_seconds",
  "rollout/retrieval_seconds",
  "rollout/retrieval_busy_seconds",
  "rollout/slot_occupancy",
  "update/seconds",
  "step/seconds",
)


class LateTool:
  """Another tool, some time later. Calls, or batches, wait side by side."""

  def __init__(self, tool: Tool, latency_s: float):
    self.name = tool.name
    self.description = tool.description
    self.example = tool.example
    self.batched = tool.batched
    self._tool = tool
    self._latency_s = latency_s

  def call(self, argument: str) -> ToolResult:
    time.sleep(self._latency_s)
    return self._tool.call(argument)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    time.sleep(self._latency_s)
    return self._tool.call_batch(arguments)


class Method:
  """One method on one policy, ready to run updates that change nothing."""

  def __init__(
    self,
    config: ExperimentConfig,
    task: OpenedTask,
    buffer: StepTraceBuffer,
    name: str,
    path: pathlib.Path,
    tools: Mapping[str, Tool],
    vocab_size: int,
  ):
    algorithm = config.train.algorithm(name)
    rollout = algorithm.plan.rollout(config.rollout)
    self._config, self._task, self._path = config, task, path
    self._trainer = Trainer(
      RolloutEngine(
        rollout,
        task.tokenizer,
        vocab_size=vocab_size,
        tools=tools,
        buffer=buffer,
        retrieval=config.retrieval,
      ),
      task.tokenizer,
      rollout=rollout,
      objective=config.objective,
      optimizer=config.optimizer,
      update=config.update,
      seed=0,
      algorithm=algorithm,
    )

  def step(self, update: int) -> dict[str, float]:
    """Metrics of one update on the questions of `update`."""
    chosen = order.batch(
      0,
      update,
      self._config.update.queries_per_update,
      len(self._task.train),
    )
    queries = [self._task.train[i] for i in chosen]
    prompts = [self._task.prompt(query) for query in queries]
    model = load_policy(
      self._config, self._path, seed=0, lora=self._config.policy.lora
    )
    state = init_train_state(model, self._config.optimizer)
    return self._trainer.step(state, queries, prompts, update)[2]


def compare(
  config: ExperimentConfig,
  workdir: Workdir,
  name: str,
  agents: Mapping[str, pathlib.Path],
  repetitions: int,
  latency_s: float,
) -> dict[str, object]:
  """Both methods, in turns, for each of some agents by name."""
  encoder = load_encoder(config.encoder)
  encoder.compile()
  result: dict[str, object] = {}
  with open_task(config, workdir, name, encoder) as task:
    buffer = StepTraceBuffer.load(
      config.buffer.path or workdir.buffer(name), encoder
    )
    tools: Mapping[str, Tool] = task.tools
    if latency_s:
      tools = {n: LateTool(tool, latency_s) for n, tool in tools.items()}
    for agent, path in agents.items():
      size = named_shape(str(path)).vocab_size
      methods = {
        name: Method(config, task, buffer, name, path, tools, size)
        for name in ("grpo", "rapo")
      }
      rows: dict[str, list[dict[str, float]]] = {"grpo": [], "rapo": []}
      # The first one of each compiles.
      for update in range(repetitions + 1):
        for name, method in methods.items():
          rows[name].append(method.step(update))
      result[agent] = {
        figure: _compared(
          *([row[figure] for row in rows[name][1:]] for name in rows)
        )
        for figure in FIGURES
      }
  return result


def _compared(grpo: list[float], rapo: list[float]) -> dict[str, object]:
  first, second = statistics.median(grpo), statistics.median(rapo)
  return {
    "grpo": round(first, 4),
    "rapo": round(second, 4),
    "grpo_range": [round(min(grpo), 4), round(max(grpo), 4)],
    "rapo_range": [round(min(rapo), 4), round(max(rapo), 4)],
    "ratio": round(first / second, 3) if second else None,
  }


def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--config", default="experiments/configs/quickstart.py")
  parser.add_argument(
    "--workdir", type=pathlib.Path, default=pathlib.Path("runs/quickstart")
  )
  parser.add_argument("--task", help="default: the first of the config")
  parser.add_argument("--agents", help="default: all; separated by commas")
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--tool-latency", type=float, default=0.0, help="s")
  known, overrides = parse_arguments(parser, arguments)
  config = apply_overrides(load_config(known.config), overrides)
  there = read_json(Workdir(known.workdir).config)
  differences = checks.differences(there, flags.to_dict(config))
  if differences:
    parser.error(
      f"{known.workdir} holds another experiment: {differences[0]}. Name its "
      "config with --config."
    )
  workdir = Workdir(known.workdir)
  task = known.task or config.tasks[0].name
  agents = agent_paths(config, workdir, task)
  if config.warm_start is not None:
    agents["warm_start"] = workdir.warm_started(task)
  chosen = known.agents.split(",") if known.agents else list(agents)
  if not set(chosen) <= set(agents):
    parser.error(f"--agents must be of {', '.join(agents)}.")
  use_compilation_cache()
  figures = compare(
    config,
    workdir,
    task,
    {agent: agents[agent] for agent in chosen},
    known.repetitions,
    known.tool_latency,
  )
  print(
    json.dumps(
      {
        "benchmark": "matched_policy",
        "task": task,
        "unit": "per update; *seconds in s, the others counts",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "repetitions": known.repetitions,
        "tool_latency_s": known.tool_latency,
        **figures,
      }
    )
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
