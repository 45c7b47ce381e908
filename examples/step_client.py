"""Asks a served Step-Trace Buffer, with Python's standard library alone.

For trainers that know neither JAX nor rapo_jax (docs/serving.md).
"""

import json
import urllib.request
from collections.abc import Sequence


def next_steps(
  url: str,
  questions: Sequence[str],
  histories: Sequence[Sequence[str]],
  *,
  timeout_s: float = 60.0,
) -> list[str | None]:
  """The step that the buffer has for each of N unfinished trajectories.

  It is the one that a rollout of rapo_jax would take: of the nearest the best
  by reward, above the least similarity that the server was started with.

  Args:
    url: of the server, such as `http://127.0.0.1:8000`.
    questions: N questions.
    histories: for each, the texts of its steps so far, oldest first.
    timeout_s: for the answer.

  Returns:
    N texts; None where no step is near enough.

  Raises:
    OSError: the server is not reached, or refuses (`urllib.error.HTTPError`,
      whose body says why).
  """
  fields = {
    "queries": list(questions),
    "histories": [list(history) for history in histories],
    "return_scores": True,
  }
  request = urllib.request.Request(
    f"{url}/retrieve?mode=choice",
    data=json.dumps(fields).encode(),
    headers={"content-type": "application/json"},
  )
  with urllib.request.urlopen(request, timeout=timeout_s) as answer:
    results = json.load(answer)["result"]
  return [found[0]["document"]["step"] if found else None for found in results]
