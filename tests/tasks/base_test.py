"""Tasks as values: names, questions, tools, and the table."""

from __future__ import annotations

import dataclasses

import pytest

from rapo_jax import rewards, tools
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import normalized
from rapo_jax.tasks import (
  TASKS,
  MixedTask,
  Questions,
  Task,
  by_name,
  check_tool_specs,
  load_questions,
  start_tools,
)
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.world import FAMILIES, WorldConfig
from rapo_jax.trajectory import FinishReason

WORLD = WorldConfig(num_train=4, num_held_out=3)


def query(query_id: str, text: str = "?") -> Query:
  return Query(query_id, text, ("a",), ({"role": "user", "content": text},), "")


@dataclasses.dataclass(frozen=True)
class Given(Task):
  given: Questions = Questions([query("a")], {"test": [query("b")]})
  tools: tuple[tools.Tool, ...] = ()

  def questions(self) -> Questions:
    return self.given

  def tool_specs(self):
    return self.tools


def lookup(name: str) -> tools.FunctionTool:
  return tools.FunctionTool(
    str.upper, name, f"<{name}> x </{name}> looks up.", f"<{name}> x </{name}>"
  )


class Services:
  def search(self, documents, mode="dense", top_k=None):
    found = lookup("search")
    return dataclasses.replace(found, function=lambda _: documents[0])

  def python(self):
    return lookup("python")


def test_the_table_has_the_tasks_of_this_package():
  assert {*FAMILIES, "tool_star"} <= {*TASKS}
  assert all(TASKS[name].name == name for name in TASKS)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "a.b", "é"])
def test_a_name_that_is_no_folder(name):
  with pytest.raises(InputError, match="the name of a task must be letters"):
    Given(name)


def test_a_reward_that_is_none():
  with pytest.raises(InputError, match="a reward has a method score"):
    Given("t", reward=lambda sample: 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (Questions([query("a")], {}), "t must have at least one evaluation set"),
    (Questions([query("a")], {"test": []}), "test of the task t has none"),
    (Questions([], {"a b": [query("a")]}), "evaluation set of t must be"),
    (Questions(["a"], {"test": [query("a")]}), "the task t has 'a'"),
    (
      Questions([query("a", "1")], {"test": [query("a", "2")]}),
      "the task t: two questions must not have one id, and 'a'",
    ),
  ],
)
def test_questions_that_cannot_be_used(given, message):
  with pytest.raises(InputError, match=message):
    load_questions(Given("t", given))


def test_a_task_may_be_evaluated_alone():
  assert not load_questions(
    Given("t", Questions([], {"x": [query("a")]}))
  ).train


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("think",), "the tools of the task t: .*think"),
    (("one", "one"), "the tools of the task t: .*one"),
  ],
)
def test_tools_that_cannot_be_tags(names, message):
  good = lookup("ok")
  given = tuple(_renamed(good, name) for name in names)
  with pytest.raises(InputError, match=message):
    check_tool_specs(Given("t", tools=given))


def _renamed(tool, name):
  """A tool of any kind with a name that its constructor would refuse."""
  copy = dataclasses.replace(tool)
  object.__setattr__(copy, "name", name)
  return copy


@pytest.mark.parametrize("given", [(), (Given("t"), Given("t")), ("compute",)])
def test_tasks_of_an_experiment(given):
  with pytest.raises(InputError, match="task"):
    by_name(given)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_miniature_world_is_split_by_question(family):
  train, evaluation = load_questions(MiniatureTask(family, world=WORLD))
  (held_out,) = evaluation.values()
  assert (len(train), len(held_out)) == (4, 3)
  known = {normalized(q.question) for q in train}
  assert not known & {normalized(q.question) for q in held_out}


@pytest.mark.parametrize(
  ("family", "names"),
  [
    ("multihop", ["search"]),
    ("compute", ["python"]),
    ("web", ["search", "open"]),
  ],
)
def test_tools_of_the_miniature_world(family, names):
  task = MiniatureTask("mine", family=family, world=WORLD)
  opened = start_tools(task.tool_specs(), Services())
  assert [*opened] == names
  if family != "compute":
    assert " has " in opened["search"].call("").text


def test_a_family_of_another_name_has_to_be_set():
  with pytest.raises(InputError, match="family must be set"):
    MiniatureTask("mine")


@rewards.reward
def half(sample):
  return 0.5


class TestAMixture:
  def mixture(self):
    return MixedTask(
      "both",
      tasks=(
        MiniatureTask("compute", world=WORLD, reward=half),
        MiniatureTask("multihop", world=WORLD),
      ),
    )

  def test_holds_all_questions_and_keeps_the_evaluation_sets(self):
    train, evaluation = load_questions(self.mixture())
    assert len(train) == 8
    assert [*evaluation] == ["compute-held_out", "multihop-held_out"]
    assert train[0].query_id == "compute/compute-train-0000"
    assert {q.task for q in train} == {"compute", "multihop"}

  def test_scores_each_sample_by_its_own_task(self):
    mixture = self.mixture()
    train = mixture.questions().train
    batch = [
      rewards.Sample(q, (), FinishReason.ANSWER)
      for q in (train[7], train[0], train[6])
    ]
    values = [s.value for s in rewards.score_all(mixture.reward, batch)]
    assert values == [-1.0, 0.5, -1.0]

  def test_reports_each_sample_by_its_own_task(self):
    parts = self.mixture().tasks
    assert self.mixture().reported_reward == self.mixture().reward
    graded = dataclasses.replace(
      parts[1], evaluation_reward=rewards.FunctionReward(lambda sample: 0.25)
    )
    mixture = MixedTask("both", tasks=(parts[0], graded))
    batch = [
      rewards.Sample(q, (), FinishReason.ANSWER)
      for q in (mixture.questions().train[0], mixture.questions().train[7])
    ]
    scores = rewards.score_all(mixture.reported_reward, batch)
    assert [s.value for s in scores] == [0.5, 0.25]

  def test_has_the_tools_of_all(self):
    names = [spec.name for spec in self.mixture().tool_specs()]
    assert names == ["python", "search"]

  def test_refuses_two_tools_of_one_name(self):
    tasks = [MiniatureTask(name, world=WORLD) for name in ("multihop", "web")]
    with pytest.raises(InputError, match="two that are called 'search'"):
      MixedTask("both", tasks=tuple(tasks))

  @pytest.mark.parametrize(
    ("weights", "counts"),
    [(None, (4, 4)), ((3.0, 1.0), (6, 2)), ((1.0, 7.0), (1, 7))],
  )
  def test_weights_are_shares_of_an_epoch(self, weights, counts):
    mixture = dataclasses.replace(self.mixture(), weights=weights)
    train = load_questions(mixture).train
    own = [q for q in train if q.task == "compute"]
    assert (len(own), len(train) - len(own)) == counts
    # Every question comes as often as the others, but for one time.
    ids = [q.query_id.partition(".")[0] for q in own]
    times = [ids.count(query_id) for query_id in set(ids)]
    assert max(times) - min(times) <= 1
    assert len({q.query_id for q in train}) == len(train)
    assert load_questions(mixture).train == train

  @pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 2.0, 3.0)])
  def test_weights_that_are_none(self, weights):
    with pytest.raises(InputError, match="weights must"):
      dataclasses.replace(self.mixture(), weights=weights)

  def test_needs_two_tasks(self):
    with pytest.raises(InputError, match="at least two tasks, and x has t"):
      MixedTask("x", tasks=(Given("t"),))


@dataclasses.dataclass(frozen=True)
class Counter(tools.FunctionTool):
  start: int = 3


def test_a_tool_may_have_a_field_that_is_called_start():
  counter = Counter(str, "count", "<count> counts.", "<count> x </count>")
  assert start_tools((counter,), Services()) == {"count": counter}


@pytest.mark.parametrize("given", [([], {}), None, [query("a")]])
def test_questions_of_another_type(given):
  with pytest.raises(InputError, match=r"t must return rapo_jax\.tasks\.Q"):
    load_questions(Given("t", given))


@pytest.mark.parametrize(
  ("tool", "message"),
  [
    (str.upper, "the tools of the task t"),
    (_renamed(lookup("ok"), "think"), "think"),
    (dataclasses.make_dataclass("Bare", ["name"])("look"), "lacks description"),
  ],
)
def test_what_is_no_tool_is_found_before_it_is_started(tool, message):
  with pytest.raises(InputError, match=message):
    check_tool_specs(Given("t", tools=(tool,)))


def test_a_part_of_a_mixture_that_scores_too_few_is_named():
  @dataclasses.dataclass(frozen=True)
  class Few:
    def score(self, batch):
      return []

  tasks = (Given("a", reward=Few()), Given("b"))
  mixture = MixedTask("both", tasks=tasks)
  sample = rewards.Sample(
    dataclasses.replace(query("q"), task="a"), (), FinishReason.ANSWER
  )
  with pytest.raises(InputError, match="the reward Few must return one score"):
    rewards.score_all(mixture.reward, [sample])
