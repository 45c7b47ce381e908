"""Tests of tables and sentences on a terminal."""

import pytest
from rich import cells

from experiments import layout


def test_columns_are_as_wide_as_their_widest_cell():
  rows = [["task", "method", "all"], ["検索", "a", "1.0"], ["b", "cd", "−10.5"]]
  assert layout.table(rows).splitlines() == [
    "task  method    all",
    "検索  a         1.0",
    "b     cd      −10.5",
  ]


def test_words_are_cut_in_the_middle_and_numbers_never():
  rows = [["task", "method", "all"], ["short", f"{'a' * 30}_seed", "12.5 (1)"]]
  text = layout.table(rows, 30)
  assert max(map(len, text.splitlines())) == 30
  assert "aaaaaa…a_seed" in text
  assert text.endswith("12.5 (1)")
  assert layout.fits(rows, 52)
  assert not layout.fits(rows, 51)


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_a_short_form_is_never_wider(width):
  for text in ("abcdefghij", "日本語の長い名前"):
    shown = layout.shortened(text, width)
    assert 0 < cells.cell_len(shown) <= width
  assert layout.shortened("abc", 3) == "abc"


def test_sentences_are_wrapped_and_paths_stay_whole():
  text = layout.wrapped(
    ["See /a/long/path/to/a/file now.", "日本 語 の 本"], 10
  )
  assert text.splitlines() == [
    "See",
    "/a/long/path/to/a/file",
    "now.",
    "日本 語 の",
    "本",
  ]
