"""The command line: stages, configs, metrics and the report."""

import os

# Of transformers only tokenizers are used; that torch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
