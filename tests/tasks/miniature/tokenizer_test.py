"""Tests of the miniature tokenizer."""

import json
import pathlib
import tempfile

import hypothesis
import transformers
from absl.testing import absltest, parameterized
from hypothesis import strategies

from rapo_jax import data
from rapo_jax.tasks.miniature import demonstrations
from rapo_jax.tasks.miniature import tokenizer as tokenizer_lib
from rapo_jax.tasks.miniature import world as world_lib

WORLD = world_lib.make_world(world_lib.WorldConfig())
TOKENIZER = tokenizer_lib.train_tokenizer(tokenizer_lib.corpus(WORLD))


def encode(text, tokenizer=TOKENIZER):
  return tokenizer.encode(
    text, add_special_tokens=False, split_special_tokens=True
  )


def decode(ids, tokenizer=TOKENIZER):
  return tokenizer.decode(
    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


class TokenizerTest(parameterized.TestCase):
  def test_vocabulary_is_small_and_reproducible(self):
    self.assertLess(len(TOKENIZER), 1000)
    again = tokenizer_lib.train_tokenizer(tokenizer_lib.corpus(WORLD))
    self.assertEqual(again.get_vocab(), TOKENIZER.get_vocab())

  def test_the_engine_writes_a_result_as_the_agents_learned_it(self):
    # Its tokens of tags begin with a space: they are tags all the same.
    encode_result = data.TextEncoder(TOKENIZER)
    for text in (
      "<result> Leon : Leon has pilot Helen . </result>",
      "<retrieve><think> So pilot </think><search> Leon has pilot </search>",
    ):
      self.assertEqual(encode_result(text), encode(text))
    self.assertIn(
      " </result>", TOKENIZER.convert_ids_to_tokens(encode("a </result>"))
    )

  def test_a_word_is_a_token(self):
    step = WORLD.train["multihop"][0].steps[0]
    text = demonstrations.step_text(step, 0)
    pieces = [decode([i]) for i in encode(text)]
    self.assertEqual("".join(pieces), text)
    self.assertEqual(
      pieces[:6],
      [
        "<think>",
        " Next",
        f" {step.move}",
        " </think>",
        "<search>",
        f" {step.argument.split()[0]}",
      ],
    )

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_no_text_of_the_world_needs_bytes(self, family):
    newline = encode("\n")
    self.assertLen(newline, 1)
    for question in (*WORLD.train[family], *WORLD.held_out[family]):
      ids = encode(question.question)
      for text in demonstrations.every_wording(question):
        ids += encode(text)
      bytes_used = {i for i in ids if i < 256}
      self.assertEmpty(bytes_used, question)

  @parameterized.parameters(
    "",
    "  two  spaces \n\n\tand a tab",
    "a < b and <b>bold</b> </ <<>>",
    "Wörld, 日本語 and 🙂",
    "<|im_end|> is text here",
    "Helena Helen Hel 97 970",
  )
  def test_any_text_survives(self, text):
    self.assertEqual(decode(encode(text)), text)

  @hypothesis.given(strategies.text("aH e<>/|\n1?й\\"))
  @hypothesis.settings(deadline=None, max_examples=100)
  def test_random_text_survives(self, text):
    # Qwen2 normalises to NFC, which these characters are in.
    self.assertEqual(decode(encode(text)), text)

  def test_special_tokens(self):
    self.assertEqual(TOKENIZER.pad_token, "<|endoftext|>")
    self.assertEqual(TOKENIZER.eos_token, "<|im_end|>")
    prompt = TOKENIZER.apply_chat_template(
      [{"role": "user", "content": "Who ?"}],
      add_generation_prompt=True,
      tokenize=False,
    )
    self.assertEqual(
      prompt, "<|im_start|>user\nWho ?<|im_end|>\n<|im_start|>assistant\n"
    )
    # <|im_start|> user \n Who ? <|im_end|> \n <|im_start|> assistant \n
    self.assertLen(TOKENIZER.encode(prompt, add_special_tokens=False), 10)

  def test_template_only_appends(self):
    messages = [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "Who ?"},
      {"role": "assistant", "content": "Mia"},
    ]
    before = ""
    for count in range(1, len(messages) + 1):
      text = TOKENIZER.apply_chat_template(messages[:count], tokenize=False)
      self.assertStartsWith(text, before)
      before = text

  def test_auto_tokenizer_of_a_qwen2_folder_gives_the_same_ids(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    TOKENIZER.save_pretrained(folder)
    (folder / "config.json").write_text(
      json.dumps(
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
      ),
      encoding="utf-8",
    )
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    self.assertEqual(loaded.get_vocab(), TOKENIZER.get_vocab())
    self.assertEqual(loaded.chat_template, TOKENIZER.chat_template)
    self.assertEqual(loaded.eos_token_id, TOKENIZER.eos_token_id)
    self.assertEqual(loaded.pad_token_id, TOKENIZER.pad_token_id)
    for family in world_lib.FAMILIES:
      question = WORLD.train[family][0]
      for text in (
        question.question,
        *demonstrations.every_wording(question),
        "  odd <x>\n\ntext 12345 <|im_end|>",
      ):
        self.assertEqual(encode(text, loaded), encode(text))
        self.assertEqual(decode(encode(text, loaded), loaded), text)


if __name__ == "__main__":
  absltest.main()
