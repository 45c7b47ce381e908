"""What the benchmarks of the rollout share.

Tokens and lengths have to be known for a measurement, and no policy here was
trained. `scripted_policy` therefore gives a random model an output head of its
own. The head's column of an id is the embedding of the ids that it follows. So
the policy walks along chains of words. It ends every step with a tool call,
after a given number of tokens. The layers stay random and do all of their work,
sampling included. Only the result is fixed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
import tokenizers
from flax import nnx
from jaxtyping import Int

from rapo_jax import models
from rapo_jax.data import Query
from rapo_jax.retrieval.encoder.sentence_folder import WEIGHTS_PACKAGE
from rapo_jax.rollout import RolloutStats
from rapo_jax.tasks.miniature import tokenizer as miniature_tokenizer
from rapo_jax.tools import ToolResult, ToolStatus
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory

VOCAB_SIZE = 32_000
PREFILL_ROWS = 16
TRAJECTORY_TIMEOUT_S = 3_600.0
"""The first turn compiles while trajectories wait; none may end by it."""
TOOL = "search"

_NUM_WORDS = 8_000
_TAGS = tuple(
  space + tag
  for name in (TOOL, "result", "retrieve")
  for tag in (f"<{name}>", f"</{name}>")
  for space in ("", " ")
)
_CALL_TOKENS = 3
"""Opening tag, one word, closing tag."""
_ENDLESS_IDS = 8_192
"""Ids at the end of the vocabulary, without text, that follow in a circle."""
_EMBEDDING_SCALE = 50.0
"""Makes embeddings (0.02) larger than what the layers add to them."""
_HEAD_SCALE = 0.2
"""Of 256-wide unit-variance embeddings: the right id is 50 nats ahead."""


def pin(core: int) -> None:
  """Keeps this process on one core; call it before the first computation."""
  os.sched_setaffinity(0, {core})


def decoder_config(**changes: Any) -> models.DecoderConfig:
  """The model of all rollout benchmarks: Qwen2-shaped, 8 layers of 256."""
  shape = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_layers": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
  }
  return models.DecoderConfig(**{**shape, **changes})


def queries(number: int) -> list[Query]:
  """Distinct questions."""
  return [
    Query(
      query_id=f"q{i}",
      question=f"question {i}",
      ground_truth=("a",),
      messages=({"role": "user", "content": f"question {i}"},),
      task="benchmark",
    )
    for i in range(number)
  ]


def spelling_tokenizer() -> Any:
  """Bytes alone: ids above spell nothing, and none ends a text."""
  tokenizer = miniature_tokenizer.untrained_tokenizer()
  tokenizer.eos_token = tokenizer.pad_token = None
  return tokenizer


def english_words() -> list[str]:
  """The sentence encoder's own whole words: each is one wordpiece to it."""
  spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(
      f"this benchmark takes its words from {WEIGHTS_PACKAGE}, which is not "
      "installed: run `make install`."
    )
  path = pathlib.Path(spec.submodule_search_locations[0]) / "model"
  vocabulary = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
  pieces = sorted(
    vocabulary["model"]["vocab"].items(), key=lambda item: item[1]
  )
  words = [piece for piece, _ in pieces if re.fullmatch("[a-z]{3,}", piece)]
  return words[:_NUM_WORDS]


@dataclasses.dataclass(frozen=True)
class ScriptedPolicy:
  """A random model that calls a tool after a known number of tokens.

  Attributes:
    model: the policy.
    tokenizer: words and tags are one token each.
    words: all words.
    step_tokens: lengths of its steps, call included; at every step each of
      them is as likely.
  """

  model: models.Decoder
  tokenizer: Any
  words: tuple[str, ...]
  step_tokens: tuple[int, ...]

  def prompt(
    self, length: int, rng: np.random.Generator, *, endless: bool = False
  ) -> Int[np.ndarray, " P"]:
    """A random prompt after which the policy calls tools.

    Args:
      length: in tokens.
      rng: source of its words.
      endless: after it the policy writes on and never calls a tool.
    """
    prompt = rng.integers(1, 256, length, dtype=np.int32)
    prompt[-1] = (
      VOCAB_SIZE - _ENDLESS_IDS
      if endless
      else self.tokenizer.convert_tokens_to_ids(" </result>")
    )
    return prompt

  def tool(
    self, observation_tokens: int, max_delay_s: float = 0.0
  ) -> WordsTool:
    """A tool whose results have a known length, tags included."""
    return WordsTool(
      self.words, num_words=observation_tokens - 2, max_delay_s=max_delay_s
    )


def scripted_policy(
  step_tokens: Sequence[int],
  *,
  words: Sequence[str] | None = None,
  config: models.DecoderConfig | None = None,
) -> ScriptedPolicy:
  """Makes a policy for some step lengths.

  Args:
    step_tokens: tokens of a step, its call included, each at least 4.
    words: that it knows; None for the sentence encoder's.
    config: its shape, with at least `VOCAB_SIZE` rows and an output head of its
      own; None for `decoder_config`.
  """
  words = english_words() if words is None else words
  tokenizer = spelling_tokenizer()
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(text, normalized=False)
      for text in (*_TAGS, *(f" {word}" for word in words))
    ]
  )
  id_of = tokenizer.convert_tokens_to_ids
  unused = iter([id_of(f" {word}") for word in words])
  opening, closing = id_of(f" <{TOOL}>"), id_of(f" </{TOOL}>")
  argument = next(unused)
  # (what is followed, what follows)
  follows = [(opening, argument), (argument, closing)]
  for length in step_tokens:
    chain = [next(unused) for _ in range(length - _CALL_TOKENS)]
    follows += [(id_of(tag), chain[0]) for tag in (" </result>", "</retrieve>")]
    follows += zip(chain, [*chain[1:], opening], strict=True)
  circle = list(range(VOCAB_SIZE - _ENDLESS_IDS, VOCAB_SIZE))
  follows += zip(circle, [*circle[1:], circle[0]], strict=True)

  if config is None:
    config = decoder_config(tie_embeddings=False)
  model = jax.jit(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))()
  embedding = np.array(model.embedding[...]) * _EMBEDDING_SCALE
  head = np.zeros_like(embedding)
  before, after = np.asarray(follows).T
  np.add.at(head, after, _HEAD_SCALE * embedding[before])
  model.embedding[...] = embedding
  assert model.head is not None
  model.head.kernel[...] = head.T
  return ScriptedPolicy(model, tokenizer, tuple(words), tuple(step_tokens))


class WordsTool:
  """Answers with random words, after a random delay.

  Args:
    words: to answer with.
    num_words: of an answer.
    max_delay_s: delays are uniform between 0 and this, in seconds.
    name: the tool's tag.
  """

  batched = False

  def __init__(
    self,
    words: Sequence[str] = ("none",),
    *,
    num_words: int = 1,
    max_delay_s: float = 0.0,
    name: str = TOOL,
  ):
    self.name = name
    self.description = f"<{name}> words </{name}> answers with words."
    self.example = f"<{name}> words </{name}>"
    self._words = words
    self._num_words = num_words
    self._max_delay_s = max_delay_s
    self._rng = np.random.default_rng(0)
    self._lock = threading.Lock()

  def call(self, argument: str) -> ToolResult:
    """Runs one call; the argument does not matter."""
    with self._lock:
      chosen = self._rng.integers(len(self._words), size=self._num_words)
      delay = self._rng.uniform(0.0, self._max_delay_s)
    if self._max_delay_s:
      time.sleep(delay)
    text = " ".join(self._words[i] for i in chosen)
    return ToolResult(text, ToolStatus.OK)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Runs calls, results in order."""
    return [self.call(argument) for argument in arguments]


SUMS = tuple(
  field.name
  for field in dataclasses.fields(RolloutStats)
  if field.name != "tools"
)
"""Figures of `RolloutStats` that add up over rollouts."""


@dataclasses.dataclass(frozen=True)
class Turn:
  """One timed run.

  Attributes:
    seconds: by the wall clock.
    cpu_seconds: of the process, which another process on the core does not
      lengthen.
    stats: where the engine says that the time went; of several rollouts, the
      sums.
    trajectories: what came out.
  """

  seconds: float
  cpu_seconds: float
  stats: RolloutStats
  trajectories: list[Trajectory]


def timed(
  run: Callable[[], tuple[list[Trajectory], RolloutStats]],
) -> Turn:
  """Runs once under both clocks."""
  began, cpu_began = time.perf_counter(), time.process_time()
  trajectories, stats = run()
  return Turn(
    time.perf_counter() - began,
    time.process_time() - cpu_began,
    stats,
    trajectories,
  )


def alternate(
  runs: Mapping[str, Callable[[int], Turn]], repeats: int
) -> dict[str, list[Turn]]:
  """Runs things in turns, after one turn of each that compiles.

  Args:
    runs: what to run, by name; called with the number of the turn.
    repeats: timed turns.
  """
  turns: dict[str, list[Turn]] = {name: [] for name in runs}
  for number in range(repeats + 1):
    for name, run in runs.items():
      turn = run(number)
      where = {figure: getattr(turn.stats, figure) for figure in SUMS}
      print(number, name, round(turn.seconds, 2), where, file=sys.stderr)
      if number:
        turns[name].append(turn)
  return turns


def check_steps(
  trajectories: Sequence[Trajectory],
  step_tokens: Sequence[int],
  tool_calls: int,
) -> None:
  """Makes sure that the policy did what the measurement takes for granted.

  Raises:
    ValueError: a trajectory has another number of tool calls, or a step of
      another length.
  """
  for trajectory in trajectories:
    lengths = {
      segment.end - segment.start
      for segment in trajectory.segments()
      if segment.kind is TokenKind.POLICY
    }
    if (
      not lengths <= set(step_tokens)
      or len(trajectory.tool_events) != tool_calls
      or trajectory.finish_reason is not FinishReason.TOOL_LIMIT
    ):
      raise ValueError(
        f"the scripted policy has to make {tool_calls} calls in steps of "
        f"{sorted(step_tokens)} tokens, got {len(trajectory.tool_events)} in "
        f"{sorted(lengths)}, ended by {trajectory.finish_reason}."
      )


def median_stats(
  turns: Mapping[str, Sequence[Turn]],
) -> dict[str, dict[str, float]]:
  """Median of each figure of `RolloutStats`, by name of what ran."""
  return {
    name: {
      figure: round(
        statistics.median(getattr(run.stats, figure) for run in runs), 4
      )
      for figure in SUMS
    }
    for name, runs in turns.items()
  }


def about_this_machine() -> dict[str, Any]:
  """Device and versions, for a report."""
  return {
    "device": jax.devices()[0].device_kind,
    "versions": {
      name: metadata.version(name) for name in ("jax", "flax", "numpy")
    },
  }
