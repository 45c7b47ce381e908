"""What in a work folder depends on which fields."""

import json

import pytest

from experiments import dependencies, flags
from experiments.config import ExperimentConfig, WarmStartConfig
from experiments.workdir import Workdir
from rapo_jax.tasks import TASKS

# Fields that nothing in a work folder depends on.
FREE = (
  "mesh",
  "name",
  "policy.base",
  "policy.chat_template",
  "buffer.path",
  "buffer.url",
  "warm_start.eval_every",
  "warm_start.checkpoint_every",
  "evaluation.curve_samples",
  "evaluation.curve_questions",
  "evaluation.max_tool_fail_rate",
  "tools.python.trust_code",
  "train",
  "logging",
)
FIELDS = (
  dependencies.AGENTS,
  dependencies.BUFFER,
  dependencies.TRAIN,
  dependencies.EVALUATE,
)


def _config(*overrides):
  config = flags.apply_overrides(
    ExperimentConfig(name="test"), [f"--config.{o}" for o in overrides]
  )
  return json.loads(json.dumps(flags.to_dict(config)))


@pytest.fixture
def workdir(tmp_path):
  """A folder with agents, a buffer and a run with a checkpoint."""
  workdir = Workdir(tmp_path / "w")
  for path in (
    workdir.agent("multihop", "base") / "config.json",
    workdir.buffer("multihop") / "manifest.json",
    workdir.run("multihop", "rapo-seed0") / "checkpoints" / "5" / "manifest",
    workdir.evaluation("multihop", "base"),
  ):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}", encoding="utf-8")
  return workdir


def _conflicts(workdir, *overrides):
  return dependencies.conflicts(workdir, _config(), _config(*overrides))


@pytest.mark.parametrize(
  "override",
  [
    "name=another",
    "train.num_updates=40",
    "train.num_updates=1",
    "train.methods=rapo",
    "train.seeds=0,1,2,3",
    "train.eval_every=1",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=9",
    "train.keep_best=true",
    "mesh.tensor=2",
    "evaluation.num_samples=8",
    "evaluation.seed=7",
    "tools.python.trust_code=true",
    "logging.tensorboard=false",
    "tasks=web,multihop",
    "tasks=web",
    "optimizer.weight_decay=0",
    "optimizer.learning_rate=0.000001",
  ],
)
def test_what_nothing_depends_on_may_change(workdir, override):
  assert _conflicts(workdir, override) == []


@pytest.mark.parametrize(
  ("override", "dependent"),
  [
    ("tasks.multihop.world.num_train=9", ("agents", "buffer", "train")),
    ("tasks.multihop.agents.rows=9", ("agents",)),
    ("rollout.num_slots=7", ("buffer", "train")),
    ("rollout.num_hybrid=1", ("train",)),
    ("buffer.num_trajectories=5", ("buffer",)),
    ("retrieval.min_reward=0.5", ("buffer", "train")),
    ("retrieval.top_k=1", ("train",)),
    ("objective.retrieval_coef=0.3", ("train",)),
    ("optimizer.learning_rate=0.5", ("train",)),
    ("policy.lora.rank=2", ("train",)),
    ("data.seed=3", ("train",)),
    ("tools.search_top_k=3", ("buffer", "train")),
  ],
)
def test_what_something_depends_on_names_it(workdir, override, dependent):
  lines = _conflicts(workdir, override)
  name = override.partition("=")[0].removesuffix(".rank")
  assert all(line.startswith(f"config.{name}") for line in lines)
  for kind in ("agents", "buffer", "train"):
    named = any(str(workdir.root / kind) in line for line in lines)
    assert named == (kind in dependent), (kind, lines)


def test_in_an_empty_folder_everything_may_change(tmp_path):
  workdir = Workdir(tmp_path)
  workdir.agent("multihop", "base").mkdir(parents=True)
  run = workdir.run("multihop", "rapo-seed0")
  (run / "checkpoints").mkdir(parents=True)
  (run / "metrics.jsonl").write_text('{"update": 0}\n', encoding="utf-8")
  changes = ("tasks.multihop.world.num_train=9", "rollout.num_slots=7")
  assert _conflicts(workdir, *changes) == []


def test_a_run_that_has_diverged_may_have_another_learning_rate(workdir):
  run = workdir.run("multihop", "rapo-seed0")
  (run / dependencies.DIVERGED_FILE).write_text("{}", encoding="utf-8")
  assert _conflicts(workdir, "optimizer.learning_rate=0.5") == []
  assert _conflicts(workdir, "optimizer.max_gradient_norm=0.5") == []
  assert _conflicts(workdir, "optimizer.warmup_updates=3")
  assert _conflicts(workdir, "rollout.num_hybrid=1")
  other = workdir.run("multihop", "grpo-seed0")
  other.mkdir(parents=True)
  (other / "done.json").write_text("{}", encoding="utf-8")
  lines = _conflicts(workdir, "optimizer.learning_rate=0.5")
  assert len(lines) == 1
  assert "grpo-seed0" in lines[0]


def test_what_a_warm_start_was_trained_with(workdir):
  path = workdir.warm_started("multihop") / "config.json"
  path.parent.mkdir(parents=True)
  path.write_text("{}", encoding="utf-8")

  def conflicts(*overrides):
    there = _config("warm_start.seed=0")
    wanted = _config("warm_start.seed=0", *overrides)
    return dependencies.conflicts(workdir, there, wanted)

  assert conflicts("warm_start.eval_every=3", "train.num_updates=9") == []
  # What runs do in other ways is nothing to it.
  (line,) = conflicts("objective.retrieval_coef=0.5")
  assert "rapo-seed0 was trained with it" in line
  first, second = conflicts("warm_start.training.rows=8")
  assert f"{path.parent.parent} was made with it" in first
  assert "rapo-seed0 was trained with it" in second
  # The runs' own agent is compared by what it holds, this one's by its place.
  (line,) = conflicts("policy.base=/elsewhere")
  assert f"{path.parent.parent} was made with it" in line


def test_numbers_are_compared_as_numbers():
  assert dependencies.differences({"a": 1}, {"a": 1.0}) == []
  assert dependencies.differences({"a": [1, 2]}, {"a": (1.0, 2)}) == []
  assert dependencies.differences({"a": [1]}, {"a": [1, 2]})
  assert dependencies.differences({"a": 1}, {"a": True})
  assert dependencies.differences({"a": None}, {"a": 0})
  assert dependencies.differences({"a": "1"}, {"a": 1})
  assert dependencies.differences({"a": {"b": 1}}, {"a": {"b": 2}}) == [
    "config.a.b is 1 there and 2 here"
  ]


def test_a_field_that_an_older_version_did_not_have_has_its_default(workdir):
  older = _config()
  del older["rollout"]["num_slots"]
  assert dependencies.conflicts(workdir, older, _config()) == []
  assert dependencies.conflicts(workdir, older, _config("rollout.num_slots=7"))


def test_every_field_is_depended_on_or_free():
  """A new section has to be put somewhere."""
  config = ExperimentConfig(name="test", warm_start=WarmStartConfig())
  for path in flags.field_paths(config):
    used = any(fields.has(path) for fields in FIELDS)
    free = any(path == f or path.startswith(f"{f}.") for f in FREE)
    assert used != free, path


def test_every_name_of_a_field_is_one():
  config = ExperimentConfig(
    name="test", tasks=tuple(TASKS.values()), warm_start=WarmStartConfig()
  )
  known = [*map(dependencies.without_task_name, flags.field_paths(config))]
  # Objects, which are set in a config file.
  known += ["tasks.tools", "tasks.reward"]
  others = (dependencies.WARM_START, dependencies.AFTER_DIVERGENCE)
  for fields in (*FIELDS, *others):
    for name in (*fields.sections, *fields.apart):
      assert any(p == name or p.startswith(f"{name}.") for p in known), name


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("tasks.multihop.world.seed", "tasks.world.seed"),
    ("tasks.mix.tasks.sums.reward.object", "tasks.reward.object"),
    ("tasks.mix.reward", "tasks.reward"),
    ("rollout.num_slots", "rollout.num_slots"),
  ],
)
def test_fields_of_a_task_are_compared_without_its_name(path, expected):
  assert dependencies.without_task_name(path) == expected
