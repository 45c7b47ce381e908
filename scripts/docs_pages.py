"""Pages of the site that are not Markdown in docs/, and links between all.

MkDocs calls the functions named `on_…` (mkdocs.yml). They add the README and
other Markdown of the repository, the API by packages, notebooks, and each file
that a page links to. So no page is written twice. Links lead from file to file,
as a reader of the repository needs them. Here they become links to pages.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = (
  "README.md",
  "CONTRIBUTING.md",
  "CHANGELOG.md",
  "benchmarks/README.md",
  "examples/rapo_in_ten_minutes.ipynb",
)
"""What is a page and lies outside docs/."""
API = (
  "rapo_jax.objectives",
  "rapo_jax.algorithms",
  "rapo_jax.tasks",
  "rapo_jax.rewards",
  "rapo_jax.tools",
  "rapo_jax.retrieval",
  "rapo_jax.rollout",
  "rapo_jax.training",
  "rapo_jax.models",
  "rapo_jax.data",
  "rapo_jax.datasets",
  "rapo_jax.corpora",
  "rapo_jax.hosts",
  "rapo_jax.integrations",
  "rapo_jax.trajectory",
  "rapo_jax.records",
  "rapo_jax.errors",
  "experiments.config",
  "experiments.arms",
)
"""Packages and modules with a page of their own, in the order of the menu."""
COMMANDS = "reference/commands.md"
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
_PROGRAM = re.compile(r'"([\w-]+)": Program\(\s*"([\w.]+)"')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Completes the menu: the section Reference gets the API."""
  for entry in config.nav or ():
    if "Reference" in entry:
      entry["Reference"] += [
        {"Commands": COMMANDS},
        {"API": [{name: _api_page(name)} for name in API]},
      ]
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages that are made here."""
  for name in OUTSIDE:
    _add(files, config, ROOT / name)
  for name in API:
    content = f"# {name}\n\n::: {name}\n"
    page = File.generated(config, _api_page(name), content=content)
    files.append(page)
  commands = File.generated(config, COMMANDS, content=_commands())
  files.append(commands)
  markdown = [DOCS / f.src_uri for f in files if f.generated_by is None]
  markdown += [ROOT / name for name in OUTSIDE]
  for path in markdown:
    for target in _targets(path):
      if files.get_file_from_path(_uri(target)) is None:
        _add(files, config, target)
  return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
  """Turns what is not Markdown into it."""
  del config
  path = pathlib.Path(page.file.abs_src_path or "")
  if path.suffix == ".ipynb":
    return _notebook(path)
  if page.file.src_uri.startswith("source/"):
    return _source(path)
  return None


def on_page_markdown(
  markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Turns links to files of the repository into links to pages."""
  del config, files
  if page.file.abs_src_path is None:
    return markdown
  folder = pathlib.Path(page.file.abs_src_path).parent
  start = os.path.dirname(page.file.src_uri)

  def turned(match: re.Match[str]) -> str:
    target = (folder / match[0]).resolve()
    # One that leads nowhere stays, and MkDocs reports it.
    if not target.is_file():
      return match[0]
    return os.path.relpath(_uri(target), start)

  return _outside_fences(lambda text: _LINK.sub(turned, text), markdown)


def _uri(path: pathlib.Path) -> str:
  """Where the page of a file of the repository lies in the site."""
  if path.is_relative_to(DOCS):
    return path.relative_to(DOCS).as_posix()
  name = path.relative_to(ROOT).as_posix()
  if name == "README.md":
    return "index.md"
  if path.suffix == ".ipynb":
    return str(pathlib.PurePosixPath(name).with_suffix(".md"))
  return name if path.suffix == ".md" else f"source/{name}.md"


def _add(files: Files, config: MkDocsConfig, path: pathlib.Path) -> None:
  page = File.generated(config, _uri(path), abs_src_path=str(path))
  files.append(page)


def _targets(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files of the repository that a page of Markdown links to."""
  if path.suffix != ".md":
    return
  found: list[str] = []

  def collect(text: str) -> str:
    found.extend(_LINK.findall(text))
    return text

  _outside_fences(collect, path.read_text(encoding="utf-8"))
  for name in found:
    target = (path.parent / name).resolve()
    if target.is_file() and target.is_relative_to(ROOT):
      yield target


def _outside_fences(change: Callable[[str], str], markdown: str) -> str:
  """Changes all of a page but its blocks of code."""
  parts = _FENCE.split(markdown)
  return "".join(
    part if number % 2 else change(part) for number, part in enumerate(parts)
  )


def _api_page(name: str) -> str:
  return f"reference/{name}.md"


def _commands() -> str:
  """What each program says of itself, from the table of programs."""
  text = (ROOT / "experiments/cli.py").read_text(encoding="utf-8")
  programs = [("", "experiments.cli"), *_PROGRAM.findall(text)]
  options = "    options:\n      members: false\n"
  parts = ["# Commands\n\n`--help` lists the options of each.\n"]
  parts += [
    f"## rapo {name}\n\n::: {module}\n{options}" for name, module in programs
  ]
  return "\n".join(parts)


def _source(path: pathlib.Path) -> str:
  """A file as it is."""
  name = path.relative_to(ROOT).as_posix()
  language = {".py": "python", ".cff": "yaml"}.get(path.suffix, "text")
  code = path.read_text(encoding="utf-8").rstrip()
  return f"# {name}\n\n````{language}\n{code}\n````\n"


def _notebook(path: pathlib.Path) -> str:
  """Cells of a notebook, without what they printed."""
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  parts = []
  for cell in cells:
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
      text = f"```python\n{text}\n```"
    parts.append(text)
  return "\n\n".join(parts) + "\n"
