"""A tokenizer of the 26 letters: id 0 is a."""


class Letters:
  """Decodes as `trajectory.decode` asks."""

  def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
    assert not skip_special_tokens
    assert not clean_up_tokenization_spaces
    return "".join(chr(ord("a") + i) for i in ids)
