"""Places: no URLs, home folders, in commands and configs alike."""

import dataclasses
import pathlib

import pytest

from experiments import (
  buffer,
  config_places,
  export,
  places,
  plan,
  run,
  serve_index,
)
from experiments.config import ExperimentConfig
from rapo_jax import tasks
from rapo_jax.errors import InputError

URLS = (
  "gs://b/run",
  "s3://b/run",
  "hdfs://h:9/run",
  "file:///tmp/x",
  "gs:/b/r",
)


@pytest.mark.parametrize("text", URLS)
def test_a_url_is_refused_with_the_rule_and_the_remedy(text):
  with pytest.raises(InputError, match="must be a path on this machine") as e:
    places.local(text, "data.path")
  assert "data.path" in str(e.value)
  assert text in str(e.value)
  assert "give its path" in str(e.value)


@pytest.mark.parametrize(
  "text", ["a", "a/b", "/a", "./gs:x", "a b", "[x]", "a:b", "Qwen/Qwen2.5-1.5B"]
)
def test_a_path_stays_as_it_is(text):
  assert places.local(text, "a path") == text


def test_home_folders_are_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert places.local("~/runs", "a path") == f"{tmp_path}/runs"
  assert places.path_argument("~") == tmp_path
  with pytest.raises(InputError, match="there is no such home folder"):
    places.local("~nobody-of-that-name/runs", "a path")


def test_places_of_tasks_and_their_tools_are_looked_at(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))

  def with_places(text):
    search = tasks.SearchSpec(corpus=text)
    task = tasks.DataSetTask("gsm8k", prompt=text, tools=(search,))
    return ExperimentConfig(name="test", tasks=(task,))

  (task,) = config_places.local_config(with_places("~/there")).tasks
  assert task.prompt == f"{tmp_path}/there"
  assert task.tools == (tasks.SearchSpec(corpus=f"{tmp_path}/there"),)
  with pytest.raises(InputError, match=r"tasks\.gsm8k\.tools\.search\.corpus"):
    config_places.local_config(with_places("hdfs://b/there"))


@pytest.mark.parametrize("name", config_places.CONFIG_PLACES)
def test_every_place_in_a_config_is_looked_at(name, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  section, field = name.split(".")

  def with_place(text):
    config = ExperimentConfig(name="test")
    values = dataclasses.replace(getattr(config, section), **{field: text})
    return dataclasses.replace(config, **{section: values})

  local = config_places.local_config(with_place("~/there"))
  assert getattr(getattr(local, section), field) == f"{tmp_path}/there"
  with pytest.raises(InputError, match=name):
    config_places.local_config(with_place("hdfs://b/there"))


def test_no_place_in_a_config_is_forgotten():
  """Fields that end in what a place is called."""
  found = set()
  config = ExperimentConfig(name="test")
  for section in dataclasses.fields(config):
    values = getattr(config, section.name)
    if dataclasses.is_dataclass(values):
      found |= {
        f"{section.name}.{field.name}"
        for field in dataclasses.fields(values)
        if field.name
        in ("path", "base", "off_policy", "folder", "chat_template")
      }
  assert found == set(config_places.CONFIG_PLACES)


@pytest.mark.parametrize(
  ("main", "arguments"),
  [
    (run.main, "--config quickstart --workdir hdfs://b/run"),
    (run.main, "--config gs://b/config.py --workdir run"),
    (plan.main, "--config quickstart --topology v5e:2x2 --json s3://b/p.json"),
    (export.main, "--checkpoint gs://b/run --output out"),
    (export.main, "--checkpoint run --output gs://b/out"),
    (export.main, "--checkpoint run --output out --base gs://b/base"),
    (buffer.main, "verify --buffer gs://b/buffer"),
    (buffer.main, "import a.jsonl --output gs://b/buffer"),
    (buffer.main, "merge gs://b/one --output two"),
    (serve_index.main, "--buffer gs://b/buffer"),
  ],
)
def test_every_command_refuses_a_url(
  main, arguments, capsys, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as ended:
    main(arguments.split())
  assert ended.value.code == 2
  assert "must be a path on this machine" in capsys.readouterr().err
  assert list(pathlib.Path().iterdir()) == []


def test_a_url_as_a_source_is_refused(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for source in ("gs://b/a.jsonl", "agent=gs://b/a.jsonl"):
    assert buffer.main(["import", source, "--output", "out"]) == 2
    assert "a source must be a path on this" in capsys.readouterr().err
  assert list(pathlib.Path().iterdir()) == []


def test_bytes_that_are_no_text_are_refused():
  with pytest.raises(
    InputError, match=r"must be a path in UTF-8, got b'/a/\\x"
  ):
    places.local("/a/\udcff", "--workdir")
  assert places.local("/ä/😀", "--workdir") == "/ä/😀"


def test_an_empty_path_is_refused():
  with pytest.raises(InputError, match=r"--workdir must not be empty"):
    places.local("", "--workdir")
