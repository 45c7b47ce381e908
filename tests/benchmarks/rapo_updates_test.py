"""Whole updates of the scripted policy, in a small shape."""

import dataclasses
import json

import pytest

from benchmarks import rapo_updates
from benchmarks import rollout_setup as setup
from experiments.configs import gsm8k_qwen2_5_0_5b


def small_config():
  config = gsm8k_qwen2_5_0_5b.get_config()
  return dataclasses.replace(
    config,
    rollout=dataclasses.replace(
      config.rollout,
      num_generations=4,
      num_hybrid=2,
      num_slots=8,
      prefill_rows=2,
      insert_rows=4,
      max_prompt_tokens=16,
      max_response_tokens=192,
      max_step_tokens=64,
    ),
    update=dataclasses.replace(
      config.update,
      queries_per_update=2,
      queries_per_minibatch=2,
      row_length=512,
      rows_per_microbatch=1,
    ),
  )


@pytest.mark.slow
def test_updates_call_retrieve_and_learn_and_a_second_start_goes_on(tmp_path):
  shape = setup.decoder_config(num_layers=2)
  encoder = dataclasses.replace(
    rapo_updates.MINILM,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
  )
  rows = tmp_path / "rows.jsonl"
  found = rapo_updates.measure(
    small_config(),
    shape,
    encoder,
    updates=2,
    traces=20_000,
    rows=rows,
  )
  assert [
    json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()
  ] == found
  for row in found:
    assert row["rollout/tool_calls"] >= 8
    assert row["rollout/tool_failures"] == 0
    assert row["rollout/retrievals"] > 0
  # Calls are alike from one start to the next, and other prompts are not.
  [second] = rapo_updates.measure(
    small_config(), shape, encoder, updates=1, first=1, traces=20_000
  )
  for name in ("rollout/generated_tokens", "rollout/tool_calls"):
    assert second[name] == found[1][name]
  summary = rapo_updates.summarise(found)
  assert summary["updates"] == 2
  assert 0 < summary["idle_share"] < 1


def test_the_share_is_of_what_no_device_program_took():
  row = dict.fromkeys((*rapo_updates._PARTS, *rapo_updates._COUNTS), 0.0) | {
    "step/seconds": 10.0,
    "rollout/decode_seconds": 4.0,
    "rollout/cache_seconds": 1.0,
    "update/device_seconds": 3.0,
  }
  assert rapo_updates.summarise([row])["idle_share"] == pytest.approx(0.2)
  assert rapo_updates.summarise([row])["seconds_of_100_updates"] == 1000
