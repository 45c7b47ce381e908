"""Questions over Wikipedia: HotpotQA, 2WikiMultihopQA, MuSiQue, Bamboogle.

2WikiMultihopQA's own evaluation also takes the aliases of an answer's Wikidata
entity, which its publishers put into `id_aliases.json`.
"""

from __future__ import annotations

import functools

from rapo_jax.datasets.base import DataSet, Layout, question_row

hotpot_row = functools.partial(question_row, extra=("type", "level"))
musique_row = functools.partial(
  question_row, answer=("answer", "answer_aliases"), extra=("answerable",)
)

DATA_SETS = (
  DataSet(
    "hotpotqa",
    "HotpotQA",
    "hotpotqa.github.io",
    (
      Layout("hotpot_dev_distractor_v1.json", num_rows=7405),
      Layout("hotpot_dev_fullwiki_v1.json", num_rows=7405),
      Layout("hotpot_dev_v1_simplified.json", num_rows=7405),
      Layout("hotpotqa/test.jsonl", num_rows=200),
    ),
    hotpot_row,
  ),
  DataSet(
    "2wikimultihopqa",
    "2WikiMultihopQA",
    "github.com/Alab-NII/2wikimultihop",
    (
      Layout("2wikimultihopqa/dev.json", num_rows=12576),
      Layout("2wiki/test.jsonl", num_rows=200),
    ),
    hotpot_row,
    aliases="id_aliases.json",
  ),
  DataSet(
    "musique",
    "MuSiQue",
    "github.com/StonyBrookNLP/musique",
    (
      Layout("musique_ans_v1.0_dev.jsonl", num_rows=2417),
      Layout("musique/test.jsonl", num_rows=200),
    ),
    musique_row,
  ),
  DataSet(
    "bamboogle",
    "Bamboogle",
    "github.com/ofirpress/self-ask",
    (
      Layout("bamboogle.json", num_rows=125),
      Layout("bamboogle/test.jsonl", num_rows=125),
    ),
    question_row,
  ),
)
