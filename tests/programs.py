"""Runs programs that must succeed."""

import subprocess


def checked(*command, **options):
  """Runs a command; gives what it prints, or fails with all that it said.

  Args:
    command: its words.
    options: of `subprocess.run`.
  """
  done = subprocess.run(
    [str(word) for word in command],
    capture_output=True,
    encoding="utf-8",
    check=False,
    **options,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout
