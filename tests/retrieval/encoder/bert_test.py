import json

import numpy as np
import pytest
import safetensors.numpy

from rapo_jax.errors import InputError
from rapo_jax.retrieval.encoder import bert
from tests.retrieval import tiny_bert


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hidden_act": "relu"}, "hidden_act='gelu'.*got 'relu'"),
    ({"model_type": "mpnet"}, "model_type='bert'.*got 'mpnet'"),
    ({"position_embedding_type": "relative_key"}, "'absolute'"),
  ],
)
def test_other_architectures_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    bert.BertConfig.from_hf({**tiny_bert.CONFIG, "vocab_size": 96, **change})


@pytest.fixture
def folder(tmp_path):
  return tiny_bert.write_folder(tmp_path / "tiny")


def test_a_missing_weight_is_named(folder):
  weights = safetensors.numpy.load_file(folder / bert.WEIGHTS_FILE)
  del weights["encoder.layer.1.output.dense.weight"]
  safetensors.numpy.save_file(weights, folder / bert.WEIGHTS_FILE)
  with pytest.raises(ValueError, match=r"weight 'encoder\.layer\.1\.output"):
    bert.load_bert(folder)


def _double(weights):
  return weights | {f"bert.{name}": value for name, value in weights.items()}


def _not_a_number(weights):
  name = "embeddings.word_embeddings.weight"
  return weights | {name: np.full_like(weights[name], np.nan)}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_double, "each weight once.*with and without 'bert.'"),
    (_not_a_number, "must be finite"),
    (
      lambda w: {name: value.astype(np.int8) for name, value in w.items()},
      "must be of floats, and is int8",
    ),
    (
      lambda w: w | {"encoder.layer.0.query.lora_A.weight": np.ones(2, "f4")},
      "encoder.layer.0.query.lora_A.weight are unknown",
    ),
  ],
)
def test_weights_that_are_not_those_of_the_config(folder, change, message):
  weights = safetensors.numpy.load_file(folder / bert.WEIGHTS_FILE)
  safetensors.numpy.save_file(change(weights), folder / bert.WEIGHTS_FILE)
  with pytest.raises(InputError, match=message):
    bert.load_bert(folder)


def test_more_layers_than_the_config_says(folder):
  config = json.loads((folder / bert.CONFIG_FILE).read_text(encoding="utf-8"))
  (folder / bert.CONFIG_FILE).write_text(
    json.dumps(config | {"num_hidden_layers": 1}), encoding="utf-8"
  )
  with pytest.raises(InputError, match=r"encoder\.layer\.1.*are unknown"):
    bert.load_bert(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", None])
def test_weights_that_are_broken(folder, content):
  file = folder / bert.WEIGHTS_FILE
  file.write_bytes(file.read_bytes()[:-9] if content is None else content)
  with pytest.raises(InputError, match="complete safetensors file"):
    bert.load_bert(folder)


def test_weights_of_another_shape_are_refused(folder):
  config = json.loads((folder / bert.CONFIG_FILE).read_text(encoding="utf-8"))
  (folder / bert.CONFIG_FILE).write_text(
    json.dumps(config | {"intermediate_size": 65}), encoding="utf-8"
  )
  with pytest.raises(ValueError, match="not of one model"):
    bert.load_bert(folder)
