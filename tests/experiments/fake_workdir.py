"""Writes a small, made-up work folder, for the tests of results and report."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np

HOSTILE = '</script><img src=x onerror=alert(1)> & "quotes" \u2028 \''
SEEDS = (0, 1, 2)
TASKS = ("compute", "multihop", "web")
METHODS = ("grpo", "hybrid", "rapo")
START = {
  "date": "2026-03-04T05:06:07+00:00",
  "command": "python -m experiments.run --config testbed.py --workdir runs/t",
  "commit": {"id": "0123456789abcdef0123", "changed": True},
  "versions": {"python": "3.11.7", "jax": "0.9.9", "scann": None},
  "platform": "Linux",
  "devices": {"backend": "tpu", "kind": "TPU v6", "count": 8, "processes": 1},
}
_OTHERS = [
  {"trace_id": 18, "similarity": 0.9, "reward": 0.5},
  {"trace_id": 3, "similarity": 0.4, "reward": 1.0},
]
_STEPS = ("capital", "river", "founder", "colour")


def write(
  workdir: pathlib.Path,
  *,
  tasks: Sequence[str] = TASKS,
  methods: Sequence[str] = METHODS,
  seeds: Sequence[int] = SEEDS,
  num_updates: int = 20,
  num_questions: int = 40,
  group_size: int = 8,
) -> pathlib.Path:
  rng = np.random.default_rng(0)
  workdir.mkdir(parents=True, exist_ok=True)
  _write_json(
    workdir / "config.json",
    {
      "name": "testbed",
      "train": {
        "learning_rate": 5e-4,
        "num_updates": num_updates,
        "methods": list(methods),
        "log_trajectories_every": 5,
        "health": {"warn_updates": 2},
      },
      "tasks": list(tasks),
      "note": HOSTILE,
    },
  )
  _write_rows(workdir / "starts.jsonl", [START])
  for task in tasks:
    for agent, skill in (("base", 0.02), ("off_policy", 0.9)):
      _evaluate(workdir, rng, task, agent, agent, None, skill, num_questions)
    for method in methods:
      for seed in seeds:
        curve = _curve(rng, method, num_updates)
        directory = workdir / "train" / task / f"{method}-seed{seed}"
        directory.mkdir(parents=True)
        _metrics(directory, rng, method, curve)
        _trajectories(directory, rng, task, method, curve, group_size)
        _write_json(directory / "done.json", {})
        name = f"{method}-seed{seed}"
        skill = curve[-1]
        _evaluate(workdir, rng, task, name, method, seed, skill, num_questions)
  return workdir


def _write_json(path: pathlib.Path, content: object) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content), encoding="utf-8")


def _write_rows(path: pathlib.Path, rows: Sequence[dict]) -> None:
  path.write_text(
    "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
  )


def _curve(rng, method, num_updates):
  """Accuracy that takes off at a random update, later for GRPO."""
  middle = {"grpo": 17, "hybrid": 11, "rapo": 9}.get(method, 13)
  start = middle + rng.normal(0, 4)
  # In runs of 20 updates; longer ones learn as much.
  updates = np.arange(num_updates + 1) * 20 / max(num_updates, 20)
  return 0.02 + 0.8 / (1 + np.exp(-(updates - start) / 1.5))


def _evaluate(workdir, rng, task, agent, method, seed, skill, num_questions):
  questions = [f"{task}-held-{i}" for i in range(num_questions)]
  hard = np.linspace(-0.1, 0.1, num_questions)
  chance = np.clip(skill + hard, 0, 1)
  _write_json(
    workdir / "evaluate" / task / f"{agent}.json",
    {
      "task": task,
      "agent": agent,
      "method": method,
      "seed": seed,
      "update": 0 if seed is None else 20,
      "greedy": {
        q: int(rng.random() < p) for q, p in zip(questions, chance, strict=True)
      },
      "sampled": {
        q: [int(x) for x in rng.random(4) < p]
        for q, p in zip(questions, chance, strict=True)
      },
      "finish_reasons": {"answer": num_questions},
      "score_statuses": {"ok": 4 * num_questions},
      "format_whole": 4 * num_questions,
      "generated_tokens": 1000,
      "tool_calls": 100,
    },
  )


def _metrics(directory, rng, method, curve):
  retrieves = method != "grpo"
  rows = [{"update": 0, "eval/accuracy": float(curve[0])}]
  seconds = tokens = 0.0
  for update in range(1, len(curve)):
    skill = float(curve[update])
    generated = 5000 + 4000 * skill - 600 * retrieves + rng.normal(0, 200)
    took = 1.2 + generated / 9000 + 0.2 * retrieves
    seconds, tokens = seconds + took + 0.9, tokens + generated
    row = {
      "update": update,
      "seconds": seconds,
      "generated_tokens": tokens,
      "rollout/seconds": took,
      "update/seconds": 0.9 + 0.1 * retrieves,
      "rollout/generated_tokens": generated,
      "rollout/tool_calls": 200 + 180 * skill - 30 * retrieves,
      "rollout/retrievals": 60.0 * retrieves,
      "rollout/retrieved_fraction": 0.15 * retrieves,
      "rollout/entropy": 0.9 - 0.6 * skill + rng.normal(0, 0.02),
      "rollout/response_tokens": generated * 1.5,
      "rollout/tool_seconds": 0.2,
      "rollout/retrieval_seconds": 0.1 * retrieves,
      "reward/mean": 2 * skill - 1,
      "reward/accuracy": skill,
      **_statuses(skill),
      "groups/live_fraction": min(1.0, skill * 2),
      "loss": float(rng.normal(0, 0.01)),
      "gradient_norm": 0.4,
      "clip_fraction_low": 0.01,
      "clip_fraction_high": 0.01,
      "mismatch/abs_log_prob_mean": 1e-6,
      "mismatch/abs_log_prob_max": 2e-5,
    }
    if retrieves:
      row["retrieval/reward"] = 0.3 * skill + rng.normal(0, 0.03)
      row["retrieval/effect"] = 0.1 * skill
    if update % 5 == 0:
      row["eval/accuracy"] = float(curve[update] + rng.normal(0, 0.02))
    rows.append(row)
  _write_rows(directory / "metrics.jsonl", rows)


def _statuses(skill):
  """64 trajectories; the better the policy, the fewer break the format."""
  broken = round(40 * (1 - skill))
  return {
    "score/ok": 60 - broken,
    "score/box_empty": 4,
    "score/think_unpaired": broken // 2,
    "score/answer_missing": broken - broken // 2,
    "reward/format_whole": 1 - broken / 64,
  }


def _trajectories(directory, rng, task, method, curve, group_size):
  rows = []
  last = len(curve) - 1
  for update in sorted({1, last // 2, last} - {0}):
    for query in range(2):
      rows += [
        _trajectory(rng, task, method, update, query, i, curve[update])
        for i in range(group_size)
      ]
  _write_rows(directory / "trajectories.jsonl", rows)


def _segment(kind, step_id, text, entropy=None):
  policy = kind == "policy"
  return {
    "kind": kind,
    "step_id": step_id,
    "text": text,
    "num_tokens": len(text.split()),
    "entropy": entropy,
    "log_prob": -0.42 if policy else None,
  }


def _retrieval(step_id, outcome):
  hit = outcome == "hit"
  return {
    "type": "retrieval",
    "step_id": step_id,
    "outcome": outcome,
    "similarity": 0.91 if hit else None,
    "reward": 1.0 if hit else None,
    "trace_id": 17 if hit else None,
    "source": "off_policy" if hit else None,
    "answers": False,
  } | ({"effect": 0.5, "others": _OTHERS} if hit else {})


def _tokens(text):
  """Figures of each token, which are words here."""
  pieces = re.findall(r"\S+\s*", text)
  values = [round(-0.1 * i, 5) for i in range(len(pieces))]
  return {
    "lengths": [len(piece) for piece in pieces],
    "entropy": [-value for value in values],
    "log_prob": values,
    "trainer_log_prob": [None, *(v - 0.00002 for v in values[1:])],
  }


def _trajectory(rng, task, method, update, query, index, skill):
  hybrid = method != "grpo" and index >= 4
  question = f"What is the founder of the capital of {task} {query}?"
  segments = [_segment("prompt", -1, f"<|im_start|>user\n{question}")]
  events, step = [], 0
  for hop in range(3):
    relation = _STEPS[hop]
    call = f"Velora {relation}"
    thought = (
      f"<think> next I need the {relation} </think><search> {call} </search>"
    )
    result = (
      f"The {relation} of Velora is Tamsin. {HOSTILE if hop == 1 else ''}"
    )
    if hybrid and hop and rng.random() < 0.6:
      outcome = "hit" if rng.random() < 0.8 else "no_room"
      events.append(_retrieval(step, outcome))
      if outcome == "hit":
        text = f"<retrieve>{thought}<result> {result} </result></retrieve>"
        segments.append(_segment("retrieved", step, text))
        step += 1
    entropy = float(rng.uniform(0.1, 1.2))
    segments.append(_segment("policy", step, thought, entropy))
    events.append(
      {
        "type": "tool",
        "step_id": step,
        "tool": "search",
        "argument": call,
        "result": result,
        "status": "ok",
        "seconds": 0.01,
      }
    )
    segments.append(
      _segment("observation", step, f"<result> {result} </result>")
    )
    step += 1
  right = bool(rng.random() < skill)
  answer = "Tamsin" if right else "Corvin"
  text = f"<think> done </think><answer> \\boxed{{ {answer} }} </answer>"
  segments.append(_segment("policy", step, text, 0.2))
  # The log of GRPO is one without figures of tokens.
  for segment in segments:
    if segment["kind"] == "policy" and method != "grpo":
      segment["tokens"] = _tokens(segment["text"])
  retrieved = sum(s["num_tokens"] for s in segments if s["kind"] == "retrieved")
  total = sum(s["num_tokens"] for s in segments[1:])
  return {
    "update": update,
    "query_id": f"{task}-train-{query}",
    "question": question,
    "ground_truth": "Tamsin",
    "index": index,
    "finish_reason": "answer",
    "policy_version": update - 1,
    "hybrid": hybrid,
    "score": {
      "value": 1.0 if right else 0.0,
      "status": "ok",
      "answer": answer,
      "correct": right,
      "whole": True,
      "parts": {"f1": 1.0 if right else 0.0},
    },
    "advantage": float(rng.normal()),
    "retrieval_reward": 0.1 if retrieved else 0.0,
    "retrieved_fraction": retrieved / total,
    "segments": segments,
    "events": events,
  }
