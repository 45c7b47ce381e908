"""Text files are opened with their encoding, whatever the locale is.

Python takes the locale's encoding where none is given, and under `LC_ALL=C` or
Latin-1 a file of UTF-8 is then read as something else.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("rapo_jax", "experiments", "benchmarks", "scripts", "tests")
OPENS = ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile")
PROCESSES = ("run", "Popen", "check_output", "check_call")


def has_no_encoding(call: ast.Call) -> bool:
  """Whether a call opens text in the encoding of the locale."""
  function = call.func
  keywords = {keyword.arg: keyword.value for keyword in call.keywords}
  if "encoding" in keywords or None in keywords:
    return False
  name = getattr(function, "attr", getattr(function, "id", ""))
  owner = getattr(getattr(function, "value", None), "id", None)
  if name in ("read_text", "write_text", "TextIOWrapper"):
    return True
  if name in OPENS and owner not in ("os", "gzip", "tokenize"):
    modes = [*call.args, *(v for k, v in keywords.items() if k == "mode")]
    return not any(
      isinstance(m, ast.Constant) and "b" in str(m.value) and len(m.value) < 4
      for m in modes
    )
  if name in PROCESSES:
    return "text" in keywords or "universal_newlines" in keywords
  return False


@pytest.mark.parametrize("folder", FOLDERS)
def test_text_is_opened_with_its_encoding(folder):
  wrong = [
    f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"
    for path in sorted((ROOT / folder).rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and has_no_encoding(node)
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  ("code", "expected"),
  [
    ("path.read_text()", True),
    ("path.read_text(encoding='utf-8')", False),
    ("path.write_text(text)", True),
    ("path.open()", True),
    ("path.open('w')", True),
    ("path.open('rb')", False),
    ("open(path, mode='ab')", False),
    ("open(path, newline='')", True),
    ("os.open(path, os.O_RDONLY)", False),
    ("subprocess.run(command, text=True)", True),
    ("subprocess.run(command, encoding='utf-8')", False),
  ],
)
def test_what_is_seen(code, expected):
  (statement,) = ast.parse(code).body
  assert has_no_encoding(statement.value) is expected
