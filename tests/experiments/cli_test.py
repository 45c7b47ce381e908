"""The console command, and the experiment that it writes."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import cli, init
from rapo_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_help_names_every_command(capsys):
  with pytest.raises(SystemExit, match="0"):
    cli.main(["--help"])
  output = " ".join(capsys.readouterr().out.split())
  for name, program in cli.PROGRAMS.items():
    assert f" {name} {program.text}" in output


@pytest.mark.parametrize("name", [*cli.PROGRAMS])
def test_a_command_is_its_module(name, capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rapo"])
  with pytest.raises(SystemExit, match="0"):
    cli.main([name, "--help"])
  assert capsys.readouterr().out.startswith(f"usage: rapo {name} ")
  module = cli.PROGRAMS[name].module
  assert cli.prog(module) == f"rapo {name}"
  monkeypatch.setattr(sys, "argv", ["/somewhere/run.py"])
  assert cli.prog(module) == f"python -m {module}"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["rum"], "invalid choice: 'rum'"),
    ([], "the following arguments are required: COMMAND"),
    (["completion", "fish"], "invalid choice: 'fish'"),
  ],
)
def test_an_unknown_command_is_refused(arguments, message, capsys):
  with pytest.raises(SystemExit, match="2"):
    cli.main(arguments)
  assert message in capsys.readouterr().err


def test_bash_completes_commands_options_and_choices(capsys, tmp_path):
  assert cli.main(["completion", "bash"]) == 0
  script = tmp_path / "completion.bash"
  script.write_text(capsys.readouterr().out, encoding="utf-8")

  def completed(*words: str) -> set[str]:
    answer = subprocess.run(
      [
        "bash",
        "-c",
        f"source {script}; COMP_WORDS=({' '.join(words)}); "
        f"COMP_CWORD={len(words) - 1}; _shtab_rapo; "
        'printf "%s\\n" "${COMPREPLY[@]}"',
      ],
      capture_output=True,
      encoding="utf-8",
      check=True,
    )
    return set(answer.stdout.split())

  assert completed("rapo", "ev") == {"evaluate"}
  assert {"--config", "--dry_run"} <= completed("rapo", "run", "--")
  assert "warm_start" in completed("rapo", "run", "--stage", "w")
  assert completed("rapo", "buffer", "ver") == {"verify"}


def test_what_init_writes_passes_the_dry_run(tmp_path):
  folder = tmp_path / "new" / "my_agent"

  def rapo(*words: str) -> subprocess.CompletedProcess[str]:
    script = "import sys; from experiments.cli import main; sys.exit(main())"
    return subprocess.run(
      [sys.executable, "-c", script, *words],
      capture_output=True,
      encoding="utf-8",
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

  written = rapo("init", str(folder))
  assert written.returncode == 0, written.stderr
  assert sorted(p.name for p in folder.iterdir()) == sorted(init.FILES)
  (command,) = (
    line.split()
    for line in written.stdout.splitlines()
    if line.endswith("--dry_run")
  )
  checked = rapo("run", *command[command.index("--config") :])
  assert checked.returncode == 0, checked.stderr

  again = rapo("init", str(folder))
  assert again.returncode == 2
  assert "has experiment.py and questions.jsonl" in again.stderr


def test_init_writes_both_files_or_none(tmp_path):
  (tmp_path / "questions.jsonl").write_text("mine", encoding="utf-8")
  with pytest.raises(InputError, match=r"has questions\.jsonl: choose another"):
    init.write_starter(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["questions.jsonl"]
