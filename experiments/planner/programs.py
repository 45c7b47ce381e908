"""The programs of one RAPO update, with arguments that take no memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import ExperimentConfig
from rapo_jax import models
from rapo_jax.models import KV_BLOCK, sharding
from rapo_jax.rollout import sampler
from rapo_jax.training import (
  PackedBatch,
  TrainState,
  make_optimizer,
  update_minibatch,
)

ROWS = ("data", "fsdp")
# States of the stop automaton of a few tags of some ten bytes each.
_STOP_STATES = 64


@dataclasses.dataclass(frozen=True)
class Workload:
  """What trajectories are assumed to be like, for lack of a run.

  Attributes:
    policy_tokens: written by the policy in a trajectory, on average.
    tool_calls: in a trajectory, on average.
    tool_tokens: of one tool result, on average.
  """

  policy_tokens: int
  tool_calls: float
  tool_tokens: int


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function and what it is compiled for.

  Attributes:
    name: short.
    function: jitted.
    args: abstract, each array with its sharding.
    kwargs: static arguments and abstract ones.
    is_weight: for each array of `args`, whether it is a weight of the model.
    trips: how often loops of unknown length run, from the outermost inwards.
    calls: how often it runs in one RAPO update.
  """

  name: str
  function: Any
  args: tuple[Any, ...]
  kwargs: dict[str, Any]
  is_weight: list[bool]
  trips: tuple[float, ...]
  calls: float


class Programs:
  """Builds the programs of an experiment for a mesh.

  Args:
    config: the experiment.
    shape: of the policy.
    mesh: attached or not.
    workload: what trajectories are like.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    shape: models.DecoderConfig,
    mesh: Mesh,
    workload: Workload,
  ):
    self._config = config
    self._mesh = mesh
    self._workload = workload
    rollout = config.rollout
    self.prompt_width = _round_up(rollout.max_prompt_tokens, KV_BLOCK)
    self.max_length = _round_up(
      rollout.max_prompt_tokens + rollout.max_response_tokens, KV_BLOCK
    )
    lora = config.policy.lora
    # A frozen base has the dtype of rollouts, its adapters float32.
    held = dataclasses.replace(
      shape, lora=lora, dtype=rollout.dtype if lora else "float32"
    )
    self.train_model = self._model(held, None, sharding.TRAIN_RULES)
    self.rollout_model = self._model(
      held, rollout.dtype, sharding.ROLLOUT_RULES
    )
    self.opt_state = self._opt_state()
    self.slots = self._slots()
    self.sequences = config.update.queries_per_update * rollout.num_generations

  @property
  def sequence_tokens(self) -> float:
    """Tokens of an average trajectory, prompt included."""
    work = self._workload
    return (
      self._config.rollout.max_prompt_tokens / 2
      + work.policy_tokens
      + work.tool_calls * work.tool_tokens
    )

  @property
  def head_chunks(self) -> int:
    """Chunks of policy tokens in a micro-batch, on one device."""
    update = self._config.update
    tokens = update.rows_per_microbatch * update.row_length / _size(self._mesh)
    policy = self._workload.policy_tokens / self.sequence_tokens
    return math.ceil(policy * tokens / update.head_chunk)

  @property
  def waves(self) -> int:
    """How often all slots are filled in one update."""
    return math.ceil(self.sequences / self._config.rollout.num_slots)

  def __iter__(self) -> Iterator[Program]:
    yield self._prefill()
    yield self._decode()
    yield self._insert()
    yield self._log_probs()
    yield self._update()
    yield self._reshard()

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

  def _slots(self) -> Any:
    state = jax.eval_shape(
      lambda model: sampler.init_slots(
        model, self._config.rollout.num_slots, self.max_length
      ),
      self.rollout_model,
    )
    return sampler.SlotState(
      self._cache(state.cache, ROWS),
      *(self._array(x.shape, x.dtype, ROWS) for x in state[1:]),
    )

  def _cache(self, cache: Any, rows: Any) -> Any:
    return jax.tree.map(
      lambda x: self._array(x.shape, x.dtype, None, None, rows, "tensor"),
      cache,
    )

  def _batch(self, microbatches: int) -> PackedBatch:
    update = self._config.update
    shape = (microbatches, update.rows_per_microbatch, update.row_length)

    def rows(dtype: Any) -> Any:
      return self._array(shape, dtype, None, ROWS)

    return PackedBatch(
      tokens=rows(jnp.int32),
      segment_ids=rows(jnp.int32),
      where=rows(jnp.bool_),
      old_log_probs=rows(jnp.float32),
      advantages=rows(jnp.float32),
      retrieved_fraction=rows(jnp.float32),
      weights=rows(jnp.float32),
      num_microbatches=self._array((), jnp.int32),
    )

  # Programs.

  def _prefill(self) -> Program:
    rollout = self._config.rollout
    rows = rollout.prefill_rows
    over = ROWS if rows % _size(self._mesh) == 0 else None
    cache = jax.eval_shape(
      lambda model: sampler.init_prompt_cache(model, rows, self.prompt_width),
      self.rollout_model,
    )
    return self._program(
      "prefill",
      sampler.prefill,
      self.rollout_model,
      self._cache(cache, over),
      self._array((rows, self.prompt_width), jnp.int32, over),
      self._array((rows,), jnp.int32, over),
      attend_length=self.prompt_width,
      chunk=rollout.insert_chunk,
      trips=(
        math.ceil(self.prompt_width / rollout.insert_chunk),
        self.prompt_width / KV_BLOCK / 2,
      ),
      calls=math.ceil(self._config.update.queries_per_update / rows),
    )

  def _decode(self) -> Program:
    rollout = self._config.rollout
    vocabulary = self.rollout_model.config.vocab_size
    return self._program(
      "decode",
      sampler.decode,
      self.rollout_model,
      self.slots,
      self._array((_STOP_STATES, vocabulary), jnp.int8),
      self._array((vocabulary,), jnp.bool_),
      jax.tree.map(
        lambda x: self._array((), x.dtype), sampler.sampling(rollout)
      ),
      num_tokens=rollout.decode_chunk,
      attend_length=self.max_length,
      trips=(rollout.decode_chunk, self.sequence_tokens / KV_BLOCK),
      calls=self.waves
      * math.ceil(self._workload.policy_tokens / rollout.decode_chunk),
    )

  def _insert(self) -> Program:
    rollout = self._config.rollout
    slots = rollout.num_slots
    return self._program(
      "insert",
      sampler.insert,
      self.rollout_model,
      self.slots,
      self._array((slots, rollout.max_response_tokens), jnp.int32, ROWS),
      self._array((slots,), jnp.int32, ROWS),
      self._array((slots,), jnp.int32, ROWS),
      attend_length=self.max_length,
      chunk=rollout.insert_chunk,
      trips=(
        math.ceil(self._workload.tool_tokens / rollout.insert_chunk),
        self.sequence_tokens / KV_BLOCK,
      ),
      calls=self.waves * self._workload.tool_calls,
    )

  def _log_probs(self) -> Program:
    update, rollout = self._config.update, self._config.rollout
    batch = self._batch(1)
    shape = batch.tokens.shape[1:]
    rows = {
      name: self._array(shape, dtype, ROWS)
      for name, dtype in (
        ("tokens", jnp.int32),
        ("where", jnp.bool_),
        ("segment_ids", jnp.int32),
      )
    }
    function = jax.jit(
      lambda model, tokens, where, segment_ids: models.token_log_probs(
        model.astype(rollout.dtype),
        tokens,
        where=where,
        temperature=rollout.temperature,
        segment_ids=segment_ids,
        remat=update.remat,
        head_chunk=update.head_chunk,
      )
    )
    # The sampler's own log-probs are the old ones: nothing is scored twice.
    return self._program(
      "log-probs",
      function,
      self.train_model,
      *rows.values(),
      trips=(self.head_chunks,),
      calls=0,
    )

  def _update(self) -> Program:
    config, update = self._config, self._config.update
    trajectories = update.queries_per_minibatch * config.rollout.num_generations
    rows = trajectories * self.sequence_tokens / update.row_length
    capacity = math.ceil(trajectories / update.rows_per_microbatch)
    return self._program(
      "update",
      update_minibatch,
      TrainState(self.train_model, self.opt_state),
      self._batch(capacity),
      objective=config.objective,
      optimizer=config.optimizer,
      temperature=config.rollout.temperature,
      dtype=config.rollout.dtype,
      remat=update.remat,
      head_chunk=update.head_chunk,
      trips=(math.ceil(rows / update.rows_per_microbatch), self.head_chunks),
      calls=update.epochs
      * update.queries_per_update
      // update.queries_per_minibatch,
    )

  def _reshard(self) -> Program:
    return self._program(
      "reshard",
      sharding.place_on_mesh,
      self.train_model,
      dtype=self._config.rollout.dtype,
      rules=tuple(sharding.ROLLOUT_RULES.items()),
      # A frozen base is moved once a run, and its adapters are next to nothing.
      calls=0 if self._config.policy.lora else 1,
    )

  def _program(
    self,
    name: str,
    function: Any,
    *args: Any,
    trips: tuple[float, ...] = (),
    calls: float,
    **kwargs: Any,
  ) -> Program:
    first = args[0].model if isinstance(args[0], TrainState) else args[0]
    weights = len(jax.tree.leaves(first))
    others = len(jax.tree.leaves(args)) - weights
    return Program(
      name=name,
      function=function,
      args=args,
      kwargs=kwargs,
      is_weight=[True] * weights + [False] * others,
      trips=trips,
      calls=calls,
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


def _size(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in ROWS)


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
