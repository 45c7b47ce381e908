"""Meshes of devices that belong to several processes, for this one alone."""

import types
from unittest import mock

import jax
import numpy as np


def mesh_of(processes, tensor):
  """A mesh whose devices belong to these processes."""
  devices = [types.SimpleNamespace(process_index=p) for p in processes]
  rows = len(devices) // tensor
  return mock.Mock(
    spec=jax.sharding.Mesh,
    devices=np.array(devices).reshape(1, rows, tensor),
    shape={"data": 1, "fsdp": rows, "tensor": tensor},
    is_multi_process=True,
  )
