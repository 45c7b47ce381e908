"""Demonstrations for the agents' warm start, right and deliberately wrong.

A demonstration answers a question step by step. Its first step is right. At
each later boundary it goes on rightly with probability `correct_prob`. Else it
answers with what it has come to so far. Or it takes a wrong relation and
carries on from there. With a high `correct_prob` that is an expert. With a low
one it is a weak agent whose likeliest action is the wrong one. The skill to go
on stays there to be found.

In some demonstrations a correct step stands between `<retrieve>` tags at some
boundaries, and the agent goes on from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rapo_jax.ranges import check_numbers
from rapo_jax.rollout import retrieved_text
from rapo_jax.tasks.miniature import lexicon
from rapo_jax.tasks.miniature.world import Chain, Question, Step
from rapo_jax.tools import TagSet
from rapo_jax.training import Example
from rapo_jax.trajectory import TokenKind

# Steps beyond the question's own before a lost agent answers all the same.
_EXTRA_STEPS = 1


@dataclasses.dataclass(frozen=True)
class DemonstrationConfig:
  """How right demonstrations are.

  Attributes:
    correct_prob: probability of the right action at a boundary.
    early_answer_share: of the wrong actions, the share that answers with the
      current value; the others take a wrong relation and carry on.
    retrieved_share: share of demonstrations that may hold retrieved steps.
    retrieved_prob: in those, probability of one at a boundary.
  """

  correct_prob: float
  early_answer_share: float = 0.85
  retrieved_share: float = 0.0
  retrieved_prob: float = 0.4

  def __post_init__(self) -> None:
    check_numbers(
      self,
      "correct_prob",
      "early_answer_share",
      "retrieved_share",
      "retrieved_prob",
      at_least=0,
      at_most=1,
    )


def demonstrate(
  chain: Chain,
  question: Question,
  config: DemonstrationConfig,
  rng: np.random.Generator,
) -> list[tuple[TokenKind, str]]:
  """Writes one demonstration.

  Args:
    chain: rules of the question's family.
    question: what is answered.
    config: how rightly.
    rng: source of everything random.

  Returns:
    Segments (kind, text) of the response, each of them encoded by itself.
  """
  moves = question.moves
  segments: list[tuple[TokenKind, str]] = []
  state = question.start
  done = 0
  retrieves = rng.random() < config.retrieved_share

  def take(move: str) -> Step:
    nonlocal state, done
    step, state = chain.act(state, move)
    done += 1
    return step

  def write(step: Step) -> None:
    segments.append((TokenKind.POLICY, policy_text(step, _wording(rng))))
    segments.append((TokenKind.OBSERVATION, observation_text(step)))

  write(take(moves[0]))
  while True:
    if retrieves and rng.random() < config.retrieved_prob:
      text = (
        step_text(take(moves[done]), _wording(rng))
        if done < len(moves)
        else answer_text(chain.answer(state, question.target), _wording(rng))
      )
      segments.append((TokenKind.RETRIEVED, retrieved_text(text)))
    right = moves[done] if done < len(moves) else ""
    move = _decide(chain, state, right, config, rng)
    if not move or done >= len(moves) + _EXTRA_STEPS:
      break
    write(take(move))
  answer = chain.answer(state, question.target)
  segments.append((TokenKind.POLICY, answer_text(answer, _wording(rng))))
  return segments


def _decide(
  chain: Chain,
  state: str,
  right: str,
  config: DemonstrationConfig,
  rng: np.random.Generator,
) -> str:
  """The next move, "" for answering; `right` is "" when all is done."""
  if rng.random() < config.correct_prob:
    return right
  wrong = chain.wrong_moves(state, right)
  if not wrong or rng.random() < config.early_answer_share:
    return ""
  return wrong[int(rng.integers(len(wrong)))]


def policy_text(step: Step, wording: int) -> str:
  """What the agent writes in a step that calls a tool."""
  thought = lexicon.STEP_THOUGHTS[wording].format(step.move)
  call = f"<{step.tool}> {step.argument} </{step.tool}>"
  return f"<think> {thought} </think>{call}"


def observation_text(step: Step) -> str:
  """What the rollout appends to it."""
  shown = TagSet((step.tool,)).escape(step.observation)
  return f"<result> {shown} </result>"


def step_text(step: Step, wording: int) -> str:
  """A whole step, as it is kept in a Step-Trace Buffer."""
  return policy_text(step, wording) + observation_text(step)


def answer_text(answer: str, wording: int) -> str:
  """The last step."""
  thought = lexicon.ANSWER_THOUGHTS[wording]
  return f"<think> {thought} </think><answer> \\boxed{{ {answer} }} </answer>"


def every_wording(question: Question) -> Iterator[str]:
  """Each step of the expert solution, in each wording."""
  for wording in range(len(lexicon.STEP_THOUGHTS)):
    for step in question.steps:
      yield step_text(step, wording)
  for wording in range(len(lexicon.ANSWER_THOUGHTS)):
    yield answer_text(question.ground_truth, wording)


def tokenize(
  tokenizer: Any,
  demonstrations: Sequence[tuple[str, Sequence[tuple[TokenKind, str]]]],
) -> list[Example]:
  """Encodes demonstrations as the rollout would have them.

  Args:
    tokenizer: with a chat template.
    demonstrations: question and response segments of each. Every segment is
      encoded by itself, each different text once.

  Returns:
    Tokens of prompt and response, and which of them are the policy's.
  """
  prompt, question = _prompt_around_question(tokenizer)
  rows = [
    [
      (TokenKind.PROMPT, prompt.replace(question, text)),
      *segments,
    ]
    for text, segments in demonstrations
  ]
  texts = list(dict.fromkeys(text for row in rows for _, text in row))
  encoded = tokenizer.backend_tokenizer.encode_batch_fast(
    texts, add_special_tokens=False
  )
  ids = {
    text: np.asarray(encoding.ids, np.int32)
    for text, encoding in zip(texts, encoded, strict=True)
  }
  return [
    Example(
      np.concatenate([ids[text] for _, text in row]),
      np.concatenate(
        [
          np.full(len(ids[text]), kind == TokenKind.POLICY)
          for kind, text in row
        ]
      ),
    )
    for row in rows
  ]


def _prompt_around_question(tokenizer: Any) -> tuple[str, str]:
  """The chat template, applied once, and the mark where the question goes."""
  mark = "{question}"
  prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": mark}],
    add_generation_prompt=True,
    tokenize=False,
  )
  return prompt, mark


def _wording(rng: np.random.Generator) -> int:
  return int(rng.integers(len(lexicon.STEP_THOUGHTS)))
