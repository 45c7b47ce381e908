"""What `processes_test` runs in two processes of four fake devices each.

    python -m tests.rollout.on_two_processes FOLDER ADDRESS COUNT INDEX

Rolls out and updates on one mesh over the devices of all, which the first
process leads, or, where there is one process alone, on one device. That one
prints a JSON object with what it saw, another the names of the functions that
it was told to call, and how often its own tools were; the number of devices is
set by XLA_FLAGS before JAX starts.
"""

import collections
import dataclasses
import json
import os
import pathlib
import sys
import traceback
from unittest import mock

import jax
import numpy as np

from rapo_jax import hosts, retrieval
from rapo_jax.algorithms.forks import EntropyForks
from rapo_jax.models import sharding
from rapo_jax.rollout import RolloutEngine
from rapo_jax.rollout.observation import ObservationEncoder
from tests.rollout import tag_world
from tests.training import mesh_program

CONFIG = dataclasses.replace(
  tag_world.CONFIG, num_generations=4, num_hybrid=2, retrieval_prob=0.7
)
# The tensor axis has to divide it: more rows than the tokenizer has entries.
VOCABULARY = 264


@dataclasses.dataclass
class CountingTool(tag_world.EchoTool):
  """Takes its time, and counts its calls."""

  calls: int = 0

  def call(self, argument):
    self.calls += 1
    return super().call(argument)


@dataclasses.dataclass
class AnyBuffer:
  """Has a step for whatever is asked, and computes on the default device."""

  calls: int = 0
  version: int = 0

  def retrieve(self, questions, histories, *, config, keys=None):
    self.calls += 1
    similarity = float(jax.jit(lambda x: x.max())(np.ones(3)))
    step = "<search>b</search><result> ab </result>"
    return [
      retrieval.Hit(
        retrieval.StepTrace(
          question=question,
          history=tuple(history),
          step=step,
          reward=1.0,
          source="expert",
          trace_id=0,
          query_id="q0",
          step_index=1,
          answers=False,
        ),
        similarity,
        text=step,
        answers=False,
      )
      for question, history in zip(questions, histories, strict=True)
    ]


TOOLS = []
"""The tools of this process."""


def new_tool(**options):
  TOOLS.append(CountingTool(**options))
  return TOOLS[-1]


@hosts.led
def make_engine(mesh):
  tool = new_tool(delay=lambda argument: 0.01 * (len(argument) % 3))
  buffer = AnyBuffer()
  engine = tag_world.make_engine(
    CONFIG,
    tag_world.make_tokenizer(),
    tool,
    buffer,
    vocab_size=VOCABULARY,
    mesh=mesh,
  )
  return engine, tool, buffer


# A question needs slots for all of its rollouts on one device.
FORKING = dataclasses.replace(CONFIG, num_hybrid=0, num_slots=16)


@hosts.led
def make_forking_engine(mesh):
  return tag_world.make_engine(
    FORKING,
    tag_world.make_tokenizer(),
    new_tool(),
    vocab_size=VOCABULARY,
    mesh=mesh,
    forks=EntropyForks(probability=0.9),
  )


@hosts.led
def make_probing_engine(mesh):
  tool = new_tool()
  return RolloutEngine(
    CONFIG,
    tag_world.make_tokenizer(),
    vocab_size=VOCABULARY,
    tools={tool.name: tool},
    buffer=AnyBuffer(),
    retrieval=retrieval.RetrievalConfig(probe_share=1.0),
    mesh=mesh,
  )


@hosts.led
def make_policy(mesh):
  """The same policy in every process."""
  del mesh
  return tag_world.make_policy(VOCABULARY)


@hosts.led
def update_report(mesh):
  report = mesh_program.update(mesh)
  return {
    "loss": report["loss"],
    "gradients": np.concatenate(
      [gradient.ravel() for gradient in report["gradients"]]
    ).tolist(),
    "placed": report["placed"],
  }


def roll(engine, model):
  queries = tag_world.make_queries()
  prompts = tag_world.make_prompts(queries, tag_world.make_tokenizer())
  requests = tag_world.make_requests(CONFIG, queries, prompts)
  return engine.rollout(model, requests, seed=1, update=3, greedy=True)


def described(trajectories):
  """All of trajectories that has to be the same wherever they were sampled."""
  return [
    {
      "tokens": t.tokens.tolist(),
      "kinds": t.kinds.tolist(),
      "step_ids": t.step_ids.tolist(),
      "events": [type(event).__name__ for event in t.events],
      "finish_reason": str(t.finish_reason),
    }
    for t in trajectories
  ]


def rollout_report(mesh):
  engine, tool, buffer = make_engine(mesh)
  model = make_policy(mesh)
  trajectories, stats = roll(engine, model)
  return {
    "trajectories": described(trajectories),
    "log_probs": np.concatenate([t.log_probs for t in trajectories]).tolist(),
    "tool_calls": tool.calls,
    "tool_calls_counted": sum(stats.tools[tool.name].counts.values()),
    "retrievals": buffer.calls,
  }


def forks_report(mesh):
  """Rollouts that fork: what each is a copy of, and what it wrote."""
  engine = make_forking_engine(mesh)
  queries = tag_world.make_queries()
  prompts = tag_world.make_prompts(queries, tag_world.make_tokenizer())
  requests = tag_world.make_requests(FORKING, queries, prompts)
  trajectories, _ = engine.rollout(
    make_policy(mesh), requests, seed=1, update=3, greedy=True
  )
  return {
    "trajectories": described(trajectories),
    "parents": [[t.parent, t.shared_steps] for t in trajectories],
    "log_probs": np.concatenate([t.log_probs for t in trajectories]).tolist(),
  }


def twins_report(mesh):
  """Rollouts of which each retrieved step is left out once."""
  trajectories, stats = roll(make_probing_engine(mesh), make_policy(mesh))
  twins = [twin for t in trajectories for twin in t.twins]
  return {
    "trajectories": described(trajectories),
    "twins": described(twins),
    "left_out": [[t.query_id, t.index, t.shared_steps] for t in twins],
    "counted": [stats.twins, stats.twin_tokens],
  }


def error_of_a_broken_loop(mesh):
  """Type and text of what a rollout raises whose host loop breaks."""
  engine, *_ = make_engine(mesh)
  broken = mock.Mock(side_effect=OSError("the host's disk is full"))
  with mock.patch.object(ObservationEncoder, "__call__", broken):
    try:
      roll(engine, make_policy(mesh))
    except OSError as error:
      return [type(error).__name__, str(error)]
  return None


def report(mesh, crossed):
  return {
    "devices": [jax.local_device_count(), jax.device_count()],
    "rollout": rollout_report(mesh),
    "crossed": rollout_report(crossed),
    "forks": forks_report(mesh),
    "twins": twins_report(mesh),
    "update": update_report(mesh),
    # The last: the other process waits for what does not come.
    "error": error_of_a_broken_loop(mesh),
  }


def end(found):
  """Prints what was found and ends, whatever this process is in."""
  # A line of its own, below what the collectives have to say.
  sys.stdout.write("\n" + json.dumps(found))
  sys.stdout.flush()
  os._exit(0)


def meshes():
  """One whose tensor axis lies within the processes, and one across them."""
  across = np.array(jax.devices()).reshape(2, 4).T
  return (
    sharding.make_mesh(data=4, tensor=2),
    sharding.make_mesh(data=4, tensor=2, devices=across),
  )


def take_part(folder, address, count, index):
  told = collections.Counter()

  def over(_, message):
    if isinstance(message, dict):
      end({"told": told, "tool_calls": [tool.calls for tool in TOOLS]})
    return False

  port = int(address.rpartition(":")[2])
  place = hosts.Place(("localhost", port + 1), count, index)
  link = hosts.Link(place, over, lambda lost: None)
  hosts.join(link, pathlib.Path(folder))
  shared = meshes()
  if link.leads:
    with hosts.leading(hosts.Leader(link, shared)):
      found = report(*shared)
    link.send({"over": True})
    end(found)
  follower = hosts.Follower(link, shared)
  try:
    while True:
      _, content = link.receive()
      told[hosts.decode(content, lambda number: number)["function"]] += 1
      follower.run(content)
  except BaseException:
    # At its exit JAX would wait for the other one.
    traceback.print_exc()
    os._exit(1)


def main(folder, address, count, index):
  if int(count) == 1:
    end(report(None, None))
  # Only the first process fills the cache, and would then be so far ahead
  # that the first sum over both gives up on the other.
  jax.config.update("jax_enable_compilation_cache", False)
  jax.distributed.initialize(
    coordinator_address=address,
    num_processes=int(count),
    process_id=int(index),
    shutdown_timeout_seconds=60,
  )
  take_part(folder, address, int(count), int(index))


if __name__ == "__main__":
  main(*sys.argv[1:])
