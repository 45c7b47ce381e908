import json

import pytest
import safetensors.numpy

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
  with pytest.raises(ValueError, match=r"no weight 'encoder\.layer\.1\.output"):
    bert.load_bert(folder)


def test_weights_of_another_shape_are_refused(folder):
  config = json.loads((folder / bert.CONFIG_FILE).read_text(encoding="utf-8"))
  (folder / bert.CONFIG_FILE).write_text(
    json.dumps(config | {"intermediate_size": 65}), encoding="utf-8"
  )
  with pytest.raises(ValueError, match="not of one model"):
    bert.load_bert(folder)
