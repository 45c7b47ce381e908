"""The tables of docs/scale.md: plans of the paper's settings.

  python -m benchmarks.plan_tables

Makes every plan that is not in `--folder` yet, each in its own process. Writes
the tables into the document. Needs libtpu (`make test-plan` makes an
environment that has it) and no TPU; compiling takes a few minutes a plan on one
core. The host's part of a round is worked out anew, by what it is measured to
take now. Prints one JSON line: the least seconds of a round by plan.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from experiments.planner import host_loop, units
from experiments.planner.chips import CHIPS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- plans begin -->\n", "<!-- plans end -->\n"


@dataclasses.dataclass(frozen=True)
class Setting:
  """One plan.

  Attributes:
    title: in the tables.
    config: name of the config file.
    topology: of the devices.
    more: further arguments of the planner.
  """

  title: str
  config: str
  topology: str
  more: tuple[str, ...] = ()

  @property
  def chip(self) -> str:
    """Name of the chip."""
    return self.topology.partition(":")[0]

  @property
  def arguments(self) -> list[str]:
    """Of `experiments.plan`."""
    config = f"experiments/configs/{self.config}.py"
    return ["--config", config, "--topology", self.topology, *self.more]

  @property
  def name(self) -> str:
    """Of its file."""
    return (
      f"{self.title} {self.topology}".lower()
      .replace(",", "")
      .replace(" ", "_")
      .replace(":", "_")
      .replace("*", "_")
    )


def _slots(number: int) -> str:
  return f"--config.rollout.num_slots={number}"


def _rows(number: int) -> str:
  return f"--config.update.rows_per_microbatch={number}"


_OFF_POLICY = ("--agent", "off_policy")
_LARGEST = ("--largest", "slots")
_TENSOR, _DATA = "--config.mesh.tensor=4", "--config.mesh.data=4"
_3B, _7B, _8B = (
  f"{name}_reasoning" for name in ("qwen2_5_3b", "qwen2_5_7b", "llama3_8b")
)
SETTINGS = (
  Setting("Qwen2.5-3B", _3B, "v5e:4x4", (_slots(128), *_LARGEST)),
  Setting("Qwen2.5-3B", _3B, "v5p:2x2x2"),
  Setting("Qwen2.5-7B", _7B, "v5p:2x2x2"),
  Setting("Qwen2.5-7B", _7B, "v5p:4x4x2", _LARGEST),
  Setting("Qwen2.5-7B", _7B, "v5p:8x8x8", (_rows(128),)),
  Setting("Qwen2.5-7B", _7B, "v5p:4x4x2*4", (_rows(32),)),
  Setting("Qwen2.5-7B, data 4", _7B, "v5p:4x4x2*4", (_rows(32), _DATA)),
  Setting("Qwen2.5-7B", _7B, "v6e:16x16", (_rows(64),)),
  Setting("Qwen2.5-7B", _7B, "h100:8", (_TENSOR,)),
  Setting("Qwen2.5-7B", _7B, "h100:64", (_TENSOR, _rows(16))),
  Setting("Llama-3-8B", _8B, "v5p:2x2x2", (_slots(128),)),
  Setting("Llama-3-8B", _8B, "v5p:4x4x2"),
  Setting("Llama-3-8B", _8B, "v5p:8x8x8", (_rows(128),)),
  Setting("Qwen3-14B", _7B, "v5p:2x2x2", (*_OFF_POLICY, _slots(128))),
  Setting("Qwen3-14B", _7B, "v5p:4x4x2", _OFF_POLICY),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument(
    "--folder", type=pathlib.Path, default=ROOT / "runs" / "plans"
  )
  folder = parser.parse_args().folder
  folder.mkdir(parents=True, exist_ok=True)
  plans = [_plan(setting, folder) for setting in SETTINGS]
  before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
  after = rest.split(END)[1]
  DOCUMENT.write_text(
    before + BEGIN + "\n" + tables(plans) + "\n" + END + after, encoding="utf-8"
  )
  print(
    json.dumps(
      {
        setting.name: plan["round_seconds"][setting.chip]
        for setting, plan in zip(SETTINGS, plans, strict=True)
      }
    )
  )


def _plan(setting: Setting, folder: pathlib.Path) -> dict[str, Any]:
  """A plan from its file, which is made first if it is missing."""
  path = folder / f"{setting.name}.json"
  if not path.exists():
    command = [sys.executable, "-m", "experiments.plan", *setting.arguments]
    process = subprocess.run([*command, "--json", str(path)], cwd=ROOT)
    # 1: it was planned, and does not fit.
    if process.returncode not in (0, 1):
      sys.exit(f"{' '.join(command)} failed")
  return _with_host(setting, json.loads(path.read_text(encoding="utf-8")))


def _with_host(setting: Setting, plan: dict[str, Any]) -> dict[str, Any]:
  """The plan with the host's part of a round by today's figures."""
  host = host_loop.host_times(
    devices=math.prod(plan["mesh"].values()),
    device_seconds=plan["device_seconds"],
    decode_seconds={
      name: sum(
        p["calls"] * p["rooflines"][name]["seconds"]
        for p in plan["programs"]
        if p["name"] == "decode"
      )
      for name in CHIPS
    },
    trajectories=plan["trajectories"],
    retrieval_ms=host_loop.RETRIEVAL_MS
    if plan["assumptions"]["retrieval_ms"]
    else 0.0,
  )
  return plan | {
    "host": host[setting.chip],
    "round_seconds": {
      name: seconds + host[name].seconds
      for name, seconds in plan["device_seconds"].items()
    },
  }


def tables(plans: list[dict[str, Any]]) -> str:
  """All tables, in Markdown."""
  pairs = list(zip(SETTINGS, plans, strict=True))
  parts = [_summary(pairs), _memory(pairs), _chips(pairs)]
  parts += [_programs(setting, plan) for setting, plan in pairs]
  return "\n".join(parts)


Pairs = list[tuple[Setting, dict[str, Any]]]


def _summary(pairs: Pairs) -> str:
  rows = []
  for setting, plan in pairs:
    mesh, settings, peaks = plan["mesh"], plan["settings"], plan["peak_bytes"]
    chip = setting.chip
    rows.append(
      [
        f"{setting.title}, {setting.topology}",
        f"{mesh['data']} × {mesh['fsdp']} × {mesh['tensor']}",
        _slots_of(settings, plan["largest"]),
        settings.get("rows_per_microbatch", "–"),
        _gib(peaks["rollout"]),
        _gib(peaks.get("update")),
        _gib(plan["capacity_bytes"]),
        "yes" if plan["fits"] else f"**no**: {plan['verdict']}",
        units.duration(plan["round_seconds"][chip]),
        units.duration(plan["host"].loop_s),
        units.duration(plan["host"].retrieval_s),
        units.duration(plan["host"].leader_s),
        f"{_bound(plan, 'rollout', chip)} / {_bound(plan, 'update', chip)}",
      ]
    )
  return _table(
    "Does it fit, and what bounds it",
    [
      *("plan", "data × fsdp × tensor", "slots (most)", "rows a micro-batch"),
      *("rollout peak GiB", "update peak GiB", "usable GiB", "fits"),
      *("least time of a round", "of it a host's loop"),
      *("of it retrieval beyond decoding", "of it scoring and packing"),
      "bound of rollout / update",
    ],
    rows,
  )


def _bound(plan: dict[str, Any], phase: str, chip: str) -> str:
  """What bounds most of a phase's time, and in which program."""
  programs = [p for p in plan["programs"] if p["phase"] == phase]
  if not programs:
    return "–"
  longest = max(
    programs, key=lambda p: p["calls"] * p["rooflines"][chip]["seconds"]
  )
  return f"{longest['rooflines'][chip]['bound']} ({longest['name']})"


def _slots_of(settings: dict[str, int], largest: dict[str, int]) -> str:
  """How many, and the most that fit where that was looked for."""
  most = largest.get("rollout.num_slots")
  return str(settings["num_slots"]) + ("" if most is None else f" ({most})")


def _memory(pairs: Pairs) -> str:
  kinds = list(dict.fromkeys(k for _, plan in pairs for k in plan["memory"]))
  return _table(
    "Memory of one device, GiB",
    ["plan", *kinds],
    [
      [
        f"{setting.title}, {setting.topology}",
        *(_gib(plan["memory"].get(kind)) for kind in kinds),
      ]
      for setting, plan in pairs
    ],
  )


def _chips(pairs: Pairs) -> str:
  return _table(
    "Least time of the devices in a round by generation, with as many chips",
    ["plan", *CHIPS],
    [
      [
        f"{setting.title}, {setting.topology}",
        *(units.duration(plan["device_seconds"][name]) for name in CHIPS),
      ]
      for setting, plan in pairs
    ],
  )


def _programs(setting: Setting, plan: dict[str, Any]) -> str:
  chip = setting.chip
  command = shlex.join(setting.arguments)
  table = _table(
    f"{setting.title} on {setting.topology}",
    [
      *("program", "runs", "arguments GiB", "temporary GiB", "peak GiB"),
      *("FLOP", "bytes moved", "bytes sent", "of them far", "collectives"),
      *("least time of a run", "bound"),
    ],
    [
      [
        p["name"],
        f"{p['calls']:g}",
        _gib(p["argument_bytes"]),
        _gib(p["temporary_bytes"]),
        _gib(p["peak_bytes"]),
        _scaled(p["flops"]),
        _scaled(p["memory_bytes"]),
        _scaled(p["network_bytes"]),
        _scaled(sum(c["far_bytes"] for c in p["collectives"])),
        ", ".join(f"{c['count']:g} {c['op']}" for c in p["collectives"]) or "–",
        units.duration(p["rooflines"][chip]["seconds"]),
        p["rooflines"][chip]["bound"],
      ]
      for p in plan["programs"]
    ],
  )
  return (
    table
    + f"\nRuns in {plan['round']}; {plan['verdict']}.\n"
    + host_loop.weak_scaling(plan["host"], setting.chip)
    + "\n\n"
    f"`python -m experiments.plan {command}`\n"
  )


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> str:
  aligned = ["---", *["---:"] * (len(columns) - 1)]
  lines = ["| " + " | ".join(map(str, r)) + " |" for r in (columns, *rows)]
  lines.insert(1, "|" + "|".join(aligned) + "|")
  return f"### {title}\n\n" + "\n".join(lines) + "\n"


def _gib(size: float | None) -> str:
  return "–" if size is None else f"{size / 2**30:.1f}"


def _scaled(value: float) -> str:
  return units.scaled(value) if value else "–"


if __name__ == "__main__":
  main()
