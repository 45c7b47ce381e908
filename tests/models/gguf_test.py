"""GGUF files against the models that they were written from."""

import importlib.util
import json

import gguf as gguf_library
import jax
import numpy as np
import pytest

from experiments.tokenizer_files import load_tokenizer
from rapo_jax import models
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.models import gguf
from tests import gguf_files

Q4, Q8 = (
  gguf_library.GGMLQuantizationType.Q4_0,
  (gguf_library.GGMLQuantizationType.Q8_0),
)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "model.gguf"


@pytest.fixture
def converted(tmp_path, file):
  """Writes a model to GGUF, converts it, and returns the folder."""

  def convert(model, *, dtype="float32", **options):
    gguf_files.write(file, model, **options)
    folder = tmp_path / "folder"
    folder.mkdir()
    gguf.write_folder(gguf.read_gguf(file), folder, dtype=dtype)
    return folder

  return convert


def refused(file, model, match, **options):
  gguf_files.write(file, model, **options)
  with pytest.raises(InputError, match=match) as caught:
    gguf.read_gguf(file)
  return caught.value


def assert_same(ours, theirs):
  assert ours.config == theirs.config
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_float_weights_come_back_bit_by_bit(converted, family):
  model = gguf_files.decoder(family)
  # Biases and norms begin as constants; a swap of two would not show.
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  model = jax.tree.unflatten(
    treedef,
    [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)],
  )
  assert_same(models.from_pretrained(converted(model)), model)


def test_blocks_are_decoded(converted):
  model = gguf_files.decoder("qwen2")
  name = "blk.1.ffn_up.weight"
  loaded = models.from_pretrained(converted(model, kinds={name: Q8}))
  ours = loaded.layers.feed_forward.up.kernel[...]
  theirs = model.layers.feed_forward.up.kernel[...]
  np.testing.assert_array_equal(ours[0], theirs[0])
  # A block's largest value is 127 steps; halves are rounded off.
  error = np.abs(ours[1] - theirs[1]).max()
  assert 0 < error <= np.abs(theirs[1]).max() / 127


@pytest.mark.parametrize(
  ("embedding", "head"), [(Q4, Q8), (Q8, Q4), (Q4, None)]
)
def test_a_head_in_another_quantisation_is_tied_to_the_better(
  converted, embedding, head
):
  model = gguf_files.decoder("qwen2")
  table = np.asarray(model.embedding[...])
  folder = converted(
    model,
    changed={"output.weight": table},
    kinds={"token_embd.weight": embedding, "output.weight": head},
  )
  loaded = models.from_pretrained(folder)
  assert loaded.config.tie_embeddings
  better = {Q4: table, Q8: table}[embedding] if head is None else None
  if better is None:
    better = gguf_library.dequantize(gguf_library.quantize(table, Q8), Q8)
  np.testing.assert_array_equal(loaded.embedding[...], better)


def test_another_head_stays_another(converted):
  model = gguf_files.decoder("qwen2")
  head = np.random.default_rng(0).normal(size=model.embedding[...].shape)
  folder = converted(model, changed={"output.weight": head.astype(np.float32)})
  loaded = models.from_pretrained(folder)
  assert not loaded.config.tie_embeddings
  np.testing.assert_array_equal(
    loaded.head.kernel[...], head.astype(np.float32).T
  )


# Compared exactly, and in another quantisation.
@pytest.mark.parametrize("kinds", [{}, {"token_embd.weight": Q8}])
def test_a_head_that_differs_in_a_row_stays_another(converted, kinds):
  model = gguf_files.decoder("qwen2")
  head = np.array(model.embedding[...])
  head[5] *= 2
  folder = converted(model, changed={"output.weight": head}, kinds=kinds)
  loaded = models.from_pretrained(folder)
  assert not loaded.config.tie_embeddings
  np.testing.assert_array_equal(loaded.head.kernel[...], head.T)


def test_bfloat16(converted):
  model = gguf_files.decoder()
  folder = converted(model, dtype="bfloat16")
  config = json.loads((folder / "config.json").read_bytes())
  assert config["dtype"] == "bfloat16"
  assert_same(
    models.from_pretrained(folder, dtype="bfloat16"), model.astype("bfloat16")
  )


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_tokenizer_keeps_ids(converted, family):
  folder = converted(gguf_files.decoder(family))
  tokenizer = load_tokenizer(folder)
  vocabulary = {i: token for token, i in tokenizer.get_vocab().items()}
  kept = gguf_files.TOKENS[: -gguf_files.NUM_UNUSED]
  assert vocabulary == dict(enumerate(kept))
  text = "<|im_start|>the 🙂<call>\n<|im_end|>"
  ids = tokenizer.encode(text, add_special_tokens=False)
  the, call = kept.index("the"), kept.index("<call>")
  assert ids[:2] == [1, the]
  assert call in ids
  assert ids[-1] == 2
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(ids, skip_special_tokens=True) == "the 🙂<call>\n"
  assert "[PAD]" not in tokenizer.convert_ids_to_tokens(
    tokenizer.encode("[PAD]")
  )
  rendered = tokenizer.apply_chat_template(
    [{"role": "user", "content": "the"}],
    add_generation_prompt=True,
    tokenize=False,
  )
  assert rendered == (
    "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
  )
  assert models.end_token_ids(folder) == (2,)


def test_texts_are_cut_as_the_family_cuts_them(converted, tmp_path):
  tokenizer = load_tokenizer(converted(gguf_files.decoder("qwen2")))
  # Digits stand alone, whatever the merges; NFC makes one character of two.
  assert tokenizer.tokenize("12") == ["1", "2"]
  assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
  path = gguf_files.write(tmp_path / "other.gguf", gguf_files.decoder())
  other = gguf.read_gguf(path).tokenizer
  assert other.tokenize("12") == ["1", "2"]
  assert other.encode("e\u0301") != other.encode("é")


@pytest.mark.parametrize(
  ("changed", "match"),
  [
    ({"rope_freqs.weight": np.ones(4, np.float32)}, "rope_freqs.weight is unk"),
    ({"blk.1.attn_v.weight": None}, r"blk\.1\.attn_v\.weight is missing"),
    ({"blk.2.ffn_up.weight": np.ones((2, 2), np.float32)}, r"blk\.2.* is unkn"),
    (
      {"blk.0.ffn_up.weight": np.ones((2, 3), np.float32)},
      r"blk\.0\.ffn_up\.weight has shape \(2, 3\), not \(32, 32\)",
    ),
    ({"token_embd.weight": None}, "must hold token_embd.weight"),
    (
      {"blk.0.ffn_up.weight": np.ones((32, 32), np.int8)},
      "blk.0.ffn_up.weight is stored as I8",
    ),
  ],
)
def test_tensors_that_are_refused(file, changed, match):
  refused(file, gguf_files.decoder(), match, changed=changed)


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"general.architecture": "gemma2"}, "'gemma2'; other architectures"),
    ({"llama.rope.scaling.type": "yarn"}, "scaling.type .* is 'yarn'"),
    ({"llama.rope.scaling.factor": 4.0}, r"scaling\.factor .* is 4\.0"),
    ({"llama.rope.scale_linear": 2.0}, r"scale_linear .* is 2\.0"),
    ({"llama.attention.head_count": 0}, "one positive number, got 0"),
    ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv must be one"),
    ({"llama.block_count": None}, "block_count must be one positive .* None"),
    ({"llama.rope.dimension_count": 4}, "dimension_count must be the width"),
    ({"split.count": 3}, "is one of 3 parts: join them with `llama-gguf-spl"),
    ({"tokenizer.ggml.model": "llama"}, "byte-level BPE, got 'llama'"),
    ({"tokenizer.ggml.pre": "tekken"}, "got 'tekken': texts would be cut"),
    ({"tokenizer.ggml.pre": None}, "got None: texts would be cut"),
    ({"tokenizer.ggml.merges": None}, "must hold a vocabulary"),
    ({"tokenizer.ggml.merges": ["t x"]}, "of two tokens each, got 't x'"),
    ({"tokenizer.ggml.merges": ["the"]}, "of two tokens each, got 'the'"),
    ({"tokenizer.ggml.token_type": [1, 1]}, "a token_type for each"),
    (
      {"tokenizer.ggml.token_type": [6, *gguf_files.TYPES[1:]]},
      r"got \[1, 3, 4, 5, 6\]; other tokens",
    ),
    ({"tokenizer.ggml.eos_token_id": None}, "a policy would never stop"),
    ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id must be .* got '2'"),
    ({"tokenizer.ggml.tokens": "text"}, "must hold a vocabulary"),
    ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id must be the id of a"),
    ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token must be false"),
    (
      {"tokenizer.ggml.tokens": ["<|im_end|>", *gguf_files.TOKENS[1:]]},
      "must keep its id|of a token of the file",
    ),
  ],
)
def test_metadata_that_is_refused(file, fields, match):
  error = refused(file, gguf_files.decoder(), match, fields=fields)
  assert str(file) in str(error.__notes__)


def test_an_unused_factor_of_scaling_is_no_scaling(converted):
  fields = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
  model = gguf_files.decoder()
  assert_same(models.from_pretrained(converted(model, fields=fields)), model)


def test_text_that_is_not_utf8_is_refused(file):
  gguf_files.write(file, gguf_files.decoder(), fields={"general.name": "Alpha"})
  file.write_bytes(file.read_bytes().replace(b"Alpha", b"Alph\xe9"))
  with pytest.raises(InputError, match=r"general\.name must be text in UTF-8"):
    gguf.read_gguf(file)


@pytest.mark.parametrize("part", [0, 3, 20, 1000, -1])
def test_a_cut_file_is_refused(file, part):
  gguf_files.write(file, gguf_files.decoder())
  file.write_bytes(file.read_bytes()[:part])
  with pytest.raises(InputError, match=r"model\.gguf must be a complete GGUF"):
    gguf.read_gguf(file)


def test_an_unknown_type_of_tensor_is_refused(file):
  gguf_files.write(file, gguf_files.decoder())
  content = file.read_bytes()
  # Behind the name stand the number of axes, their sizes and the type.
  name = b"output_norm.weight"
  at = content.index(name) + len(name) + 4 + 8
  file.write_bytes(
    content[:at] + (999).to_bytes(4, "little") + content[at + 4 :]
  )
  with pytest.raises(InputError, match=r"999\)? is not a valid"):
    gguf.read_gguf(file)


def test_what_is_missing_is_named(file, monkeypatch):
  with pytest.raises(MissingInputError, match=r"model\.gguf is not there"):
    gguf.read_gguf(file)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'gguf>="):
    gguf.read_gguf(file)
