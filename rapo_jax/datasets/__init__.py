"""The data sets of the paper: their files, rows and reference answers.

`DATA_SETS` holds what the modules of this package define as `DATA_SETS`. A file
adds one; `prepare` keeps it as ArrayRecord by TFDS.
"""

from rapo_jax.datasets.base import DataSet, Layout, Row, question_row
from rapo_jax.datasets.builder import (
  Prepared,
  Questions,
  check_prepared,
  prepare,
)
from rapo_jax.datasets.table import DATA_SETS

__all__ = [
  "DATA_SETS",
  "DataSet",
  "Layout",
  "Prepared",
  "Questions",
  "Row",
  "check_prepared",
  "prepare",
  "question_row",
]
