"""Structure of all packages: functions, cycles of imports, private names."""

import ast
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from absl.testing import parameterized

from tests.layering_test import ROOT, imported_modules, module_name, sources

MAX_LINES = 94
PACKAGES = ("rapo_jax", "experiments", "benchmarks")
# The public methods of every named tuple begin with an underscore.
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
# What the interpreter does at the end of a program, and nobody else offers.
ALLOWED = {("rapo_jax/tools/python_server.py", "threading._shutdown")}

_Functions = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(tree: ast.AST) -> list[str]:
  """Functions of more than 94 lines, decorators not counted."""
  return [
    f"{node.name}: {length} lines"
    for node in ast.walk(tree)
    if isinstance(node, _Functions)
    and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_LINES
  ]


def is_private(name: str) -> bool:
  return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def own_names(tree: ast.AST) -> set[str]:
  """Names that a module defines: variables, functions and attributes."""
  names = set()
  for node in ast.walk(tree):
    match node:
      case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
        names.add(name)
      case ast.ClassDef(name=name):
        names.add(name)
      case ast.Name(id=name, ctx=ast.Store()):
        names.add(name)
      case ast.Attribute(
        value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()
      ):
        names.add(name)
  return names


def imported_names(tree: ast.AST) -> dict[str, str]:
  """Names that a module binds by importing, with the package they are of."""
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        package = alias.name.split(".")[0]
        names[alias.asname or package] = package
    elif isinstance(node, ast.ImportFrom):
      package = "" if node.level else (node.module or "").split(".")[0]
      names.update({a.asname or a.name: package for a in node.names})
  return names


def foreign_private_names(tree: ast.AST) -> list[str]:
  """Private names of other modules that a module reads, with their lines.

  The standard library's are left out: it documents `os._exit`. An object's
  attribute is taken for the module's own if the module defines that name.
  """
  own, imported = own_names(tree), imported_names(tree)
  found = []
  for node in ast.walk(tree):
    match node:
      case ast.ImportFrom(module=module, names=aliases):
        parts = [*(module or "").split("."), *(a.name for a in aliases)]
        found += [f"{node.lineno}: {n}" for n in parts if is_private(n)]
      case ast.Import(names=aliases):
        parts = [part for a in aliases for part in a.name.split(".")]
        found += [f"{node.lineno}: {n}" for n in parts if is_private(n)]
      case ast.Attribute(value=value, attr=name) if is_private(name):
        text = ast.unparse(value)
        package = imported.get(text.split(".")[0])
        if package in sys.stdlib_module_names or text in ("self", "cls"):
          continue
        # A name from an import is another module's, whatever it is called.
        if name not in own or (package is not None and text in imported):
          found.append(f"{node.lineno}: {text}.{name}")
  return found


class _WithoutTypeChecking(ast.NodeTransformer):
  def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
    self.generic_visit(node)
    if ast.unparse(node.test).endswith("TYPE_CHECKING"):
      return node.orelse
    return node


def module_imports(packages: Iterable[str]) -> dict[str, set[str]]:
  """Modules of ours, each with those of ours that it imports anywhere."""
  paths = {module_name(p): p for name in packages for p in sources(name)}
  graph = {}
  for module, path in paths.items():
    tree = _WithoutTypeChecking().visit(
      ast.parse(path.read_text(encoding="utf-8"))
    )
    imported = imported_modules(
      tree, module, package=path.name == "__init__.py"
    )
    # `from package import module` and `from module import name` look alike.
    owners = {n if n in paths else n.rpartition(".")[0] for n in imported}
    graph[module] = (owners & paths.keys()) - {module}
  return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
  """Groups of modules, each of which reaches all the others of its group."""
  reached = {node: set(_reachable(graph, node)) for node in graph}
  groups = {
    tuple(sorted(n for n in reached[node] if node in reached[n]))
    for node in graph
    if node in reached[node]
  }
  return [list(group) for group in sorted(groups)]


def _reachable(graph: Mapping[str, set[str]], start: str) -> Iterator[str]:
  seen: set[str] = set()
  pending = list(graph[start])
  while pending:
    node = pending.pop()
    if node not in seen:
      seen.add(node)
      yield node
      pending.extend(graph[node])


def _trees() -> Iterator[tuple[pathlib.Path, ast.AST]]:
  for package in PACKAGES:
    for path in sources(package):
      yield (
        path.relative_to(ROOT),
        ast.parse(path.read_text(encoding="utf-8")),
      )


class StructureTest(parameterized.TestCase):
  def test_functions_have_at_most_94_lines(self):
    wrong = [
      f"{path}: {f}" for path, tree in _trees() for f in long_functions(tree)
    ]
    self.assertEqual(wrong, [])

  def test_no_module_imports_itself_through_others(self):
    self.assertEqual(cycles(module_imports(PACKAGES)), [])

  def test_no_module_reads_private_names_of_another(self):
    wrong = [
      f"{path}:{name}"
      for path, tree in _trees()
      for name in foreign_private_names(tree)
      if (str(path), name.rpartition(" ")[2]) not in ALLOWED
    ]
    self.assertEqual(wrong, [])

  def test_long_functions_are_found(self):
    body = "  pass\n" * MAX_LINES
    tree = ast.parse(f"def long():\n{body}\ndef short():\n{body[:-7]}")
    self.assertEqual(long_functions(tree), ["long: 95 lines"])

  @parameterized.parameters(
    ("from rapo_jax.files import _x", True),
    ("from . import a\na._x", True),
    ("from . import a\n_x = 1\na._x", True),
    ("def f(other):\n  return other._x", True),
    ("def f(other):\n  return other.y._x", True),
    ("def f(other):\n  other._x = 1", True),
    ("import jax\njax._src", True),
    ("from jax._src.clusters import ClusterEnv", True),
    ("import jax._src.clusters", True),
    ("import os\nos._exit(0)", False),
    ("def f(row):\n  return row._replace(a=1)", False),
    ("def f(row):\n  return row.__class__", False),
  )
  def test_private_names_are_found(self, code, found):
    self.assertEqual(bool(foreign_private_names(ast.parse(code))), found)

  def test_a_module_reads_its_own_private_names(self):
    tree = ast.parse(
      textwrap.dedent("""
        class A:
          _b: int

          def __init__(self, other):
            self._x = other._x + other._b
            self._inherited()
      """)
    )
    self.assertEqual(foreign_private_names(tree), [])

  def test_cycles_are_found(self):
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}
    self.assertEqual(cycles(graph), [["b", "c"], ["d"]])

  def test_imports_for_types_alone_make_no_cycle(self):
    tree = _WithoutTypeChecking().visit(
      ast.parse("if TYPE_CHECKING:\n  import a\nelse:\n  import b")
    )
    self.assertEqual(imported_modules(tree, "m", package=False), {"b"})
