"""Chat templates from files, and what a template thinks."""

from __future__ import annotations

import importlib.util

import pytest

from experiments.tokenizer_files import load_tokenizer, set_chat_template
from rapo_jax import data
from rapo_jax.errors import InputError
from tests.data import chat_test

# As Qwen3's: without thoughts, the prompt ends with an empty one.
QWEN3 = (
  "{%- for m in messages %}\n"
  "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"
  "{%- endfor %}\n"
  "{%- if add_generation_prompt %}\n"
  "{{- '<|im_start|>assistant\\n' }}\n"
  "{%- if enable_thinking is defined and enable_thinking is false %}\n"
  "{{- '<think>\\n\\n</think>\\n\\n' }}\n"
  "{%- endif %}\n{%- endif %}"
)
QUERY = data.Query(
  "q", "1+1", ("2",), ({"role": "user", "content": "1+1"},), "t"
)


def prompt(tokenizer) -> str:
  data.check_prefix_preservation(tokenizer, QUERY)
  return tokenizer.decode(data.encode_prompt(tokenizer, QUERY, 200))


def test_a_sentencepiece_model_alone_needs_its_package(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  (tmp_path / "tokenizer.model").write_bytes(b"")
  with pytest.raises(InputError, match="pip install sentencepiece protobuf"):
    load_tokenizer(tmp_path)


def test_a_template_from_a_file(tmp_path):
  tokenizer = chat_test.make_tokenizer()
  before = data.prompt_hash(tokenizer, QUERY)
  path = tmp_path / "template.jinja"
  path.write_text(QWEN3, encoding="utf-8")
  set_chat_template(tokenizer, str(path))
  assert tokenizer.chat_template == QWEN3
  assert data.prompt_hash(tokenizer, QUERY) != before


@pytest.mark.parametrize("earlier", [None, True, False])
def test_thoughts_of_a_template(earlier):
  tokenizer = chat_test.make_tokenizer(QWEN3)
  plain = prompt(tokenizer)
  set_chat_template(tokenizer, enable_thinking=earlier)
  set_chat_template(tokenizer, enable_thinking=False)
  assert prompt(tokenizer) == f"{plain}<think>\n\n</think>\n\n"
  set_chat_template(tokenizer, enable_thinking=True)
  assert prompt(tokenizer) == plain


def test_what_cannot_be_set(tmp_path):
  tokenizer = chat_test.make_tokenizer()
  with pytest.raises(InputError, match="has none of this name"):
    set_chat_template(tokenizer, enable_thinking=False)
  with pytest.raises(InputError, match="nowhere"):
    set_chat_template(tokenizer, str(tmp_path / "nowhere"))
