"""A corpus like Wikipedia's, made up: passages, their vectors and queries.

A passage has a title and 100 words. How often words come follows the law of
Zipf and Mandelbrot, with Lucene's stop words the most frequent. Seven passages
are of one article.

Vectors have the cosines that MiniLM gave 1,675 paragraphs of HotpotQA and
2WikiMultihopQA: 0.5 between passages of an article, 0.7 between a query and the
passage that it asks about, and 0.48 to the others of the article. Most of their
variance lies in the first dimensions (see `index_vectors.made_up_keys`).
"""

from __future__ import annotations

import json
import pathlib
import string
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks import index_vectors
from rapo_jax.corpora.bm25 import STOP_WORDS

DIMENSION = 384
WORDS = 100
_TITLE_WORDS = 2
_ARTICLE = 7
_VOCABULARY = 1_500_000
_EXPONENT, _SHIFT = 1.05, 2.7
_WITHIN_ARTICLE = 0.5
_OF_QUERY, _OF_OTHERS = 0.7, 0.48
_QUERY_WORDS = 8
_ROWS = 2**14


def write_passages(
  path: pathlib.Path, count: int, rng: np.random.Generator
) -> None:
  """Writes JSON lines in Search-R1's layout."""
  vocabulary = np.array(_vocabulary(), object)
  bounds = np.cumsum((np.arange(_VOCABULARY) + _SHIFT) ** -_EXPONENT)
  with path.open("w", encoding="utf-8") as file:
    for start in range(0, count, _ROWS):
      rows = min(_ROWS, count - start)
      drawn = rng.random((rows, WORDS + _TITLE_WORDS)) * bounds[-1]
      words = vocabulary[np.searchsorted(bounds, drawn)]
      for number, row in enumerate(words.tolist(), start):
        title = " ".join(row[:_TITLE_WORDS])
        text = f'"{title}"\n{" ".join(row[_TITLE_WORDS:])}'
        file.write(json.dumps({"id": str(number), "contents": text}) + "\n")


def _vocabulary() -> list[str]:
  """Stop words and made-up words, the most frequent first."""
  letters = string.ascii_lowercase
  words = list(STOP_WORDS)
  for number in range(len(letters), _VOCABULARY + len(letters) - len(words)):
    word, rest = "", number
    while rest:
      rest, letter = divmod(rest, len(letters))
      word += letters[letter]
    words.append(word + "q")
  return words


def passage_vectors(
  count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Unit vectors of the passages, in chunks."""
  articles = index_vectors.made_up_keys(-(-count // _ARTICLE), DIMENSION, rng)
  for start in range(0, count, _ROWS):
    rows = np.arange(start, min(start + _ROWS, count))
    yield _near(articles[rows // _ARTICLE], _WITHIN_ARTICLE**0.5, rng)


def query_vectors(
  vectors: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Unit vectors of queries about the passages of some rows."""
  first = rows // _ARTICLE * _ARTICLE
  article = np.stack([vectors[i : i + _ARTICLE].mean(axis=0) for i in first])
  article /= np.linalg.norm(article, axis=1, keepdims=True)
  # Both cosines as if passages were their article and something of their own.
  own = (_OF_QUERY - _OF_OTHERS) / (1 - _WITHIN_ARTICLE)
  shared = (_OF_QUERY - own) / _WITHIN_ARTICLE**0.5
  towards = own * vectors[rows] + shared * article
  norms = np.linalg.norm(towards, axis=1, keepdims=True)
  return _near(towards / norms, float(norms.mean()), rng)


def query_texts(passages: Sequence[str], rng: np.random.Generator) -> list[str]:
  """Queries about passages: some of their words, in another order."""
  return [
    " ".join(rng.choice(passage.split(), _QUERY_WORDS).tolist())
    for passage in passages
  ]


def _near(
  vectors: np.ndarray, cosine: float, rng: np.random.Generator
) -> np.ndarray:
  """Vectors at about a cosine to those given."""
  others = index_vectors.made_up_keys(len(vectors), DIMENSION, rng)
  mixed = cosine * vectors + (1 - cosine**2) ** 0.5 * others
  norms = np.linalg.norm(mixed, axis=1, keepdims=True)
  return (mixed / norms).astype(np.float32)
