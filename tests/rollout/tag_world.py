"""A world so small that a random policy calls tools and answers."""

import dataclasses
import threading
import time

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from rapo_jax import retrieval
from rapo_jax.data import Query
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests
from rapo_jax.tools import ToolResult, ToolStatus
from tests.tiny_decoder import tiny_decoder

CONFIG = RolloutConfig(
  num_generations=8,
  num_hybrid=4,
  num_slots=8,
  prefill_rows=2,
  max_prompt_tokens=16,
  max_response_tokens=112,
  max_step_tokens=24,
  max_tool_tokens=24,
  max_tool_calls=4,
  decode_chunk=8,
  insert_chunk=8,
  # Fewer than often come back together.
  insert_rows=3,
)
"""Budgets that trajectories of this world reach."""

# What a random policy writes is like nothing: take whatever is nearest.
ANY_TRACE = RetrievalConfig(min_similarity=-1.0)

_WORDS = ["<search>", "</search>", "<answer>", "</answer>", "a", "b"]


def make_tokenizer():
  """Byte-level, with tags that are one token each."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {w: i for i, w in enumerate(dict.fromkeys([*_WORDS, *alphabet]))}
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=[], ignore_merges=True)
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(r"</?[a-z]+>"), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<|im_end|>"])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<|im_end|>"
  )


def make_policy(vocab_size):
  """A random policy that writes nothing but the six words."""
  model = tiny_decoder(
    vocab_size=vocab_size,
    hidden_size=32,
    intermediate_size=64,
    tie_embeddings=False,
    initializer_range=0.3,
  )
  # Large logits for the words, so that little else is sampled, and small ones
  # for the end of an answer, so that trajectories are long.
  kernel = np.array(model.head.kernel[...])
  kernel[:, len(_WORDS) :] *= 0.01
  kernel[:, : len(_WORDS)] *= 3.0
  kernel[:, _WORDS.index("</answer>")] *= 0.1
  model.head.kernel[...] = kernel
  return model


def make_engine(
  config, tokenizer, tool, buffer=None, *, vocab_size=None, **others
):
  """An engine with one tool; takes any trace that is nearest."""
  return RolloutEngine(
    config,
    tokenizer,
    vocab_size=vocab_size or len(tokenizer),
    tools={tool.name: tool},
    buffer=buffer,
    retrieval=ANY_TRACE,
    **others,
  )


def make_requests(config, queries, prompts):
  """As many of each question as the config says."""
  return group_requests(
    queries,
    prompts,
    num_generations=config.num_generations,
    num_hybrid=config.num_hybrid,
  )


@dataclasses.dataclass
class EchoTool:
  """Answers with its argument, after as long as it is told."""

  delay: object = None
  name: str = "search"
  batched: bool = False
  threads: set = dataclasses.field(default_factory=set)

  @property
  def description(self):
    return f"<{self.name}> a word </{self.name}> gives it back."

  @property
  def example(self):
    return f"<{self.name}> a </{self.name}><result> found a </result>"

  def call(self, argument):
    self.threads.add(threading.get_ident())
    if self.delay is not None:
      time.sleep(self.delay(argument))
    return ToolResult(f"found {argument}", ToolStatus.OK)

  def call_batch(self, arguments):
    return [self.call(argument) for argument in arguments]


def make_queries():
  return [
    Query(
      query_id=f"q{i}",
      question=f"question {i}",
      ground_truth=("a",),
      messages=({"role": "user", "content": f"question {i}"},),
      task="test",
    )
    for i in range(3)
  ]


def make_prompts(queries, tokenizer):
  return [
    np.asarray(tokenizer.encode("ab" * (i + 1) + "a"), np.int32)
    for i in range(len(queries))
  ]


def make_buffer(queries):
  """A step trace for the second step of every question."""
  traces = [
    retrieval.StepTrace(
      question=query.question,
      history=("<search>a</search>",),
      step="<search>b</search><result> ab </result>",
      reward=1.0,
      source="expert",
      trace_id=i,
      query_id=query.query_id,
      step_index=1,
      answers=False,
    )
    for i, query in enumerate(queries)
  ]
  return retrieval.StepTraceBuffer.build(
    traces,
    retrieval.SentenceEncoder.from_pretrained(),
    retrieval.ExactIndex,
  )
