"""Questions over the web: WebWalkerQA, SimpleQA, GAIA and BrowseComp."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from rapo_jax import encrypted
from rapo_jax.datasets.base import DataSet, Layout, Row, question_row, text_of
from rapo_jax.datasets.training import verl_row
from rapo_jax.errors import InputError


def webwalker_row(row: Mapping[str, Any], where: str) -> Row | None:
  """Answer, and the site to start from; some of it may stand in `info`."""
  info = row.get("info")
  flat = {**info, **row} if isinstance(info, Mapping) else dict(row)
  if "difficulty_level" not in flat and "Level" in flat:
    flat["difficulty_level"] = flat["Level"]
  return question_row(
    flat,
    where,
    extra=("root_url", "domain", "type", "difficulty_level", "lang"),
  )


gaia_row = functools.partial(question_row, extra=("level", "file_name"))
simpleqa_row = functools.partial(question_row, question=("problem", "question"))


def browsecomp_row(row: Mapping[str, Any], where: str) -> Row:
  """Both texts as they are published; they are read here, and not kept.

  Raises:
    InputError: the canary does not decrypt them.
  """
  question = text_of(row, ("problem",), where)
  answer = text_of(row, ("answer",), where)
  canary = text_of(row, ("canary",), where)
  try:
    plain = [encrypted.decrypted(text, canary) for text in (question, answer)]
  except ValueError as error:
    raise InputError(
      f"{where}: problem and answer must be decrypted by the row's canary, and "
      f"are not ({error}): get the file again."
    ) from error
  if not all(text.strip() for text in plain):
    raise InputError(f"{where}: a decrypted text is blank: get the file again.")
  extra = {"topic": row["problem_topic"]} if "problem_topic" in row else {}
  return Row("", question, (answer,), extra, canary)


_WEBWALKER = "huggingface.co/datasets/callanwu/WebWalkerQA"
DATA_SETS = (
  DataSet(
    "webwalkerqa",
    "WebWalkerQA, web setting",
    _WEBWALKER,
    (
      Layout("webwalkerqa/test.json", num_rows=680),
      Layout("webwalker_main.json", num_rows=680),
    ),
    webwalker_row,
  ),
  DataSet(
    "webwalker",
    "WebWalkerQA, knowledge setting",
    "github.com/dongguanting/ARPO (evaluation/data/webwalker)",
    (Layout("webwalker/test.jsonl", num_rows=200),),
    webwalker_row,
  ),
  DataSet(
    "simpleqa",
    "SimpleQA",
    "openaipublic.blob.core.windows.net/simple-evals/simple_qa_test_set.csv",
    (
      Layout("simple_qa_test_set.csv", num_rows=4326),
      Layout("SimpleQA/test.jsonl", num_rows=500),
    ),
    simpleqa_row,
  ),
  DataSet(
    "gaia",
    "GAIA",
    "huggingface.co/datasets/gaia-benchmark/GAIA (gated)",
    (
      Layout("gaia/metadata*.jsonl", num_rows=165),
      Layout("gaia/test.jsonl", num_rows=103),
      Layout("gaia_test*.parquet", parse=verl_row, num_rows=103),
    ),
    gaia_row,
  ),
  DataSet(
    "browsecomp",
    "BrowseComp",
    "openaipublic.blob.core.windows.net/simple-evals/browse_comp_test_set.csv",
    (
      Layout("browse_comp_test_set*.csv", num_rows=1266),
      Layout("browsecomp/expected*.json", parse=simpleqa_row),
    ),
    browsecomp_row,
  ),
)
