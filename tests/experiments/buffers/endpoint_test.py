"""The journal of trajectories that an endpoint's agent wrote."""

import pytest

from experiments.buffers import endpoint as buffer_endpoint
from rapo_jax.errors import InputError

LINE = (
  b'{"source": "teacher", "query_id": "a", "question": "?", "index": %d, '
  b'"score": {"value": 1}, "segments": []}\n'
)


def test_a_line_that_is_not_whole_is_cut(tmp_path):
  journal = tmp_path / "journal.jsonl"
  journal.write_bytes(LINE % 0 + b"\n" + LINE % 1 + (LINE % 2)[:-9])
  assert buffer_endpoint._done(journal, "teacher") == {("a", 0), ("a", 1)}
  assert journal.read_bytes().endswith(LINE % 1)


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b"[" * 99_999, "nested too deeply"),
    (b"{", "no JSON"),
    (b"[]", "is no trajectory"),
    (b"{}", "is no trajectory"),
    (b'{"query_id": [], "index": 0, "source": "teacher"}', "no trajectory"),
    (b'{"query_id": "a", "query_id": "b"}', "twice"),
    (b'{"query_id": "\xff"}', "no UTF-8"),
    (LINE.replace(b"teacher", b"other") % 1, "of other, not of teacher"),
  ],
)
def test_a_line_of_something_else(tmp_path, line, reason):
  journal = tmp_path / "journal.jsonl"
  journal.write_bytes(LINE % 0 + line + b"\n")
  with pytest.raises(InputError, match=reason):
    buffer_endpoint._done(journal, "teacher")
