"""Which of several hosts this is, as the program that started it says.

Schedulers put it into variables of the environment, and a TPU VM asks its
metadata server:

- Open MPI: "Environment variables set for MPI applications" of its manual;
- Slurm: "Output environment variables" of `srun`;
- TPU slices of Google Kubernetes Engine: `TPU_WORKER_ID`,
  `TPU_WORKER_HOSTNAMES`, and for several slices `MEGASCALE_…`;
- TPU VMs of Compute Engine: attributes of the metadata server;
- Kubernetes: `JOB_COMPLETION_INDEX` of an Indexed Job, and the host name that a
  Job or a JobSet gives its pods.
"""

from __future__ import annotations

import dataclasses
import http
import http.client
import os
import re
import socket
import zlib
from collections.abc import Mapping

from rapo_jax.errors import InputError

FIRST_PORT = 61_000
"""Above what Linux gives to outgoing connections."""
_PORTS = 4_000
_METADATA_HOST = "metadata.google.internal"
_METADATA_S = 10.0
_METADATA_HEADERS = {"Metadata-Flavor": "Google"}
_ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
_FIRST_OF_RANGE = re.compile(r"\[(\d+)[^\]]*\]")
_OPEN_MPI_ADDRESS = re.compile(
  r"(?P<job>\d+)\.\d+;tcp(?:://(?P<four>[^,:;]+)|6://\[(?P<six>[^,\]]+))"
)
_POD = re.compile(r"(?P<job>.+)-(?P<index>\d+)")

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Found:
  """What a scheduler says of the hosts of a run.

  Attributes:
    scheduler: its name, for messages.
    index: number of this host, from 0.
    count: number of hosts; None where it does not say.
    host: name or address of host 0; None where it does not say.
    port: for host 0 to listen on, the same on all hosts.
  """

  scheduler: str
  index: int
  count: int | None
  host: str | None
  port: int = FIRST_PORT


def detect(environment: Environment | None = None) -> Found | None:
  """Asks the schedulers that are known; None if none started this process.

  Args:
    environment: variables of the environment; those of this process when None.
      `GCE_METADATA_HOST` names another metadata server, as it does for Google's
      libraries; `TPU_SKIP_MDS_QUERY` leaves it out.

  Raises:
    InputError: a scheduler is there, and does not say what it should.
  """
  given = os.environ if environment is None else environment
  # Who starts within an allocation of another knows better.
  for ask in (_open_mpi, _slurm, _tpu_pod, _tpu_vm, _kubernetes):
    found = ask(given)
    if found is not None:
      return found
  return None


def _open_mpi(given: Environment) -> Found | None:
  if "OMPI_COMM_WORLD_RANK" not in given:
    return None
  name = "Open MPI"
  host, port = None, FIRST_PORT
  # Up to version 4. Rank 0 is on the host of mpirun, unless told otherwise.
  uri = given.get("OMPI_MCA_orte_hnp_uri", "")
  address = _OPEN_MPI_ADDRESS.match(uri)
  if address is not None:
    host = address["four"] or address["six"]
    port = _port(address["job"])
  return Found(
    name,
    _number(given, "OMPI_COMM_WORLD_RANK", name),
    _number(given, "OMPI_COMM_WORLD_SIZE", name),
    host,
    port,
  )


def _slurm(given: Environment) -> Found | None:
  if "SLURM_JOB_ID" not in given:
    return None
  name = "Slurm"
  nodes = given.get("SLURM_STEP_NODELIST")
  if nodes is None:
    raise InputError(
      "under Slurm each host must be a task of a step, and this process is "
      "none (SLURM_STEP_NODELIST is not set): start it with srun, one task a "
      "host."
    )
  job = f"{given['SLURM_JOB_ID']}.{given.get('SLURM_STEP_ID', '')}"
  return Found(
    name,
    _number(given, "SLURM_PROCID", name),
    _number(given, "SLURM_STEP_NUM_TASKS", name),
    first_node(nodes),
    _port(job),
  )


def first_node(nodes: str) -> str:
  """The first host of a list as Slurm writes it: of `a[07-09,12],b1`, `a07`."""
  return _FIRST_OF_RANGE.sub(r"\1", nodes).split(",")[0]


def _tpu_pod(given: Environment) -> Found | None:
  """A pod of Google Kubernetes Engine with TPUs."""
  if "TPU_WORKER_HOSTNAMES" not in given:
    return None
  return _tpu_slice(
    "the TPU slice",
    _number(given, "TPU_WORKER_ID", "the TPU slice"),
    given["TPU_WORKER_HOSTNAMES"].split(","),
    given,
  )


def _tpu_vm(given: Environment) -> Found | None:
  """A TPU VM of Compute Engine."""
  if "TPU_SKIP_MDS_QUERY" in given:
    return None
  server = given.get("GCE_METADATA_HOST", _METADATA_HOST)
  name = "the TPU VM's metadata server"
  worker = _attribute(server, "agent-worker-number")
  if worker is None:
    return None
  workers = _attribute(server, "worker-network-endpoints") or ""
  variables = dict(_pairs(_attribute(server, "tpu-env") or ""))
  return _tpu_slice(
    name,
    _number({"agent-worker-number": worker}, "agent-worker-number", name),
    [_worker_address(worker) for worker in workers.split(",")],
    variables,
  )


def _worker_address(text: str) -> str:
  """Of a host name, or of `name:port:address`, where to reach a worker."""
  parts = text.strip().split(":")
  if not parts[-1] or len(parts) not in (1, 3):
    raise InputError(
      "worker-network-endpoints of the TPU VM's metadata must be host names or "
      f"name:port:address, got {text!r}: give --coordinator."
    )
  return parts[-1]


def _tpu_slice(
  name: str, worker: int, workers: list[str], variables: Environment
) -> Found:
  """Slices are numbered one after the other, and the hosts in each."""
  slices, number, host = 1, 0, workers[0]
  if variables.get("MEGASCALE_NUM_SLICES", "1") != "1":
    slices = _number(variables, "MEGASCALE_NUM_SLICES", name)
    number = _number(variables, "MEGASCALE_SLICE_ID", name)
    address = variables.get("MEGASCALE_COORDINATOR_ADDRESS", "")
    if not address:
      raise _incomplete(name, "MEGASCALE_COORDINATOR_ADDRESS", None)
    host = address.split(":")[0]
  return Found(
    name, worker + number * len(workers), len(workers) * slices, host
  )


def _kubernetes(given: Environment) -> Found | None:
  if "JOB_COMPLETION_INDEX" not in given:
    return None
  index = _number(given, "JOB_COMPLETION_INDEX", "Kubernetes")
  # A pod is found under <job>-<index>.<subdomain>, where a headless service is.
  name, _, domain = socket.getfqdn().partition(".")
  pod = _POD.fullmatch(name)
  host = None
  if pod is not None and int(pod["index"]) == index and domain:
    host = f"{pod['job']}-0.{domain}"
  return Found("Kubernetes", index, None, host)


def _port(job: str) -> int:
  """Jobs that share a host get different ports, most of the time."""
  return FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _number(given: Environment, variable: str, scheduler: str) -> int:
  text = given.get(variable)
  if text is None or not text.isdecimal():
    raise _incomplete(scheduler, variable, text)
  return int(text)


def _incomplete(scheduler: str, variable: str, text: str | None) -> InputError:
  return InputError(
    f"{scheduler} must say {variable}, got {text!r}: give --coordinator, "
    "--num_processes and --process_id without --distributed."
  )


def _attribute(server: str, name: str) -> str | None:
  """Of this VM; None where there is no such server, or it has none."""
  # No proxy: the server is the machine's own.
  connection = http.client.HTTPConnection(server, timeout=_METADATA_S)
  try:
    connection.request("GET", _ATTRIBUTES + name, headers=_METADATA_HEADERS)
    answer = connection.getresponse()
    content = answer.read()
  except (OSError, http.client.HTTPException):
    return None
  finally:
    connection.close()
  if answer.status == http.HTTPStatus.NOT_FOUND:
    return None
  if answer.status != http.HTTPStatus.OK:
    raise InputError(
      f"the metadata server must answer, got status {answer.status} for "
      f"{name}: start the command again, or give --coordinator, "
      "--num_processes and --process_id."
    )
  return content.decode()


def _pairs(text: str) -> list[tuple[str, str]]:
  """Of lines such as `MEGASCALE_NUM_SLICES: '2'`."""
  found = [line.partition(":") for line in text.splitlines()]
  return [(key.strip(), value.strip().strip("'")) for key, _, value in found]
