from __future__ import annotations

import datetime
import decimal
import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rapo_jax import dataset_rows

ANSWERS = st.recursive(
  st.none() | st.text(max_size=5) | st.integers() | st.floats() | st.booleans(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["target", "a", "b"]), inner, max_size=2)
  ),
  max_leaves=6,
)


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    ("Paris", ("Paris",)),
    (" Paris ", (" Paris ",)),
    (["Paris", "Lutetia"], ("Paris", "Lutetia")),
    (("Paris", ["Lutetia"]), ("Paris", "Lutetia")),
    (np.array(["Paris", "Lutetia"], object), ("Paris", "Lutetia")),
    (np.str_("Paris"), ("Paris",)),
    (b"Paris", ("Paris",)),
    ({"target": ["Paris"]}, ("Paris",)),
    ({"target": np.array(["Paris"], object)}, ("Paris",)),
    ({"ground_truth": "Paris", "style": "rule"}, ("Paris",)),
    ({"ground_truth": {"target": "Paris"}}, ("Paris",)),
    ({"target": "Paris", "answer": None}, ("Paris",)),
    ('{"target": ["Paris"]}', ("Paris",)),
    ('["Paris", "Lutetia"]', ("Paris", "Lutetia")),
    ('["Paris", 42, null]', ("Paris", "42")),
    ("['Paris', 'Lutetia']", ("Paris", "Lutetia")),
    ("['Paris' 'Lutetia']", ("Paris", "Lutetia")),
    ("['Paris'\n 'Lutetia']", ("Paris", "Lutetia")),
    ("[\"it's\" 'Lutetia']", ("it's", "Lutetia")),
    ("{'target': array(['Paris', 'Rome'], dtype=object)}", ("Paris", "Rome")),
    ("{'target': array(['Paris'])}", ("Paris",)),
    ("{'target': array(['Paris (Texas)'], dtype=object)}", ("Paris (Texas)",)),
    ("array(['Paris', 'Rome'], dtype=object)", ("Paris", "Rome")),
    ("[np.str_('Paris'), np.float64(2.5)]", ("Paris", "2.5")),
    ("[['Paris' 'Rome']\n ['Bern' None]]", ("Paris", "Rome", "Bern")),
    ("['Paris', nan]", ("Paris",)),
    ('\ufeff["Paris"]', ("Paris",)),
    ("['Paris'] ['Rome']", ("['Paris'] ['Rome']",)),
    ("{'Paris', 'Lutetia'}", ("Lutetia", "Paris")),
    ({"answer": "Paris", "aliases": ["Lutetia"]}, ("Paris", "Lutetia")),
    ({"answer": "Paris", "answer_aliases": []}, ("Paris",)),
    (-0.0, ("0",)),
    (42, ("42",)),
    (np.int64(42), ("42",)),
    (-3, ("-3",)),
    (42.0, ("42",)),
    (3.5, ("3.5",)),
    (1e-7, ("0.0000001",)),
    (np.float32(3.14), ("3.14",)),
    (np.array([0.1, 2], np.float16), ("0.1", "2")),
    (np.float32(-0.0), ("0",)),
    (np.array(3.14, np.float32), ("3.14",)),
    (decimal.Decimal("2.50"), ("2.50",)),
    ([1, "one"], ("1", "one")),
    # Mathematics in brackets is no list.
    ("[1, 2]", ("[1, 2]",)),
    ("[0, 4.00]", ("[0, 4.00]",)),
    ("[[1, 2], [3, 4]]", ("[[1, 2], [3, 4]]",)),
    ("{1, 2}", ("{1, 2}",)),
    (r"[4,\infty)", (r"[4,\infty)",)),
    # Blank aliases cost the others nothing; copies go.
    (["Paris", "", None, "Paris"], ("Paris",)),
    ("", ()),
    (["", " "], ()),
  ],
)
def test_accepted_answers(value, expected):
  assert dataset_rows.accepted_answers(value, "here") == expected


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (None, "holds no answer"),
    ([], "holds no answer"),
    ([None], "holds no answer"),
    ("[]", "holds no answer"),
    (math.nan, "finite number"),
    (["Paris", math.inf], "finite number"),
    (True, "True or yes"),
    ({"town": "Paris"}, r"exactly one of .* has \['town'\]"),
    ({}, "exactly one of"),
    ('{"target": ["Paris"', "begins as a structure"),
    ("{'answer': Paris}", "begins as a structure"),
    ("{target: ['Paris']}", "begins as a structure"),
    (np.float32("nan"), "finite number"),
    ('{"town": "Paris"}', "exactly one of"),
    ({"target": "Paris", "answer": "Rome"}, "exactly one of"),
    (datetime.date(2024, 1, 1), "got date"),
    ({"Paris"}, "got set"),
    (b"\xff", "UTF-8"),
  ],
)
def test_other_forms_are_refused(value, message: str):
  with pytest.raises(ValueError, match=f"^row 3: truth .*{message}"):
    dataset_rows.accepted_answers(value, "row 3: truth")


@hypothesis.given(ANSWERS)
@hypothesis.settings(deadline=None, max_examples=200)
def test_answers_or_a_refusal_and_never_a_key(value):
  for given in (value, json.dumps(value)):
    try:
      answers = dataset_rows.accepted_answers(given, "here")
    except ValueError:
      continue
    assert all(answer.strip() for answer in answers)
    if isinstance(value, dict):
      assert "target" in value


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_nesting_is_text(text: str):
  assert dataset_rows.accepted_answers(text, "here") == (text,)


CHAT = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Who?"},
]


@pytest.mark.parametrize(
  "row",
  [
    {"extra_info": {"question": "Who?"}, "prompt": "Another"},
    {"extra_info": '{"question": "Who?"}'},
    {"extra_info": None, "question": "Who?", "prompt": CHAT},
    {"prompt": CHAT},
    {"prompt": json.dumps(CHAT)},
    {"prompt": np.array(CHAT, object)},
    # As pandas writes arrays into CSV.
    {"prompt": str(np.array(CHAT, object))},
    {"prompt": repr(np.array(CHAT, object))},
    {"prompt": "Who?"},
    {
      "prompt": [
        {"role": "user", "content": [{"type": "text", "text": "Who?"}]}
      ]
    },
  ],
)
def test_row_question(row):
  assert dataset_rows.row_question(row) == "Who?"


def test_a_row_without_a_question():
  assert dataset_rows.row_question({"prompt": CHAT[:1]}) is None
  assert dataset_rows.row_question({}) is None
  assert (
    dataset_rows.user_message("[1, 2]: what is it?") == "[1, 2]: what is it?"
  )
