"""A publisher's solutions as steps in the agent's format."""

from __future__ import annotations

import json
import re

import pytest

from rapo_jax.datasets.solutions import annotated_steps, evaluate
from rapo_jax.tools import PythonTool

SOLUTION = """\
Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.
There are 50 minutes
So she earned <<0.2*50=10>>10, all in all.
#### 10"""


def test_a_line_with_a_calculation_is_a_step():
  assert annotated_steps(SOLUTION) == (
    "<think> Weng earns 12/60 per minute. </think>"
    "<python> print(12/60) </python><result> 0.2 </result>",
    "<think> There are 50 minutes. So she earned 0.2*50, all in all. </think>"
    "<python> print(0.2*50) </python><result> 10.0 </result>",
    "<think> The answer is 10. </think><answer> \\boxed{10} </answer>",
  )


@pytest.mark.parametrize(
  ("line", "thought"),
  [
    ("8*3=<<8*3=24>>24 cups", "8*3 cups"),
    ("60 kg - 10 kg = <<60-10=50>>50 kg of it", "60 kg - 10 kg of it"),
    ("2 * 600 = <<2*600=1200>>1,200, and more", "2 * 600, and more"),
    ("the 5 + 8 = <<5+8=13>>13th floor", "the 5 + 8th floor"),
    ("half is 3 = <<1.5*2=3>>", "half is 3"),
  ],
)
def test_a_thought_does_not_name_the_value(line, thought):
  first, last = annotated_steps(f"{line}\n#### 1,000")
  assert first.startswith(f"<think> {thought} </think>")
  assert last.endswith("<answer> \\boxed{1000} </answer>")


@pytest.mark.parametrize(
  "solution",
  [
    "2 = <<1+1=2>>2",
    "3 = <<1+1=3>>3\n#### 3",
    "3.33 = <<10/3=3.33>>3.33\n#### 3",
    "x = <<2*x=4>>4\n#### 4",
    "2 = <<1+1=2>>2 and 3 = <<1+2=3>>3\n#### 3",
    "2 = <<1+1=2>>2 </think>\n#### 2",
    "2 = <<1+1=2>>2 <|im_end|>\n#### 2",
  ],
)
def test_what_cannot_be_used(solution):
  assert annotated_steps(solution) is None


@pytest.mark.parametrize(
  ("expression", "value"),
  [
    ("48/2", 24.0),
    ("-(2 + 3) * 4 // 3 % 5", 3),
    ("2**10", 1024),
    (".5*4", 2.0),
    ("1/0", None),
    ("9**9**9", None),
    ("2**65", None),
    ("(-1)**.5", None),
    ("__import__('os')", None),
    ("1_000", None),
    ("1#", None),
    ("2(3)", None),
    ("(" * 150, None),
    ("", None),
  ],
)
def test_arithmetic_alone_is_computed(expression, value):
  found = evaluate(expression)
  assert found == value
  assert type(found) is type(value)


def test_results_are_those_of_the_tool(sample_data):
  path = sample_data / "gsm8k" / "train.jsonl"
  rows = [json.loads(line) for line in path.open(encoding="utf-8")]
  steps = [s for row in rows for s in annotated_steps(row["answer"]) or ()]
  calls = re.findall(
    "<python>(.*?)</python><result> (.*?) </result>", "".join(steps)
  )
  assert len(calls) > 300
  programs, results = zip(*dict(calls).items(), strict=True)
  with PythonTool(num_workers=2) as tool:
    assert [r.text for r in tool.call_batch(programs)] == list(results)
