"""The planner as a person calls it."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import rich.console

from experiments import plan
from experiments.config import ExperimentConfig
from experiments.planner import (
  analysis,
  chips,
  collectives,
  host_loop,
  jaxpr_cost,
)
from experiments.planner.programs import Program, Programs, Workload
from experiments.planner.search import largest_that_fits
from experiments.policy_shape import policy_shape
from rapo_jax import models
from rapo_jax.algorithms import ALGORITHMS, TokenLoss
from rapo_jax.models import attention, sharding

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = "experiments/configs/quickstart.py"


def _plan(*arguments):
  """Runs the planner in a process of its own: it chooses JAX's devices."""
  return _python("-m", "experiments.plan", *arguments)


def _python(*arguments):
  search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    # The tests' own default of float32 products is not a run's.
    env={
      **os.environ,
      "PYTHONPATH": search,
      "JAX_DEFAULT_MATMUL_PRECISION": "default",
    },
    capture_output=True,
    encoding="utf-8",
    check=False,
  )


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  path = tmp_path_factory.mktemp("plan") / "plan.json"
  process = _plan(
    *("--config", CONFIG, "--topology", "h100:4", "--json", str(path)),
    *("--config.mesh.tensor=2", "--largest", "both"),
    *("--host_ms=4", "--retrieval_ms=500", "--leader_ms=3"),
  )
  assert process.returncode == 0, process.stderr
  return json.loads(path.read_text(encoding="utf-8"))


def test_every_program_is_compiled_and_bounded(planned):
  assert planned["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  names = [program["name"] for program in planned["programs"]]
  assert names == [
    *("reshard", "prefill", "admit", "decode", "insert", "log-probs", "update")
  ]
  for program in planned["programs"]:
    assert program["peak_bytes"] > 0
    for roofline in program["rooflines"].values():
      assert roofline["seconds"] == roofline[f"{roofline['bound']}_s"]
      assert roofline["seconds"] == max(
        roofline[f"{name}_s"] for name in ("compute", "memory", "network")
      )
  update = planned["programs"][-1]
  assert update["calls"] == 2
  # Gradients are summed over slices of the batch, heads over slices of heads.
  assert {c["op"] for c in update["collectives"]} & {
    "all-reduce",
    "reduce-scatter",
  }
  assert planned["device_seconds"]["h100"] == pytest.approx(
    sum(
      p["calls"] * p["rooflines"]["h100"]["seconds"]
      for p in planned["programs"]
    )
  )


def test_the_host_loop_is_part_of_a_round(planned):
  host = planned["host"]["h100"]
  # 16 questions, 8 trajectories each.
  assert planned["trajectories"] == 128
  assert host["loop_s"] == pytest.approx(128 * 0.004)
  assert host["leader_s"] == pytest.approx(128 * 0.003)
  decode = next(p for p in planned["programs"] if p["name"] == "decode")
  decode_s = decode["calls"] * decode["rooflines"]["h100"]["seconds"]
  # It has to retrieve for longer than so small a model decodes.
  assert host["retrieval_s"] == pytest.approx(128 * 0.5 - decode_s)
  assert planned["round_seconds"]["h100"] == pytest.approx(
    planned["device_seconds"]["h100"]
    + sum(host[name] for name in ("loop_s", "retrieval_s", "leader_s"))
  )
  assert host["small_share_devices"] <= host["half_devices"]


def test_the_host_loop_has_rows_of_its_own(capsys):
  time = host_loop.HostTime(1.5, 0.25, 0.5, 64, 1280)
  report = types.SimpleNamespace(
    programs=[],
    host=dict.fromkeys(chips.CHIPS, time),
    round="a round",
    round_seconds=dict.fromkeys(chips.CHIPS, 20.0),
  )
  rich.console.Console(width=200).print(plan._time_table(report))
  rows = {
    cells[1].strip(): cells[2].strip()
    for cells in (
      line.split("│") for line in capsys.readouterr().out.split("\n")
    )
    if len(cells) > 2
  }
  assert rows == {
    "host loop": "1.5 s",
    "retrieval beyond decoding": "250 ms",
    "scoring and packing": "500 ms",
    "a round": "20 s",
  }


def test_memory_is_that_of_the_arrays(planned):
  memory = planned["memory"]
  # float32 parameters; Adam has two moments of each, and a counter or two.
  moments = memory["optimizer"] - 2 * memory["parameters"]
  assert 0 <= moments <= 64
  # Keys and values of 3 layers, 4 heads of 16 in float32; 128 slots of 256
  # tokens; a half of the heads and of the slots each.
  assert memory["KV cache"] == 2 * 3 * 4 * 16 * 4 * 128 * 256 / 4
  assert planned["fits"] is True
  assert planned["verdict"].startswith("fits h100:4, by what fake CPU")
  assert "not for h100" in planned["notes"][0]
  # All that is of use: a slot a trajectory, a row a trajectory of a minibatch.
  assert planned["largest"] == {
    "rollout.num_slots": 128,
    "update.rows_per_microbatch": 64,
  }


def test_a_peak_counts_all_that_is_alive(planned):
  memory = planned["memory"]
  programs = {program["name"]: program for program in planned["programs"]}
  state = memory["parameters"] + memory["optimizer"]
  slots = memory["KV cache"] + memory["tokens and tables"]
  rollout = memory["rollout parameters"]
  prompts = memory["KV cache of prompts"]
  decode = programs["decode"]
  assert decode["beside_bytes"] == state + prompts
  # The temperature too.
  assert decode["argument_bytes"] == rollout + slots + 4
  assert programs["prefill"]["beside_bytes"] == state + slots
  assert programs["admit"]["beside_bytes"] == state + rollout
  assert programs["reshard"]["beside_bytes"] == memory["optimizer"]
  assert planned["peak_bytes"]["rollout"] == max(
    program["peak_bytes"]
    for program in planned["programs"]
    if program["phase"] == "rollout"
  )


def test_resharding_sends_what_a_device_lacks(planned):
  (reshard,) = (p for p in planned["programs"] if p["name"] == "reshard")
  memory = planned["memory"]
  # Both in float32: what is gathered over fsdp, less what was there.
  assert (
    reshard["network_bytes"]
    == memory["rollout parameters"] - memory["parameters"]
  )


def test_the_off_policy_agent_is_rolled_out_and_not_trained(tmp_path):
  path = tmp_path / "plan.json"
  process = _plan(
    *("--config", CONFIG, "--topology", "cpu:2", "--json", str(path)),
    *("--agent", "off_policy"),
  )
  assert process.returncode == 0, process.stderr
  report = json.loads(path.read_text(encoding="utf-8"))
  names = [program["name"] for program in report["programs"]]
  assert names == ["prefill", "admit", "decode", "insert"]
  assert "optimizer" not in report["memory"]
  assert report["round"] == "512 trajectories for the buffer"
  # 32 questions at a time, 8 prompts at a time.
  assert report["programs"][0]["calls"] == 4
  assert "fake CPU devices" in report["notes"][0]


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5p", "must be a chip and its shape"),
    ("h100:2x2", "h100 is a number of devices"),
    ("h100:8*2", "got 'h100:8*2': leave out what follows *"),
    ("cpu:8*2", "cpu is a number of devices"),
    ("v5p:4x4x2*0", "at least one device and one slice"),
    ("v5p:4x0x2", "at least one device and one slice"),
    ("v5p:4x4x2*", "v5p:4x4x2*4 for four slices"),
  ],
)
def test_a_topology_that_is_none_says_why(topology, message, capsys):
  assert plan.main(["--config", CONFIG, "--topology", topology]) == 2
  assert message in capsys.readouterr().err


def test_a_slice_of_tpus_and_a_host_of_gpus_are_islands():
  topology = chips.Topology("v5p:2x2x2*4", "v5p", [None] * 32, "tpu", 4)
  assert chips.parse_topology(topology.name) == ("v5p", (2, 2, 2), 4)
  islands = {name: topology.island(chip) for name, chip in chips.CHIPS.items()}
  assert set(islands.values()) == {8}
  one = chips.Topology("v5p:4x4x2", "v5p", [None] * 32, "tpu")
  assert chips.parse_topology(one.name) == ("v5p", (4, 4, 2), 1)
  assert one.island(chips.CHIPS["v5p"]) == 32
  assert one.island(chips.CHIPS["h100"]) == 8


def test_what_cannot_be_planned_says_why():
  # One process for all: each would open the same eight devices.
  program = """
import sys
from experiments import plan
for change in sys.argv[1:]:
  given = ["--config", "%s", "--topology", "cpu:8", change]
  print(plan.main(given), file=sys.stderr)
"""
  process = _python(
    *("-c", program % CONFIG, "--config.mesh.tensor=3"),
    *("--config.mesh.tensor=8", "--config.rollout.num_slots=12"),
  )
  messages = re.split(r"^2$", process.stderr, flags=re.MULTILINE)
  for message, expected in zip(
    messages,
    (
      "number of devices",
      "tensor has 8, which does not divide heads (4)",
      "rollout.num_slots must be a multiple of data * fsdp (8)",
      "",
    ),
    strict=True,
  ):
    assert expected in message


def test_without_libtpu_the_package_is_named(monkeypatch):
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(chips.TopologyError, match=r"jax\[tpu\]"):
    chips.open_topology("v5p:2x2x1")


def test_policy_shape_needs_no_weights():
  shape = policy_shape(
    dataclasses.replace(
      ExperimentConfig(name="test"),
      policy=plan_policy("Qwen/Qwen2.5-7B-Instruct"),
    )
  )
  assert (shape.num_layers, shape.vocab_size) == (28, 152_064)
  with pytest.raises(FileNotFoundError, match=r"Qwen2\.5-7B-Instruct"):
    policy_shape(
      dataclasses.replace(
        ExperimentConfig(name="test"), policy=plan_policy("no-one/nothing")
      )
    )


def plan_policy(name):
  return dataclasses.replace(ExperimentConfig(name="").policy, base=name)


def test_a_refusal_for_lack_of_memory_tells_how_much_it_takes():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (32.50G) exceeds available HBM (15.75G)."
  )
  assert analysis.needed_bytes(message) == 32.5 * 2**30
  assert analysis.needed_bytes("INTERNAL: something of 3.5G") is None


def _workload(config, *arguments):
  known = plan.make_parser().parse_args(
    ["--config", "test", "--topology", "", *arguments]
  )
  return plan._workload(config, known)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--policy_tokens=0", "policy_tokens must be at least 1, got 0: raise"),
    ("--tool_calls=-1", "tool_calls must be at least 0, got -1"),
    ("--host_ms=-1", "host_ms must be at least 0, got -1"),
    ("--retrieval_ms=nan", "retrieval_ms must be at least 0 and be finite"),
    ("--tool_calls=6", "must be at most rollout.max_tool_calls (5), got 6"),
    ("--tool_tokens=1025", "at most rollout.max_tool_tokens (1024), got 1025"),
    ("--longest_response=100", "must be at least the mean response"),
    ("--policy_tokens=4000", "must be at least the mean response"),
  ],
)
def test_a_workload_outside_its_budgets_is_refused(argument, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    _workload(ExperimentConfig(name="test"), argument)


def test_an_explicit_zero_is_not_the_default():
  config = ExperimentConfig(name="test")
  workload = _workload(config, "--tool_calls=0", "--tool_tokens=0")
  assert (workload.tool_calls, workload.tool_tokens) == (0, 0)
  assert workload.policy_tokens == config.rollout.max_response_tokens // 4
  assert workload.longest_response == config.rollout.max_response_tokens


def _programs(mesh=None, method="rapo", **changes):
  """Programs of 512 trajectories, for a mesh of one device by default."""
  config = dataclasses.replace(
    ExperimentConfig(name="test"),
    rollout=dataclasses.replace(ExperimentConfig(name="").rollout, **changes),
  )
  workload = Workload(
    policy_tokens=1024, tool_calls=2, tool_tokens=512, longest_response=4096
  )
  return Programs(
    config,
    plan_shape(config),
    mesh or sharding.make_mesh(devices=jax.devices()[:1]),
    workload,
    ALGORITHMS[method],
  )


def test_only_hybrid_trajectories_retrieve():
  measured = host_loop.RETRIEVAL_MS
  assert _programs().assumptions["retrieval_ms"] == measured > 0
  assert _programs(num_hybrid=0).assumptions["retrieval_ms"] == 0
  grpo = _programs(method="grpo").assumptions
  assert grpo["retrieval_ms"] == 0
  assert grpo["host_ms"] == host_loop.LOOP_MS > 0


def plan_shape(config):
  return policy_shape(dataclasses.replace(config, policy=plan_policy(None)))


def test_a_rollout_ends_with_its_longest_response():
  programs = _programs(num_slots=512, prefill_rows=32, decode_chunk=64)
  # 1,024 of the longest response are its tools', the others are sampled.
  assert programs.decode_calls == (4096 - 2 * 512) // 64
  # Tools can answer after every chunk, each time those of 1,024 / 48 = 21.3
  # sequences, which take three inserts of eight.
  assert programs.insert_calls == 3 * programs.decode_calls
  assert programs.admit_calls == 1
  calls = {p.name: p for p in programs.phase("rollout")}
  # Caches are read as far as the longest has come: 1,536 + 4,096 tokens.
  assert calls["decode"].trips == (64, 5632 / 64)
  assert calls["insert"].trips[1] == 5632 / 64


def test_slots_are_filled_again_as_they_come_free():
  programs = _programs(num_slots=128, prefill_rows=32, decode_chunk=64)
  # Three more fills of 1,024 tokens each before the last sequences end.
  assert programs.decode_calls == 48 + 3 * 16
  assert programs.admit_calls == 1 + programs.decode_calls


def _trained_with(*methods, lora=None, **objective):
  """An experiment on a tiny policy, and what `Programs` takes of it."""
  blank = ExperimentConfig(name="test")
  config = dataclasses.replace(
    blank,
    policy=dataclasses.replace(blank.policy, base=None, lora=lora),
    objective=dataclasses.replace(blank.objective, **objective),
    train=dataclasses.replace(blank.train, methods=methods),
    rollout=dataclasses.replace(blank.rollout, dtype="bfloat16"),
    update=dataclasses.replace(blank.update, remat="none"),
  )
  workload = Workload(
    policy_tokens=1024, tool_calls=2, tool_tokens=512, longest_response=4096
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return config, policy_shape(config), mesh, workload


def _update_flops(*methods, **objective):
  """FLOPs of one run of each program of the update phase, by name."""
  experiment = _trained_with(*methods, **objective)
  programs = Programs(*experiment, analysis.costliest(*experiment))
  with jax.set_mesh(experiment[2]):
    return {
      program.name: jaxpr_cost.count(
        program.function.trace(*program.args, **program.kwargs).jaxpr,
        program.is_weight,
        program.trips,
      ).flops
      for program in programs.phase("update")
    }


def _memory(**changes):
  experiment = _trained_with("grpo", **changes)
  return Programs(*experiment, ALGORITHMS["grpo"])


def test_the_costliest_method_is_planned():
  def name(*methods, **objective):
    return analysis.costliest(*_trained_with(*methods, **objective)).name

  # GSPO scores each minibatch once more.
  assert name("grpo", "rapo", "gspo") == "gspo"
  # The rest takes as much as GRPO; RAPO retrieves too.
  assert name("grpo", "dapo", "rapo") == "rapo"
  assert name("grpo", "dapo") == "grpo"
  # A method may have a KL term of its own, which takes a model more.
  own = dataclasses.replace(
    ALGORITHMS["grpo"], name="own", changes={"kl_coef": 0.1}
  )
  assert name("gspo", own) == "own"


def test_what_a_method_computes_besides_is_counted():
  plain = _update_flops("grpo")
  forward = _update_flops("gspo")["update"] - plain["update"]
  # A backward pass takes twice a forward pass.
  assert plain["update"] == pytest.approx(3 * forward, rel=0.35)
  scored = _update_flops("grpo", kl_coef=0.1)
  assert scored["update"] == plain["update"]
  assert scored["reference"] == pytest.approx(forward)
  assert _update_flops("grpo", entropy_coef=0.1)["update"] > plain["update"]


def test_what_is_scored_before_the_first_minibatch_is_counted():
  replay = dataclasses.replace(
    ALGORITHMS["grpo"],
    name="replay",
    loss=TokenLoss(
      lambda log_probs, columns, settings: log_probs,
      ("proximal_log_probs",),
    ),
  )
  experiment = _trained_with("grpo", replay)
  assert analysis.costliest(*experiment).name == "replay"
  programs = Programs(*experiment, replay)
  calls = {program.name: program.calls for program in programs}
  assert calls["update"] == calls["proximal"] > 0
  (update,) = [p for p in programs.phase("update") if p.name == "update"]
  assert "proximal_log_probs" in update.args[1].columns


def test_adapters_alone_have_an_optimizer():
  adapters = models.LoraConfig(4, 8.0, ("query",))
  memory = _memory(lora=adapters).memory
  # Adapters are in float32, and rollouts hold them in bfloat16 like the base.
  adapter_bytes = 2 * (memory["parameters"] - memory["rollout parameters"])
  assert adapter_bytes > 0
  # Two moments of each, and a counter or two.
  assert 0 <= memory["optimizer"] - 2 * adapter_bytes <= 64


def test_a_reference_is_held_where_kl_is_taken_to_a_copy():
  assert "reference" not in _memory().memory
  adapters = models.LoraConfig(4, 8.0, ("query",))
  assert "reference" not in _memory(kl_coef=0.1, lora=adapters).memory
  programs = _memory(kl_coef=0.1)
  assert programs.memory["reference"] == programs.memory["parameters"]
  memory = programs.memory
  beside = {program.name: program.beside_bytes for program in programs}
  state = memory["parameters"] + memory["optimizer"]
  assert beside["update"] == memory["reference"]
  # It is an argument itself.
  assert beside["reference"] == state
  assert beside["admit"] == (
    state + memory["reference"] + memory["rollout parameters"]
  )
  calls = {program.name: program.calls for program in programs}
  assert calls["reference"] == calls["update"] > 0


# Peaks made up for it: a capacity of 100, a constant of 20.


def _search(peak_at, known, **changes):
  tried = []

  def compiled(value):
    tried.append(value)
    return peak_at(value)

  arguments = {"capacity": 100, "constant": 20, "step": 4, "most": 1000}
  value = largest_that_fits(
    {known: peak_at(known)}, compiled, **{**arguments, **changes}
  )
  return value, tried


def test_the_largest_value_that_fits_was_compiled():
  # 25 is held besides, which proportion would not know of.
  value, tried = _search(lambda n: 45 + n, 8)
  assert value == 52
  assert value in tried


def test_a_value_that_does_not_fit_is_lowered_until_one_does():
  value, tried = _search(lambda n: 60 + n, 200, any_will_do=True)
  assert 0 < value <= 40
  assert tried[-1] == value


def test_no_more_than_is_of_use_is_looked_for():
  assert _search(lambda n: 20 + n / 100, 8, most=64) == (64, [64])
  assert _search(lambda n: 20 + n / 100, 64, most=64) == (64, [])


def test_nothing_is_claimed_where_nothing_fits():
  assert _search(lambda n: 101 + n, 64)[0] == 0
  # Not even without any: nothing needs to be compiled.
  assert _search(lambda n: 101 + n, 64, constant=101) == (0, [])


def _verdict(rollout, update, *, found, constant=4):
  topology = chips.Topology("v5e:2x2", "v5e", [], "tpu")
  return analysis._verdict(
    topology,
    15 * 2**30,
    {"rollout": rollout * 2**30, "update": update * 2**30},
    found,
    {"rollout": constant * 2**30, "update": constant * 2**30},
  )


def test_a_verdict_names_the_change_that_was_compiled():
  assert "at most 9.0 of 15.0 GiB" in _verdict(9, 8, found={})
  verdict = _verdict(17, 8, found={"rollout": 52})
  assert "lower rollout.num_slots to 52, which was compiled" in verdict
  assert "update" not in verdict
  verdict = _verdict(9, 16, found={"update": 4})
  assert "lower update.rows_per_microbatch to 4" in verdict


def test_a_state_too_large_asks_for_more_devices():
  verdict = _verdict(40, 8, found={"rollout": 0}, constant=38)
  assert "at least 3 times as many devices" in verdict


@pytest.mark.plan
def test_a_tpu_topology_is_compiled_with_the_kernels_of_its_platform(tmp_path):
  path = tmp_path / "plan.json"
  arguments = (
    *("--config", "experiments/configs/tool_star_smoke.py"),
    *("--topology", "v5e:2x2", "--json", str(path)),
    "--config.policy.random.hidden_size=512",
    "--config.rollout.dtype=bfloat16",
    "--config.rollout.num_slots=32",
    "--config.update.rows_per_microbatch=4",
    "--config.mesh.tensor=2",
  )
  process = _plan(*arguments)
  assert process.returncode == 0, process.stderr
  report = json.loads(path.read_text(encoding="utf-8"))
  assert report["fits"] is True
  assert report["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  update = report["programs"][-1]
  assert update["flops"] > 0
  assert update["network_bytes"] > 0
  assert report["notes"] == []
  # Far more slots are too many, and it says how many are not.
  path.unlink()
  process = _plan(*arguments, "--config.rollout.num_slots=16384")
  assert process.returncode == 1, process.stderr
  report = json.loads(path.read_text(encoding="utf-8"))
  assert report["verdict"].startswith("does not fit v5e:2x2")
  fits = report["largest"]["rollout.num_slots"]
  assert f"lower rollout.num_slots to {fits}" in report["verdict"]
  path.unlink()
  process = _plan(*arguments, f"--config.rollout.num_slots={fits}")
  assert process.returncode == 0, process.stderr


@pytest.mark.plan
def test_a_refused_program_takes_arguments_and_results_once():
  topology = chips.open_topology("v5e:2x2")
  mesh = sharding.make_mesh(fsdp=4, devices=topology.devices)
  x = jax.ShapeDtypeStruct(
    (20 * 2**28,), "float32", sharding=jax.NamedSharding(mesh, jax.P())
  )
  program = Program(
    name="twice",
    phase="rollout",
    function=jax.jit(lambda x: x + 1),
    args=(x,),
    kwargs={},
    is_weight=[False],
    trips=(),
    calls=1,
    beside_bytes=0,
  )
  report = analysis._report(program, mesh, topology)
  assert report.refused
  # 20 GiB go in and 20 come out.
  assert report.peak_bytes == pytest.approx(40 * 2**30, rel=0.01)


@pytest.mark.plan
def test_loops_of_a_program_for_tpu_count_what_they_send():
  mesh = sharding.make_mesh(
    fsdp=4, devices=chips.open_topology("v5e:2x2").devices
  )

  def layers(x, stack):
    def layer(x, w):
      return jax.lax.psum(jnp.sin(x) @ w, "fsdp"), None

    return jax.lax.scan(layer, x, stack)[0]

  program = jax.jit(
    jax.shard_map(
      layers,
      mesh=mesh,
      in_specs=(jax.P(), jax.P()),
      out_specs=jax.P(),
      check_vma=False,
    )
  )
  x, stack = (
    jax.ShapeDtypeStruct(
      shape, "float32", sharding=jax.NamedSharding(mesh, jax.P())
    )
    for shape in ((256, 512), (5, 512, 512))
  )
  text = program.lower(x, stack).compile().as_text()
  sent = collectives.collectives(text, ())
  assert [c.op for c in sent] == ["all-reduce"]
  assert sent[0].count == 5
  assert sent[0].bytes == 5 * 2 * (256 * 512 * 4) * 3 / 4


@pytest.mark.plan
@pytest.mark.parametrize(
  ("axes", "over", "far"),
  [
    # Each chip sums its whole array with that of its counterpart.
    ({"data": 2, "fsdp": 2, "tensor": 2}, "data", 2 * (16 * 128 * 4) / 2),
    # It has a quarter, and sends that to its counterpart alone.
    ({"fsdp": 4, "tensor": 2}, "fsdp", 16 * 128 * 4 / 4),
    # The same in its slice: nothing leaves.
    ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp", 0),
  ],
)
def test_slices_of_tpus_send_over_the_slow_network(axes, over, far):
  topology = chips.open_topology("v5e:2x2*2")
  mesh = sharding.make_mesh(**axes, devices=topology.devices)
  # Devices of a slice stand together.
  assert [d.slice_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4

  def exchange(x):
    if over == "data":
      return jax.lax.psum(x, over)
    return jax.lax.all_gather(x, over, axis=0, tiled=True)

  given = jax.P() if over == "data" else jax.P(over)
  program = jax.jit(
    jax.shard_map(
      exchange, mesh=mesh, in_specs=given, out_specs=jax.P(), check_vma=False
    )
  )
  x = jax.ShapeDtypeStruct(
    (16, 128), "float32", sharding=jax.NamedSharding(mesh, given)
  )
  sent = collectives.collectives(
    program.lower(x).compile().as_text(),
    (),
    topology.island(chips.CHIPS["v5e"]),
    topology.slices,
  )
  assert sum(c.far_bytes for c in sent) == far


@pytest.mark.plan
def test_heads_can_be_cut_over_part_of_a_side_of_the_torus():
  devices = chips.open_topology("v5p:8x8x8").devices
  mesh = sharding.make_mesh(fsdp=128, tensor=4, devices=devices)
  assert mesh.devices.shape == (1, 128, 4)


@pytest.mark.plan
def test_prompts_that_the_mesh_does_not_divide_are_computed_everywhere():
  devices = chips.open_topology("v5p:8x8x8").devices
  mesh = sharding.make_mesh(data=16, fsdp=16, tensor=2, devices=devices)

  def copies(rows):
    programs = _programs(mesh, num_slots=256, prefill_rows=rows)
    return {p.name: p.copies for p in programs if p.copies != 1}

  assert copies(256) == {}
  assert copies(32) == {"prefill": 256}


@pytest.mark.plan
def test_attention_on_tpu_is_the_splash_kernel():
  topology = chips.open_topology("v5e:2x2")
  mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=topology.devices)
  heads = jax.ShapeDtypeStruct(
    (4, 512, 4, 64),
    "bfloat16",
    sharding=jax.NamedSharding(
      mesh, sharding.partition_spec(("rows", None, "heads", None), RULES)
    ),
  )
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    program = jax.jit(
      lambda q: attention.attend(q, q, q, segment_ids=None)
    ).lower(heads)
    assert "tpu_custom_call" in program.as_text()
    program.compile()


RULES = {"rows": ("data", "fsdp"), "heads": "tensor"}
