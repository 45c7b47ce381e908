"""The layers of `rapo_jax`, and what its import must not do.

A lower layer never imports a higher one:
errors → ranges | files | web_address | … → trajectory → objectives | models |
tools → retrieval | data → corpora | rewards → datasets | rollout → algorithms →
training → tasks → experiments.
"""

import ast
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parent.parent

LAYERS = {
  "rapo_jax.errors": 0,
  "rapo_jax.extras": 0,
  "rapo_jax.breaker": 1,
  "rapo_jax.chat_endpoint": 1,
  "rapo_jax.compilation": 1,
  "rapo_jax.discovery": 1,
  "rapo_jax.files": 1,
  "rapo_jax.hosts": 1,
  "rapo_jax.http_client": 1,
  "rapo_jax.ranges": 1,
  "rapo_jax.server_process": 1,
  "rapo_jax.text_files": 1,
  "rapo_jax.web_address": 1,
  "rapo_jax.trajectory": 1,
  "rapo_jax.dataset_rows": 2,
  "rapo_jax.encrypted": 2,
  "rapo_jax.records": 2,
  "rapo_jax.row_files": 2,
  "rapo_jax.objectives": 2,
  "rapo_jax.models": 2,
  "rapo_jax.tools": 2,
  "rapo_jax.integrations": 3,
  "rapo_jax.retrieval": 3,
  "rapo_jax.data": 3,
  "rapo_jax.corpora": 4,
  "rapo_jax.rewards": 4,
  "rapo_jax.datasets": 5,
  "rapo_jax.rollout": 5,
  "rapo_jax.algorithms": 6,
  "rapo_jax.training": 7,
  "rapo_jax.tasks": 8,
  "experiments": 9,
}
# Run in an interpreter of its own, where standard output is the agent's.
PROGRAMS = ("rapo_jax/tools/python_server.py",)
SIDE_EFFECTS = (
  "jax.config",
  "os.environ",
  "os.putenv",
  "logging.basicConfig",
  "logging.getLogger().",
  "multiprocessing.set_start_method",
  "warnings.filterwarnings",
  "warnings.simplefilter",
  "faulthandler.enable",
  "signal.signal",
)


def sources(package: str) -> list[pathlib.Path]:
  return sorted((ROOT / package).rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str | None:
  """The layer's name, or None for what is not ours."""
  parts = module.split(".")
  for name in (".".join(parts[:2]), parts[0]):
    if name in LAYERS:
      return name
  return None


def imported_modules(tree: ast.AST, module: str, *, package: bool) -> set[str]:
  """Full names of everything imported, wherever in the file."""
  names: set[str] = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = module.split(".") + (["__init__"] if package else [])
        base = ".".join(parts[: -node.level] + ([base] if base else []))
      names.update(f"{base}.{alias.name}" for alias in node.names)
  return names


def imports_of(path: pathlib.Path) -> set[str]:
  return imported_modules(
    ast.parse(path.read_text(encoding="utf-8")),
    module_name(path),
    package=path.name == "__init__.py",
  )


def import_time_statements(tree: ast.Module) -> Iterator[ast.AST]:
  """Nodes that run when the module is imported: no function bodies."""
  pending: list[ast.AST] = list(tree.body)
  while pending:
    node = pending.pop()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      continue
    yield node
    pending.extend(ast.iter_child_nodes(node))


def run_python(code: str) -> None:
  """Runs code in a fresh interpreter; fails with its standard error."""
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    cwd=ROOT,
    capture_output=True,
    encoding="utf-8",
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr


class LayeringTest(parameterized.TestCase):
  def test_a_lower_layer_never_imports_a_higher_one(self):
    wrong = []
    for path in sources("rapo_jax") + sources("experiments"):
      own = layer_of(module_name(path))
      for name in imports_of(path):
        other = layer_of(name)
        if own is None or other is None or own == other:
          continue
        if LAYERS[other] >= LAYERS[own]:
          wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    self.assertEqual(wrong, [])

  def test_every_module_has_a_layer(self):
    modules = {module_name(path) for path in sources("rapo_jax")}
    modules -= {"rapo_jax"}
    self.assertEqual([m for m in modules if layer_of(m) is None], [])

  def test_objectives_imports_jax_chex_and_itself(self):
    allowed = ("jax", "chex", "rapo_jax.objectives")
    wrong = [
      f"{path.name}: {name}"
      for path in sources("rapo_jax/objectives")
      for name in imports_of(path)
      if not name.startswith(tuple(f"{a}." for a in allowed))
      and name not in allowed
      and name.split(".")[0] not in sys.stdlib_module_names
    ]
    self.assertEqual(wrong, [])

  def test_one_file_imports_scann(self):
    files = [
      str(path.relative_to(ROOT))
      for path in sources("rapo_jax") + sources("experiments")
      if any(name.split(".")[0] == "scann" for name in imports_of(path))
    ]
    self.assertLen(files, 1, files)

  def test_importing_changes_nothing(self):
    wrong = []
    for path in sources("rapo_jax"):
      for node in import_time_statements(
        ast.parse(path.read_text(encoding="utf-8"))
      ):
        if isinstance(node, ast.Attribute | ast.Call):
          text = ast.unparse(node)
          if text.startswith(SIDE_EFFECTS):
            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    self.assertEqual(wrong, [])

  def test_the_library_never_prints(self):
    wrong = [
      f"{path.relative_to(ROOT)}:{node.lineno}"
      for path in sources("rapo_jax")
      if str(path.relative_to(ROOT)) not in PROGRAMS
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
      if isinstance(node, ast.Call)
      and isinstance(node.func, ast.Name)
      and node.func.id == "print"
    ]
    self.assertEqual(wrong, [])

  @parameterized.parameters(
    ("from ..training import update", "rapo_jax.training.update"),
    ("from . import b", "rapo_jax.rollout.b"),
    ("import rapo_jax.training.x", "rapo_jax.training.x"),
    ("def f():\n  from rapo_jax import training", "rapo_jax.training"),
  )
  def test_relative_and_inner_imports_are_seen(self, code, expected):
    found = imported_modules(
      ast.parse(code), "rapo_jax.rollout.a", package=False
    )
    self.assertEqual(found, {expected})


class ImportTest(parameterized.TestCase):
  def test_everything_imports_without_torch_and_tensorflow(self):
    run_python("""
      import importlib, importlib.abc, pkgutil, sys

      class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
          if name.split(".")[0] in ("torch", "tensorflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

      sys.meta_path.insert(0, Block())
      import rapo_jax
      for module in pkgutil.walk_packages(rapo_jax.__path__, "rapo_jax."):
        # Those import trainers that are not installed here.
        if not module.name.startswith("rapo_jax.integrations."):
          importlib.import_module(module.name)
      assert "torch" not in sys.modules
      assert "tensorflow" not in sys.modules
      from jax._src import xla_bridge
      assert not xla_bridge.backends_are_initialized(), "a device was touched"
    """)

  def test_objectives_imports_with_jax_and_chex_alone(self):
    # What jax and chex need themselves is loaded first; after that, nothing
    # but our own files may be imported.
    run_python("""
      import importlib.abc, sys
      import chex, jax, jax.numpy

      class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
          allowed = ("rapo_jax", "jax", "chex", *sys.stdlib_module_names)
          if name.split(".")[0] not in allowed or (
            name.startswith("rapo_jax.")
            and not name.startswith("rapo_jax.objectives")
          ):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

      sys.meta_path.insert(0, Block())
      from rapo_jax import objectives
      assert callable(objectives.rapo_loss)
    """)
