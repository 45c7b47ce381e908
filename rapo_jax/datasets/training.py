"""Training sets: Tool-Star, hard search, Search-R1, WebDancer, WebSailor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapo_jax.dataset_rows import unpacked, verl_answers, verl_question
from rapo_jax.datasets.base import (
  TRAIN,
  DataSet,
  Layout,
  Row,
  question_row,
  text_of,
)


def verl_row(row: Mapping[str, Any], where: str) -> Row | None:
  """The layout of verl: `reward_model.ground_truth`, in any form.

  The file's own system prompt is not used: it has a backspace in the place of
  the `\\b` of `\\boxed`.
  """
  question, answers = verl_question(row, where), verl_answers(row, where)
  extra = {"ability": row["ability"]} if row.get("ability") else {}
  return Row("", question, answers, extra) if answers else None


def webdancer_trajectory_row(row: Mapping[str, Any], where: str) -> Row | None:
  """The question stands behind `User:` in the first message of the user."""
  messages = unpacked(row.get("messages"))
  said = [
    message.get("content")
    for message in (messages if isinstance(messages, list) else [])
    if isinstance(message, Mapping) and message.get("role") == "user"
  ]
  first = said[0] if said and isinstance(said[0], str) else ""
  question = first.rpartition("User:")[2].strip()
  return question_row({**row, "question": question}, where)


def websailor_row(row: Mapping[str, Any], where: str) -> Row | None:
  """Question and answer."""
  text_of(row, ("question",), where)
  return question_row(row, where)


_ARPO = "huggingface.co/datasets/dongguanting/ARPO-RL-Reasoning-10K"
DATA_SETS = (
  DataSet(
    "tool_star",
    "Tool-Star RL, 10k",
    _ARPO,
    (
      Layout("train_10k.parquet", TRAIN, num_rows=10_000),
      Layout("valid.parquet", num_rows=180),
      Layout("train.parquet", TRAIN),
    ),
    verl_row,
  ),
  DataSet(
    "hard_search",
    "hard search RL, 1k",
    "huggingface.co/datasets/dongguanting/ARPO-RL-DeepSearch-1K",
    (Layout("hard_search_1k.parquet", TRAIN, num_rows=1071),),
    verl_row,
  ),
  DataSet(
    "search_r1",
    "Search-R1's questions",
    "huggingface.co/datasets/PeterJinGo/nq_hotpotqa_train",
    (
      Layout("*search*/train.parquet", TRAIN),
      Layout("*search*/test.parquet"),
    ),
    verl_row,
  ),
  DataSet(
    "webdancer",
    "WebDancer",
    "github.com/Alibaba-NLP/WebAgent (WebDancer/datasets)",
    (
      Layout("sample_qa.jsonl", TRAIN, num_rows=200),
      Layout(
        "sample_traj.jsonl",
        TRAIN,
        parse=webdancer_trajectory_row,
        num_rows=200,
      ),
    ),
    websailor_row,
  ),
  DataSet(
    "websailor",
    "WebSailor",
    "github.com/Alibaba-NLP/WebAgent (WebSailor/dataset)",
    (Layout("sailorfog-QA.jsonl", TRAIN, num_rows=20),),
    websailor_row,
  ),
)
