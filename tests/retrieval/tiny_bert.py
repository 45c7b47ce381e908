"""Folders of tiny random sentence encoders, as sentence-transformers has them.

Written without torch; sentence-transformers loads them too.
"""

import json
import pathlib
import string

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["query", "passage", "river", "city", "bridge", "the", "of", "is"]
CONFIG = {
  "model_type": "bert",
  "architectures": ["BertModel"],
  "hidden_act": "gelu",
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 64,
  "max_position_embeddings": 64,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "pad_token_id": 0,
}
MAX_TOKENS = 48
_MODULE = "sentence_transformers.models."


def write_folder(
  path: pathlib.Path,
  *,
  pooling: dict | None = None,
  normalize: bool = True,
  sentence: dict | None = None,
  prompts: dict | None = None,
  name_prefix: str = "",
  seed: int = 0,
) -> pathlib.Path:
  """Writes a folder.

  Args:
    path: folder to create.
    pooling: the pooling module's config; mean pooling if None.
    normalize: whether a Normalize module follows.
    sentence: sentence_bert_config.json; a limit of `MAX_TOKENS` if None.
    prompts: config_sentence_transformers.json; none if None.
    name_prefix: of the weights' names, as models with heads have it.
    seed: of the weights.

  Returns:
    `path`.
  """
  path.mkdir(parents=True)
  tokenizer = _tokenizer()
  tokenizer.save(str(path / "tokenizer.json"))
  _write(path / "config.json", {**CONFIG, "vocab_size": 96})
  _write(
    path / "tokenizer_config.json",
    {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "model_max_length": 40,
      "pad_token": "[PAD]",
      "unk_token": "[UNK]",
      "cls_token": "[CLS]",
      "sep_token": "[SEP]",
      "mask_token": "[MASK]",
    },
  )
  safetensors.numpy.save_file(
    {name_prefix + name: value for name, value in _weights(seed).items()},
    path / "model.safetensors",
    metadata={"format": "pt"},
  )
  modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
  modules += [("2_Normalize", "Normalize")] * normalize
  _write(
    path / "modules.json",
    [
      {"idx": i, "name": str(i), "path": folder, "type": _MODULE + kind}
      for i, (folder, kind) in enumerate(modules)
    ],
  )
  for folder, _ in modules[1:]:
    (path / folder).mkdir()
  _write(
    path / "1_Pooling" / "config.json",
    {
      "word_embedding_dimension": CONFIG["hidden_size"],
      **(pooling or {"pooling_mode_mean_tokens": True}),
    },
  )
  if sentence is None:
    sentence = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
  _write(path / "sentence_bert_config.json", sentence)
  if prompts is not None:
    _write(path / "config_sentence_transformers.json", prompts)
  return path


def _write(path: pathlib.Path, value: object) -> None:
  path.write_text(json.dumps(value), encoding="utf-8")


def _tokenizer() -> tokenizers.Tokenizer:
  """Wordpieces of a few words and of single ASCII characters."""
  letters = string.ascii_lowercase
  pieces = [
    *SPECIAL,
    *WORDS,
    *letters,
    *(f"##{letter}" for letter in letters),
    *string.punctuation,
  ]
  vocabulary = {piece: i for i, piece in enumerate(pieces[:96])}
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(vocabulary, unk_token="[UNK]")
  )
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
  )
  tokenizer.add_special_tokens(SPECIAL)
  return tokenizer


def _weights(seed: int) -> dict[str, np.ndarray]:
  """Random weights, large enough to matter, by Hugging Face's names."""
  rng = np.random.default_rng(seed)
  size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
  shapes = {
    "embeddings.word_embeddings.weight": (96, size),
    "embeddings.position_embeddings.weight": (64, size),
    "embeddings.token_type_embeddings.weight": (2, size),
    "embeddings.LayerNorm.weight": (size,),
    "embeddings.LayerNorm.bias": (size,),
  }
  linear = {
    "attention.self.query": (size, size),
    "attention.self.key": (size, size),
    "attention.self.value": (size, size),
    "attention.output.dense": (size, size),
    "attention.output.LayerNorm": (size,),
    "intermediate.dense": (inner, size),
    "output.dense": (size, inner),
    "output.LayerNorm": (size,),
  }
  for layer in range(CONFIG["num_hidden_layers"]):
    for name, shape in linear.items():
      shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
      shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
  return {
    name: (
      rng.normal(scale=0.3, size=shape)
      + (1 if name.endswith("LayerNorm.weight") else 0)
    ).astype(np.float32)
    for name, shape in shapes.items()
  }
