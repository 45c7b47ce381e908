"""The command line: stages, configs, metrics and the report."""

import importlib.util
import os
import signal
import sys

# Before anything is imported that needs either.
if not (3, 11) <= sys.version_info[:2] < (3, 13):
  raise SystemExit(
    f"error: rapo_jax runs on Python 3.11 or 3.12, and {sys.executable} is "
    f"{sys.version.split()[0]}: `make install` creates .venv, start it with "
    ".venv/bin/python."
  )
if importlib.util.find_spec("jax") is None:
  raise SystemExit(
    f"error: {sys.executable} does not have the packages that rapo_jax needs: "
    "`make install` creates .venv with them, start it with .venv/bin/python."
  )

# Of transformers only tokenizers are used; that torch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# A command imports for seconds before it can heed Ctrl+C: until then that ends
# it as SIGTERM does, without a traceback. `-m` is what Python calls a module
# that it is about to run, and `rapo` the console command.
if (
  "".join(sys.argv[:1]).rpartition("/")[2] in ("-m", "rapo")
  and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, signal.SIG_DFL)
