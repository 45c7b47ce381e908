"""Warm start of the miniature agents, from scratch and by supervised learning.

1. A clean agent learns from demonstrations that are nearly right.
2. Trained a little longer on better ones it becomes the *off-policy agent*,
   which solves most questions.
3. Trained further on corrupted ones that agent becomes the *base agent*: at a
   step boundary its likeliest action is to stop too early. Yet with a small
   probability it goes on rightly. It is a deliberately weakened agent, whose
   skill is latent; reinforcement learning has to bring it out. Corrupting from
   scratch would spoil the skill itself, and symmetric noise would be gone after
   ten updates.

Where a weaker off-policy agent is asked for, that agent too is trained further,
on demonstrations that go wrong less often than the base agent's.

The questions are fresh ones over the same knowledge base: none of them is a
training or held-out question.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rapo_jax import files, models
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_multiple, check_numbers, check_seeds
from rapo_jax.tasks.miniature import demonstrations as demonstrations_lib
from rapo_jax.tasks.miniature import tokenizer as tokenizer_lib
from rapo_jax.tasks.miniature.demonstrations import DemonstrationConfig
from rapo_jax.tasks.miniature.world import (
  FAMILIES,
  MAX_HOPS,
  Family,
  Question,
  World,
  draw_questions,
)
from rapo_jax.training import Example, SupervisedConfig, SupervisedTrainer

Report = Callable[[float, str], None]

# Steps that one dispatch runs.
_STEPS_PER_CALL = 10
# Demonstrations written at a time.
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
  """One phase of supervised learning.

  Attributes:
    num_steps: gradient steps, a multiple of 10.
    learning_rate: peak of AdamW's; a tenth of the steps warm up to it, then it
      falls to zero along a cosine.
  """

  num_steps: int
  learning_rate: float

  def __post_init__(self) -> None:
    check_numbers(self, "num_steps", at_least=1)
    check_multiple(self, "num_steps", _STEPS_PER_CALL)
    check_numbers(self, "learning_rate", at_least=0)


@dataclasses.dataclass(frozen=True)
class AgentsConfig:
  """Shape and schooling of the miniature agents.

  Attributes:
    seed: of weights, questions and demonstrations.
    hidden_size: width.
    intermediate_size: width of the feed-forward layers.
    num_layers: layers.
    num_heads: attention heads.
    initializer_range: standard deviation of the initial weights.
    embedding_scale: by which the initial embedding is larger than that. It is
      the head too; a larger one lets copying, which every step needs, set in
      after some 120 steps instead of 300.
    rope_theta: base of the rotary wavelengths; short, like the sequences.
    rows: rows of a batch, each packed with whole demonstrations.
    row_length: tokens of a row.
    weight_decay: of AdamW.
    hops: lengths of the demonstrated questions, in turn.
    clean: first phase.
    web_clean: first phase of the web, where the agent must distinguish links.
    expert: second phase, which gives the off-policy agent.
    corrupted: third phase, which gives the base agent.
    clean_correct_prob: of a right action at a boundary in the first phase.
    expert_correct_prob: in the second phase.
    corrupted_correct_prob: in the third phase. With 0.1 the base agent solves
      less than one in a hundred questions of three steps.
    retrieved_share: share of the third phase's demonstrations that may hold
      retrieved steps.
    off_policy_correct_prob: of a right action of a weaker off-policy agent,
      which the second phase's becomes by as many steps as the third phase has.
      None for the second phase's itself. The base agent is the same.
  """

  seed: int = 0
  hidden_size: int = 64
  intermediate_size: int = 128
  num_layers: int = 3
  num_heads: int = 4
  initializer_range: float = 0.06
  embedding_scale: float = 2.0
  rope_theta: float = 100.0
  rows: int = 8
  row_length: int = 192
  weight_decay: float = 0.01
  hops: tuple[int, ...] = (1, 2, 3, 4)
  clean: PhaseConfig = PhaseConfig(440, 5e-3)
  web_clean: PhaseConfig = PhaseConfig(1600, 5e-3)
  expert: PhaseConfig = PhaseConfig(160, 2e-3)
  corrupted: PhaseConfig = PhaseConfig(160, 1e-3)
  clean_correct_prob: float = 0.97
  expert_correct_prob: float = 0.99
  corrupted_correct_prob: float = 0.1
  retrieved_share: float = 0.5
  off_policy_correct_prob: float | None = None

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    check_numbers(
      self,
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "rows",
      "row_length",
      at_least=1,
    )
    # The rotary embedding turns pairs of a head's entries.
    check_multiple(self, "hidden_size", 2 * self.num_heads, "2 * num_heads")
    check_numbers(self, "weight_decay", at_least=0)
    check_numbers(
      self, "initializer_range", "embedding_scale", "rope_theta", above=0
    )
    check_numbers(
      self,
      "clean_correct_prob",
      "expert_correct_prob",
      "corrupted_correct_prob",
      "retrieved_share",
      "off_policy_correct_prob",
      at_least=0,
      at_most=1,
    )
    check_numbers(self, "hops", at_least=1, at_most=MAX_HOPS)
    if not self.hops:
      raise InputError("hops must hold at least one number, got (): add one.")


def train_agents(
  world: World,
  family: Family,
  config: AgentsConfig,
  output_dir: pathlib.Path,
  *,
  report: Report = lambda share, text: None,
) -> None:
  """Trains a family's two agents and writes them as Hugging Face folders.

  Args:
    world: where the questions come from.
    family: what the agents learn.
    config: shape and schooling.
    output_dir: gets `base`, `off_policy` and `metrics.jsonl` (phase, step and
      loss in nats a policy token, one line a call).
    report: called with the share done, 0 to 1, and a word on it.
  """
  output_dir.mkdir(parents=True, exist_ok=True)
  tokenizer = tokenizer_lib.train_tokenizer(tokenizer_lib.corpus(world))
  trained = {"": initial_model(config, len(tokenizer))}
  phases = _phases(config, family)
  total = sum(phase.schedule.num_steps for phase in phases)
  done = 0
  rows: list[dict[str, Any]] = []
  started = time.perf_counter()
  for number, phase in enumerate(phases):
    name = phase.name
    trainer = SupervisedTrainer(
      # A copy: training takes the memory of what it begins with.
      jax.tree.map(jnp.copy, trained[phase.begins_with]),
      supervised_config(config, phase.schedule),
    )
    examples = demonstrate_forever(
      world,
      family,
      tokenizer,
      phase.demonstrations,
      hops=config.hops,
      rng=np.random.default_rng([config.seed, FAMILIES.index(family), number]),
    )
    for step, loss in trainer.run(examples):
      seconds = time.perf_counter() - started
      rows.append(
        {"phase": name, "step": step, "loss": loss, "seconds": seconds}
      )
      report((done + step) / total, f"{family} {name}: loss {loss:.3f}")
    trained[name] = trainer.model
    done += phase.schedule.num_steps
    if phase.agent is not None:
      models.save_pretrained(
        trainer.model,
        output_dir / phase.agent,
        tokenizer=tokenizer,
        end_ids=tokenizer_lib.end_ids(tokenizer),
      )
  files.replace_text(
    output_dir / "metrics.jsonl",
    "".join(f"{json.dumps(row)}\n" for row in rows),
  )


def supervised_config(
  config: AgentsConfig, phase: PhaseConfig
) -> SupervisedConfig:
  """How the trainer runs a phase."""
  return SupervisedConfig(
    num_steps=phase.num_steps,
    learning_rate=phase.learning_rate,
    warmup_steps=phase.num_steps // 10,
    weight_decay=config.weight_decay,
    rows=config.rows,
    row_length=config.row_length,
    steps_per_call=_STEPS_PER_CALL,
    head="whole",
  )


class _Phase(NamedTuple):
  """One phase of supervised learning.

  Attributes:
    name: of the phase.
    begins_with: phase whose model it goes on with; empty for a new one.
    schedule: its steps.
    demonstrations: what it learns from.
    agent: which agent it gives; None for none.
  """

  name: str
  begins_with: str
  schedule: PhaseConfig
  demonstrations: DemonstrationConfig
  agent: str | None


def _phases(config: AgentsConfig, family: Family) -> list[_Phase]:
  """The phases in their order."""
  schedule = config.web_clean if family == "web" else config.clean
  clean = DemonstrationConfig(config.clean_correct_prob)
  expert = DemonstrationConfig(config.expert_correct_prob)
  corrupted = DemonstrationConfig(
    config.corrupted_correct_prob, retrieved_share=config.retrieved_share
  )
  weaker = config.off_policy_correct_prob
  phases = [
    _Phase("clean", "", schedule, clean, None),
    _Phase(
      "expert",
      "clean",
      config.expert,
      expert,
      "off_policy" if weaker is None else None,
    ),
    _Phase("corrupted", "expert", config.corrupted, corrupted, "base"),
  ]
  if weaker is not None:
    demonstrations = DemonstrationConfig(weaker)
    phases.append(
      _Phase("weaker", "expert", config.corrupted, demonstrations, "off_policy")
    )
  return phases


def decoder_config(
  config: AgentsConfig, vocab_size: int
) -> models.DecoderConfig:
  """Shape of the agents for a vocabulary."""
  return models.DecoderConfig(
    vocab_size=vocab_size,
    hidden_size=config.hidden_size,
    intermediate_size=config.intermediate_size,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    num_kv_heads=config.num_heads,
    head_dim=config.hidden_size // config.num_heads,
    rope=models.RopeConfig(theta=config.rope_theta),
    initializer_range=config.initializer_range,
    max_position_embeddings=1024,
  )


def initial_model(config: AgentsConfig, vocab_size: int) -> models.Decoder:
  """An agent that has learned nothing yet."""
  model = models.Decoder(
    decoder_config(config, vocab_size), rngs=nnx.Rngs(config.seed)
  )
  model.embedding[...] = model.embedding[...] * config.embedding_scale
  return model


def demonstrate_forever(
  world: World,
  family: Family,
  tokenizer: Any,
  config: DemonstrationConfig,
  *,
  hops: tuple[int, ...],
  rng: np.random.Generator,
) -> Iterator[Example]:
  """Demonstrations on fresh questions, without end."""
  known = {
    question.question
    for split in (world.train, world.held_out)
    for question in split[family]
  }
  chain = world.chains[family]
  while True:
    questions: list[Question] = draw_questions(
      chain,
      family,
      _BLOCK,
      hops=hops,
      rng=rng,
      exclude=known,
      distinct=False,
    )
    yield from demonstrations_lib.tokenize(
      tokenizer,
      [
        (
          question.question,
          demonstrations_lib.demonstrate(chain, question, config, rng),
        )
        for question in questions
      ],
    )
