"""What is in deploy/ passes its linters, and starts what exists.

The scripts run here with stand-ins for the programs of a cluster.
"""

import functools
import itertools
import json
import math
import os
import pathlib
import shlex
import stat
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from experiments import cli, flags, run
from tests import programs

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = (
  *sorted(DEPLOY.glob("*.sh")),
  DEPLOY / "slurm.sbatch",
  *sorted((ROOT / "scripts").glob("*.sh")),
  ROOT / ".ci" / "run",
)
MANIFEST = DEPLOY / "jobset_tpu.yaml"
SCHEMA = pathlib.Path(__file__).parent / "jobset_schema.json"
ARGUMENTS = ["--config", "quickstart", "--workdir", "runs/a b"]
SAVED = 143

checked = functools.partial(programs.checked, timeout=120)


def tool(name):
  """A program that the environment of the tests brings along."""
  return pathlib.Path(sys.executable).parent / name


def parsed(words):
  """The known arguments of `rapo run …`, whose config is loaded too."""
  assert words[0] == "run", words
  known, overrides = flags.parse_arguments(run.make_parser(), words[1:])
  flags.apply_overrides(flags.load_config(known.config), overrides)
  return known


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
  """Makes programs that a script finds first; each notes what it is given."""
  folder = tmp_path / "bin"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

  def make(name, script=""):
    path = folder / name
    note = f'printf "%s\\0" "$@" >>{shlex.quote(str(tmp_path / name))}.calls\n'
    note += f'printf "\\n" >>{shlex.quote(str(tmp_path / name))}.calls\n'
    path.write_text(f"#!/bin/bash\n{note}{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path

  def calls(name):
    path = tmp_path / f"{name}.calls"
    if not path.exists():
      return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split("\0")[:-1] for line in lines]

  make.calls = calls
  return make


def test_shell_scripts_pass_shellcheck():
  checked(tool("shellcheck"), *SCRIPTS)


def test_the_dockerfile_passes_hadolint():
  checked(tool("hadolint"), "--failure-threshold=style", DEPLOY / "Dockerfile")


def test_the_dockerfile_copies_what_exists_and_starts_rapo():
  text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
  instructions = text.replace("\\\n", " ").splitlines()
  copied = [
    words[1:-1]
    for line in instructions
    if (words := line.split())[:1] == ["COPY"]
  ]
  assert copied
  for source in itertools.chain(*copied):
    assert (ROOT / source).exists(), source
  assert 'ENTRYPOINT ["rapo"]' in instructions
  assert "USER 1000" in instructions
  stages = {line.split()[-1] for line in instructions if " AS " in line}
  assert {"cpu", "cuda", "tpu"} <= stages


def manifests():
  return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def job_of(jobset):
  [replicated] = jobset["spec"]["replicatedJobs"]
  return {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": replicated["name"]},
    "spec": replicated["template"]["spec"],
  }


def test_manifests_are_what_kubernetes_takes():
  version = kubernetes_validate.latest_version()
  claim, jobset = manifests()
  kubernetes_validate.validate(claim, version, strict=True)
  jsonschema.validate(jobset, json.loads(SCHEMA.read_text(encoding="utf-8")))
  kubernetes_validate.validate(job_of(jobset), version, strict=True)


def test_a_wrong_word_in_a_manifest_is_found():
  _, jobset = manifests()
  schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
  jobset["spec"]["failurePolicy"]["maxRestart"] = 1
  with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
    jsonschema.validate(jobset, schema)
  job = job_of(jobset)
  job["spec"]["template"]["spec"]["containers"][0]["argz"] = []
  with pytest.raises(kubernetes_validate.ValidationError, match="argz"):
    kubernetes_validate.validate(
      job, kubernetes_validate.latest_version(), strict=True
    )


def test_the_jobset_has_a_pod_for_each_host_of_its_slice():
  claim, jobset = manifests()
  spec = job_of(jobset)["spec"]
  pod = spec["template"]["spec"]
  [container] = pod["containers"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = math.prod(map(int, topology.split("x")))
  assert spec["parallelism"] == spec["completions"]
  per_host = container["resources"]["limits"]["google.com/tpu"]
  assert spec["parallelism"] * per_host == chips
  known = parsed(container["args"])
  assert known.distributed
  mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
  assert str(known.workdir).startswith(mounts["runs"] + "/")
  assert pod["volumes"][0]["persistentVolumeClaim"] == {
    "claimName": claim["metadata"]["name"]
  }
  # What a run ends with where a new start is of no use.
  [rule] = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [2, run.UNHEALTHY_STATUS]


def test_a_tpu_slice_starts_on_all_hosts(stand_ins):
  stand_ins("gcloud", 'command=${!##--command=}; bash -c "$command"')
  stand_ins("sudo", '"$@"')
  stand_ins("docker")
  script = DEPLOY / "tpu_vm.sh"
  checked(script, "start", "slice", "zone", "image", *ARGUMENTS)
  pull, remove, start = stand_ins.calls("docker")
  assert pull == ["pull", "image"]
  assert remove == ["rm", "rapo"]
  assert start[:2] == ["run", "--detach"]
  known = parsed(start[start.index("image") + 1 :])
  assert known.distributed
  assert str(known.workdir) == "runs/a b"
  for call in stand_ins.calls("gcloud"):
    assert call[:5] == ["compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert {"--zone=zone", "--worker=all"} <= {*call}


@pytest.mark.parametrize(
  ("command", "worker", "expected"),
  [("logs", "0", ["logs", "--follow"]), ("stop", "all", ["stop", "--time"])],
)
def test_a_tpu_slice_is_watched_and_stopped(
  command, worker, expected, stand_ins
):
  stand_ins("gcloud", 'command=${!##--command=}; bash -c "$command"')
  stand_ins("sudo", '"$@"')
  stand_ins("docker")
  checked(DEPLOY / "tpu_vm.sh", command, "slice", "zone")
  [call] = stand_ins.calls("docker")
  assert call[:2] == expected
  assert call[-1] == "rapo"
  assert f"--worker={worker}" in stand_ins.calls("gcloud")[0]


def test_the_script_of_a_tpu_slice_says_how_it_is_used():
  done = subprocess.run(
    [DEPLOY / "tpu_vm.sh", "start", "slice"],
    capture_output=True,
    encoding="utf-8",
    check=False,
  )
  assert done.returncode == 2
  assert "deploy/tpu_vm.sh start NAME ZONE IMAGE" in done.stderr


@pytest.mark.parametrize("built", [True, False])
def test_a_gpu_box_builds_its_image_once(built, stand_ins, tmp_path):
  stand_ins("docker", f"[[ $1 != image ]] || exit {'0' if built else '1'}")
  checked(DEPLOY / "gpu_box.sh", *ARGUMENTS, cwd=tmp_path)
  calls = stand_ins.calls("docker")
  assert [call[0] for call in calls] == (
    ["image", "run"] if built else ["image", "build", "run"]
  )
  image = "rapo_jax:cuda"
  if not built:
    [build] = calls[1:-1]
    assert build[-1] == str(ROOT)
    assert "ACCELERATOR=cuda" in build
    assert build[build.index("--tag") + 1] == image
  start = calls[-1]
  assert f"{tmp_path}:/runs" in start
  known = parsed(start[start.index(image) + 1 :])
  assert not known.distributed


@pytest.mark.parametrize("status", [0, 2, SAVED])
def test_slurm_queues_a_run_again_that_it_has_stopped(
  status, stand_ins, monkeypatch
):
  rapo = stand_ins("rapo", f"exit {status}")
  stand_ins("srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
  stand_ins("scontrol")
  monkeypatch.setenv("RAPO", str(rapo))
  monkeypatch.setenv("SLURM_JOB_ID", "7")
  done = subprocess.run(
    ["bash", DEPLOY / "slurm.sbatch", *ARGUMENTS], check=False
  )
  assert done.returncode == status
  [call] = stand_ins.calls("rapo")
  known = parsed(call)
  assert known.distributed
  assert str(known.workdir) == "runs/a b"
  again = [["requeue", "7"]] if status == SAVED else []
  assert stand_ins.calls("scontrol") == again


def test_commands_in_comments_exist():
  for path in (*SCRIPTS, MANIFEST, DEPLOY / "Dockerfile"):
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
      words = line.lstrip("# ").split()
      if line.startswith("#") and words[:1] and words[0].startswith("deploy/"):
        assert (ROOT / words[0]).exists(), line
      if "rapo" in words[:1]:
        assert words[1] in cli.PROGRAMS, line
