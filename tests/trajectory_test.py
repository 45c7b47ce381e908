"""The record of a rollout: masks, segments, texts and who ended it."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.trajectory import (
  FinishReason,
  RetrievalEvent,
  Segment,
  TokenKind,
  ToolEvent,
  Trajectory,
  decode,
  token_lengths,
)
from tests.letters import Letters

P, W, O, R = (  # noqa: E741
  TokenKind.PROMPT,
  TokenKind.POLICY,
  TokenKind.OBSERVATION,
  TokenKind.RETRIEVED,
)


def trajectory(**changes) -> Trajectory:
  """Prompt ab; step 0 writes cd and reads e; fg retrieved; step 2 writes h."""
  kinds = np.asarray([P, P, W, W, O, R, R, W], np.int8)
  fields = {
    "tokens": np.arange(8, dtype=np.int32),
    "kinds": kinds,
    "step_ids": np.asarray([-1, -1, 0, 0, 0, 1, 1, 2], np.int32),
    "log_probs": np.where(kinds == W, -1.0, 0.0).astype(np.float32),
    "entropies": np.where(kinds == W, 0.5, 0.0).astype(np.float32),
    "query_id": "q",
    "group_id": 0,
    "index": 0,
    "hybrid": True,
    "policy_version": 0,
    "finish_reason": FinishReason.ANSWER,
  }
  return Trajectory(**(fields | changes))


def tool_event(status: str) -> ToolEvent:
  return ToolEvent(0, "search", "cd", "e", status, 0.0)


def test_only_policy_tokens_are_in_the_policy_mask():
  np.testing.assert_array_equal(
    trajectory().policy_mask, [0, 0, 1, 1, 0, 0, 0, 1]
  )


def test_the_response_is_all_but_the_prompt():
  np.testing.assert_array_equal(
    trajectory().response_mask, [0, 0, 1, 1, 1, 1, 1, 1]
  )


def test_segments_cut_where_kind_or_step_changes():
  assert trajectory().segments() == [
    Segment(P, -1, 0, 2),
    Segment(W, 0, 2, 4),
    Segment(O, 0, 4, 5),
    Segment(R, 1, 5, 7),
    Segment(W, 2, 7, 8),
  ]


def test_two_steps_of_one_kind_are_two_segments():
  # A step that ends without a result, as the budget leaves no room for it.
  steps = np.asarray([-1, -1, 0, 0, 1, 1, 1, 1], np.int32)
  kinds = np.asarray([P, P, W, W, W, W, W, W], np.int8)
  found = trajectory(kinds=kinds, step_ids=steps).segments()
  assert [(s.step_id, s.start, s.end) for s in found] == [
    (-1, 0, 2),
    (0, 2, 4),
    (1, 4, 8),
  ]


def test_segments_cover_every_token_once():
  found = trajectory().segments()
  covered = [i for s in found for i in range(s.start, s.end)]
  assert covered == list(range(8))


def test_texts_are_decoded_segment_by_segment():
  assert trajectory().texts(Letters()) == [
    (P, "ab"),
    (W, "cd"),
    (O, "e"),
    (R, "fg"),
    (W, "h"),
  ]


def test_a_step_has_its_action_and_its_observation():
  assert trajectory().step_texts(Letters()) == ["cde", "fg", "h"]


def test_steps_are_counted_with_the_retrieved_ones():
  assert trajectory().num_steps == 3


def test_a_prompt_alone_has_no_step():
  prompt = trajectory(
    **{
      name: value[:2]
      for name, value in vars(trajectory()).items()
      if isinstance(value, np.ndarray)
    }
  )
  assert prompt.num_steps == 0
  assert prompt.step_texts(Letters()) == []
  assert not prompt.policy_mask.any()


def test_events_are_separated_by_kind_in_order():
  call, hit = tool_event("ok"), RetrievalEvent(1, "hit")
  record = trajectory(events=(call, hit, call))
  assert record.tool_events == (call, call)
  assert record.retrieval_events == (hit,)


@pytest.mark.parametrize(
  ("reason", "statuses", "cut"),
  [
    (FinishReason.TIMEOUT, (), True),
    (FinishReason.TOOL_LIMIT, ("ok", "failed"), True),
    (FinishReason.TOOL_LIMIT, ("refused",), True),
    (FinishReason.TOOL_LIMIT, ("late",), True),
    # Its own calls, its own fault.
    (FinishReason.TOOL_LIMIT, ("ok", "error", "timeout"), False),
    # It went on after the call that broke, and came to an end of its own.
    (FinishReason.ANSWER, ("failed",), False),
    (FinishReason.LENGTH, ("refused",), False),
  ],
)
def test_what_the_system_cut(reason, statuses, cut):
  record = trajectory(
    finish_reason=reason, events=tuple(map(tool_event, statuses))
  )
  assert record.is_cut_by_system is cut


def test_a_record_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    trajectory().index = 1


class Bytes:
  """Decodes bytes of UTF-8, as byte-level tokenizers do."""

  def decode(self, tokens, **_):
    return bytes(tokens).decode(errors="replace")


class Spaced:
  """Puts a space before each word but the first."""

  def decode(self, tokens, **_):
    return " ".join("word" * token for token in tokens)


@pytest.mark.parametrize(
  ("text", "lengths"),
  [
    ("abc", [1, 1, 1]),
    # Two, three and four bytes; the last one completes the character.
    ("aé!", [1, 0, 1, 1]),
    ("→", [0, 0, 1]),
    ("🙂x", [0, 0, 0, 1, 1]),
    ("", []),
  ],
)
def test_the_token_that_completes_a_character_adds_it(text, lengths):
  assert token_lengths(Bytes(), [*text.encode()], text) == lengths


def test_a_token_that_completes_nothing_leaves_its_mark_to_the_last():
  half = [*"aé".encode()][:-1]
  assert token_lengths(Bytes(), half, Bytes().decode(half)) == [1, 1]


def test_a_character_that_says_unknown_is_one_like_others():
  text = "a\ufffdb"
  found = token_lengths(Bytes(), [*text.encode()], text)
  assert sum(found) == 3
  assert len(found) == 5


def test_what_a_token_adds_may_depend_on_those_before_it():
  text = Spaced().decode([1, 2, 1])
  assert token_lengths(Spaced(), [1, 2, 1], text) == [4, 9, 5]


def test_decode_takes_arrays_and_lists():
  assert decode(Letters(), np.asarray([7, 8])) == "hi"
  assert decode(Letters(), [7, 8]) == "hi"
