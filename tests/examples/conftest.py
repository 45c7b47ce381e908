import os
import re
import subprocess
import sys

import pytest

from benchmarks import peers


@pytest.fixture(scope="session")
def counting_url(tmp_path_factory):
  """A server of the counting world's buffer, as `examples.counting` says."""
  folder = tmp_path_factory.mktemp("counting")
  steps, buffer = folder / "counting.jsonl", folder / "buffer"
  options = {
    "cwd": peers.ROOT,
    "env": {**os.environ, "PYTHONPATH": str(peers.ROOT)},
    "encoding": "utf-8",
  }
  python = (sys.executable, "-m")
  text = subprocess.check_output([*python, "examples.counting"], **options)
  steps.write_text(text, encoding="utf-8")
  subprocess.run(
    [
      *(*python, "experiments.buffer", "import", "--output", str(buffer)),
      f"counting={steps}",
    ],
    **options,
    check=True,
  )
  process = subprocess.Popen(
    [
      *(*python, "experiments.serve_index", "--port=0"),
      *(f"--buffer={buffer}", "--min_similarity=0.5"),
    ],
    **options,
    stdout=subprocess.PIPE,
  )
  try:
    yield re.search(r"at (http://\S+)", process.stdout.readline())[1]
  finally:
    process.kill()
    process.communicate()
