"""Every setting of an experiment, its default and its meaning.

A config file in `experiments/configs` builds one `ExperimentConfig`;
`--config.<path>=<value>` overrides any field. Defaults live here and in the
dataclasses that are imported here, nowhere else.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any, Literal

from experiments.health import HealthConfig
from experiments.metrics import TrackioConfig, WandbConfig
from rapo_jax.algorithms import Algorithm, find_algorithm, unique
from rapo_jax.data import PROMPT_DATE
from rapo_jax.discovery import KNOWN
from rapo_jax.errors import InputError
from rapo_jax.models import LoraConfig
from rapo_jax.ranges import check_multiple, check_numbers, check_seeds
from rapo_jax.retrieval import IndexConfig, Pooling, RetrievalConfig
from rapo_jax.retrieval.serving import remote
from rapo_jax.rollout import RolloutConfig, check_sampling
from rapo_jax.tasks import TASKS, DataSetTask, Task, by_name
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  SupervisedConfig,
  UpdateConfig,
)


def _check_named(config: Any, *names: str) -> None:
  """Refuses an empty path or address, which would mean the current folder."""
  for name in names:
    if getattr(config, name) == "":
      raise InputError(
        f"{name} must name something, got '': set it to none to leave it out."
      )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """How the questions of all tasks are asked.

  Attributes:
    seed: of the order in which questions are asked.
    prompt_date: day (YYYY-MM-DD) that a chat template which writes the date is
      given, whatever the day. So prompts are the same when a run goes on.
    leaks: what becomes of training questions that stand in an evaluation set
      of their task. They are counted and named in a warning ("warn"), left out
      ("drop"), or refused ("refuse").
  """

  seed: int = 0
  prompt_date: str = PROMPT_DATE.isoformat()
  leaks: Literal["warn", "drop", "refuse"] = "warn"

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    try:
      datetime.date.fromisoformat(self.prompt_date)
    except ValueError as error:
      raise InputError(
        "prompt_date must be a day as YYYY-MM-DD, got "
        f"{self.prompt_date!r}: {error}."
      ) from error


@dataclasses.dataclass(frozen=True)
class RandomModelConfig:
  """Shape of the randomly initialised Qwen2 model, for smoke tests.

  Attributes:
    vocab_size: of the byte-level BPE tokenizer trained on the questions.
    hidden_size: width.
    intermediate_size: width of the feed-forward layers.
    num_layers: layers.
    num_heads: attention heads.
    num_kv_heads: key-value heads.
    seed: of the weights.
  """

  vocab_size: int = 2048
  hidden_size: int = 64
  intermediate_size: int = 128
  num_layers: int = 2
  num_heads: int = 4
  num_kv_heads: int = 2
  seed: int = 0

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    # 256 bytes and the special tokens.
    check_numbers(self, "vocab_size", at_least=260)
    check_numbers(
      self,
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      at_least=1,
    )
    # The rotary embedding turns pairs of a head's entries.
    check_multiple(self, "hidden_size", 2 * self.num_heads, "2 * num_heads")
    check_multiple(self, "num_heads", self.num_kv_heads, "num_kv_heads")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """Which agents are used.

  Attributes:
    base: the base agent: a Hugging Face folder, or a model's name on the hub.
      None: the task's own agents (`Task.own_agents`), randomly initialised
      (`random`) where it has none.
    off_policy: the off-policy agent, which fills the buffer. None: made as
      the base agent is, or left out beside a base agent that is named.
    random: shape of the randomly initialised model.
    chat_template: file of a chat template that the policy's prompts are written
      with; None for that of its tokenizer.
    enable_thinking: value of the variable of this name in the chat templates
      of both agents, as Qwen3's have it; None for the template's own default.
    lora: adapters that are trained beside the base agent, which is then frozen
      and held in `rollout.dtype`; None trains all parameters.
  """

  base: str | None = None
  off_policy: str | None = None
  random: RandomModelConfig = RandomModelConfig()
  chat_template: str | None = None
  enable_thinking: bool | None = None
  lora: LoraConfig | None = None

  def __post_init__(self) -> None:
    _check_named(self, "base", "off_policy", "chat_template")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices share the work.

  Attributes:
    data: copies of the weights, each with rows of its own.
    fsdp: slices of the weights and of the rows; None for all devices that the
      other two leave.
    tensor: slices of the heads, the feed-forward layer and the vocabulary.
  """

  data: int = 1
  fsdp: int | None = None
  tensor: int = 1

  def __post_init__(self) -> None:
    check_numbers(self, "data", "fsdp", "tensor", at_least=1)

  def shape(self, num_devices: int) -> dict[str, int]:
    """Sizes of the three axes.

    Raises:
      InputError: they do not use all devices.
    """
    fsdp = self.fsdp or max(1, num_devices // (self.data * self.tensor))
    shape = {"data": self.data, "fsdp": fsdp, "tensor": self.tensor}
    if math.prod(shape.values()) != num_devices:
      raise InputError(
        f"mesh.data * mesh.fsdp * mesh.tensor must be the number of devices "
        f"({num_devices}), got {self.data} * {fsdp} * {self.tensor}: leave "
        "mesh.fsdp unset and let data * tensor divide it."
      )
    return shape


@dataclasses.dataclass(frozen=True)
class PythonToolConfig:
  """The python tool.

  Attributes:
    timeout_s: wall-clock deadline of one call.
    memory_bytes: address space of one call.
    output_bytes: output kept of one call.
    trust_code: run programs with limits alone where this machine allows no
      namespaces; they can then read what the user of this process can read.
  """

  timeout_s: float = 5.0
  memory_bytes: int = 512 * 1024 * 1024
  output_bytes: int = 4096
  trust_code: bool = False

  def __post_init__(self) -> None:
    # A million: the system's timers count milliseconds in 32 bits.
    check_numbers(self, "timeout_s", above=0, at_most=1e6, unit="seconds")
    # The interpreter alone needs as much.
    check_numbers(self, "memory_bytes", at_least=64 * 2**20, at_most=2**63 - 1)
    check_numbers(self, "output_bytes", at_least=1)


@dataclasses.dataclass(frozen=True)
class ToolsConfig:
  """The tools.

  Attributes:
    search_top_k: documents that one search returns.
    python: limits of the programs, and what keeps them in.
  """

  search_top_k: int = 1
  python: PythonToolConfig = PythonToolConfig()

  def __post_init__(self) -> None:
    check_numbers(self, "search_top_k", at_least=1)


@dataclasses.dataclass(frozen=True)
class GrowConfig:
  """How the policy's own successes are added to a run's buffer.

  After each update the trajectories that retrieved nothing and whose reward is
  above `min_reward` are cut into steps; these can be retrieved in the next.
  The paper's buffer does not grow.

  Attributes:
    top_k_trajectories: most of them that are added for one question and
      update, the best first.
    min_reward: a trajectory's reward must be above it.
    merge_every: updates between two builds of one index over everything. Until
      then what was added is compared one by one.
  """

  top_k_trajectories: int = 1
  min_reward: float = 0.0
  merge_every: int = 50

  def __post_init__(self) -> None:
    check_numbers(self, "top_k_trajectories", "merge_every", at_least=1)
    check_numbers(self, "min_reward")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """What embeds keys of the buffer and documents of the search tool.

  Attributes:
    path: folder of a sentence-transformers BERT model; None for
      all-MiniLM-L6-v2 from its package.
    pooling: how token states become one vector; None for what the folder says.
    key_prefix: in front of keys and documents, "passage: " for e5; None for
      the folder's prompt.
    query_prefix: in front of waiting histories and search queries, "query: "
      for e5; None for the folder's prompt.
    dtype: of weights and computation.
  """

  path: str | None = None
  pooling: Pooling | None = None
  key_prefix: str | None = None
  query_prefix: str | None = None
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self) -> None:
    _check_named(self, "path")


@dataclasses.dataclass(frozen=True)
class BufferConfig:
  """How the Step-Trace Buffer is built, or where it is.

  Attributes:
    path: folder of one that is there (`experiments.buffer`), for all tasks;
      None for one that the run builds itself, with the numbers below.
    url: of a server of one (`experiments.serve_index`), for all tasks.
    num_trajectories: off-policy trajectories a question, N.
    top_k_trajectories: of which the best are kept, K.
    seed: of their sampling.
    grow: how each run adds to it while it trains; None leaves it as it is.
  """

  path: str | None = None
  url: str | None = None
  num_trajectories: int = 16
  top_k_trajectories: int = 5
  seed: int = 0
  grow: GrowConfig | None = None

  def __post_init__(self) -> None:
    if self.url is not None:
      remote.check_url(self.url)
    check_seeds(self, "seed")
    check_numbers(self, "num_trajectories", "top_k_trajectories", at_least=1)
    _check_named(self, "path", "url")
    if self.path is not None and self.url is not None:
      raise InputError(
        f"A buffer is in a folder or with a server, got the path {self.path!r}"
        f" and the url {self.url!r}: set one of them to None."
      )
    if self.url is not None and self.grow is not None:
      raise InputError(
        f"A buffer that a server holds does not grow, got the url {self.url!r}"
        " and grow: set one of them to None."
      )
    if self.top_k_trajectories > self.num_trajectories:
      raise InputError(
        "top_k_trajectories must be at most num_trajectories "
        f"({self.num_trajectories}), got {self.top_k_trajectories}: lower it."
      )


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """Supervised learning of the base agent before runs train it.

  Attributes:
    training: steps, optimizer and batches. A row holds whole examples; those
      that are longer are left out.
    source: "solutions" are the task's worked solutions (`Task.solutions`).
      "buffer" are the whole trajectories of the Step-Trace Buffer with a reward
      above `retrieval.min_reward`.
    lora: adapters that are trained and then merged into the base agent, which
      is frozen and held in `rollout.dtype`; None trains all parameters.
    retrieved_share: share of the examples that may hold retrieved steps.
      Without any, a policy does not learn to use them.
    retrieved_prob: in those, probability of one at a boundary.
    held_out: questions with a demonstration that are kept apart for the loss.
    eval_every: steps between two measurements of that loss.
    checkpoint_every: steps between two checkpoints.
    seed: of the order of examples, retrieved steps and fresh adapters.
  """

  training: SupervisedConfig = SupervisedConfig(
    num_steps=60,
    learning_rate=1e-4,
    warmup_steps=6,
    rows=16,
    row_length=512,
    rows_per_microbatch=4,
  )
  source: Literal["solutions", "buffer"] = "solutions"
  lora: LoraConfig | None = None
  retrieved_share: float = 0.5
  retrieved_prob: float = 0.4
  held_out: int = 64
  eval_every: int = 20
  checkpoint_every: int = 20
  seed: int = 0

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    check_numbers(self, "held_out", at_least=0)
    check_numbers(self, "eval_every", "checkpoint_every", at_least=1)
    check_numbers(
      self, "retrieved_share", "retrieved_prob", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The runs of the train stage: every method with every seed.

  Attributes:
    methods: names of `rapo_jax.algorithms.ALGORITHMS`, or algorithms of one's
      own.
    seeds: one run a seed; the same questions in the same order for every
      method.
    num_updates: rollouts trained on.
    eval_every: updates between two evaluations on held-out questions.
    checkpoint_every: updates between two checkpoints.
    keep_checkpoints: how many of the newest are kept.
    keep_best: also keep the one with the highest accuracy on held-out
      questions, of those saved at an evaluation.
    log_trajectories_every: updates between two that are kept as JSONL.
    log_tokens: whether what is kept holds the entropy, the log-probs and the
      advantage of each token. It makes the log about twice as large.
    stop_mismatch: a run stops when the trainer's log-probs differ from the
      sampler's by more than this on average, before any update on the batch.
    stop_parameter_growth: a run has diverged when the norm of what it trains is
      this many times what it was at the start.
    strict_compile: a run stops when JAX compiles a program in an update, as all
      are compiled before the first one. Otherwise the metrics count it, as
      `compile/programs` and `compile/seconds`.
    health: what a run does about updates in which nothing can be learned.
  """

  methods: tuple[str | Algorithm, ...] = ("grpo", "rapo")
  seeds: tuple[int, ...] = (0, 1)
  num_updates: int = 20
  eval_every: int = 5
  checkpoint_every: int = 5
  keep_checkpoints: int = 2
  keep_best: bool = False
  log_trajectories_every: int = 5
  log_tokens: bool = True
  stop_mismatch: float = 0.1
  stop_parameter_growth: float = 100.0
  strict_compile: bool = False
  health: HealthConfig = HealthConfig()

  def __post_init__(self) -> None:
    check_seeds(self, "seeds")
    check_numbers(
      self,
      "num_updates",
      "eval_every",
      "checkpoint_every",
      "keep_checkpoints",
      "log_trajectories_every",
      at_least=1,
    )
    check_numbers(self, "stop_mismatch", above=0)
    check_numbers(self, "stop_parameter_growth", above=1)
    for name in ("methods", "seeds"):
      values = getattr(self, name)
      if not values or len(set(values)) < len(values):
        raise InputError(
          f"{name} must hold at least one entry and none twice, got {values}."
        )
    unique(map(find_algorithm, self.methods))

  @property
  def algorithms(self) -> dict[str, Algorithm]:
    """What is trained, by name and in the order of `methods`."""
    return unique(map(find_algorithm, self.methods))

  def algorithm(self, name: str) -> Algorithm:
    """The method of that name: one of `methods`, or of the table."""
    return self.algorithms.get(name) or find_algorithm(name)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Evaluation never retrieves.

  Attributes:
    num_samples: trajectories a held-out question in the evaluate stage.
    curve_samples: trajectories a question while training; they are the first
      ones of the evaluate stage.
    curve_questions: questions of each evaluation set that are asked while
      training, the first ones; None for all.
    temperature: of sampling.
    top_k: filter of sampling, as `RolloutConfig.top_k`; the rollout's own is
      not used here, nor are the next two.
    top_p: as top_k.
    min_p: as top_k.
    seed: of sampling, the same for every agent.
    max_tool_fail_rate: where more of the tool calls fail through no fault of
      the agent, there is no verdict, in [0, 1].
  """

  num_samples: int = 4
  curve_samples: int = 1
  curve_questions: int | None = None
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 1_000_003
  max_tool_fail_rate: float = 0.05

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    check_numbers(self, "max_tool_fail_rate", at_least=0, at_most=1)
    check_numbers(
      self, "num_samples", "curve_samples", "curve_questions", at_least=1
    )
    if self.curve_samples > self.num_samples:
      raise InputError(
        f"curve_samples must be at most num_samples ({self.num_samples}), got "
        f"{self.curve_samples}: lower it."
      )
    check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """Where metrics go besides `metrics.jsonl`.

  Attributes:
    tensorboard: write TensorBoard event files.
    wandb: Weights & Biases project; None for none.
    trackio: Trackio project; None for none.
  """

  tensorboard: bool = True
  wandb: WandbConfig | None = None
  trackio: TrackioConfig | None = None


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """One experiment.

  Attributes:
    name: shown in the report.
    tasks: each with its own agents, buffer, runs and evaluation sets. Values,
      or names of `rapo_jax.tasks.TASKS` on the command line.
    data: how questions are asked.
    policy: which agents are used.
    mesh: how devices share the work.
    tools: limits of the tools.
    encoder: what embeds keys and documents.
    index: which index finds the nearest of them.
    buffer: how the Step-Trace Buffer is built, or where it is.
    warm_start: supervised learning of the base agent, from which all runs then
      begin; None for runs that begin with the base agent itself.
    retrieval: how a trace is chosen.
    rollout: group size, hybrid rollouts, budgets, shapes.
    objective: coefficients and clip range of RAPO.
    optimizer: AdamW.
    update: batch shapes.
    train: methods, seeds, schedule.
    evaluation: samples and seed.
    logging: metrics.
  """

  name: str
  tasks: tuple[Task, ...] = dataclasses.field(
    default=(MiniatureTask("multihop"),), metadata={KNOWN: TASKS}
  )
  data: DataConfig = DataConfig()
  policy: PolicyConfig = PolicyConfig()
  mesh: MeshConfig = MeshConfig()
  tools: ToolsConfig = ToolsConfig()
  encoder: EncoderConfig = EncoderConfig()
  index: IndexConfig = IndexConfig()
  buffer: BufferConfig = BufferConfig()
  warm_start: WarmStartConfig | None = None
  retrieval: RetrievalConfig = RetrievalConfig()
  rollout: RolloutConfig = RolloutConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  update: UpdateConfig = UpdateConfig()
  train: TrainConfig = TrainConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  logging: LoggingConfig = LoggingConfig()

  def __post_init__(self) -> None:
    by_name(self.tasks)

  def task(self, name: str) -> Task:
    """The task of that name."""
    return by_name(self.tasks)[name]

  def method(self, name: str) -> tuple[RolloutConfig, ObjectiveConfig]:
    """Rollout and objective of a method.

    Args:
      name: of one of `train.methods`, or of the table.
    """
    algorithm = self.train.algorithm(name)
    return algorithm.plan.rollout(self.rollout), algorithm.settings(
      self.objective
    )

  @property
  def retrieving_methods(self) -> tuple[str, ...]:
    """Names of the methods that ask a Step-Trace Buffer.

    Those that read another agent take whole trajectories from it.
    """
    return tuple(
      name
      for name, algorithm in self.train.algorithms.items()
      if algorithm.plan.reads_agent or self.method(name)[0].num_hybrid
    )

  @property
  def retrieves(self) -> bool:
    """Whether any method asks a Step-Trace Buffer."""
    return bool(self.retrieving_methods)

  @property
  def warm_starts_from_buffer(self) -> bool:
    """Whether the warm start learns from the Step-Trace Buffer."""
    return self.warm_start is not None and self.warm_start.source == "buffer"

  @property
  def builds_buffer(self) -> bool:
    """Whether the run fills the buffer itself, by the off-policy agent."""
    there = self.buffer.path is not None or self.buffer.url is not None
    return (self.retrieves or self.warm_starts_from_buffer) and not there

  @property
  def has_off_policy(self) -> bool:
    """Whether there is an off-policy agent: named, or made by the run."""
    return self.policy.off_policy is not None or self.policy.base is None


def miniature_rollout() -> RolloutConfig:
  """Rollouts of the miniature world: some 100 tokens a trajectory."""
  return RolloutConfig(
    max_prompt_tokens=64,
    max_response_tokens=192,
    max_step_tokens=48,
    max_tool_tokens=64,
    max_tool_calls=6,
    prefill_rows=8,
    insert_chunk=32,
    # The encoder has no cores of its own here, and what decodes beside it takes
    # several times as long.
    gather_s=1.0,
  )


def miniature_update() -> UpdateConfig:
  """Update shapes of the miniature world."""
  return UpdateConfig(
    queries_per_update=8,
    queries_per_minibatch=4,
    row_length=256,
    rows_per_microbatch=8,
    remat="none",
  )


def miniature_health() -> HealthConfig:
  """Health of the miniature world, which shows what GRPO does without a signal.

  Its 20 updates of 8 questions are few enough to see the end of, and its tools
  are known to work.
  """
  return HealthConfig(no_signal="warn", erring_tool="warn")


def miniature_retrieval() -> RetrievalConfig:
  """Retrieval that waits for the same history.

  Every training question has traces in the buffer, so a history that has gone
  wrong finds those of the right one nearby; inserting them would rescue, and
  reinforce, the wrong step. Right histories differ from their keys in the
  wording of thoughts alone.
  """
  return RetrievalConfig(min_similarity=0.98)


def miniature_optimizer() -> OptimizerConfig:
  """The miniature world's learning rate: small models take large steps."""
  return OptimizerConfig(learning_rate=5e-4)


def paper_reasoning(name: str, base: str, *, tensor: int) -> ExperimentConfig:
  """The paper's reasoning tasks with one of its base agents.

  Batch, budgets, coefficients, learning rate and agents are the paper's (arXiv
  2603.03078, section 4). It says nothing of slots, chunks, rows of a
  micro-batch and remat: they change memory and time and not what is learned.

  Args:
    name: of the experiment.
    base: the base agent, by its name on the hub.
    tensor: slices of the heads; divides the base agent's key-value heads.
  """
  questions, epochs, batch = 10_000, 3, 32
  return ExperimentConfig(
    name=name,
    tasks=(DataSetTask("tool_star", held_out=64),),
    policy=PolicyConfig(base=base, off_policy="Qwen/Qwen3-14B"),
    mesh=MeshConfig(tensor=tensor),
    tools=ToolsConfig(search_top_k=3),
    buffer=BufferConfig(num_trajectories=16, top_k_trajectories=5),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=16,
      num_hybrid=8,
      num_slots=512,
      prefill_rows=32,
      max_prompt_tokens=1536,
      max_response_tokens=4096,
      max_tool_calls=5,
      decode_chunk=64,
      insert_chunk=256,
    ),
    objective=ObjectiveConfig(
      retrieval_coef=0.2,
      shaping_coef=0.05,
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.28,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6),
    update=UpdateConfig(
      queries_per_update=batch,
      queries_per_minibatch=16,
      row_length=1536 + 4096,
      rows_per_microbatch=8,
      remat="layer",
    ),
    train=TrainConfig(
      seeds=(0,),
      num_updates=epochs * questions // batch,
      eval_every=50,
      checkpoint_every=50,
      log_trajectories_every=10,
    ),
  )
