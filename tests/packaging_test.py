"""A wheel has what a run needs, and runs without the clone."""

import fnmatch
import functools
import importlib.metadata
import os
import pathlib
import shutil
import sys
import sysconfig
import tomllib
import zipfile

import pytest

from experiments import flags
from rapo_jax import extras
from tests import programs
from tests.layering_test import ROOT

checked = functools.partial(programs.checked, timeout=590)
PACKAGES = ("rapo_jax", "experiments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def data_files():
  """Files of the packages that are no Python, by their paths."""
  return [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc")
  ]


def test_every_data_file_is_declared():
  declared = PROJECT["tool"]["setuptools"]["package-data"]
  patterns = [
    f"{package.replace('.', '/')}/{pattern}"
    for package, found in declared.items()
    for pattern in found
  ]
  names = [path.as_posix() for path in data_files()]
  missing = [
    name
    for name in names
    if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
  ]
  assert names
  assert not missing
  unused = [p for p in patterns if not fnmatch.filter(names, p)]
  assert not unused


def test_an_extra_is_installed_by_the_names_of_its_packages(monkeypatch):
  required = [
    "numpy>=2.1",
    'jax[tpu]>=0.10; extra == "tpu"',
    "bm25s>=0.3; extra == 'search'",
    'lxml>=5; python_version > "3" and extra == "search"',
  ]
  monkeypatch.setattr(importlib.metadata, "requires", lambda _: required)
  command = "pip install 'bm25s>=0.3' 'lxml>=5'"
  assert extras.install_command("search") == command
  assert extras.install_command("tpu") == "pip install 'jax[tpu]>=0.10'"


def test_without_metadata_an_extra_is_installed_from_the_clone(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "requires", missing)
  assert extras.install_command("mcp") == "pip install -e '.[mcp]'"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built of a copy, so that the clone gets no folder build/."""
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  source.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  for package in PACKAGES:
    shutil.copytree(
      ROOT / package,
      source / package,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  build = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
  checked(sys.executable, "-m", "pip", "wheel", *build, source)
  shutil.rmtree(source)
  [found] = folder.glob("*.whl")
  return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
  """An environment with the wheel; what it needs is of this environment."""
  folder = tmp_path_factory.mktemp("environment") / "venv"
  checked(sys.executable, "-m", "venv", "--without-pip", folder)
  python = folder / "bin" / "python"
  checked(
    *(sys.executable, "-m", "pip", "--python", python, "install"),
    *("--no-deps", "--no-index", wheel),
  )
  [packages] = folder.glob("lib/python*/site-packages")
  # Behind its own packages; files of other environments' `.pth` are not read,
  # so the clone's editable install is not there.
  (packages / "needed.pth").write_text(
    sysconfig.get_path("purelib") + "\n", encoding="utf-8"
  )
  return folder


@pytest.fixture
def in_wheel(environment, tmp_path):
  """Runs a program of the environment in an empty folder."""
  variables = {
    name: value for name, value in os.environ.items() if name != "PYTHONPATH"
  }

  def run(name, *arguments):
    program = environment / "bin" / name
    return checked(program, *arguments, cwd=tmp_path, env=variables)

  return run


@pytest.mark.slow
def test_a_wheel_holds_all_files_of_the_packages(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  sources = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
  ]
  expected = {path.as_posix() for path in [*sources, *data_files()]}
  assert expected <= names
  folders = {name.partition("/")[0] for name in names}
  assert folders - {*PACKAGES} == {
    f"rapo_jax-{PROJECT['project']['version']}.dist-info"
  }


@pytest.mark.slow
def test_a_wheel_runs_from_any_folder(in_wheel, environment, tmp_path):
  where = in_wheel("python", "-c", "import rapo_jax; print(rapo_jax.__file__)")
  assert pathlib.Path(where.strip()).is_relative_to(environment)
  assert PROJECT["project"]["version"] in in_wheel("rapo", "--version")
  assert "wrote" in in_wheel("rapo", "init", "mine")
  config = tmp_path / "mine" / "experiment.py"
  for name in (config, "quickstart"):
    said = in_wheel("rapo", "run", "--config", name, "--dry_run")
    assert "Traceback" not in said
  configs = in_wheel(
    "python",
    "-c",
    "from experiments import flags\n"
    "for name in flags.packaged_configs():\n"
    "  flags.load_config(name)\n"
    "  print(name)",
  )
  assert configs.split() == [*flags.packaged_configs()]
  # Nothing was written but what `init` writes.
  assert [path.name for path in tmp_path.iterdir()] == ["mine"]
