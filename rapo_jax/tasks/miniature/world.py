"""The miniature world: facts, documents, pages and questions.

Three task families share one knowledge base. In `multihop` a question names
an entity and some relations, and each relation is one search. In `compute` it
names numbers and operations, and each operation is one python call. In `web`
a search gives the id of the entity's page, and each relation is a link to
open; the answer stands on the last page.

Everything follows from `WorldConfig`, the seed included: the same config gives
the same world in every process. A question carries its expert solution, with
the very text that the tools answer. So demonstrations can be written without
running any tool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol, get_args

import numpy as np

from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers, check_seeds
from rapo_jax.tasks.miniature import lexicon

Family = Literal["multihop", "compute", "web"]
FAMILIES: tuple[Family, ...] = get_args(Family)

MODULUS = 97
"""Prime, so that a product hides none of its factors."""
MAX_HOPS = 4
"""Longest chain of a question."""

_SYMBOLS = {"plus": "+", "minus": "-", "times": "*"}
# Tries to find one new question before the space counts as exhausted.
_MAX_TRIES = 10_000


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """Seed and sizes of the world.

  Attributes:
    seed: of everything random in it.
    num_entities: people, each with one page; at least 150, so that luck does
      not make an answer right.
    num_relations: relations that every person has to some other.
    num_links: of which the first ones are links on the pages.
    num_train: training questions of a family.
    num_held_out: held-out questions of a family.
    multihop_hops: numbers of searches, asked for in turn.
    compute_hops: numbers of operations, asked for in turn.
    web_hops: numbers of pages to open, asked for in turn.
  """

  seed: int = 0
  num_entities: int = 150
  num_relations: int = 10
  num_links: int = 4
  num_train: int = 128
  num_held_out: int = 256
  multihop_hops: tuple[int, ...] = (3, 4)
  compute_hops: tuple[int, ...] = (3, 4)
  web_hops: tuple[int, ...] = (2, 3, 4)

  def __post_init__(self) -> None:
    check_seeds(self, "seed")
    check_numbers(self, "num_train", "num_held_out", at_least=1)
    for name, low, high in (
      ("num_entities", 150, len(lexicon.NAMES)),
      ("num_relations", 4, len(lexicon.RELATIONS)),
      ("num_links", 3, self.num_relations),
    ):
      if not low <= getattr(self, name) <= high:
        raise InputError(
          f"{name} must lie between {low} and {high}, got"
          f" {getattr(self, name)}; more words can be added in lexicon.py."
        )
    for name in ("multihop_hops", "compute_hops", "web_hops"):
      hops = getattr(self, name)
      if not hops or not {*hops} <= {*range(1, MAX_HOPS + 1)}:
        raise InputError(
          f"{name} must hold numbers from 1 to {MAX_HOPS}, got {hops}: longer "
          "chains do not fit the miniature agents' 160 tokens."
        )

  def hops(self, family: Family) -> tuple[int, ...]:
    """Hops of the family's train and held-out questions."""
    return {
      "multihop": self.multihop_hops,
      "compute": self.compute_hops,
      "web": self.web_hops,
    }[family]


@dataclasses.dataclass(frozen=True)
class Step:
  """One tool call of a solution.

  Attributes:
    move: what is done, as the thought names it, e.g. "mentor" or "plus 57".
    tool: name of the tool.
    argument: of the call.
    observation: what the tool answers.
  """

  move: str
  tool: str
  argument: str
  observation: str


@dataclasses.dataclass(frozen=True)
class Question:
  """One question with its expert solution.

  Attributes:
    query_id: unique in the world, e.g. "web-train-0007".
    question: the text that the agent gets.
    ground_truth: the answer, one word.
    family: what it takes.
    hops: searches, operations or opened pages.
    start: entity or number that the chain starts from.
    moves: what has to be done, in order.
    target: field of the last page that is asked for; "" in other families.
    steps: the expert solution.
  """

  query_id: str
  question: str
  ground_truth: str
  family: Family
  hops: int
  start: str
  moves: tuple[str, ...]
  target: str
  steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Page:
  """A page of the web.

  Attributes:
    page_id: what `open` is called with.
    entity: whose page it is.
    fields: facts on it.
    links: page id by relation.
  """

  page_id: str
  entity: str
  fields: Mapping[str, str]
  links: Mapping[str, str]

  @property
  def text(self) -> str:
    """What `open` answers."""
    words = [self.entity, ":"]
    for name, value in (*self.fields.items(), *self.links.items()):
      words += [name, value]
    return " ".join(words)


class Chain(Protocol):
  """The rules of one family: the effect of a move and the form of an answer.

  A state is the word that the chain has come to: an entity, a number or, on
  the way to the first page, its id.
  """

  def draw(
    self, rng: np.random.Generator, hops: int
  ) -> tuple[str, tuple[str, ...], str]:
    """Draws start, moves and target of a question.

    No relation or operand occurs twice in it: the last move determines the
    next.
    """

  def ask(self, start: str, moves: tuple[str, ...], target: str) -> str:
    """Words the question."""

  def act(self, state: str, move: str) -> tuple[Step, str]:
    """Makes a move: the tool call and the state that it leads to."""

  def answer(self, state: str, target: str) -> str:
    """What would be answered in this state."""

  def wrong_moves(self, state: str, right: str) -> tuple[str, ...]:
    """Moves that could be taken by mistake for `right` ("" when done)."""


@dataclasses.dataclass(frozen=True)
class Multihop:
  """Chains of relations, known only through search."""

  facts: Mapping[str, Mapping[str, str]]

  def draw(
    self, rng: np.random.Generator, hops: int
  ) -> tuple[str, tuple[str, ...], str]:
    start = _choose(rng, tuple(self.facts))
    return start, _choose_some(rng, tuple(self.facts[start]), hops), ""

  def ask(self, start: str, moves: tuple[str, ...], target: str) -> str:
    chain = " 's ".join([start, *moves])
    return f"Who is {chain} ?"

  def act(self, state: str, move: str) -> tuple[Step, str]:
    value = self.facts[state][move]
    query = search_query(state, move)
    step = Step(move, "search", query, fact_document(state, move, value))
    return step, value

  def answer(self, state: str, target: str) -> str:
    return state

  def wrong_moves(self, state: str, right: str) -> tuple[str, ...]:
    return tuple(r for r in self.facts[state] if r != right)


@dataclasses.dataclass(frozen=True)
class Compute:
  """Left-to-right chains of operations on two-digit numbers, mod 97."""

  def draw(
    self, rng: np.random.Generator, hops: int
  ) -> tuple[str, tuple[str, ...], str]:
    numbers = tuple(str(n) for n in range(10, MODULUS))
    start, *operands = _choose_some(rng, numbers, hops + 1)
    moves = (f"{_choose(rng, tuple(_SYMBOLS))} {n}" for n in operands)
    return start, tuple(moves), ""

  def ask(self, start: str, moves: tuple[str, ...], target: str) -> str:
    return f"Compute {start} {' '.join(moves)} mod {MODULUS} , left to right ."

  def act(self, state: str, move: str) -> tuple[Step, str]:
    operation, operand = move.split()
    symbol = _SYMBOLS[operation]
    a, b = int(state), int(operand)
    value = {"+": a + b, "-": a - b, "*": a * b}[symbol] % MODULUS
    program = f"print ( ( {a} {symbol} {b} ) % {MODULUS} )"
    return Step(move, "python", program, str(value)), str(value)

  def answer(self, state: str, target: str) -> str:
    return state

  def wrong_moves(self, state: str, right: str) -> tuple[str, ...]:
    operation, operand = right.split() if right else ("", state)
    return tuple(f"{o} {operand}" for o in _SYMBOLS if o != operation)


@dataclasses.dataclass(frozen=True)
class Web:
  """A search for the first page, then links to open."""

  pages: Mapping[str, Page]
  page_ids: Mapping[str, str]

  def draw(
    self, rng: np.random.Generator, hops: int
  ) -> tuple[str, tuple[str, ...], str]:
    start = _choose(rng, tuple(self.page_ids))
    page = self.pages[self.page_ids[start]]
    links = _choose_some(rng, tuple(page.links), hops - 1)
    target = _choose(rng, tuple(page.fields))
    return start, (lexicon.PAGE, lexicon.FIRST, *links), target

  def ask(self, start: str, moves: tuple[str, ...], target: str) -> str:
    links = f" , follow {' , '.join(moves[2:])}" if moves[2:] else ""
    return f"Open the page of {start}{links} . What is the {target} ?"

  def act(self, state: str, move: str) -> tuple[Step, str]:
    if move == lexicon.PAGE:
      page_id = self.page_ids[state]
      document = fact_document(state, move, page_id)
      return Step(move, "search", search_query(state, move), document), page_id
    if move == lexicon.FIRST:
      page = self.pages[state]
    else:
      page = self.pages[self.pages[self.page_ids[state]].links[move]]
    return Step(move, "open", page.page_id, page.text), page.entity

  def answer(self, state: str, target: str) -> str:
    if state in self.pages:
      return state
    return self.pages[self.page_ids[state]].fields[target]

  def wrong_moves(self, state: str, right: str) -> tuple[str, ...]:
    # Before the first page is open there is one id and nothing to confuse.
    if state in self.pages:
      return ()
    links = self.pages[self.page_ids[state]].links
    return tuple(link for link in links if link != right)


@dataclasses.dataclass(frozen=True)
class World:
  """A miniature world.

  Attributes:
    config: that it was made from.
    facts: entity by entity and relation.
    pages: page by id.
    chains: rules by family.
    train: training questions by family.
    held_out: held-out questions by family; no question is in both.
  """

  config: WorldConfig
  facts: Mapping[str, Mapping[str, str]]
  pages: Mapping[str, Page]
  chains: Mapping[Family, Chain]
  train: Mapping[Family, tuple[Question, ...]]
  held_out: Mapping[Family, tuple[Question, ...]]

  def documents(self, family: Family) -> tuple[str, ...]:
    """What the family's search tool searches, one sentence a fact."""
    if family == "multihop":
      return tuple(
        fact_document(entity, relation, value)
        for entity, relations in self.facts.items()
        for relation, value in relations.items()
      )
    if family == "web":
      return tuple(
        fact_document(page.entity, lexicon.PAGE, page.page_id)
        for page in self.pages.values()
      )
    return ()

  def page_texts(self) -> dict[str, str]:
    """What the web's open tool answers, by page id."""
    return {page_id: page.text for page_id, page in self.pages.items()}


def make_world(config: WorldConfig) -> World:
  """Makes the world that `config` describes.

  Raises:
    InputError: if there are fewer different questions than asked for.
  """
  rng = np.random.default_rng([config.seed, 0])
  entities = sorted(
    rng.choice(lexicon.NAMES, config.num_entities, replace=False).tolist()
  )
  relations = lexicon.RELATIONS[: config.num_relations]
  facts = _draw_facts(rng, entities, relations)
  pages = _draw_pages(rng, facts, relations[: config.num_links])
  page_ids = {page.entity: page.page_id for page in pages.values()}
  chains: dict[Family, Chain] = {
    "multihop": Multihop(facts),
    "compute": Compute(),
    "web": Web(pages, page_ids),
  }
  train: dict[Family, tuple[Question, ...]] = {}
  held_out: dict[Family, tuple[Question, ...]] = {}
  for number, family in enumerate(FAMILIES, 1):
    questions = draw_questions(
      chains[family],
      family,
      config.num_train + config.num_held_out,
      hops=config.hops(family),
      rng=np.random.default_rng([config.seed, number]),
    )
    train[family] = _rename(questions[: config.num_train], "train")
    held_out[family] = _rename(questions[config.num_train :], "held_out")
  return World(
    config,
    MappingProxyType(facts),
    MappingProxyType(pages),
    MappingProxyType(chains),
    MappingProxyType(train),
    MappingProxyType(held_out),
  )


def draw_questions(
  chain: Chain,
  family: Family,
  count: int,
  *,
  hops: Sequence[int],
  rng: np.random.Generator,
  exclude: Collection[str] = (),
  distinct: bool = True,
) -> list[Question]:
  """Draws questions whose answer cannot be hit on the way.

  A question is rejected if its chain comes to anything twice, or if answering
  early would be right: lucky rewards reinforce stopping early and make groups
  look alive.

  Args:
    chain: rules of the family.
    family: its name.
    count: questions wanted.
    hops: their lengths, in turn.
    rng: source of everything random.
    exclude: question texts that must not be drawn.
    distinct: whether each question is drawn once only.

  Returns:
    `count` questions, with ids "<family>-<index>".

  Raises:
    InputError: if no new question can be found.
  """
  seen = set(exclude)
  questions: list[Question] = []
  while len(questions) < count:
    length = hops[len(questions) % len(hops)]
    for _ in range(_MAX_TRIES):
      start, moves, target = chain.draw(rng, length)
      text = chain.ask(start, moves, target)
      if text in seen:
        continue
      solution = _solve(chain, start, moves, target)
      if solution is not None:
        break
    else:
      raise InputError(
        f"the miniature world has too few {family} questions of {length} hops:"
        f" found {len(questions)} of {count}; ask for fewer questions or more"
        " entities."
      )
    steps, answer = solution
    query_id = f"{family}-{len(questions):04d}"
    questions.append(
      Question(
        query_id, text, answer, family, length, start, moves, target, steps
      )
    )
    if distinct:
      seen.add(text)
  return questions


def search_query(entity: str, relation: str) -> str:
  """The query that finds `fact_document(entity, relation, …)`."""
  return f"{entity} has {relation}"


def fact_document(entity: str, relation: str, value: str) -> str:
  """One fact as a sentence.

  The subject stands twice, for mean-pooled embeddings hardly know the order of
  words. Without this a query about an entity would often find a fact that has
  it as its value.
  """
  return f"{entity} : {entity} has {relation} {value} ."


def _solve(
  chain: Chain, start: str, moves: tuple[str, ...], target: str
) -> tuple[tuple[Step, ...], str] | None:
  """Expert solution and answer; None for a question that luck can solve."""
  steps = []
  states = [start]
  answers = []
  for move in moves:
    step, state = chain.act(states[-1], move)
    # Opening the first page leads back to the entity that was searched for.
    if state in states and move != lexicon.FIRST:
      return None
    steps.append(step)
    states.append(state)
    answers.append(chain.answer(state, target))
  if answers[-1] in answers[:-1]:
    return None
  return tuple(steps), answers[-1]


def _draw_facts(
  rng: np.random.Generator, entities: list[str], relations: Sequence[str]
) -> dict[str, dict[str, str]]:
  """Each entity's relations to other entities, uniformly."""
  facts: dict[str, dict[str, str]] = {}
  for entity in entities:
    others = [e for e in entities if e != entity]
    facts[entity] = {r: _choose(rng, others) for r in relations}
  return facts


def _draw_pages(
  rng: np.random.Generator,
  facts: Mapping[str, Mapping[str, str]],
  links: Sequence[str],
) -> dict[str, Page]:
  """One page an entity, with links to the pages of those it is related to."""
  numbers = rng.choice(np.arange(100, 1000), len(facts), replace=False)
  page_ids = dict(zip(facts, map(str, numbers.tolist()), strict=True))
  pages = {}
  for entity, page_id in page_ids.items():
    fields = {
      name: _choose(rng, values) for name, values in lexicon.FIELDS.items()
    }
    linked = {link: page_ids[facts[entity][link]] for link in links}
    pages[page_id] = Page(page_id, entity, fields, linked)
  return pages


def _rename(questions: Sequence[Question], split: str) -> tuple[Question, ...]:
  return tuple(
    dataclasses.replace(q, query_id=f"{q.family}-{split}-{i:04d}")
    for i, q in enumerate(questions)
  )


def _choose(rng: np.random.Generator, words: Sequence[str]) -> str:
  return words[int(rng.integers(len(words)))]


def _choose_some(
  rng: np.random.Generator, words: Sequence[str], count: int
) -> tuple[str, ...]:
  """`count` different words in random order."""
  picked = rng.choice(len(words), count, replace=False)
  return tuple(words[i] for i in picked.tolist())
