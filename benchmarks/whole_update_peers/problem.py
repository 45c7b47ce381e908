"""What the workers share: model, questions, reward, and how they serve.

Imports nothing of rapo_jax: peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks import worker

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MOST_NUMBERS = 10


class Problem:
  """What every worker trains, and on what.

  Attributes:
    model: folder of the model, in Hugging Face's format. What ends a text in it
      is a token that the model does not write.
    settings: sizes of an update, and the optimizer's numbers.
    prompts: text of each question with the chat template around it, those of
      the first update first.
    answers: the number that answers each question.
  """

  def __init__(self, folder: pathlib.Path):
    self.model = folder / "model"
    content = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
    self.settings: dict[str, Any] = content["settings"]
    self.prompts: list[str] = content["prompts"]
    self.answers: list[str] = content["answers"]

  @property
  def num_updates(self) -> int:
    """Updates that there are questions for."""
    return len(self.prompts) // self.settings["questions"]


def reward(text: str, answer: str) -> float:
  """1 if the last number is the answer, and a little for numbers as such.

  So groups in which nobody is right still differ, and have a gradient.

  Args:
    text: what the policy wrote.
    answer: a number.
  """
  numbers = [found.replace(",", "") for found in _NUMBER.findall(text)]
  right = bool(numbers) and float(numbers[-1]) == float(answer)
  return right + min(len(set(numbers)), _MOST_NUMBERS) / (10 * _MOST_NUMBERS)


class Clock:
  """Adds up the seconds of the parts of an update."""

  def __init__(self) -> None:
    self._seconds: dict[str, float] = {}

  def timed(
    self, part: str, function: Callable[..., Any]
  ) -> Callable[..., Any]:
    """The function; its time is added to that of a part."""

    def run(*arguments: Any, **named: Any) -> Any:
      began = time.perf_counter()
      result = function(*arguments, **named)
      self.add(part, time.perf_counter() - began)
      return result

    return run

  def add(self, part: str, seconds: float) -> None:
    """Adds to the time of a part."""
    self._seconds[part] = self._seconds.get(part, 0.0) + seconds

  def take(self) -> dict[str, float]:
    """Seconds of all parts since the last call."""
    taken, self._seconds = self._seconds, {}
    return taken


class Turns:
  """Lets a training loop of its own run one update at a time.

  The loop runs in a thread. It calls `wait` before an update and `finish`
  behind it. The rest of the time it stands still.

  Args:
    train: the loop.
  """

  def __init__(self, train: Callable[[], None]):
    self._train = train
    self._begin: queue.Queue[None] = queue.Queue()
    self._done: queue.Queue[Any] = queue.Queue()
    # Ends with the process, wherever it stands.
    self._thread = threading.Thread(target=self._run, daemon=True)

  def update(self) -> Any:
    """Runs one update; returns what the loop hands to `finish`."""
    if self._thread.ident is None:
      self._thread.start()
    self._begin.put(None)
    outcome = self._done.get()
    if isinstance(outcome, BaseException):
      raise outcome
    return outcome

  def wait(self) -> None:
    """Stands still until an update is asked for."""
    self._begin.get()

  def finish(self, outcome: Any) -> None:
    """Hands over what came of an update."""
    self._done.put(outcome)

  def _run(self) -> None:
    try:
      self._train()
      raise RuntimeError("the training loop has ended.")
    except BaseException as error:
      self._done.put(error)


class Worker(Protocol):
  """One library's trainer."""

  def update(self) -> dict[str, float]:
    """Runs one update; returns seconds of its parts and generated tokens."""

  def norm_weights(self) -> np.ndarray:
    """Weights of the last norm, which are few."""

  def first_step(self) -> dict[str, float]:
    """Loss and gradient norm of the first update."""


def serve(
  make_worker: Callable[[Problem], Worker],
  versions: dict[str, str],
  settings: Sequence[str],
) -> None:
  """Answers the driver until standard input ends.

  `update` runs an update. `moved` answers with how far the norm's weights have
  moved since the start: the mean distance over the learning rate. `first`
  answers with the first update's loss and gradient norm.

  Args:
    make_worker: from the problem to the trainer.
    versions: of what matters.
    settings: the trainer's settings in words.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  problem = Problem(parser.parse_args().folder)

  def make_functions() -> dict[str, Callable[[], Any]]:
    trainer = make_worker(problem)
    start = np.array(trainer.norm_weights())

    def moved() -> float:
      distance = np.abs(np.array(trainer.norm_weights()) - start)
      return float(distance.mean()) / problem.settings["learning_rate"]

    return {
      "update": trainer.update,
      "moved": moved,
      "first": trainer.first_step,
      "settings": lambda: list(settings),
    }

  worker.serve(make_functions, versions)
  # A loop that stands still would keep the interpreter from ending.
  os._exit(0)
