"""Every field of a config is read somewhere, and every shipped config loads.

A knob that no code reads is a lie to whoever turns it. The test walks the
source for attribute reads; checks in `__post_init__` do not count as use.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import typing
from collections.abc import Iterator

import pytest

from experiments import flags, run
from experiments.config import DataConfig, ExperimentConfig
from rapo_jax import rewards, tasks
from rapo_jax.tasks import DataSetTask, FileTask, MixedTask, Task
from rapo_jax.tasks.miniature import MiniatureTask

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIGS = sorted(
  path
  for path in (_ROOT / "experiments" / "configs").glob("*.py")
  if path.name != "__init__.py"
)


def unread_fields(config_class: type, sources: typing.Iterable[str]) -> set:
  """Dotted fields of a config class that none of the sources reads."""
  read = set().union(*(_attributes_read(source) for source in sources))
  return {
    path
    for path in _class_fields(config_class)
    if path.rpartition(".")[2] not in read
  }


def _class_fields(config_class: type, above: str = "") -> Iterator[str]:
  hints = typing.get_type_hints(config_class)
  for field in dataclasses.fields(config_class):
    yield above + field.name
    options = typing.get_args(hints[field.name]) or (hints[field.name],)
    if options[0] is Task:
      options = (MiniatureTask, MixedTask, FileTask, DataSetTask)
    for option in options:
      # A mixture holds tasks, whose fields are seen already.
      if dataclasses.is_dataclass(option) and ".tasks." not in above:
        yield from _class_fields(option, f"{above}{field.name}.")


def _attributes_read(source: str) -> set[str]:
  names, stack = set(), [ast.parse(source)]
  while stack:
    node = stack.pop()
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
      continue
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      names.add(node.attr)
    stack.extend(ast.iter_child_nodes(node))
  return names


def _sources() -> list[str]:
  """The program: not tests, not benchmarks, not the config files."""
  return [
    path.read_text(encoding="utf-8")
    for package in ("rapo_jax", "experiments")
    for path in (_ROOT / package).rglob("*.py")
    if "configs" not in path.parts
  ]


@dataclasses.dataclass(frozen=True)
class _Inner:
  rate: float = 1.0
  unused: int = 0

  def __post_init__(self):
    assert self.unused >= 0


@dataclasses.dataclass(frozen=True)
class _Sample:
  inner: _Inner | None = None
  seed: int = 0
  written: int = 0


def test_finds_the_fields_that_nothing_reads():
  source = (
    "class A:\n  def __post_init__(self):\n    self.unused\n"
    "def f(config):\n  config.written = 1\n  return config.inner.rate\n"
  )
  assert unread_fields(_Sample, [source, "x.seed"]) == {
    "inner.unused",
    "written",
  }


def test_every_field_of_the_experiment_config_is_read():
  config = importlib.import_module("experiments.config")
  assert unread_fields(config.ExperimentConfig, _sources()) == set()


@pytest.mark.parametrize("path", _CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
  config = flags.load_config(path)
  assert flags.to_dict(config)


@pytest.mark.parametrize(
  "url", ["http://me:canary@host:1", "http://host:1/retrieve?token=canary"]
)
def test_credentials_of_a_buffer_are_neither_stored_nor_printed(
  url, tmp_path, capsys
):
  workdir = tmp_path / "run"
  command = ["--config", "experiments/configs/quickstart.py"]
  command += ["--workdir", str(workdir), f"--config.buffer.url={url}"]
  for more in ([], ["--dry_run"]):
    assert run.main([*command, *more]) == 2
    told = capsys.readouterr()
    assert "RAPO_BUFFER_TOKEN" in told.err
    assert "canary" not in told.out + told.err
  stored = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert not [p for p in stored if b"canary" in p.read_bytes()]


@pytest.mark.parametrize("date", ["", "today", "26 Jul 2024", "2024-13-01"])
def test_a_prompt_date_that_is_no_day_is_refused(date):
  with pytest.raises(ValueError, match="a day as YYYY-MM-DD, got"):
    DataConfig(prompt_date=date)


def test_tools_and_rewards_are_chosen_by_name():
  config = flags.apply_overrides(
    ExperimentConfig(name="t"),
    [
      "--config.tasks.gsm8k.tools.search.corpus=wiki.jsonl",
      "--config.tasks=gsm8k,file",
      "--config.tasks.gsm8k.tools=search",
      "--config.tasks.gsm8k.reward=recipe",
      "--config.tasks.gsm8k.evaluation_reward=math",
      "--config.tasks.file.tools=python,search",
    ],
  )
  gsm8k, file = config.tasks
  assert isinstance(gsm8k, tasks.DataSetTask)
  assert isinstance(file, tasks.FileTask)
  assert gsm8k.tools == (tasks.SearchSpec("wiki.jsonl"),)
  assert (gsm8k.reward, gsm8k.reported_reward) == (
    rewards.OUTCOME,
    rewards.MATH,
  )
  assert file.tools == (tasks.PythonSpec(), tasks.SearchSpec())
  web = flags.apply_overrides(
    config,
    [
      "--config.tasks.file.tools=web_search,web_page",
      "--config.tasks.file.tools.search.limits.max_calls=7",
      "--config.tasks.file.tools.open.links=true",
    ],
  ).task("file")
  assert isinstance(web, tasks.FileTask)
  search, page = web.tools
  assert isinstance(search, tasks.WebSearchSpec)
  assert search.limits.max_calls == 7
  assert page == tasks.WebPageSpec(links=True)
  plain = flags.to_dict(config)["tasks"]["gsm8k"]
  assert plain["tools"]["search"]["corpus"] == "wiki.jsonl"
  for override, message in (
    ("gsm8k.tools=serch", "Did you mean search"),
    ("gsm8k.reward=none", "chosen by name, of recipe, math"),
    ("gsm8k.tools.python.corpus=x", "unknown config field"),
  ):
    with pytest.raises(flags.ConfigError, match=message):
      flags.apply_overrides(config, [f"--config.tasks.{override}"])
