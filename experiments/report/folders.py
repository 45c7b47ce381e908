"""Folders that a report or a viewer reads: a work folder, or a study's arms.

A run lies in `train/<task>/<method>-seed<k>` of a work folder. The folder of a
study holds a work folder for each of its arms; their methods are shown side by
side, under names that say the arm.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.workdir import read_json

STUDY_FILE = "study.json"
"""Lies in the folder of a study: its name, reference and arms."""
_ARMS_FOLDER = "arms"


@dataclasses.dataclass(frozen=True)
class Source:
  """One work folder that a report is made from.

  Attributes:
    folder: the work folder.
    arm: of a study, by name.
    label: of the arm, behind the labels of its methods; empty for an arm whose
      methods keep their names, and for a folder that is no study.
    colours: of the arm on a light and on a dark page; None for those of its
      methods.
  """

  folder: pathlib.Path
  arm: str = ""
  label: str = ""
  colours: tuple[str, str] | None = None

  def method(self, name: str) -> str:
    """Name of a method or an agent of this folder in the report."""
    return name_in_report(name, self.arm, self.label)


def name_in_report(name: str, arm: str, label: str) -> str:
  """Name of a method or an agent in a report.

  Args:
    name: as in its work folder.
    arm: of the study, by name.
    label: of the arm; without one its methods keep their names.
  """
  return f"{name}_{arm}" if label else name


def arm_folder(root: str | pathlib.Path, arm: str) -> pathlib.Path:
  """Work folder of an arm of a study."""
  return pathlib.Path(root) / _ARMS_FOLDER / arm


def read_study(root: str | pathlib.Path) -> dict[str, Any]:
  """What `study.json` says; empty for a folder that is no study."""
  path = pathlib.Path(root) / STUDY_FILE
  return dict(read_json(path)) if path.exists() else {}


def sources(root: str | pathlib.Path) -> list[Source]:
  """The folder itself, or the work folders of a study's arms."""
  arms = read_study(root).get("arms")
  if arms is None:
    return [Source(pathlib.Path(root))]
  return [
    Source(
      arm_folder(root, arm["name"]),
      arm["name"],
      arm["label"],
      tuple(arm["colours"]) if arm["colours"] else None,
    )
    for arm in arms
  ]


class RunFolder(NamedTuple):
  """Where a training run lies.

  Attributes:
    source: work folder that it belongs to.
    task: by name.
    method: by name, with the arm of a study.
    seed: of the run.
    path: its folder.
  """

  source: Source
  task: str
  method: str
  seed: int
  path: pathlib.Path

  @property
  def finished(self) -> bool:
    return (self.path / "done.json").exists()


def run_folders(root: str | pathlib.Path) -> Iterator[RunFolder]:
  """Folders of all training runs, begun or finished, in no order.

  Args:
    root: a work folder, or the folder of a study.
  """
  for source in sources(root):
    for path in source.folder.glob("train/*/*-seed*"):
      method, _, seed = path.name.rpartition("-seed")
      if seed.isdecimal():
        yield RunFolder(
          source, path.parent.name, source.method(method), int(seed), path
        )
