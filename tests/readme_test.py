"""What the documents tell people to run exists, and their Python runs."""

import importlib
import importlib.util
import pathlib
import re
import shlex
from collections.abc import Iterator

import pytest

from experiments import cli, flags, init

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(
  path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
)
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *PAGES)
# Their Python reads a buffer: tests/docs_buffer_test.py gives them one.
OF_A_BUFFER = ("docs/buffer.md", "docs/serving.md")
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def blocks(document: str, *languages: str) -> list[str]:
  text = (ROOT / document).read_text(encoding="utf-8")
  return [code for name, code in BLOCK.findall(text) if name in languages]


def commands(document: str) -> Iterator[list[str]]:
  """Words of each command; those of a console stand behind `$`."""
  lines = [
    line.strip()
    for block in blocks(document, "bash", "sh")
    for line in block.replace("\\\n", " ").splitlines()
  ]
  lines += [
    line.strip().removeprefix("$ ")
    for block in blocks(document, "console")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("$ ")
  ]
  for line in lines:
    if words := shlex.split(line, comments=True):
      yield words


def make_targets() -> set[str]:
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def check_module(words: list[str], written: pathlib.Path) -> None:
  """Checks `python -m module …` or `rapo …`: options, config, overrides.

  Args:
    words: of the command.
    written: folder of the config files that the document gives, and of what
      `rapo init` writes.
  """
  if "-m" in words:
    module, *arguments = words[words.index("-m") + 1 :]
    assert importlib.util.find_spec(module), f"no module {module}: {words}"
  else:
    assert words[1] in cli.PROGRAMS, words
    module, arguments = cli.PROGRAMS[words[1]].module, words[2:]
  if module == "experiments.init":
    init.write_starter(written / arguments[0])
  if module in {program.module for program in cli.PROGRAMS.values()}:
    parser = importlib.import_module(module).make_parser()
    parser.parse_args(
      [word for word in arguments if not word.startswith(flags.PREFIX)]
    )
  if "--config" not in words:
    return
  name = words[words.index("--config") + 1]
  places = (written / name, ROOT / name)
  config = next(filter(pathlib.Path.exists, places), name)
  overrides = [word for word in words if word.startswith(flags.PREFIX)]
  flags.apply_overrides(flags.load_config(config), overrides)


@pytest.mark.parametrize(
  "document", [page for page in DOCUMENTS if page not in OF_A_BUFFER]
)
def test_python_blocks_run(document):
  for block in blocks(document, "python"):
    exec(compile(block, document, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_blocks_name_what_exists(document, tmp_path):
  for block in blocks(document, "python"):
    if named := re.match(r"# (\w+\.py)\n", block):
      (tmp_path / named[1]).write_text(block, encoding="utf-8")
  for words in commands(document):
    if words[0] == "make":
      targets = [w for w in words[1:] if "=" not in w]
      assert set(targets) <= make_targets(), words
    elif "-m" in words or pathlib.PurePath(words[0]).name == "rapo":
      check_module(words, tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_in_the_text_exist(document):
  named = re.findall(
    r"`make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8")
  )
  assert set(named) <= make_targets()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
  folder = (ROOT / document).parent
  for target in LINK.findall((ROOT / document).read_text(encoding="utf-8")):
    assert (folder / target).exists(), target


def test_every_page_is_in_the_menu_of_the_site():
  menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
  left_out = [
    page for page in PAGES if f" {page.removeprefix('docs/')}\n" not in menu
  ]
  assert not left_out, "add them to `nav` in mkdocs.yml"


def test_the_readme_has_an_example_that_runs():
  assert blocks("README.md", "python")


def test_every_target_is_described_in_help():
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  phony = makefile.partition(".PHONY:")[2].partition("\n\n")[0]
  for target in phony.replace("\\\n", " ").split():
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_nothing_names_the_package_of_a_registry():
  # The name is not ours there, and anyone could register it.
  by_name = re.compile(r"pip\"?\s+\"?\s*install\s+['\"]*rapo[-_]jax")
  wrong = [
    path
    for folder in ("rapo_jax", "experiments", "benchmarks", "docs", ".")
    for pattern in ("*.py", "*.md", "*.sh", "Makefile")
    for path in (
      (ROOT / folder).glob(pattern)
      if folder == "."
      else (ROOT / folder).rglob(pattern)
    )
    if by_name.search(path.read_text(encoding="utf-8"))
  ]
  assert not wrong
