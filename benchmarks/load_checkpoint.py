"""Time and host memory of loading a checkpoint of Qwen2.5-1.5B's shape.

  python -m benchmarks.load_checkpoint

Writes random bfloat16 weights of that shape, in several files, to a temporary
folder (3.1 GB). Then it times in turns, with the files in the page cache:

- reading every file into fresh memory, as parameters need fresh memory too;
- reading them all into one buffer, again and again, which is less than any
  loader can do: it shows what the memory costs;
- `from_pretrained` onto one device, in bfloat16.

Then one new process loads onto one device, and another onto a mesh of eight
fake CPU devices (fsdp 4, tensor 2). The arrays of CPU devices lie in host
memory. So the benchmark reports the peak of the resident set, mapped pages of
the files included. It subtracts the resident set before and the arrays' own
bytes. Targets: load / read at most 1.3; that peak at most the largest tensor
plus 1 GB on the mesh. Run it on a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rapo_jax import models
from rapo_jax.models import checkpoint_layout, sharding, tensor_files

SHAPE = models.DecoderConfig(
  vocab_size=151_936,
  hidden_size=1_536,
  intermediate_size=8_960,
  num_layers=28,
  num_heads=12,
  num_kv_heads=2,
  head_dim=128,
  rope=models.RopeConfig(theta=1e6),
  dtype="bfloat16",
)
MAX_SHARD_BYTES = 1_000_000_000
ONE_BUFFER = bytearray(2**24)
MESH = {"fsdp": 4, "tensor": 2}


def write_checkpoint(folder: pathlib.Path, config: models.DecoderConfig) -> int:
  """Writes random weights; returns the bytes of the largest tensor."""
  model = jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(0)

  def tensor(name: str, shape: tuple[int, ...]) -> tensor_files.TensorToWrite:
    def fetch() -> np.ndarray:
      # Without the exponent's top bit: finite, and at most 2.
      bits = rng.integers(0, 2**16, shape, np.uint16) & 0xBFFF
      return bits.view(jnp.bfloat16)

    return tensor_files.TensorToWrite(
      name, np.dtype(jnp.bfloat16), shape, fetch
    )

  tensors = [
    tensor(name, layout.shape)
    for layout in checkpoint_layout.tensor_layouts(model)
    for name in layout.names
  ]
  tensor_files.write_weights(folder, tensors, MAX_SHARD_BYTES)
  tensor_files.write_json(folder / checkpoint_layout.CONFIG, config.to_hf())
  return max(tensor.num_bytes for tensor in tensors)


def read_files(folder: pathlib.Path) -> None:
  for path in sorted(folder.glob("*.safetensors")):
    path.read_bytes()


def read_files_into_one_buffer(folder: pathlib.Path) -> None:
  view = memoryview(ONE_BUFFER)
  for path in sorted(folder.glob("*.safetensors")):
    with path.open("rb", buffering=0) as file:
      while file.readinto(view):
        pass


def load(folder: pathlib.Path, mesh: Any = None) -> models.Decoder:
  model = models.from_pretrained(folder, dtype=jnp.bfloat16, mesh=mesh)
  return jax.block_until_ready(model)


def time_s(call: Any) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def memory_bytes(field: str) -> int:
  """Returns `VmRSS` or, since it was last reset, its peak `VmHWM`."""
  for line in (
    pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
  ):
    if line.startswith(field + ":"):
      return 1024 * int(line.split()[1])
  raise ValueError(f"/proc/self/status must have {field}; this needs Linux.")


def report_peak(folder: pathlib.Path) -> None:
  """What the processes of their own do: load, and print what it took."""
  mesh = sharding.make_mesh(**MESH) if jax.device_count() > 1 else None
  jax.block_until_ready(jnp.zeros(1))
  before = memory_bytes("VmRSS")
  pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
  start = time.perf_counter()
  model = load(folder, mesh)
  seconds = time.perf_counter() - start
  arrays = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(model)
    for shard in leaf.addressable_shards
  )
  peak = memory_bytes("VmHWM") - before - arrays
  print(json.dumps({"beyond_mb": round(peak / 1e6), "load_s": seconds}))


def measure_peak(folder: pathlib.Path, num_devices: int) -> dict[str, float]:
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  child = subprocess.run(
    [sys.executable, "-m", "benchmarks.load_checkpoint", "--peak", str(folder)],
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    encoding="utf-8",
    check=True,
  )
  return json.loads(child.stdout)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--layers", type=int, default=SHAPE.num_layers)
  parser.add_argument("--peak", type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peak is not None:
    report_peak(args.peak)
    return
  config = models.DecoderConfig(
    **{**vars(SHAPE), "num_layers": args.layers},
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    print("writing the checkpoint", file=sys.stderr)
    largest = write_checkpoint(folder, config)
    files = sorted(folder.glob("*.safetensors"))
    load(folder)
    times: dict[str, list[float]] = {}
    for _ in range(args.repeats):
      for call in (read_files, read_files_into_one_buffer, load):
        seconds = time_s(lambda call=call: call(folder))
        times.setdefault(call.__name__, []).append(seconds)
      print({k: round(v[-1], 2) for k, v in times.items()}, file=sys.stderr)
    one, eight = measure_peak(folder, 1), measure_peak(folder, 8)
    total = sum(path.stat().st_size for path in files)
  read_s, read_into_one_buffer_s, load_s = map(
    statistics.median, times.values()
  )
  print(
    json.dumps(
      {
        "benchmark": "load_checkpoint",
        "unit": "s and MB of host memory",
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "file_mb": round(total / 1e6),
        "files": len(files),
        "read_s": round(read_s, 2),
        "read_into_one_buffer_s": round(read_into_one_buffer_s, 2),
        "load_s": round(load_s, 2),
        "ranges_s": {
          name: [round(min(seconds), 2), round(max(seconds), 2)]
          for name, seconds in times.items()
        },
        "load_over_read": round(load_s / read_s, 2),
        "largest_tensor_mb": round(largest / 1e6),
        "beyond_parameters_one_device_mb": one["beyond_mb"],
        "beyond_parameters_mesh_mb": eight["beyond_mb"],
        "load_mesh_s": round(eight["load_s"], 2),
      }
    )
  )


if __name__ == "__main__":
  main()
