"""The whole of RAPO in one file: `python -m examples.minimal`.

An agent adds three numbers with a tool that adds two. At first it often stops
after the first sum. RAPO trains it with steps of an agent that goes on.
"""

import numpy as np
from flax import nnx

from rapo_jax import data, models, retrieval, rollout, training
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.tasks.miniature.tokenizer import untrained_tokenizer
from rapo_jax.tools import TagSet, tool

TOKENIZER = untrained_tokenizer()  # A token for each byte.
NUMBERS = (1, 2, 3)
QUESTIONS = [(a, b, c) for a in NUMBERS for b in NUMBERS for c in NUMBERS]
GROUP, HYBRID, PROMPT = 8, 4, 32
ROLLOUT = rollout.RolloutConfig(
  GROUP, HYBRID, num_slots=32, max_prompt_tokens=PROMPT, max_response_tokens=152
)
OPTIMIZER = training.OptimizerConfig(learning_rate=3e-4)
UPDATE = training.UpdateConfig(16, 4, row_length=184)
SUPERVISED = training.SupervisedConfig(
  400, 5e-3, warmup_steps=40, row_length=144, steps_per_call=100
)
SHAPE = models.DecoderConfig(
  vocab_size=len(TOKENIZER),
  num_layers=2,
  hidden_size=64,
  intermediate_size=128,
  num_heads=4,
  num_kv_heads=4,
  head_dim=16,
)


@tool(
  description="<add> 1+2 </add> adds numbers.",
  example="<add> 1+2 </add><result> 3 </result>",
)
def add(argument: str) -> str:
  return str(sum(int(number) for number in argument.split("+")))


def make_query(*numbers: int) -> data.Query:
  text = "+".join(map(str, numbers))
  message = {"role": "user", "content": text}
  return data.Query(text, text, (str(sum(numbers)),), (message,), "add")


def step(a: int, b: int) -> tuple[str, str]:
  return f"<add>{a}+{b}</add>", f"<result> {a + b} </result>"


def demonstration(kind: str, a: int, b: int, c: int) -> training.Example:
  """One that stops too early, one that goes on, or one that retrieves."""
  second = step(a + b, c)
  between = {
    "stops": [],
    "goes on": [*second],
    "retrieves": ["", "<retrieve>" + "".join(second) + "</retrieve>"],
  }[kind]
  total = a + b if kind == "stops" else a + b + c
  texts = [*step(a, b), *between, rf"<answer>\boxed{{{total}}}</answer>"]
  ids = [data.encode_prompt(TOKENIZER, make_query(a, b, c), PROMPT)]
  ids += [np.asarray(TOKENIZER.encode(text), int) for text in texts]
  # The prompt, results and retrieved steps are not in the loss.
  where = [np.full(len(part), i % 2 == 1) for i, part in enumerate(ids)]
  return training.Example(np.concatenate(ids), np.concatenate(where))


def make_policy() -> models.Decoder:
  untrained = models.Decoder(SHAPE, rngs=nnx.Rngs(0))
  kinds = ("stops", "stops", "goes on", "retrieves")
  examples = [demonstration(kind, *q) for q in QUESTIONS for kind in kinds]
  trainer = training.SupervisedTrainer(untrained, SUPERVISED)
  for done, loss in trainer.run(training.repeat_examples(examples, seed=0)):
    print(f"supervised step {done}: loss {loss:.3f} nats a token")
  return trainer.model


def make_buffer() -> retrieval.StepTraceBuffer:
  """Both steps of each question; the key of one is all that came before it."""
  traces: list[retrieval.StepTrace] = []
  for a, b, c in QUESTIONS:
    text = f"{a}+{b}+{c}"
    traces += retrieval.step_traces(
      text,
      ["".join(step(a, b)), "".join(step(a + b, c))],
      reward=1.0,
      source="teacher",
      query_id=text,
      first_trace_id=len(traces),
    )
  encoder = retrieval.SentenceEncoder.from_pretrained()
  return retrieval.StepTraceBuffer.build(traces, encoder, retrieval.ExactIndex)


def main(num_updates: int = 4) -> list[float]:
  """Trains the agent; returns the mean reward before each update."""
  rapo, objective = ALGORITHMS["rapo"], ObjectiveConfig()
  tools, buffer = {"add": add}, make_buffer()
  engine = rollout.RolloutEngine(
    ROLLOUT, TOKENIZER, vocab_size=len(TOKENIZER), tools=tools, buffer=buffer
  )
  state = training.init_train_state(make_policy(), OPTIMIZER)
  history = []
  for update in range(num_updates):
    # Phase one: rollouts. Half of each group may take steps from the buffer.
    chosen = data.batch(0, update, UPDATE.queries_per_update, len(QUESTIONS))
    queries = [make_query(*QUESTIONS[index]) for index in chosen]
    prompts = [data.encode_prompt(TOKENIZER, q, PROMPT) for q in queries]
    requests = rollout.group_requests(
      queries, prompts, num_generations=GROUP, num_hybrid=HYBRID
    )
    rolled_out, _ = engine.rollout(state.model, requests, seed=0, update=update)
    scores = training.score_trajectories(
      rolled_out, queries, TOKENIZER, tag_set=TagSet(("add",))
    )
    # Phase two: advantages of outcomes and of retrieval, then updates.
    experience = training.evaluate_trajectories(
      rolled_out,
      queries,
      TOKENIZER,
      objective,
      max_length=engine.max_length,
      max_steps=ROLLOUT.max_steps,
      algorithm=rapo,
      scores=scores,
    )
    for batch, _ in training.minibatches(experience, UPDATE, objective, rapo):
      state, _ = training.update_minibatch(
        state,
        batch,
        objective=objective,
        optimizer=OPTIMIZER,
        temperature=ROLLOUT.temperature,
        dtype=ROLLOUT.dtype,
        remat=UPDATE.remat,
        head_chunk=UPDATE.head_chunk,
        loss=rapo.loss,
      )
    history.append(float(np.mean([score.value for score in scores])))
    print(f"update {update + 1}: mean reward before it {history[-1]:.2f}")
  return history


if __name__ == "__main__":
  main()
