"""The hybrid-policy rollout (Algorithm 1, Eq. 4): the engine that users make.

The host loop is in `loop`, the agent's protocol in `episode`, and the device
programs are in `programs`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rapo_jax import hosts
from rapo_jax import retrieval as retrieval_lib
from rapo_jax import tools as tools_lib
from rapo_jax.data import TextEncoder, check_query_ids, check_vocabulary
from rapo_jax.data import end_ids as tokenizer_end_ids
from rapo_jax.errors import InputError
from rapo_jax.models import (
  KV_BLOCK,
  Decoder,
  end_token_ids,
  hub,
  sharding,
)
from rapo_jax.rollout import automaton as automaton_lib
from rapo_jax.rollout import finite
from rapo_jax.rollout.between import BetweenSession, BetweenSteps
from rapo_jax.rollout.config import RolloutConfig, check_tool_settings
from rapo_jax.rollout.forks import ForkRule
from rapo_jax.rollout.joint import JointPrograms
from rapo_jax.rollout.loop import Loop, Setup
from rapo_jax.rollout.observation import ObservationEncoder
from rapo_jax.rollout.programs import (
  DeviceSide,
  Programs,
  empty_admission,
  empty_fork,
  empty_insert,
  empty_prompts,
  rows_to_read,
)
from rapo_jax.rollout.requests import RolloutRequest
from rapo_jax.rollout.retriever import RetrievalHook
from rapo_jax.rollout.shares import Shares, of_all_hosts
from rapo_jax.rollout.stats import RolloutStats
from rapo_jax.rollout.tool_runner import ToolRunner
from rapo_jax.trajectory import Trajectory


@hosts.held()
class RolloutEngine:
  """Generates trajectories with tools and, for hybrid ones, retrieval.

  Args:
    config: budgets and shapes.
    tokenizer: Hugging Face tokenizer of the policy.
    vocab_size: rows of the policy's output head.
    tools: tools by name; the name is the tag that calls them.
    buffer: Step-Trace Buffer for hybrid trajectories, or None. It may grow
      between two rollouts.
    retrieval: how a trace is chosen among the nearest.
    mesh: devices that share the slots and the policy; None for one device.
      Of devices of several processes one leads (`hosts.leading`). Engines are
      made in functions that all of them run (`hosts.led`), and each process
      asks its own tools and its own copy of the buffer. Called by the leader,
      the methods run on all.
    policy: one with adapters whose base is that of every rollout. On a mesh its
      frozen parameters are placed once, here, and stay there between rollouts;
      without it each rollout places the whole model.
    end_ids: tokens that end the policy's turn, as its model's files name them
      (`models.end_token_ids`); None reads those in the folder that the
      tokenizer was loaded from, or in the hub's cache. The tokenizer's end of
      text, and what its chat template ends a turn with, are always among them.
    between_steps: what happens between steps in place of retrieval; None for
      nothing else.
    forks: which rollouts of a question begin as copies of others; None lets
      each begin at the prompt. Needs slots for whole questions, and neither a
      buffer nor `between_steps`.

  Raises:
    InputError: a limit leaves no room for a result's tags, or names no tool. Or
      an object is no tool (`tools.check_tools`), or a tool's policy is out of
      range. Or the mesh does not divide the slots. Or the policy has no row for
      a token of the tokenizer, or nothing ends its turn.
  """

  def __init__(
    self,
    config: RolloutConfig,
    tokenizer: Any,
    *,
    vocab_size: int,
    tools: Mapping[str, tools_lib.Tool],
    buffer: retrieval_lib.Buffer | None = None,
    retrieval: retrieval_lib.RetrievalConfig | None = None,
    mesh: jax.sharding.Mesh | None = None,
    policy: Decoder | None = None,
    end_ids: Iterable[int] | None = None,
    between_steps: BetweenSteps | None = None,
    forks: ForkRule | None = None,
  ):
    if mesh is not None:
      sharding.check_rows("num_slots", config.num_slots, mesh)
      hosts.check_led(mesh)
    tag_set = tools_lib.check_tools(tools)
    check_tool_settings(config, tools)
    shares: Shares | None = None
    if mesh is not None and hosts.is_shared(mesh):
      shares = Shares.of(mesh)
    self._config = config
    self._mesh = mesh
    self._shares = shares
    if buffer is not None and between_steps is not None:
      raise InputError(
        "an engine has one hook between steps, got a buffer and between_steps: "
        "give one of them."
      )
    if forks is not None and (buffer or between_steps) is not None:
      raise InputError(
        "rollouts that fork do not retrieve, got both forks and a buffer or "
        "between_steps: give one of them."
      )
    self._forks = forks
    self._between = between_steps
    if buffer is not None:
      self._between = RetrievalHook(
        buffer,
        retrieval or retrieval_lib.RetrievalConfig(),
        config.retrieval_prob,
      )
    self.stop_strings = tag_set.stop_strings
    read = read_tokenizer(tokenizer, config, tag_set, vocab_size, end_ids)
    table = automaton_lib.stop_automaton(self.stop_strings, read.vocabulary)
    self._eos = np.zeros(vocab_size, bool)
    self._eos[read.ends] = True
    self._runner = ToolRunner(
      tools, config, max_chars=read.observation.num_chars_read
    )
    self.max_length = _round_up(
      config.max_prompt_tokens + config.max_response_tokens, KV_BLOCK
    )
    self._prompt_width = _round_up(config.max_prompt_tokens, KV_BLOCK)
    self._setup = Setup(
      config=config if shares is None else shares.of_one(config),
      tokenizer=tokenizer,
      tag_set=tag_set,
      encode=read.encode,
      observation=read.observation,
      ends_turn=self._eos,
      matched_state=table.matched_state,
      prompt_width=self._prompt_width,
      slot_parts=sharding.row_parts(mesh)
      if shares is None
      else max(len(shares.own), 1),
    )
    self._device_side = DeviceSide(
      config if shares is None else of_all_hosts(config, shares.count),
      mesh,
      stop_table=table.table,
      eos=self._eos,
      max_length=self.max_length,
      prompt_width=self._prompt_width,
      policy=policy,
    )

  def rollout(
    self,
    model: Decoder,
    requests: Sequence[RolloutRequest],
    *,
    seed: int,
    update: int,
    greedy: bool = False,
  ) -> tuple[list[Trajectory], RolloutStats]:
    """Generates one trajectory a request, in the order of the requests.

    Args:
      model: the policy, wherever it lies and in whatever dtype. It is sampled
        from in `config.dtype`.
      requests: what is wanted. Requests of one prompt share it; it is
        computed once.
      seed: of all that is random here.
      update: number of updates behind the policy; part of every random key.
      greedy: take the likeliest tokens.

    Raises:
      InputError: a prompt is longer than `max_prompt_tokens`, or holds an id
        that the policy has no row for. Or the steps that a request begins with
        leave no room for one of the policy. Or two questions have one id, which
        random streams and results go by.
      NonFiniteRollout: a sampled token's log-prob or entropy is not finite.
    """
    check_query_ids([request.query for request in requests])
    for request in requests:
      self._check_prompt(request)
      self._check_prefix(request)
    if self._forks is not None:
      self._check_groups(self._forks, requests)
    how: dict[str, Any] = {"seed": seed, "update": update, "greedy": greedy}
    if self._shares is None:
      trajectories, stats = self._roll_out(model, requests, **how)
    else:
      # Rollouts that fork have slots of one part.
      whole = self._forks is not None
      dealt = self._shares.dealt(requests, whole=whole)
      parts = tuple([requests[n] for n in numbers] for numbers in dealt)
      found = self._roll_out_share(model, hosts.PerHost(parts), **how)
      assert found is not None  # Only where this host follows.
      stats = RolloutStats.side_by_side([own for _, own in found])
      by_number = {
        number: trajectory
        for numbers, (own, _) in zip(dealt, found, strict=True)
        for number, trajectory in zip(numbers, own, strict=True)
      }
      trajectories = [by_number[number] for number in range(len(requests))]
    finite.check_finite(trajectories, self._config.dtype)
    return trajectories, stats

  @hosts.led
  def _roll_out_share(
    self,
    model: Decoder,
    requests: Any,
    **how: Any,
  ) -> list[tuple[list[Trajectory], RolloutStats]] | None:
    """One host's trajectories; what `hosts.gather` gives for those of all."""
    return hosts.gather(self._roll_out(model, requests, **how))

  def _roll_out(
    self,
    model: Decoder,
    requests: Sequence[RolloutRequest],
    *,
    seed: int,
    update: int,
    greedy: bool,
  ) -> tuple[list[Trajectory], RolloutStats]:
    """Trajectories of this host's loop."""
    began = time.perf_counter()
    programs = self._start(model, seed=seed, update=update, greedy=greedy)
    with contextlib.ExitStack() as stack:
      calls = stack.enter_context(contextlib.closing(self._runner.session()))
      between: BetweenSession | None = None
      if self._between is not None:
        between = self._between.session(calls.changed)
        stack.enter_context(contextlib.closing(between))
      loop = Loop(
        *(self._setup, programs, calls, between, self._forks),
        seed=seed,
        update=update,
      )
      trajectories, stats = loop.run(requests)
    programs.finish()
    if isinstance(programs, JointPrograms):
      stats.seconds = time.perf_counter() - began
      # By its own clock: what the loop waits for holds other hosts' turns.
      stats.decode_seconds = programs.decode_seconds
      stats.cache_seconds = programs.cache_seconds
      stats.hosts_seconds = programs.waited_seconds
    return trajectories, stats

  def _start(
    self, model: Decoder, *, seed: int, update: int, greedy: bool
  ) -> Programs | JointPrograms:
    """Empty slots, as this host's loop sees them."""
    programs = self._device_side.start(
      model, seed=seed, update=update, greedy=greedy
    )
    if self._shares is None:
      return programs
    assert self._mesh is not None
    return JointPrograms(
      programs,
      self._setup.config,
      self._shares,
      self._mesh,
      prompt_width=self._prompt_width,
    )

  @hosts.led
  def compile(self, model: Decoder, *, seed: int) -> None:
    """Compiles what a rollout runs: on slots in which nothing starts.

    The buffer is asked once, too.

    Args:
      model: as for `rollout`.
      seed: of the rollouts to come.
    """
    config, parts = self._setup.config, self._setup.slot_parts
    programs = self._start(model, seed=seed, update=0, greedy=False)
    if self._shares is not None and not self._shares.own:
      programs.finish()
      return
    programs.prefill(*empty_prompts(config, self._prompt_width))
    programs.admit(*empty_admission(config))
    programs.insert(*empty_insert(config, parts))
    # Forks copy slots, and so do the twins of retrievals that are probed.
    if self._forks is not None or self._between is not None:
      programs.fork(*empty_fork(config, parts))
    programs.decode()
    # Parts lie on devices of their own.
    for part in range(parts):
      first = part * (config.num_slots // parts)
      programs.contents(rows_to_read(config) + np.int32(first))
    programs.finish()
    if isinstance(self._between, RetrievalHook):
      self._between.compile()

  def _check_groups(
    self, rule: ForkRule, requests: Sequence[RolloutRequest]
  ) -> None:
    """Refuses questions whose rollouts cannot fork by the rule."""
    indices: dict[int, list[int]] = {}
    for request in requests:
      indices.setdefault(request.group_id, []).append(request.index)
      if request.hybrid:
        raise InputError(
          "rollouts that fork do not retrieve, got a hybrid request: set "
          "num_hybrid to 0."
        )
    there = self._config.num_slots // self._setup.slot_parts
    for own in indices.values():
      leaves = len(own)
      if sorted(own) != list(range(leaves)):
        raise InputError(
          "the rollouts of a question that may fork have the indices from 0 "
          f"on, got {sorted(own)}: number them."
        )
      check_forks(rule, leaves, there)

  def _check_prompt(self, request: RolloutRequest) -> None:
    prompt, question = request.prompt_tokens, request.query.query_id
    if len(prompt) > self._config.max_prompt_tokens:
      raise InputError(
        f"a prompt holds at most {self._config.max_prompt_tokens} tokens "
        f"(max_prompt_tokens), that of question {question!r} has "
        f"{len(prompt)}: raise the limit or drop the question."
      )
    if not len(prompt):
      raise InputError(
        f"a prompt holds at least one token, that of question {question!r} "
        "has none: correct the chat template."
      )
    rows = len(self._eos)
    # An id beyond them would be read as another one, without an error.
    beyond = prompt[(prompt < 0) | (prompt >= rows)]
    if len(beyond):
      raise InputError(
        f"a prompt holds ids from 0 to {rows - 1}, one for each row of the "
        f"embedding, that of question {question!r} has {int(beyond[0])}: "
        "encode it with the tokenizer of the policy."
      )

  def _check_prefix(self, request: RolloutRequest) -> None:
    steps, config = request.prefix, self._config
    count = sum(map(len, steps))
    if steps and (
      count >= config.max_response_tokens
      or len(steps) > config.max_tool_calls
      or not all(map(len, steps))
      or self._forks is not None
    ):
      raise InputError(
        f"a rollout begins with at most {config.max_tool_calls} steps "
        "(max_tool_calls), none of them empty, of fewer tokens than "
        f"max_response_tokens ({config.max_response_tokens}), and does not "
        f"fork, got {len(steps)} steps of {count} tokens: cut them."
      )


def check_forks(rule: ForkRule, leaves: int, num_slots: int) -> None:
  """Checks that the rollouts of a question can fork by a rule.

  Args:
    rule: of the forks.
    leaves: rollouts of the question in the end.
    num_slots: slots of a device.

  Raises:
    InputError: the rule does not give this number of leaves, or needs more
      slots.
  """
  if not 1 <= rule.roots(leaves) <= leaves or rule.slots(leaves) > num_slots:
    raise InputError(
      f"a question of {leaves} rollouts needs {rule.slots(leaves)} slots "
      f"at a time and begins {rule.roots(leaves)} of them at its prompt by "
      f"{rule!r}; a device has {num_slots} slots: raise rollout.num_slots, or "
      "correct the rule."
    )


class TokenizerParts(NamedTuple):
  """What an engine reads of a tokenizer.

  Attributes:
    vocabulary: bytes of each token, for each row of the embedding.
    ends: tokens that end a turn.
    encode: of tools' texts and retrieved steps, in which nothing becomes a
      control token.
    observation: writes tools' results.
  """

  vocabulary: list[bytes]
  ends: list[int]
  encode: TextEncoder
  observation: ObservationEncoder


def read_tokenizer(
  tokenizer: Any,
  config: RolloutConfig,
  tag_set: tools_lib.TagSet,
  vocab_size: int,
  end_ids: Iterable[int] | None = None,
) -> TokenizerParts:
  """Reads what an engine needs of a tokenizer.

  Args:
    tokenizer: a Hugging Face tokenizer.
    config: of the rollout.
    tag_set: tags of the agent.
    vocab_size: rows of the embedding.
    end_ids: see `turn_end_ids`.

  Raises:
    InputError: it has more tokens than rows, ends no turn, or its tokens do not
      add up to text; or a result does not fit `max_tool_tokens`.
  """
  check_vocabulary(tokenizer, vocab_size)
  ends = turn_end_ids(tokenizer, end_ids, vocab_size)
  vocabulary = automaton_lib.token_bytes(tokenizer, vocab_size)
  encode = TextEncoder(tokenizer, tag_set)
  observation = ObservationEncoder(
    tag_set,
    encode,
    tokenizer,
    max_tokens=config.max_tool_tokens,
    longest_token=max(map(len, vocabulary)),
  )
  return TokenizerParts(vocabulary, ends, encode, observation)


def turn_end_ids(
  tokenizer: Any, named: Iterable[int] | None, vocab_size: int
) -> list[int]:
  """Tokens that end a turn: by tokenizer, chat template and model files.

  Padding is not one of them.

  Args:
    tokenizer: a Hugging Face tokenizer.
    named: those of the model's files (`models.end_token_ids`); None reads those
      in the folder that the tokenizer is from, or in the hub's cache.
    vocab_size: rows of the embedding.

  Raises:
    InputError: no token ends a turn, or one has no row in the embedding. Or a
      file of the model is broken.
  """
  if named is None:
    name = tokenizer.name_or_path
    folder = hub.cached_folder(name) if name else None
    named = end_token_ids(folder) if folder else ()
  ids = {*tokenizer_end_ids(tokenizer), *named}
  if not ids:
    raise InputError(
      "a policy must have a token that ends its turn, and neither the "
      "tokenizer (eos_token), its chat template nor the model's "
      "generation_config.json (eos_token_id) names one: set eos_token."
    )
  if not all(0 <= token_id < vocab_size for token_id in ids):
    raise InputError(
      f"tokens that end a turn must have ids from 0 to {vocab_size - 1}, one "
      f"for each row of the embedding, got {sorted(ids)}: correct "
      "eos_token_id in the model's config.json and generation_config.json."
    )
  return sorted(ids)


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
