"""Search by words: BM25, by the package `bm25s`.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and
Beyond", 2009; the variant is Lucene's. The scores of all words in all passages
are computed once and mapped (Lù, "BM25S: Orders of magnitude faster lexical
search via eager sparse scoring", 2024).
"""

from __future__ import annotations

import bisect
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rapo_jax import extras, files, text_files
from rapo_jax.corpora.packed import PackedTexts, PackedWriter
from rapo_jax.errors import InputError

K1, B = 1.5, 0.75
WORD = r"(?u)\b\w\w+\b"
"""A word has two letters, digits or underscores at least."""
STOP_WORDS = (
  *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if"),
  *("in", "into", "is", "it", "no", "not", "of", "on", "or", "such", "that"),
  *("the", "their", "then", "there", "these", "they", "this", "to", "was"),
  *("will", "with"),
)
"""Lucene's English stop words. Words are not stemmed."""

_SETTINGS_FILE = "words.json"
_WORDS = "words"
_WORD_IDS_FILE = "word_ids.npy"
_BLOCK = 2**14

Report = Callable[[int, int], None]


def check_installed() -> None:
  """Refuses to search by words without the package.

  Raises:
    InputError: says how to install it.
  """
  if importlib.util.find_spec("bm25s") is None:
    raise InputError(
      "search by words (bm25, hybrid) needs the package bm25s, which is not "
      f"installed: {extras.install_command('search')}, or search in mode dense."
    )


class Bm25:
  """Finds passages by their words. Build with `build`, then open."""

  def __init__(self, path: pathlib.Path):
    """Maps an index.

    Args:
      path: folder that `build` has written.

    Raises:
      InputError: bm25s is not installed, or the folder is broken.
    """
    check_installed()
    import bm25s

    settings = text_files.read_json(path / _SETTINGS_FILE)
    if not isinstance(settings, dict):
      raise _broken(path, f"{_SETTINGS_FILE} is no object")
    self.parameters: dict[str, Any] = settings
    try:
      self._bm25 = bm25s.BM25.load(
        path, mmap=True, load_vocab=False, show_progress=False
      )
      scores = self._bm25.scores
      self._word_ids = np.load(path / _WORD_IDS_FILE, mmap_mode="r")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
      raise _broken(path, str(error)) from error
    # Views without the cost of a map's own type.
    for name in ("data", "indices", "indptr"):
      scores[name] = np.asarray(scores[name])
    self._words = PackedTexts(path / _WORDS)
    if not (
      len(scores["data"]) == len(scores["indices"]) == scores["indptr"][-1]
      and len(self._words) == len(self._word_ids) == len(scores["indptr"]) - 1
    ):
      raise _broken(path, "its files do not belong together")

  def __len__(self) -> int:
    return int(self._bm25.scores["num_docs"])

  def search(
    self, queries: Sequence[str], num_passages: int
  ) -> tuple[Int64[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
    """Finds the passages of the best scores, ties by lower id.

    Args:
      queries: Q texts.
      num_passages: k, at least 1.

    Returns:
      Row numbers, -1 where no further passage shares a word with the query;
      and scores, -inf there.
    """
    ids = np.full((len(queries), num_passages), -1, np.int64)
    found = np.full(ids.shape, -np.inf, np.float32)
    for row, query in enumerate(queries):
      word_ids = self._known(query)
      if word_ids:
        scores = self._bm25.get_scores_from_ids(word_ids)
        best = _best(scores, num_passages)
        ids[row, : len(best)] = best
        found[row, : len(best)] = scores[best]
    return ids, found

  def _known(self, query: str) -> list[int]:
    """Ids of a query's words, those of no passage left out."""
    words = split_words([query], self.parameters["stop_words"])[0]
    known = []
    for word in words:
      encoded = word.encode("utf-8")
      at = bisect.bisect_left(
        range(len(self._words)), encoded, key=self._words.encoded
      )
      if at < len(self._words) and self._words.encoded(at) == encoded:
        known.append(int(self._word_ids[at]))
    return known


def build(
  texts: Sequence[str],
  path: pathlib.Path,
  report: Report = lambda done, total: None,
) -> None:
  """Builds an index and writes its folder, whole or not at all.

  The words' numbers go to a temporary file beside `path`. Memory holds the
  scores: about `plan.BM25_BYTES` for each distinct word of each passage.

  Args:
    texts: the passages.
    path: the folder.
    report: called with passages done, and how many there are.

  Raises:
    InputError: bm25s is not installed, or no passage has a word.
  """
  check_installed()
  import bm25s

  tokenizer = _tokenizer(STOP_WORDS)
  with tempfile.TemporaryFile("w+b", dir=path.parent) as file:
    sizes = np.zeros(len(texts), np.int64)
    for start in range(0, len(texts), _BLOCK):
      block = texts[start : start + _BLOCK]
      found = list(tokenizer.streaming_tokenize(block, allow_empty=False))
      sizes[start : start + len(block)] = [len(ids) for ids in found]
      for ids in found:
        file.write(np.array(ids, np.int32).tobytes())
      report(start + len(block), len(texts))
    file.flush()
    vocabulary = tokenizer.get_vocab_dict()
    bm25 = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    bm25.nonoccurrence_array = None
    if not vocabulary:
      raise InputError(
        "search by words needs passages with words of two letters, and no "
        "passage has one: build the corpus in mode dense."
      )
    bm25.scores = bm25.build_index_from_ids(
      list(vocabulary.values()), _WordIds(file, sizes), show_progress=False
    )
    bm25.vocab_dict = {}
  _save(bm25, vocabulary, path)


def split_words(
  texts: Sequence[str], stop_words: Sequence[str] = STOP_WORDS
) -> list[list[str]]:
  """The words of texts that count, in small letters."""
  words: list[list[str]] = _tokenizer(stop_words).tokenize(
    list(texts),
    update_vocab=True,
    return_as="string",
    show_progress=False,
    allow_empty=False,
  )
  return words


def _tokenizer(stop_words: Sequence[str]) -> Any:
  from bm25s import tokenization

  return tokenization.Tokenizer(splitter=WORD, stopwords=list(stop_words))


class _WordIds(Sequence[list[int]]):
  """The numbers of each passage's words, read where they lie."""

  def __init__(self, file: Any, sizes: Int64[np.ndarray, " N"]):
    self._ends = np.concatenate([[0], np.cumsum(sizes)])
    self._ids = np.asarray(np.memmap(file, np.int32, mode="r"))

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: Any) -> Any:
    return self._ids[self._ends[index] : self._ends[index + 1]].tolist()

  def __iter__(self) -> Iterator[list[int]]:
    for start in range(0, len(self), _BLOCK):
      bounds = self._ends[start : start + _BLOCK + 1].tolist()
      ids = self._ids[bounds[0] : bounds[-1]].tolist()
      first = bounds[0]
      for i in range(len(bounds) - 1):
        yield ids[bounds[i] - first : bounds[i + 1] - first]


def _save(bm25: Any, vocabulary: dict[str, int], path: pathlib.Path) -> None:
  words = sorted((word.encode("utf-8"), i) for word, i in vocabulary.items())
  with files.replaced_folder(path) as new:
    bm25.save(new, show_progress=False)
    with PackedWriter(new / _WORDS) as writer:
      writer.extend(word.decode("utf-8") for word, _ in words)
    np.save(new / _WORD_IDS_FILE, np.array([i for _, i in words], np.int32))
    settings = {
      "k1": K1,
      "b": B,
      "method": "lucene",
      "word": WORD,
      "stop_words": STOP_WORDS,
    }
    (new / _SETTINGS_FILE).write_text(
      json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def _best(scores: Float32[np.ndarray, " N"], count: int) -> np.ndarray:
  """Rows of the best scores above 0, ties by lower row."""
  rows = np.flatnonzero(scores > 0)
  found = scores[rows]
  if len(rows) > count:
    least = np.partition(found, len(found) - count)[len(found) - count]
    above = rows[found > least]
    rows = np.concatenate([above, rows[found == least][: count - len(above)]])
    found = scores[rows]
  return rows[np.lexsort((rows, -found))]


def _broken(path: pathlib.Path, reason: str) -> InputError:
  return InputError(
    f"{path} must hold an index of words as it was written, and does not "
    f"({reason}): copy the folder again, or build the corpus again."
  )
