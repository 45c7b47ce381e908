"""Writes a training checkpoint as a model that transformers and vLLM load.

    python -m experiments.export \\
        --checkpoint runs/mine/train/multihop/rapo-seed0/checkpoints \\
        --output exported/rapo

Runs on a CPU, whatever the checkpoint was written on. LoRA adapters are merged
into the base agent, or written apart with --adapters. The export is loaded
again, and its logits are compared with the checkpoint's. Only then does it
replace an earlier one.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments import cli, input_errors, model_card, places
from experiments.help_text import HelpFormatter
from experiments.policies import (
  CHAT_TEMPLATE,
  END_IDS,
  TOKENIZER_DIGEST,
  check_finite,
  open_policy,
)
from rapo_jax import files, models
from rapo_jax.errors import InputError
from rapo_jax.models import hub
from rapo_jax.models.checkpoint_layout import MARKS
from rapo_jax.training import Checkpoints

MERGE_BOUND = 1e-4
"""Most that a merge in float32 may change a logit, as a part of the largest:
it sums in another order."""
ROUNDING_BOUND = 0.05
"""The same where bfloat16 rounds on either side, in every layer."""

_TEMPLATE_FILE = "chat_template.jinja"
_SAMPLE_SHAPE = (4, 64)


class ExportError(InputError):
  """A checkpoint that cannot be exported as asked."""


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written.

  Attributes:
    update: number of updates behind the policy.
    dtype: of the weights.
    difference: largest absolute difference of a logit from the checkpoint's.
    limit: largest `difference` that rounding explains.
    passed_over: what is wrong with later checkpoints, a line each.
  """

  update: int
  dtype: str
  difference: float
  limit: float
  passed_over: list[str]


def export(
  checkpoint: pathlib.Path,
  output: pathlib.Path,
  *,
  dtype: str | None = None,
  adapters: bool = False,
  base: str | None = None,
) -> Exported:
  """Writes a checkpoint in Hugging Face's format and checks what it wrote.

  Args:
    checkpoint: a run's folder of checkpoints, or one of those in it.
    output: folder to create, or an earlier export to replace.
    dtype: of the weights; None for the checkpoint's.
    adapters: write the adapters alone, in PEFT's format.
    base: where the base agent lies; None for where it lay in the run.

  Raises:
    ExportError: the checkpoint is missing, the base agent has another
      tokenizer than then, the output is not an export, or the export's logits
      differ from the checkpoint's. The output is as it was.
    InputError: the base agent is not there, or the output cannot be written.
  """
  found, model, source, description = _restore(checkpoint, base)
  _check_output(output, source)
  if adapters:
    _check_adapters(model, dtype)
  tokens = _sample_tokens(model)
  expected = np.asarray(model(tokens))
  written = "float32" if adapters else dtype or model.config.dtype
  bound = _bound(model.config, written, adapters=adapters)
  with files.replaced_folder(output) as temporary:
    if adapters:
      models.save_adapters(model, temporary, base_model=source)
      models.copy_tokenizer(source, temporary)
    else:
      models.save_pretrained(
        _plain(model, written),
        temporary,
        source=source,
        end_ids=description.get(END_IDS, ()),
      )
    template = description.get(CHAT_TEMPLATE)
    if template is not None:
      # Readers take it before the one in the tokenizer's configuration.
      (temporary / _TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if adapters:
      # Beside a base in its own dtype.
      under = models.from_pretrained(source, dtype=model.config.dtype)
      loaded = models.load_adapters(under, temporary)
    else:
      loaded = models.from_pretrained(temporary, dtype=written)
    card = model_card.model_card(
      _run_folder(checkpoint),
      description,
      update=found.update,
      base=source,
      dtype=written,
      adapters=adapters,
    )
    (temporary / model_card.FILE).write_text(card, encoding="utf-8")
    difference = float(np.abs(np.asarray(loaded(tokens)) - expected).max())
    limit = bound * float(np.abs(expected).max())
    # Not `difference > limit`: NaN has to be refused too.
    if not difference <= limit:
      raise ExportError(
        "the logits of an export may differ from the checkpoint's by at most "
        f"{limit:.3g}, and they differ by {difference:.3g}: {output} is as it "
        "was; try --dtype float32, and another disk if that fails too."
      )
  return Exported(found.update, written, difference, limit, found.passed_over)


class Found(NamedTuple):
  """The checkpoint that is meant.

  Attributes:
    checkpoints: of its run.
    update: its number.
    passed_over: what is wrong with later ones, a line each.
  """

  checkpoints: Checkpoints
  update: int
  passed_over: list[str]


def find_checkpoint(path: pathlib.Path) -> Found:
  """The checkpoints of a run, and the number of the one that is meant.

  Args:
    path: a folder of checkpoints, for its newest that is sound, or a numbered
      folder in one.

  Raises:
    ExportError: no checkpoint is found; names those that are there.
    InputError: it is not as it was written.
  """
  parent = path.parent if path.name.isdecimal() else path
  if not parent.is_dir():
    raise ExportError(
      f"--checkpoint must be a folder of checkpoints, and {parent} does not "
      "exist: give <workdir>/train/<task>/<run>/checkpoints."
    )
  checkpoints = Checkpoints(parent, create=False)
  there = checkpoints.updates()
  if not there:
    raise ExportError(
      f"--checkpoint must be a folder of checkpoints, and {parent} holds none: "
      "give <workdir>/train/<task>/<run>/checkpoints."
    )
  if not path.name.isdecimal():
    newest, problems = checkpoints.newest_sound()
    assert newest is not None, "there are some"
    return Found(checkpoints, newest, problems)
  update = int(path.name)
  if update not in there:
    raise ExportError(
      f"--checkpoint must name a checkpoint that is there, got {update}: "
      f"{parent} holds {', '.join(map(str, there))}."
    )
  return Found(checkpoints, update, [])


def _run_folder(checkpoint: pathlib.Path) -> pathlib.Path:
  """Of the run that a checkpoint, or a folder of them, is of."""
  checkpoint = checkpoint.absolute()
  return checkpoint.parents[checkpoint.name.isdecimal()]


def _restore(
  path: pathlib.Path, base: str | None
) -> tuple[Found, models.Decoder, str, dict[str, Any]]:
  """The checkpoint, its policy, the base's folder, what it says of itself."""
  found = find_checkpoint(path)
  metadata: dict[str, Any] = found.checkpoints.metadata(found.update)
  if "model" not in metadata:
    raise ExportError(
      f"a checkpoint says which model it is of, and update {found.update} in "
      f"{path} does not: export it with the version that wrote it."
    )
  source = base or metadata["source"]
  like = open_policy(metadata, source)
  _check_tokenizer(source, metadata.get(TOKENIZER_DIGEST))
  model = found.checkpoints.restore_policy(found.update, like)
  found.checkpoints.close()
  check_finite(model, f"checkpoint {found.update} of {path}")
  return found, model, source, metadata


def _check_tokenizer(source: str, then: str | None) -> None:
  """Refuses a tokenizer that the policy was not trained with.

  Args:
    source: folder or hub name of the base agent.
    then: digest of its tokenizer when the run trained; None if none was kept.

  Raises:
    ExportError: it has another one now.
  """
  folder = hub.local_folder(source)
  if then is None or not folder.is_dir():
    return  # That it is missing is said where it is read.
  now = models.tokenizer_digest(folder)
  if now != then:
    raise ExportError(
      "an export gets the tokenizer and the chat template that its policy was "
      f"trained with, of SHA-256 {then}, and those in {source} have {now}: "
      "give the base agent of then with --base."
    )


def _check_output(output: pathlib.Path, source: str) -> None:
  """Refuses to replace what is not an export."""
  if output.resolve() == pathlib.Path(source).resolve():
    raise ExportError(
      f"--output must not be the base agent, got {output}: give another folder."
    )
  files.check_replaceable(output, MARKS, "a model")


def _check_adapters(model: models.Decoder, dtype: str | None) -> None:
  if model.config.lora is None:
    raise ExportError(
      "--adapters writes LoRA adapters, and the checkpoint has none: leave it "
      "out."
    )
  if dtype not in (None, "float32"):
    raise ExportError(
      "adapters are written as they were trained, in float32, got --dtype "
      f"{dtype}: leave it out."
    )


def _plain(model: models.Decoder, dtype: str) -> models.Decoder:
  """The model without adapters, in a dtype; merged in the wider of the two."""
  if dtype == "float32":
    model = model.astype(dtype)
  return models.merge_adapters(model).astype(dtype)


def _bound(
  config: models.DecoderConfig, dtype: str, *, adapters: bool
) -> float:
  """Largest difference of a logit, as a part of the largest logit."""
  if adapters or (config.lora is None and dtype == config.dtype):
    return 0.0
  return MERGE_BOUND if dtype == config.dtype == "float32" else ROUNDING_BOUND


def _sample_tokens(model: models.Decoder) -> Int[Array, "B T"]:
  rng = np.random.default_rng(0)
  return jnp.asarray(
    rng.integers(0, model.config.vocab_size, _SAMPLE_SHAPE), jnp.int32
  )


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known = make_parser().parse_args(arguments)
  jax.config.update("jax_platforms", "cpu")
  exported = export(
    known.checkpoint,
    known.output,
    dtype=known.dtype,
    adapters=known.adapters,
    base=known.base,
  )
  for line in exported.passed_over:
    print(f"warning: {line}", file=sys.stderr)
  print(
    f"wrote {known.output}: the {'adapters' if known.adapters else 'policy'} "
    f"after update {exported.update}, in {exported.dtype}\n"
    f"largest difference of a logit from the checkpoint's: "
    f"{exported.difference:.3g} (at most {exported.limit:.3g} is let through)"
  )
  return 0


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.export"),
    description=__doc__,
    epilog="Exit status: 0 written and checked, 2 nothing was written.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--checkpoint",
    type=places.path_argument,
    required=True,
    help="a run's folder of checkpoints, for its newest, or a numbered folder "
    "in it",
  )
  parser.add_argument(
    "--output",
    type=places.path_argument,
    required=True,
    help="folder to create, or an earlier export to replace",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of the weights (default: the checkpoint's)",
  )
  parser.add_argument(
    "--adapters",
    action="store_true",
    help="write LoRA adapters alone, in PEFT's format, instead of merging them",
  )
  parser.add_argument(
    "--base",
    type=places.text_argument,
    help="folder or hub name of the base agent, if it is no longer where the "
    "run found it",
  )
  return parser


if __name__ == "__main__":
  sys.exit(main())
