"""GSM8K with SmolLM2-135M-Instruct, on two CPU cores.

    python -m experiments.pretrained smollm2-135m --output models/smollm2-135m
    python -m experiments.data prepare gsm8k
    python -m experiments.buffer build --solutions --output buffers/gsm8k \\
        --config experiments/configs/gsm8k_smollm2.py
    python -m experiments.run --config experiments/configs/gsm8k_smollm2.py \\
        --workdir runs/gsm8k_smollm2

Hours, resumable; the first update states its time. The base agent is
warm-started on the data set's own solutions, so that it closes its tags. Then
GRPO, hybrid rollouts alone and RAPO train it. The buffer holds the same
solutions. The coefficients are the paper's (arXiv 2603.03078, section 4). Ours:
the learning rate, the batch, the budgets, and a system prompt of one paragraph,
which halves the tokens of an update. `docs/real_models.md` has what came out.
"""

import pathlib

from experiments.config import (
  BufferConfig,
  EvaluationConfig,
  ExperimentConfig,
  PolicyConfig,
  TrainConfig,
  WarmStartConfig,
)
from experiments.health import HealthConfig
from rapo_jax.rewards import MATH
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import DataSetTask, PythonSpec
from rapo_jax.training import (
  OptimizerConfig,
  SupervisedConfig,
  UpdateConfig,
)

_PROMPT = pathlib.Path(__file__).parent / "prompts" / "short.txt"


def gsm8k() -> DataSetTask:
  """GSM8K with the python tool and a short system prompt."""
  return DataSetTask(
    "gsm8k", reward=MATH, tools=(PythonSpec(),), prompt=str(_PROMPT)
  )


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="gsm8k_smollm2",
    tasks=(gsm8k(),),
    policy=PolicyConfig(base="models/smollm2-135m"),
    buffer=BufferConfig(path="buffers/gsm8k"),
    warm_start=WarmStartConfig(
      training=SupervisedConfig(
        num_steps=64,
        learning_rate=1e-4,
        warmup_steps=6,
        # Rows that hold three or four examples are the fullest.
        rows=4,
        row_length=1024,
        rows_per_microbatch=2,
      )
    ),
    rollout=RolloutConfig(
      num_generations=8,
      num_hybrid=4,
      num_slots=64,
      max_prompt_tokens=320,
      max_response_tokens=320,
      max_step_tokens=96,
      max_tool_tokens=48,
      max_tool_calls=8,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-5),
    update=UpdateConfig(
      queries_per_update=8,
      queries_per_minibatch=4,
      row_length=1152,
      rows_per_microbatch=2,
      remat="none",
    ),
    train=TrainConfig(
      methods=("grpo", "hybrid", "rapo"),
      seeds=(0,),
      num_updates=40,
      eval_every=10,
      checkpoint_every=5,
      # After the warm start a batch without one right answer is no surprise.
      health=HealthConfig(no_signal="warn"),
    ),
    evaluation=EvaluationConfig(num_samples=1, curve_questions=64),
  )
