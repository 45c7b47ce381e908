"""What counts as the program in an argument of the python tool."""

from __future__ import annotations

import ast
import time

import pytest

from rapo_jax.tools import python_source

FENCE_IN_STRING = "s = '''\n```\nprint(1)\n```\n'''\nprint(s"


@pytest.mark.parametrize(
  "program",
  [
    "print(1)",
    "def f():\n  return 1\nf()",
    'print(len("""a\n   \nb"""))',
    "s = '''\n```\nprint(1)\n```\n'''",
    "~~~5",
    "print('>>> x')",
    "# alone",
    "",
  ],
)
def test_a_program_stays_as_it_is(program: str):
  assert python_source.read(program) == program
  assert python_source.read(f"\n \n{program}\n") == program
  assert python_source.read(f" \ufeff\u200b{program} ") == program


@pytest.mark.parametrize(
  ("argument", "program"),
  [
    # The first line stands beside the tag.
    (" a = 1\nprint(a) ", "a = 1\nprint(a)"),
    ("x = 6\n    print(x)", "x = 6\nprint(x)"),
    ("x = 6\n    # c\n\n    print(x)", "x = 6\n# c\n\nprint(x)"),
    ("x = [\n      1,\n    ]\n    print(x)", "x = [\n  1,\n]\nprint(x)"),
    ("# c\n    x = 6\n    print(x)", "# c\nx = 6\nprint(x)"),
    ("x = 6\r\n    print(x)\r\n", "x = 6\nprint(x)"),
    # All of it is indented.
    ("\n  if a:\n    b\n  c", "if a:\n  b\nc"),
    ("\n\tx = 6\n\tprint(x)", "x = 6\nprint(x)"),
    # This may begin anywhere.
    ("\n    x = 6\n# c\n    print(x)", "x = 6\n# c\nprint(x)"),
    ("\n  f(1,\n2)\n  x = 1 + \\\n3", "f(1,\n2)\nx = 1 + \\\n3"),
    ('\n  s = """a\n   b\nc"""\n  s', 's = """a\n   b\nc"""\ns'),
    ("\n  s = f'''\n  {x}'''\n  s", "s = f'''\n  {x}'''\ns"),
    ("\n  s = 'a\\\n  b'\n  s", "s = 'a\\\n  b'\ns"),
    (
      "\n  from __future__ import annotations\n  x: y",
      "from __future__ import annotations\nx: y",
    ),
  ],
)
def test_indentation(argument: str, program: str):
  assert python_source.read(argument) == program


@pytest.mark.parametrize(
  ("argument", "line"),
  [
    ("if False:\n    x = 1\n  print('ran')", 3),
    (" if False:\n     x = 1\n   print('ran')", 3),
    ("\n    if False:\n      x = 1\n  print('ran')", 3),
    ("\n  a = 1\nprint(a)", 1),
    ("\n  if a:\n  b", 2),
    ("\n  x = 1\n  y = = 2", 2),
    ("\n  if a:\n    b\nelse:\n    c", 1),
    ("x = 1\n    y = (", 2),
    ("Here:\n```python\nx = 1\ny = = 2\n```\nthere", 2),
    (FENCE_IN_STRING, 6),
  ],
)
def test_what_python_refuses_is_not_made_another_program(
  argument: str, line: int
):
  with pytest.raises(SyntaxError) as caught:
    ast.parse(python_source.read(argument))
  assert caught.value.lineno == line


@pytest.mark.parametrize(
  "argument",
  [
    "```python\nx\n```",
    "```\nx",
    "\u200b\n```py\nx\n```",
    "``` py\n  x\n",
    "~~~python\nx\n~~~",
    "```{python}\nx\n```",
    '```{.python title="a.py"}\nx\n```',
    '```python title="a.py"\nx\n```',
    "```python\nx\n`````",
    "```python\nx```",
    "```python x```",
    "```x```",
    "x\n```",
    "x\n```\nThis shows x.",
    "Now the program:\n\n```python\nx\n```\n\nIt shows x.",
    "- first:\n  ```python\n  x\n  ```",
    # What it prints is no part of it.
    "```python\nx\n```\nOutput:\n```\nforty two\n```",
    "```bash\npip install sympy\n```\n```python\nx\n```",
    ">>> x",
    "```pycon\n>>> x\n1\n```",
  ],
)
def test_fences_and_prompts(argument: str):
  assert python_source.read(argument) == "x"


@pytest.mark.parametrize(
  ("argument", "program"),
  [
    ("```\na = 1\n```\nand\n```\nprint(a)\n```", "a = 1\nprint(a)"),
    ("````\nprint('```')\n````", "print('```')"),
    (">>> for i in a:\n...   i\n...\n1\n>>> i", "for i in a:\n  i\n\ni"),
    # Nothing is in there.
    ("```python\n```", ""),
    (" \n\t", ""),
  ],
)
def test_several_fences(argument: str, program: str):
  assert python_source.read(argument) == program


@pytest.mark.parametrize(
  "argument",
  ["-" * 10**5 + "1", "f" + "()" * 10**5, "(" * 10**5, "a\0b", "'\ud800'"],
  ids=["minus", "calls", "parentheses", "a zero", "half a character"],
)
def test_what_the_parser_cannot_take_stays(argument: str):
  assert python_source.read(argument) == argument


@pytest.mark.parametrize(
  "argument",
  [
    "\n" * 10**6 + "1",
    "```" + " " * 10**6 + "x y",
    " \x0b" * 10**6 + "1",
    "`" * 10**6,
    "```\n" * 10**5,
    "x\n" * 10**4 + "  y",
  ],
  ids=["lines", "a long fence", "tabs", "quotes", "fences", "statements"],
)
def test_time_grows_with_the_length_of_an_argument(argument: str):
  start_s = time.thread_time()
  python_source.read(argument)
  assert time.thread_time() - start_s < 4
