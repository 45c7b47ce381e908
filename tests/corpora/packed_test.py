from __future__ import annotations

import pytest

from rapo_jax.corpora.packed import PackedTexts, PackedWriter

TEXTS = ["one", "", "Zürich\n", "四"]


def write(path, *parts):
  with PackedWriter(path) as writer:
    for part in parts:
      writer.extend(part)
  return path


def test_texts_come_back(tmp_path):
  texts = PackedTexts(write(tmp_path / "t", TEXTS[:1], [], TEXTS[1:]))
  assert list(texts) == TEXTS
  assert texts[-1] == "四"
  assert texts[1:3] == ["", "Zürich\n"]
  assert texts.encoded(3) == "四".encode()
  assert texts.problems() == []
  with pytest.raises(IndexError):
    texts[4]


def test_no_texts(tmp_path):
  assert len(PackedTexts(write(tmp_path / "t"))) == 0


@pytest.mark.parametrize("suffix", [".bin", ".offsets"])
@pytest.mark.parametrize("cut", [1, 8])
def test_a_truncated_file_is_refused(tmp_path, suffix, cut):
  path = write(tmp_path / "t", TEXTS)
  file = path.with_suffix(suffix)
  file.write_bytes(file.read_bytes()[:-cut])
  with pytest.raises(ValueError, match="copy the folder again"):
    PackedTexts(path)
  file.unlink()
  with pytest.raises(ValueError, match="is missing"):
    PackedTexts(path)


def test_bounds_that_fall_are_a_problem(tmp_path):
  path = write(tmp_path / "t", ["abc", "def"])
  offsets = path.with_suffix(".offsets")
  raw = bytearray(offsets.read_bytes())
  raw[8] = 9
  offsets.write_bytes(bytes(raw))
  assert PackedTexts(path).problems()
