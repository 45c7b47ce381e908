"""One question to train or evaluate on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from rapo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Query:
  """A question, what counts as its answer, and how it is put to the agent.

  Attributes:
    query_id: unique in its task, and stable from run to run.
    question: the question alone.
    ground_truth: accepted answers, at least one and none blank.
    messages: the chat that the trajectory starts with; each has "role" and
      "content".
    task: data set or task family.
  """

  query_id: str
  question: str
  ground_truth: tuple[str, ...]
  messages: tuple[Mapping[str, str], ...]
  task: str

  def __post_init__(self):
    # A text is a sequence of texts too: its letters would be the answers.
    if not isinstance(self.ground_truth, tuple | list) or not all(
      isinstance(truth, str) for truth in self.ground_truth
    ):
      raise InputError(
        f"query {self.query_id}: ground_truth must be a tuple of texts, got "
        f"{self.ground_truth!r:.80}; read it with dataset_rows.accepted_answers"
      )
    if not self.ground_truth or not all(t.strip() for t in self.ground_truth):
      raise InputError(
        f"query {self.query_id}: ground_truth needs an answer and none that "
        f"is blank, got {self.ground_truth!r}; drop the question"
      )
    if not self.messages:
      raise InputError(
        f"query {self.query_id}: messages is empty; give a user message"
      )
    for message in self.messages:
      if set(message) != {"role", "content"}:
        raise InputError(
          f"query {self.query_id}: a message has role and content, got the "
          f"keys {sorted(message)}"
        )


def check_query_ids(queries: Iterable[Query]) -> None:
  """Checks that no two questions have one id.

  Random streams, prompts and results go by the id. The same question may come
  more than once.

  Raises:
    InputError: naming the id and both questions.
  """
  known: dict[str, Query] = {}
  for query in queries:
    other = known.setdefault(query.query_id, query)
    if other is not query and other != query:
      raise InputError(
        f"two questions must not have one id, and {query.query_id!r} is that "
        f"of {other.question[:60]!r} and of {query.question[:60]!r}, or of one "
        "question with two prompts or answers: give each an id of its own."
      )
