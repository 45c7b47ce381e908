"""What every test shares: where JAX runs, type checks and data.

This file is loaded before any test imports JAX, so the environment is set
here and not in `rapo_jax`, whose import changes nothing.
"""

import gc
import importlib
import os
import pathlib
import sys

import pytest

from tests import fake_devices

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A second run of the tests compiles next to nothing. There are thousands of
# small programs: even those of a few milliseconds are kept.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", fake_devices.QUICK_TO_COMPILE)
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What JAX traces lives long. Looking through it for garbage as often as Python
# does by default takes a tenth of the tests' time.
gc.set_threshold(50_000, 20, 50)

# Signatures of these packages are enforced, shapes included. Not of
# `objectives`: it checks with chex and does not know jaxtyping.
CHECKED_PACKAGES = [
  f"rapo_jax.{name}"
  for name in (
    "trajectory",
    "models",
    "tools",
    "retrieval",
    "corpora",
    "rewards",
    "data",
    "rollout",
    "training",
  )
]
# An int is a valid float, as PEP 484 has it.
TYPE_CHECKER = (
  "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


def _enforce_signatures() -> None:
  from jaxtyping import install_import_hook

  install_import_hook(CHECKED_PACKAGES, TYPE_CHECKER)


_enforce_signatures()


@pytest.fixture(autouse=True, scope="module")
def _forgets_programs():
  """Drops what JAX has compiled before a process has too many maps."""
  yield
  if "jax" in sys.modules:
    importlib.import_module("rapo_jax.compilation").forget_programs()


@pytest.fixture(autouse=True)
def _no_shared_data_dir(monkeypatch, tmp_path_factory, request):
  """Keeps prepared data sets of a test apart from all others'."""
  folder = tmp_path_factory.getbasetemp() / f"data-{id(request.node):x}"
  monkeypatch.setenv("RAPO_DATA_DIR", str(folder))


@pytest.fixture(scope="session")
def sample_data() -> pathlib.Path:
  """Folder of sample data, from RAPO_JAX_SAMPLE_DATA; skips without it."""
  default = ROOT.parent / "shared" / "data"
  folder = pathlib.Path(os.environ.get("RAPO_JAX_SAMPLE_DATA", default))
  if not folder.is_dir():
    pytest.skip(f"no sample data at {folder}; set RAPO_JAX_SAMPLE_DATA")
  return folder
