"""GSM8K with Qwen2.5-Coder-0.5B-Instruct, on one GPU.

    python -m experiments.data prepare gsm8k
    python -m experiments.buffer build --solutions --output buffers/gsm8k \\
        --config experiments/configs/gsm8k_qwen2_5_0_5b.py
    python -m experiments.run \\
        --config experiments/configs/gsm8k_qwen2_5_0_5b.py \\
        --workdir runs/gsm8k_qwen2_5_0_5b

`--config.policy.base=models/qwen2.5-coder-0.5b` takes the folder that
`python -m experiments.pretrained qwen2.5-coder-0.5b` writes. The stages are
those of `gsm8k_smollm2.py`, with the whole system prompt, 16 rollouts a
question and three seeds. The coefficients are the paper's (arXiv 2603.03078,
section 4). Not run: no GPU was available.
"""

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


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="gsm8k_qwen2_5_0_5b",
    tasks=(DataSetTask("gsm8k", reward=MATH, tools=(PythonSpec(),)),),
    policy=PolicyConfig(base="Qwen/Qwen2.5-Coder-0.5B-Instruct"),
    buffer=BufferConfig(path="buffers/gsm8k"),
    warm_start=WarmStartConfig(
      training=SupervisedConfig(
        num_steps=60,
        learning_rate=2e-5,
        warmup_steps=6,
        rows=8,
        row_length=2048,
        dtype="bfloat16",
        remat="layer",
      )
    ),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=16,
      num_hybrid=8,
      num_slots=256,
      prefill_rows=16,
      max_prompt_tokens=512,
      max_response_tokens=512,
      max_step_tokens=192,
      max_tool_tokens=64,
      max_tool_calls=8,
      decode_chunk=16,
      insert_chunk=64,
      insert_rows=32,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-6),
    update=UpdateConfig(
      queries_per_update=16,
      queries_per_minibatch=8,
      row_length=4096,
      rows_per_microbatch=4,
      remat="layer",
    ),
    train=TrainConfig(
      methods=("grpo", "hybrid", "rapo"),
      seeds=(0, 1, 2),
      num_updates=100,
      eval_every=20,
      checkpoint_every=20,
      health=HealthConfig(no_signal="warn"),
    ),
    evaluation=EvaluationConfig(num_samples=1, curve_questions=256),
  )
