"""The programs of an experiment, with arguments that take no memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import ExperimentConfig
from experiments.planner import host_loop
from experiments.stages.buffer import QUERIES_AT_A_TIME
from rapo_jax import models
from rapo_jax.algorithms import Algorithm
from rapo_jax.errors import InputError
from rapo_jax.models import KV_BLOCK, sharding
from rapo_jax.ranges import check_numbers
from rapo_jax.rollout import programs, sampler
from rapo_jax.training import (
  PackedBatch,
  TrainState,
  empty_batch,
  make_optimizer,
  packed_columns,
  score_proximal,
  score_reference,
  update_minibatch,
)

ROWS = ("data", "fsdp")
# What a method holds through its rollouts.
_STATE = ("parameters", "optimizer", "reference")
# States of the stop automaton of a few tags of some ten bytes each.
_STOP_STATES = 64


@dataclasses.dataclass(frozen=True)
class Workload:
  """What trajectories are assumed to be like, for lack of a run.

  Attributes:
    policy_tokens: written by the policy in a trajectory, on average.
    tool_calls: in a trajectory, on average.
    tool_tokens: of a tool's result; results are taken to be of one length.
    longest_response: tokens of the longest response of a rollout. Slots go on
      until it is done. Attention reads the caches of all slots as far as the
      longest one has come.
    host_ms: milliseconds of a host's loop for a trajectory.
    retrieval_ms: of embedding and searching for one, on average over all; 0
      where the method does not retrieve.
    leader_ms: in which one host scores and packs it.
  """

  policy_tokens: int
  tool_calls: float
  tool_tokens: int
  longest_response: int
  host_ms: float = host_loop.LOOP_MS
  retrieval_ms: float = host_loop.RETRIEVAL_MS
  leader_ms: float = host_loop.LEADER_MS

  def __post_init__(self) -> None:
    check_numbers(self, "policy_tokens", "longest_response", at_least=1)
    check_numbers(self, "tool_calls", "tool_tokens", at_least=0)
    check_numbers(self, "host_ms", "retrieval_ms", "leader_ms", at_least=0)
    if self.longest_response < self.response_tokens:
      raise InputError(
        "longest_response must be at least the mean response, policy_tokens + "
        f"tool_calls * tool_tokens ({self.response_tokens:g}), got "
        f"{self.longest_response}: raise it, or lower those."
      )

  @property
  def response_tokens(self) -> float:
    """Of an average trajectory."""
    return self.policy_tokens + self.tool_calls * self.tool_tokens


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function and its arguments.

  Attributes:
    name: short.
    phase: of the experiment that it belongs to.
    function: jitted.
    args: abstract, each array with its sharding.
    kwargs: static arguments and abstract ones.
    is_weight: for each array of `args`, whether it is a weight of the model.
    trips: how often loops of unknown length run, from the outermost inwards.
    calls: how often it runs in one round.
    copies: devices that each do the same work, for rows that the mesh does not
      divide.
    beside_bytes: on one device, of what is alive while it runs and is not
      among its arguments.
  """

  name: str
  phase: Literal["rollout", "update"]
  function: Any
  args: tuple[Any, ...]
  kwargs: dict[str, Any]
  is_weight: list[bool]
  trips: tuple[float, ...]
  calls: float
  beside_bytes: int
  copies: int = 1


class Programs:
  """Builds the programs of an experiment for a mesh.

  One round of an agent that is trained is an update: a rollout and the
  minibatch updates on it. One round of another is a rollout on one batch of
  the questions that fill the buffer.

  Args:
    config: the experiment.
    shape: of the agent.
    mesh: attached or not.
    workload: what trajectories are like.
    algorithm: that the agent is trained with; None if it is not trained.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    shape: models.DecoderConfig,
    mesh: Mesh,
    workload: Workload,
    algorithm: Algorithm | None,
  ):
    self._config = config
    self._mesh = mesh
    self._workload = workload
    self._algorithm = algorithm
    rollout = config.rollout
    self.prompt_width = _round_up(rollout.max_prompt_tokens, KV_BLOCK)
    self.max_length = _round_up(
      rollout.max_prompt_tokens + rollout.max_response_tokens, KV_BLOCK
    )
    lora = config.policy.lora if algorithm else None
    # A frozen base has the dtype of rollouts, its adapters float32.
    held = dataclasses.replace(
      shape, lora=lora, dtype=rollout.dtype if lora else "float32"
    )
    self._rollout_model = self._model(
      held, rollout.dtype, sharding.ROLLOUT_RULES
    )
    self._slots = self._slot_state()
    self._prompts = self._prompt_state()
    self._tables = self._decoding_tables()
    self._reference: Any = None
    if algorithm:
      self._objective = algorithm.settings(config.objective)
      self.train_model = self._model(held, None, sharding.TRAIN_RULES)
      self._optimizer_state = self._opt_state()
      if self._objective.kl_coef and lora is None:
        self._reference = self.train_model
      self._queries = config.update.queries_per_update
      group = rollout.num_generations
    else:
      self._queries = QUERIES_AT_A_TIME
      group = config.buffer.num_trajectories
    self.sequences = self._queries * group
    self.memory = self._memory()

  def _memory(self) -> dict[str, int]:
    """Bytes on one device of all that stays between programs, by kind."""
    cache, *records = self._slots
    trained = (
      {
        "parameters": device_bytes(self.train_model),
        "optimizer": device_bytes(self._optimizer_state),
      }
      if self._algorithm
      else {}
    )
    if self._reference is not None:
      trained["reference"] = device_bytes(self._reference)
    return trained | {
      "rollout parameters": device_bytes(self._rollout_model),
      "KV cache": device_bytes(cache),
      "KV cache of prompts": device_bytes(self._prompts[0]),
      "tokens and tables": device_bytes((records, self._tables)),
    }

  @property
  def sequence_tokens(self) -> float:
    """Tokens of an average trajectory, prompt included."""
    prompt = self._config.rollout.max_prompt_tokens / 2
    return prompt + self._workload.response_tokens

  @property
  def assumptions(self) -> dict[str, float]:
    """What is assumed of a trajectory, by name."""
    values = dataclasses.asdict(self._workload)
    hybrid = self._algorithm is not None and self._algorithm.plan.hybrid
    if not hybrid or not self._config.rollout.num_hybrid:
      values["retrieval_ms"] = 0.0
    return values | {"sequence_tokens": self.sequence_tokens}

  @property
  def minibatch_trajectories(self) -> int:
    """Trajectories of one minibatch: its most rows, if none shares a row."""
    update = self._config.update
    return update.queries_per_minibatch * self._config.rollout.num_generations

  @property
  def head_chunks(self) -> int:
    """Chunks of policy tokens in a micro-batch, on one device."""
    update = self._config.update
    tokens = (
      update.rows_per_microbatch
      * update.row_length
      / sharding.row_parts(self._mesh)
    )
    trajectories = tokens / update.row_length * self._row_trajectories
    policy = self._workload.policy_tokens * trajectories
    return math.ceil(policy / update.head_chunk)

  @property
  def _row_trajectories(self) -> float:
    """Trajectories in a full row, which holds their prompt once."""
    length = self._config.update.row_length
    if not self._share_prompts:
      return length / self.sequence_tokens
    response = self._workload.response_tokens
    prompt = self.sequence_tokens - response
    group = self._config.rollout.num_generations
    # A row that holds several groups has a prompt for each.
    groups = max(length / (prompt + group * response), 1.0)
    return (length - groups * prompt) / response

  @property
  def _share_prompts(self) -> bool:
    with sharding.use_mesh(self._mesh):
      return models.reads_prefixes(self.train_model.config.attention)

  @property
  def decode_calls(self) -> int:
    """Chunks that are decoded in a round.

    Slots are refilled as they come free, so all of them decode until no
    sequence waits any more; then the longest response has to end.
    """
    work, rollout = self._workload, self._config.rollout
    longest = work.policy_tokens + max(
      0, work.longest_response - work.response_tokens
    )
    fills = max(1.0, self.sequences / rollout.num_slots)
    tokens = (fills - 1) * work.policy_tokens + longest
    return math.ceil(tokens / rollout.decode_chunk)

  @property
  def insert_calls(self) -> int:
    """Inserts of a round: after each chunk, of the tools that answered in it.

    Answers are taken to come evenly, over the round and over the slots.
    """
    answers = math.ceil(self.sequences * self._workload.tool_calls)
    chunks = min(self.decode_calls, answers)
    arrays = programs.empty_insert(
      self._config.rollout, sharding.row_parts(self._mesh)
    )
    rows = arrays.slots.size
    return chunks * math.ceil(answers / (chunks * rows)) if chunks else 0

  @property
  def admit_calls(self) -> int:
    """Admissions: at first, and after chunks in which slots came free."""
    first = min(self.sequences, self._config.rollout.num_slots)
    later = min(self.decode_calls, self.sequences - first)
    return max(self._prefill_calls, 1 + later)

  @property
  def _prefill_calls(self) -> int:
    return math.ceil(self._queries / self._config.rollout.prefill_rows)

  def __iter__(self) -> Iterator[Program]:
    yield from self.phase("rollout")
    yield from self.phase("update")

  def phase(self, name: Literal["rollout", "update"]) -> Iterator[Program]:
    """The programs of one phase."""
    if name == "rollout":
      if self._algorithm:
        yield self._reshard()
      yield self._prefill()
      yield self._admit()
      yield self._decode()
      yield self._insert()
    elif self._algorithm:
      yield self._log_probs()
      if self._reads_proximal(self._algorithm):
        yield self._score_proximal(self._algorithm)
      if self._objective.kl_coef:
        yield self._score_reference(self._algorithm)
      yield self._update(self._algorithm)

  # Arguments.

  def _array(self, shape: tuple[int, ...], dtype: Any, *spec: Any) -> Any:
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(self._mesh, PartitionSpec(*spec))
    )

  def _model(
    self,
    config: models.DecoderConfig,
    dtype: str | None,
    rules: sharding.Rules,
  ) -> Any:
    def make() -> models.Decoder:
      model = models.Decoder(config, rngs=nnx.Rngs(0))
      return model if dtype is None else model.astype(dtype)

    abstract = jax.eval_shape(make)
    return _placed(abstract, sharding.shardings(abstract, self._mesh, rules))

  def _opt_state(self) -> Any:
    abstract = jax.eval_shape(
      make_optimizer(self._config.optimizer).init,
      models.trainable(self.train_model),
    )
    # Moments lie where their parameters lie.
    places = models.trainable(
      sharding.shardings(self.train_model, self._mesh, sharding.TRAIN_RULES)
    )

    def place(part: Any) -> Any:
      if isinstance(part, dict):
        return _placed(part, places)
      return self._array(part.shape, part.dtype)

    return jax.tree.map(place, abstract, is_leaf=lambda x: isinstance(x, dict))

  def _slot_state(self) -> sampler.SlotState:
    state = jax.eval_shape(
      lambda model: sampler.init_slots(
        model, self._config.rollout.num_slots, self.max_length
      ),
      self._rollout_model,
    )
    return sampler.SlotState(
      self._cache(state.cache, ROWS),
      *(self._array(x.shape, x.dtype, ROWS) for x in state[1:]),
    )

  def _prompt_state(self) -> tuple[Any, Any]:
    """Cache and arrays of the prompts that are prefilled together."""
    rows = self._config.rollout.prefill_rows
    over = ROWS if self._prompt_copies == 1 else None
    cache = jax.eval_shape(
      lambda model: sampler.init_prompt_cache(model, rows, self.prompt_width),
      self._rollout_model,
    )
    prompts = programs.empty_prompts(self._config.rollout, self.prompt_width)
    return self._cache(cache, over), self._rows(prompts, over)

  @property
  def _prompt_copies(self) -> int:
    parts = sharding.row_parts(self._mesh)
    return parts if self._config.rollout.prefill_rows % parts else 1

  def _decoding_tables(self) -> tuple[Any, Any]:
    vocabulary = self._rollout_model.config.vocab_size
    return (
      self._array((_STOP_STATES, vocabulary), jnp.int8),
      self._array((vocabulary,), jnp.bool_),
    )

  def _cache(self, cache: Any, rows: Any) -> Any:
    return jax.tree.map(
      lambda x: self._array(x.shape, x.dtype, None, None, rows, "tensor"),
      cache,
    )

  def _batch(self, microbatches: int, columns: Sequence[str]) -> PackedBatch:
    update = self._config.update
    share_prompts = self._share_prompts
    return self._placed_batch(
      jax.eval_shape(
        lambda: empty_batch(
          microbatches,
          row_length=update.row_length,
          rows_per_microbatch=update.rows_per_microbatch,
          columns=columns,
          share_prompts=share_prompts,
        )
      )
    )

  def _placed_batch(self, batch: PackedBatch) -> PackedBatch:
    placed: PackedBatch = jax.tree.map(
      lambda x: self._array(
        x.shape, x.dtype, *((None, ROWS) if x.ndim else ())
      ),
      batch,
    )
    return placed

  def _rows(self, arrays: Any, over: Any = ROWS) -> Any:
    """Abstract copies of host arrays, their first axis cut."""
    return jax.tree.map(
      lambda x: self._array(x.shape, x.dtype, over),
      jax.eval_shape(lambda: arrays),
    )

  # Programs.

  def _reshard(self) -> Program:
    return self._program(
      "reshard",
      sharding.place_on_mesh,
      self.train_model,
      dtype=self._config.rollout.dtype,
      rules=tuple(sharding.ROLLOUT_RULES.items()),
      calls=1,
      beside=("optimizer", "reference"),
    )

  def _prefill(self) -> Program:
    call = programs.prefill_call(
      self._rollout_model, *self._prompts, self._config.rollout
    )
    chunks = math.ceil(self.prompt_width / self._config.rollout.insert_chunk)
    return self._called(
      "prefill",
      call,
      # Each chunk reads the blocks up to its own end.
      trips=(chunks, self.prompt_width / KV_BLOCK * (chunks + 1) / 2 / chunks),
      calls=self._prefill_calls,
      beside=(*_STATE, "KV cache", "tokens and tables"),
      copies=self._prompt_copies,
    )

  def _admit(self) -> Program:
    arrays = programs.empty_admission(self._config.rollout)
    keys = jax.eval_shape(
      lambda: sampler.sequence_keys(
        0, jnp.int32(0), arrays.queries, arrays.indices
      )
    )
    call = programs.admit_call(
      self._slots, *self._prompts, self._rows(arrays), self._rows(keys)
    )
    return self._called(
      "admit",
      call,
      calls=self.admit_calls,
      beside=(*_STATE, "rollout parameters"),
    )

  def _decode(self) -> Program:
    rollout = self._config.rollout
    call = programs.decode_call(
      self._rollout_model,
      self._slots,
      self._tables,
      jax.tree.map(
        lambda x: self._array((), x.dtype), sampler.sampling(rollout)
      ),
      # Layers that are held apart are a matter of CPUs.
      None,
      rollout,
    )
    return self._called(
      "decode",
      call,
      trips=(rollout.decode_chunk, self._longest_blocks),
      calls=self.decode_calls,
      beside=(*_STATE, "KV cache of prompts"),
    )

  def _insert(self) -> Program:
    rollout = self._config.rollout
    arrays = programs.empty_insert(rollout, sharding.row_parts(self._mesh))
    call = programs.insert_call(
      self._rollout_model, self._slots, self._rows(arrays), rollout
    )
    return self._called(
      "insert",
      call,
      trips=(
        math.ceil(self._workload.tool_tokens / rollout.insert_chunk),
        self._longest_blocks,
      ),
      calls=self.insert_calls,
      beside=(*_STATE, "KV cache of prompts"),
    )

  @property
  def _longest_blocks(self) -> int:
    """Blocks of the cache up to the end of the longest sequence."""
    tokens = (
      self._config.rollout.max_prompt_tokens + self._workload.longest_response
    )
    return math.ceil(min(tokens, self.max_length) / KV_BLOCK)

  def _log_probs(self) -> Program:
    scoring = self._scoring
    dtype = scoring.pop("dtype")
    batch = self._batch(1, ())
    rows = {
      name: self._array(x.shape[1:], x.dtype, ROWS)
      for name, x in batch._asdict().items()
      if name in ("tokens", "where", "segment_ids", "prefix_ids")
      and x is not None
    }
    function = jax.jit(
      lambda model, rows: models.token_log_probs(
        model.astype(dtype), **rows, **scoring
      )
    )
    # The sampler's own log-probs are the old ones: nothing is scored twice.
    return self._program(
      "log-probs",
      function,
      self.train_model,
      rows,
      trips=(self.head_chunks,),
      calls=0,
      beside=("optimizer", "reference"),
      phase="update",
    )

  @staticmethod
  def _reads_proximal(algorithm: Algorithm) -> bool:
    """Whether a loss reads what is scored before the first minibatch."""
    return "proximal_log_probs" in algorithm.loss.columns

  def _score_proximal(self, algorithm: Algorithm) -> Program:
    return self._program(
      "proximal",
      score_proximal,
      self.train_model,
      self._minibatch(algorithm),
      **self._scoring,
      trips=self._update_trips,
      calls=self._update_calls // self._config.update.epochs,
      beside=("optimizer", "reference"),
      phase="update",
    )

  def _score_reference(self, algorithm: Algorithm) -> Program:
    copied = self._reference is not None
    return self._program(
      "reference",
      score_reference,
      self._reference if copied else self.train_model,
      self._minibatch(algorithm),
      **self._scoring,
      trips=self._update_trips,
      calls=self._update_calls,
      beside=(*(("parameters",) if copied else ()), "optimizer"),
      phase="update",
    )

  def _update(self, algorithm: Algorithm) -> Program:
    batch = self._minibatch(algorithm)
    scored = (
      (score_proximal, self._reads_proximal(algorithm)),
      (score_reference, self._objective.kl_coef > 0),
    )
    for score, needed in scored:
      if needed:
        function = functools.partial(score, **self._scoring)
        batch = self._placed_batch(
          jax.eval_shape(function, self.train_model, batch)
        )
    return self._program(
      "update",
      update_minibatch,
      TrainState(self.train_model, self._optimizer_state),
      batch,
      objective=self._objective,
      optimizer=self._config.optimizer,
      loss=algorithm.loss,
      **self._scoring,
      trips=self._update_trips,
      calls=self._update_calls,
      beside=("reference",),
      phase="update",
    )

  def _minibatch(self, algorithm: Algorithm) -> PackedBatch:
    """What the method's loss reads, with room for the worst case."""
    rows = self._config.update.rows_per_microbatch
    return self._batch(
      math.ceil(self.minibatch_trajectories / rows),
      packed_columns(algorithm),
    )

  @property
  def _update_trips(self) -> tuple[int, int]:
    """Micro-batches of a minibatch, and chunks of the head in each."""
    update = self._config.update
    rows = self.minibatch_trajectories / self._row_trajectories
    return math.ceil(rows / update.rows_per_microbatch), self.head_chunks

  @property
  def _update_calls(self) -> int:
    """Minibatches of a round."""
    update = self._config.update
    batches = update.queries_per_update // update.queries_per_minibatch
    return update.epochs * batches

  @property
  def _scoring(self) -> dict[str, Any]:
    """How the tokens of a minibatch are scored."""
    update, rollout = self._config.update, self._config.rollout
    return {
      "temperature": rollout.temperature,
      "dtype": rollout.dtype,
      "remat": update.remat,
      "head_chunk": update.head_chunk,
    }

  def _called(self, name: str, call: programs.Call, **about: Any) -> Program:
    return self._program(
      name, call.function, *call.args, **call.static, **about
    )

  def _program(
    self,
    name: str,
    function: Any,
    *args: Any,
    trips: tuple[float, ...] = (),
    calls: float,
    beside: tuple[str, ...] = (),
    phase: Literal["rollout", "update"] = "rollout",
    copies: int = 1,
    **kwargs: Any,
  ) -> Program:
    first = args[0].model if isinstance(args[0], TrainState) else args[0]
    weights = (
      len(jax.tree.leaves(first)) if isinstance(first, models.Decoder) else 0
    )
    others = len(jax.tree.leaves(args)) - weights
    return Program(
      name=name,
      phase=phase,
      function=function,
      args=args,
      kwargs=kwargs,
      is_weight=[True] * weights + [False] * others,
      trips=trips,
      calls=calls,
      copies=copies,
      # The off-policy agent has no training state.
      beside_bytes=sum(self.memory.get(kind, 0) for kind in beside),
    )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree's arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _placed(tree: Any, places: Any) -> Any:
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
