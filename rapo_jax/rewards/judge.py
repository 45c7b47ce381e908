"""Answers graded by a model behind an OpenAI-compatible endpoint.

For sets whose answers are sentences: SimpleQA grades into three, BrowseComp and
WebWalkerQA into right and wrong. The grades are theirs, the wording is ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from rapo_jax import files, web_address
from rapo_jax.chat_endpoint import KEY_VARIABLE, open_client, without_thoughts
from rapo_jax.errors import InputError, accessing
from rapo_jax.ranges import check_numbers
from rapo_jax.rewards.base import Reward, Sample, Score
from rapo_jax.rewards.outcome import OUTCOME

Grades = Literal["right_or_wrong", "attempted"]

_GRADE = re.compile(r"\b(INCORRECT|CORRECT|NOT_ATTEMPTED)\b")
_RULES: dict[Grades, str] = {
  "right_or_wrong": (
    "Grade it CORRECT if it gives the same final answer as the reference; "
    "differences in wording, and small ones in a number, do not count. Grade "
    "it INCORRECT if it differs, is ambiguous, or gives no answer."
  ),
  "attempted": (
    "Grade it CORRECT if it holds all that the reference says and contradicts "
    "nothing of it. Grade it INCORRECT if it contradicts the reference, also "
    "where it is hedged. Grade it NOT_ATTEMPTED if it leaves something out and "
    "contradicts nothing, or says that it does not know."
  ),
}
_PROMPT = """You grade an answer to a question by its reference answer.

Question: {question}

Reference answer: {truths}

Answer to grade: {answer}

{rule} Do not solve the question yourself. Write the grade alone on the last
line."""


@dataclasses.dataclass(frozen=True)
class JudgeReward:
  """1 for an answer that the judge grades right, 0 for another.

  A format that `local` calls broken keeps its value, and no judge is asked, nor
  where there is no answer. `status` is the grade. `parts` holds `judge` and
  `local`, 1 where each calls the answer correct, and `agreement` of the two. A
  reply without a grade is asked for once more; then `local` decides, with
  status "ungraded".

  Attributes:
    url: of the endpoint, up to `/v1`; it holds no password.
    model: its name there.
    grades: "attempted" is SimpleQA's three grades, "right_or_wrong" two.
    local: finds the answer in the format, and scores it without the judge.
    cache: JSON lines file of grades, kept from run to run; None for none.
    concurrency: requests under way at once, >= 1.
    timeout_s: of a request, > 0 seconds.
    max_retries: times that a failed request is made again, with growing pauses,
      or as long as the server asks for.

  Raises:
    InputError: for an address that is none, or a value out of range.
  """

  url: str
  model: str
  grades: Grades = "right_or_wrong"
  local: Reward = OUTCOME
  cache: str | None = None
  concurrency: int = 16
  timeout_s: float = 60.0
  max_retries: int = 6

  def __post_init__(self) -> None:
    web_address.check_address(
      self.url, "a judge", f"Set {KEY_VARIABLE} in the environment."
    )
    check_numbers(self, "timeout_s", above=0, unit="seconds")
    check_numbers(self, "concurrency", at_least=1)
    check_numbers(self, "max_retries", at_least=0)

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Asks the judge about every answer, several at a time.

    Raises:
      InputError: the endpoint cannot be reached, refuses the key or has no
        such model; names it and the remedy.
    """
    local = self.local.score(batch)
    grades = _Grades(None if self.cache is None else pathlib.Path(self.cache))
    with _Client(self) as client, ThreadPoolExecutor(self.concurrency) as pool:

      def graded(sample: Sample, found: Score) -> Score:
        if not found.whole or not (found.answer or "").strip():
          return found
        prompt = self._prompt(sample, str(found.answer))
        grade = grades.get(self._key(prompt))
        if grade is None:
          grade = client.grade(prompt)
          grades.add(self._key(prompt), grade)
        return self._scored(found, grade)

      return list(pool.map(graded, batch, local))

  def _prompt(self, sample: Sample, answer: str) -> str:
    return _PROMPT.format(
      question=sample.query.question,
      truths=" or ".join(sample.query.ground_truth),
      answer=answer,
      rule=_RULES[self.grades],
    )

  def _key(self, prompt: str) -> str:
    content = f"{self.model}\0{prompt}".encode("utf-8", "replace")
    return hashlib.sha256(content).hexdigest()

  @staticmethod
  def _scored(found: Score, grade: str) -> Score:
    if grade == "ungraded":
      return dataclasses.replace(found, status=grade)
    right = grade == "CORRECT"
    parts = {
      **found.parts,
      "judge": float(right),
      "local": float(found.correct),
      "agreement": float(right == found.correct),
    }
    return Score(float(right), grade.lower(), found.answer, right, True, parts)


class _Grades:
  """Grades by key, in a file if one is named."""

  def __init__(self, path: pathlib.Path | None):
    self._path = path
    self._lock = threading.Lock()
    self._known: dict[str, str] = {}
    if path is None or not path.exists():
      return
    with accessing(path):
      lines = path.read_bytes().split(b"\n")
    for line in lines:
      try:
        record = json.loads(line)
        self._known[str(record["key"])] = str(record["grade"])
      except (ValueError, KeyError, TypeError):
        # A line that a killed process has left: the judge is asked again.
        continue

  def get(self, key: str) -> str | None:
    return self._known.get(key)

  def add(self, key: str, grade: str) -> None:
    with self._lock:
      self._known[key] = grade
      if self._path is not None and grade != "ungraded":
        files.make_private_folder(self._path.absolute().parent)
        with files.append_private(self._path) as file:
          file.write(json.dumps({"key": key, "grade": grade}) + "\n")


class _Client:
  """Asks the endpoint; used by several threads."""

  def __init__(self, judge: JudgeReward):
    self._judge = judge
    self._client = open_client(
      judge.url,
      "a judge",
      timeout_s=judge.timeout_s,
      max_retries=judge.max_retries,
    )

  def __enter__(self) -> _Client:
    return self

  def __exit__(self, *unused: object) -> None:
    self._client.close()

  def grade(self, prompt: str) -> str:
    """CORRECT, INCORRECT, NOT_ATTEMPTED, or "ungraded"."""
    for _ in range(2):
      found = _GRADE.findall(without_thoughts(self._reply(prompt)))
      if found:
        return str(found[-1])
    return "ungraded"

  def _reply(self, prompt: str) -> str:
    import openai  # There, or the client would not have opened.

    message: Any = {"role": "user", "content": prompt}
    try:
      reply: Any = self._client.chat.completions.create(
        model=self._judge.model, messages=[message], temperature=0.0
      )
      content = reply.choices[0].message.content
    except openai.OpenAIError as error:
      raise InputError(
        f"the judge {self._judge.model} at {self._judge.url} must answer, and "
        f"does not ({type(error).__name__}: {error}): check the address, the "
        f"model's name and {KEY_VARIABLE}, and start again."
      ) from error
    # It is no JSON, or some other JSON: openai hands both on.
    except (AttributeError, LookupError, TypeError, ValueError) as error:
      raise InputError(
        f"the judge {self._judge.model} at {self._judge.url} must answer with "
        f"a chat completion, and does not ({type(error).__name__}: {error}): "
        "check the address, which ends in /v1, and start again."
      ) from error
    return content if isinstance(content, str) else ""
