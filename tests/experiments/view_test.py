"""The viewer as a person starts and ends it."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import httpx2

from experiments import view
from tests.experiments import fake_workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_it_prints_its_address_and_serves_until_it_is_ended(tmp_path):
  workdir = fake_workdir.write(
    tmp_path / "run", tasks=("web",), methods=("rapo",), seeds=(0,)
  )
  search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  with subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.view", "--port=0"),
      f"--workdir={workdir}",
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": search},
    stdout=subprocess.PIPE,
    encoding="utf-8",
  ) as process:
    try:
      line = process.stdout.readline()
      url = re.fullmatch(
        rf"{workdir} at (http://127\.0\.0\.1:\d+/.+/)\n", line
      )[1]
      state = httpx2.get(url + "api/state", timeout=60).json()
      assert state["log_bytes"] > 0
      process.send_signal(signal.SIGINT)
      assert process.wait(timeout=60) == 0
    finally:
      process.kill()


def test_what_is_no_folder_or_a_taken_port_is_refused(tmp_path, capsys):
  assert view.main(["--workdir", str(tmp_path / "none")]) == 2
  assert "--workdir must be the folder of a run" in capsys.readouterr().err
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    assert view.main(["--workdir", str(tmp_path), f"--port={port}"]) == 2
  assert "cannot listen at 127.0.0.1" in capsys.readouterr().err
