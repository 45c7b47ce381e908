"""Tasks: questions, evaluation sets, tools and rewards, as values.

`TASKS` holds what the modules of this package define as `TASK`, or as `TASKS`
where there are several. A new file adds a task.
"""

from rapo_jax.tasks.base import (
  HELD_OUT,
  OwnAgents,
  Questions,
  Task,
  by_name,
  check_tool_specs,
  load_questions,
  load_solutions,
)
from rapo_jax.tasks.condensed_search import CondensedSearchSpec
from rapo_jax.tasks.data_sets import DataSetTask
from rapo_jax.tasks.file import FileTask
from rapo_jax.tasks.mixed import MixedTask
from rapo_jax.tasks.splits import leaks, split_by_question
from rapo_jax.tasks.table import TASKS
from rapo_jax.tasks.tools import (
  Closable,
  Opened,
  PythonSpec,
  SearchSpec,
  Services,
  ToolSpec,
  start_tools,
)
from rapo_jax.tasks.web_tools import (
  McpSpec,
  SearchServerSpec,
  WebPageSpec,
  WebSearchSpec,
)

__all__ = [
  "HELD_OUT",
  "TASKS",
  "Closable",
  "CondensedSearchSpec",
  "DataSetTask",
  "FileTask",
  "McpSpec",
  "MixedTask",
  "Opened",
  "OwnAgents",
  "PythonSpec",
  "Questions",
  "SearchServerSpec",
  "SearchSpec",
  "Services",
  "Task",
  "ToolSpec",
  "WebPageSpec",
  "WebSearchSpec",
  "by_name",
  "check_tool_specs",
  "leaks",
  "load_questions",
  "load_solutions",
  "split_by_question",
  "start_tools",
]
