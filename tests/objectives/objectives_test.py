"""What holds for the package as a whole."""

import ast
import inspect
import pathlib
import subprocess
import sys

from rapo_jax import objectives

ALLOWED = {"jax", "chex", "rapo_jax"}

BLOCKED_IMPORT = """
import sys
import jax, jax.numpy as jnp, chex

# Whatever jax and chex need is loaded by now; the rest is as if not installed.
installed = {name.partition(".")[0] for name in sys.modules} | {"jax", "chex"}
ours = ("rapo_jax", "rapo_jax.objectives")

class Blocker:
  def find_spec(self, name, path=None, target=None):
    top = name.partition(".")[0]
    if top == "rapo_jax":
      if name in ours or name.startswith("rapo_jax.objectives."):
        return None
    elif top in installed or top in sys.stdlib_module_names:
      return None
    raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Blocker())
for name in ("flax", "optax", "jaxtyping", "rapo_jax.trajectory"):
  assert name not in sys.modules, name
  try:
    __import__(name)
  except ModuleNotFoundError:
    continue
  raise AssertionError(f"{name} is not blocked")

from rapo_jax import objectives

ones, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
loss = objectives.rapo_loss(ones, ones, ones[:, 0], 0 * ones[:, 0], where=mask)
assert loss == -1, loss
"""


def test_imports_with_only_jax_and_chex_installed():
  subprocess.run([sys.executable, "-c", BLOCKED_IMPORT], check=True, timeout=60)


def test_imports_nothing_else_by_name():
  package = pathlib.Path(objectives.__file__).parent
  for path in package.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, path
        names = [node.module]
      for name in names:
        top = name.partition(".")[0]
        assert top in ALLOWED | sys.stdlib_module_names, (path, name)
        if top == "rapo_jax":
          assert name.startswith("rapo_jax.objectives"), (path, name)


def test_everything_exported_is_documented():
  for name in objectives.__all__:
    function = getattr(objectives, name)
    assert inspect.isfunction(function), name
    documentation = inspect.getdoc(function)
    assert "Returns:" in documentation, name
    assert "Raises:" in documentation, name
    for parameter in inspect.signature(function).parameters:
      assert f"{parameter}:" in documentation, (name, parameter)
