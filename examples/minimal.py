"""The whole of RAPO in one file: `python -m examples.minimal`.

An agent adds three numbers with a tool that adds two. It begins with a habit of
stopping after the first sum. RAPO trains it with steps of one that goes on.
"""

import itertools

import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rapo_jax import data, models, retrieval, rewards, training
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests
from rapo_jax.tools import TagSet, tool

TEMPLATE = (
  "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
)
GROUP = {"num_generations": 8, "num_hybrid": 4}
LENGTHS = {"max_prompt_tokens": 16, "max_response_tokens": 152}
ROLLOUT = RolloutConfig(**GROUP, **LENGTHS, num_slots=32, max_tool_tokens=40)
OPTIMIZER = training.OptimizerConfig(learning_rate=3e-4)
UPDATE = training.UpdateConfig(8, 8, row_length=168)
SAMPLE = {"temperature": ROLLOUT.temperature, "dtype": ROLLOUT.dtype}
MEMORY = {"remat": UPDATE.remat, "head_chunk": UPDATE.head_chunk}
SUPERVISED = training.SupervisedConfig(
  400, 5e-3, warmup_steps=40, row_length=128, steps_per_call=100
)
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
HEADS = {"num_heads": 4, "num_kv_heads": 4}
SHAPE = models.DecoderConfig(vocab_size=257, num_layers=2, **WIDTHS, **HEADS)


@tool(
  description="<add> 1+2 </add> adds numbers.",
  example="<add> 1+2 </add><result> 3 </result>",
)
def add(argument: str) -> str:
  return str(sum(int(number) for number in argument.split("+")))


def make_tokenizer() -> PreTrainedTokenizerFast:
  """One token for each byte, and one that ends a turn."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<|end|>"])
  made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
  made.chat_template = TEMPLATE
  return made


def make_query(numbers: tuple[int, int, int]) -> data.Query:
  text = "+".join(map(str, numbers))
  message = {"role": "user", "content": text}
  return data.Query(text, text, (str(sum(numbers)),), (message,), "add")


def step(a: int, b: int) -> tuple[str, str]:
  """A call and its result."""
  return f"<add>{a}+{b}</add>", f"<result> {a + b} </result>"


def demonstration(tokenizer, numbers, kind: str) -> training.Example:
  """One that stops too early, one that goes on, or one that retrieves."""
  a, b, c = numbers
  second = step(a + b, c)
  between = {
    "stops": [],
    "goes on": [*second],
    "retrieves": ["", "<retrieve>" + "".join(second) + "</retrieve>"],
  }[kind]
  total = a + b if kind == "stops" else a + b + c
  answer = rf"<answer>\boxed{{{total}}}</answer>"
  texts = [f"{a}+{b}+{c}<|end|>", *step(a, b), *between, answer]
  ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
  # The prompt, results and retrieved steps are not in the loss.
  where = [np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)]
  return training.Example(
    np.concatenate(ids).astype(int), np.concatenate(where)
  )


def make_policy(tokenizer, questions) -> models.Decoder:
  untrained = models.Decoder(SHAPE, rngs=nnx.Rngs(0))
  kinds = ("stops", "stops", "goes on", "retrieves")
  pairs = itertools.product(questions, kinds)
  examples = [demonstration(tokenizer, *pair) for pair in pairs]
  trainer = training.SupervisedTrainer(untrained, SUPERVISED)
  for done, loss in trainer.run(training.repeat_examples(examples, seed=0)):
    print(f"supervised step {done}: loss {loss:.3f} nats a token")
  return trainer.model


def make_buffer(questions) -> retrieval.StepTraceBuffer:
  """The second step of each question; its key is question and first step."""
  traces = []
  for number, (a, b, c) in enumerate(questions):
    text = f"{a}+{b}+{c}"
    history, second = ("".join(step(a, b)),), "".join(step(a + b, c))
    about = {"trace_id": number, "query_id": text, "source": "teacher"}
    rest = {"reward": 1.0, "step_index": 1, "answers": False}
    traces.append(retrieval.StepTrace(text, history, second, **about, **rest))
  encoder = retrieval.SentenceEncoder.from_pretrained()
  return retrieval.StepTraceBuffer.build(traces, encoder, retrieval.ExactIndex)


def main(num_updates: int = 4) -> list[float]:
  """Trains the agent; returns the mean reward before each update."""
  questions = list(itertools.product(range(1, 4), repeat=3))
  tokenizer, tags = make_tokenizer(), TagSet(("add",))
  rapo, objective = ALGORITHMS["rapo"], ObjectiveConfig()
  parts = {"tools": {"add": add}, "buffer": make_buffer(questions)}
  engine = RolloutEngine(ROLLOUT, tokenizer, vocab_size=257, **parts)
  policy = make_policy(tokenizer, questions)
  state = training.init_train_state(policy, OPTIMIZER)
  history = []
  for update in range(num_updates):
    # Phase one: rollouts. Half of each group may take steps from the buffer.
    chosen = data.batch(0, update, UPDATE.queries_per_update, len(questions))
    queries = [make_query(questions[index]) for index in chosen]
    prompts = [data.encode_prompt(tokenizer, query, 16) for query in queries]
    requests = group_requests(queries, prompts, **GROUP)
    rolled_out, _ = engine.rollout(state.model, requests, seed=0, update=update)
    truths = [queries[t.group_id].ground_truth for t in rolled_out]
    texts = [trajectory.texts(tokenizer) for trajectory in rolled_out]
    pairs = zip(texts, truths, strict=True)
    scores = [rewards.score(text, truth, tags) for text, truth in pairs]
    # Phase two: advantages of outcomes and of retrieval, then the update.
    limits = {"max_length": engine.max_length, "max_steps": ROLLOUT.max_steps}
    given = {"algorithm": rapo, "scores": scores}
    experience = training.evaluate_trajectories(
      rolled_out, queries, tokenizer, objective, **given, **limits
    )
    (batch,) = training.minibatches(experience, UPDATE, objective, rapo.loss)
    how = {"objective": objective, "optimizer": OPTIMIZER, "loss": rapo.loss}
    how |= {**SAMPLE, **MEMORY}
    state, _ = training.update_minibatch(state, batch, **how)
    history.append(float(np.mean([score.value for score in scores])))
    print(f"update {update + 1}: mean reward before it {history[-1]:.2f}")
  return history


if __name__ == "__main__":
  main()
