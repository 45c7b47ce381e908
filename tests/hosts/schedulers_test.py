"""Hosts are found by what schedulers put into the environment."""

import contextlib
import http.server
import socket
import threading

import pytest

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.hosts import schedulers

# As `mpirun` of Open MPI 4.1.4 sets them, of two processes.
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": (
    "1712324608.0;tcp://192.0.2.2,10.0.0.2:41229;tcp6://[fd00::2]:56855"
  ),
}
# As `srun` of Slurm sets them, of the third of four tasks.
SLURM = {
  "SLURM_JOB_ID": "4711",
  "SLURM_STEP_ID": "0",
  "SLURM_STEP_NODELIST": "gpu[07-09,12]",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_NTASKS": "8",
}
TPU_POD = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a-0.s,a-1.s,a-2.s"}
SLICES = {
  "MEGASCALE_NUM_SLICES": "4",
  "MEGASCALE_SLICE_ID": "3",
  "MEGASCALE_COORDINATOR_ADDRESS": "s-0-0.s:8080",
}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "x"}
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}


@contextlib.contextmanager
def metadata_server(attributes, *, status=404):
  """A server such as a TPU VM has, over loopback: its address."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      folder, _, name = self.path.rpartition("/")
      known = folder == "/computeMetadata/v1/instance/attributes"
      google = self.headers["Metadata-Flavor"] == "Google"
      found = known and google and name in attributes
      self.send_response(200 if found else status)
      self.end_headers()
      self.wfile.write(attributes[name].encode() if found else b"no")

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"127.0.0.1:{server.server_port}"
  finally:
    server.shutdown()
    server.server_close()


def test_nothing_started_this_process():
  assert hosts.detect(NO_TPU) is None


def test_open_mpi_names_rank_and_size_and_up_to_version_4_its_host():
  found = hosts.detect({**OPEN_MPI, **SLURM})
  assert (found.index, found.count, found.host) == (1, 2, "192.0.2.2")
  six = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "8.0;tcp6://[fd00::2,::3]:5"}
  assert hosts.detect(six).host == "fd00::2"
  five = {k: v for k, v in OPEN_MPI.items() if "COMM_WORLD" in k}
  assert hosts.detect(five) == hosts.Found("Open MPI", 1, 2, None)


def test_slurm_names_the_task_of_a_step():
  found = hosts.detect(SLURM)
  assert (found.index, found.count, found.host) == (2, 4, "gpu07")
  assert hosts.detect({**SLURM, "SLURM_PROCID": "0"}).port == found.port
  assert 61_000 <= found.port < 65_000
  others = {
    hosts.detect({**SLURM, "SLURM_JOB_ID": str(job)}).port for job in range(20)
  }
  assert len(others) > 15


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-0015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("rack[2-3]node[04,05],x", "rack2node04"),
    ("a[1-2].example.org,b", "a1.example.org"),
  ],
)
def test_the_first_node_of_a_list(nodes, first):
  assert schedulers.first_node(nodes) == first


def test_a_batch_script_of_slurm_is_no_task():
  batch = {k: v for k, v in SLURM.items() if "STEP" not in k}
  with pytest.raises(InputError, match="start it with srun, one task a host"):
    hosts.detect(batch)


def test_a_tpu_slice_of_kubernetes_names_its_workers():
  found = hosts.detect({**TPU_POD, **KUBERNETES})
  assert found == hosts.Found("the TPU slice", 2, 3, "a-0.s")
  alone = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
  assert hosts.detect(alone).count == 1


def test_hosts_of_several_slices_are_numbered_slice_by_slice():
  found = hosts.detect({**TPU_POD, **SLICES})
  assert found == hosts.Found("the TPU slice", 3 * 3 + 2, 4 * 3, "s-0-0.s")


@pytest.mark.parametrize(
  ("workers", "first"),
  [
    ("unknown:8470:10.1.0.4,unknown:8470:10.1.0.5", "10.1.0.4"),
    ("t1v-n-0-w-0,t1v-n-0-w-1", "t1v-n-0-w-0"),
  ],
)
def test_a_tpu_vm_asks_its_metadata_server(workers, first):
  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": workers,
    "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nZONE: 'us-east5-a'\n",
  }
  with metadata_server(attributes) as server:
    found = hosts.detect({"GCE_METADATA_HOST": server})
  assert (found.index, found.count, found.host) == (1, 2, first)


def test_a_tpu_vm_of_several_slices_says_so_in_its_metadata():
  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "a,b",
    "tpu-env": "\n".join(
      f"{name}: '{value}'" for name, value in SLICES.items()
    ),
  }
  with metadata_server(attributes) as server:
    found = hosts.detect({"GCE_METADATA_HOST": server})
  assert (found.index, found.count, found.host) == (7, 8, "s-0-0.s")


def test_a_machine_without_tpus_is_no_tpu_vm():
  with metadata_server({}) as server:
    assert hosts.detect({"GCE_METADATA_HOST": server}) is None
  # Nothing listens there any more.
  assert hosts.detect({"GCE_METADATA_HOST": server}) is None


def test_a_metadata_server_that_fails_is_named():
  with (
    metadata_server({}, status=503) as server,
    pytest.raises(InputError, match="got status 503 for agent-worker-number"),
  ):
    hosts.detect({"GCE_METADATA_HOST": server})


@pytest.mark.parametrize(
  ("full", "host"),
  [
    (
      "run-host-0-3.run.lab.svc.cluster.local",
      "run-host-0-0.run.lab.svc.clust",
    ),
    ("job-3.jobs.lab.svc.cluster.local", "job-0.jobs.lab.svc.cluster.local"),
    ("job-3", None),
    ("node7.example.org", None),
    ("gke-pool-4.internal", None),
  ],
)
def test_kubernetes_names_the_pod_of_a_job(full, host, monkeypatch):
  monkeypatch.setattr(socket, "getfqdn", lambda: full)
  found = hosts.detect({**NO_TPU, **KUBERNETES})
  assert (found.index, found.count) == (3, None)
  if host is None:
    assert found.host is None
  else:
    assert found.host.startswith(host)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "two"}, "SIZE, got 'two'"),
    ({**SLURM, "SLURM_STEP_NUM_TASKS": ""}, "Slurm must say SLURM_STEP_NUM_T"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID, got None: give --coord"),
    (
      {**TPU_POD, **SLICES, "MEGASCALE_COORDINATOR_ADDRESS": ""},
      "MEGASCALE_COORDINATOR_ADDRESS",
    ),
  ],
)
def test_what_a_scheduler_leaves_out_is_named(given, words):
  with pytest.raises(InputError, match=words):
    hosts.detect(given)


@pytest.mark.parametrize("workers", ["", "a:b", "name:8470:"])
def test_workers_that_cannot_be_read_are_refused(workers):
  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": workers,
  }
  with (
    metadata_server(attributes) as server,
    pytest.raises(InputError, match="worker-network-endpoints of the TPU VM's"),
  ):
    hosts.detect({"GCE_METADATA_HOST": server})
