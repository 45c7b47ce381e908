"""The planner as a person calls it."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments import plan
from experiments.config import ExperimentConfig, MeshConfig
from experiments.planner import analysis, chips
from rapo_jax.models import attention, sharding

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = "experiments/configs/quickstart.py"


def _plan(*arguments):
  """Runs the planner in a process of its own: it chooses JAX's devices."""
  search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.run(
    [sys.executable, "-m", "experiments.plan", *arguments],
    cwd=ROOT,
    # The tests' own default of float32 products is not a run's.
    env={
      **os.environ,
      "PYTHONPATH": search,
      "JAX_DEFAULT_MATMUL_PRECISION": "default",
    },
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  path = tmp_path_factory.mktemp("plan") / "plan.json"
  process = _plan(
    *("--config", CONFIG, "--topology", "h100:4", "--json", str(path)),
    "--config.mesh.tensor=2",
  )
  assert process.returncode == 0, process.stderr
  return json.loads(path.read_text())


def test_every_program_is_compiled_and_bounded(planned):
  assert planned["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  names = [program["name"] for program in planned["programs"]]
  assert names == [
    *("prefill", "decode", "insert", "log-probs", "update", "reshard")
  ]
  for program in planned["programs"]:
    assert program["peak_bytes"] > 0
    for roofline in program["rooflines"].values():
      assert roofline["seconds"] == roofline[f"{roofline['bound']}_s"]
      assert roofline["seconds"] == max(
        roofline[f"{name}_s"] for name in ("compute", "memory", "network")
      )
  update = planned["programs"][4]
  assert update["calls"] == 2
  # Gradients are summed over slices of the batch, heads over slices of heads.
  assert {c["op"] for c in update["collectives"]} & {
    "all-reduce",
    "reduce-scatter",
  }
  assert planned["update_seconds"]["h100"] == pytest.approx(
    sum(
      p["calls"] * p["rooflines"]["h100"]["seconds"]
      for p in planned["programs"]
    )
  )


def test_memory_is_that_of_the_arrays(planned):
  memory = planned["memory"]
  # float32 parameters; Adam has two moments of each, and a counter or two.
  moments = memory["optimizer"] - 2 * memory["parameters"]
  assert 0 <= moments <= 64
  # Keys and values of 3 layers, 4 heads of 16 in float32; 128 slots of 256
  # tokens; a half of the heads and of the slots each.
  assert memory["KV cache"] == 2 * 3 * 4 * 16 * 4 * 128 * 256 / 4
  assert planned["fits"] is True
  assert planned["verdict"].startswith("fits h100:4")
  assert planned["largest"]["num_slots"] > 128


def test_adapters_alone_have_an_optimizer(tmp_path):
  path = tmp_path / "plan.json"
  process = _plan(
    *("--config", CONFIG, "--topology", "cpu:2", "--json", str(path)),
    "--config.policy.lora.rank=4",
    "--config.rollout.dtype=bfloat16",
  )
  assert process.returncode == 0, process.stderr
  memory = json.loads(path.read_text())["memory"]
  # Two float32 moments of each adapter, over a base in bfloat16 that rollouts
  # hold once more, not cut over fsdp, with adapters in bfloat16 too.
  assert 0 < memory["optimizer"] < memory["parameters"]
  assert memory["parameters"] < memory["rollout parameters"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology", "v5p"], "must be a chip and its shape"),
    (["--topology", "h100:2x2"], "h100 is a number of devices"),
    (["--topology", "cpu:8", "--config.mesh.tensor=3"], "number of devices"),
    (
      ["--topology", "cpu:8", "--config.mesh.tensor=8"],
      "tensor has 8, which does not divide heads (4)",
    ),
    (
      ["--topology", "cpu:8", "--config.rollout.num_slots=12"],
      "rollout.num_slots must be a multiple of data * fsdp (8)",
    ),
  ],
)
def test_what_cannot_be_planned_says_why(arguments, message):
  process = _plan("--config", CONFIG, *arguments)
  assert process.returncode == 2
  assert message in process.stderr


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(chips.TopologyError, match=r"\.\[plan\]"):
    chips.open_topology("v5p:2x2x1")


def test_policy_shape_needs_no_weights():
  shape = plan.policy_shape(
    dataclasses.replace(
      ExperimentConfig(name="test"),
      policy=plan_policy("Qwen/Qwen2.5-7B-Instruct"),
    )
  )
  assert (shape.num_layers, shape.vocab_size) == (28, 152_064)
  with pytest.raises(FileNotFoundError, match=r"Qwen2\.5-7B-Instruct"):
    plan.policy_shape(
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


# A verdict on figures made up for it: GiB on a chip of 16 (15.2 usable).
GIB = 2**30
CHIP = dataclasses.replace(chips.CHIPS["v5e"], memory_bytes=16 * GIB)


def _report(name, *, arguments, temporary):
  return analysis.ProgramReport(
    name=name,
    calls=1,
    argument_bytes=arguments * GIB,
    output_bytes=0,
    temporary_bytes=temporary * GIB,
    flops=0,
    memory_bytes=0,
    network_bytes=0,
    collectives=[],
    compile_s=0,
    rooflines={},
  )


def _judge(*, state, slots, activations):
  """64 slots and 8 rows over 4 slices; state, cache and rows in GiB."""
  config = dataclasses.replace(
    ExperimentConfig(name="test"),
    mesh=MeshConfig(fsdp=4),
    rollout=dataclasses.replace(
      ExperimentConfig(name="").rollout, num_slots=64
    ),
    update=dataclasses.replace(
      ExperimentConfig(name="").update, rows_per_microbatch=8
    ),
  )
  mesh = jax.sharding.AbstractMesh((1, 4, 1), sharding.MESH_AXES)
  memory = {
    "parameters": state // 4 * GIB,
    "optimizer": state // 4 * 3 * GIB,
    "rollout parameters": 1 * GIB,
    "KV cache": slots * GIB,
  }
  reports = [
    _report("decode", arguments=1 + slots, temporary=0),
    _report("insert", arguments=1 + slots, temporary=0),
    _report("prefill", arguments=1, temporary=0),
    _report("update", arguments=state, temporary=state // 4 + activations),
  ]
  return analysis._Judged(
    config,
    mesh,
    memory,
    {r.name: r for r in reports},
    CHIP,
    gradient_bytes=state // 4 * GIB,
  )


def test_a_plan_that_fits_says_how_much_more_would():
  judged = _judge(state=4, slots=4, activations=4)
  assert judged.fits
  assert judged.rollout_peak == 9 * GIB
  assert judged.update_peak == 9 * GIB
  # 6.2 GiB are left; a slot takes 4 / 16, a row 4 / 2 on each of 4 slices.
  assert judged.largest == {
    "num_slots": 64 + 24 * 4,
    "rows_per_microbatch": 8 + 3 * 4,
  }


def test_too_many_slots_are_told_how_many_fit():
  judged = _judge(state=4, slots=12, activations=4)
  assert not judged.fits
  # 17 of 15.2: three slots on each of 4 slices are too many.
  assert "lower rollout.num_slots to 52" in judged.verdict("v5e:2x2")


def test_too_many_rows_are_told_how_many_fit():
  judged = _judge(state=4, slots=4, activations=14)
  assert "lower update.rows_per_microbatch to 4" in judged.verdict("v5e:2x2")


def test_a_state_too_large_asks_for_more_devices():
  judged = _judge(state=20, slots=1, activations=1)
  assert "3 times as many devices over fsdp" in judged.verdict("v5e:2x2")


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
  report = json.loads(path.read_text())
  assert report["fits"] is True
  assert report["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  update = report["programs"][4]
  assert update["flops"] > 0
  assert update["network_bytes"] > 0
  # Far more slots are too many, and it says how many are not.
  path.unlink()
  process = _plan(*arguments, "--config.rollout.num_slots=16384")
  assert process.returncode == 1, process.stderr
  verdict = json.loads(path.read_text())["verdict"]
  assert verdict.startswith("does not fit v5e:2x2")
  assert "lower rollout.num_slots to" in verdict


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
