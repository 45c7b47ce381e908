"""What the engine asks of a hook between steps, whatever the hook is."""

from __future__ import annotations

import dataclasses

import pytest

from rapo_jax.errors import InputError
from rapo_jax.rollout import BetweenSession, BetweenSteps, Insertion
from rapo_jax.trajectory import RetrievalEvent, TokenKind
from tests.rollout import tag_world

CONFIG = dataclasses.replace(tag_world.CONFIG, num_generations=4, num_hybrid=0)
TEXT = "<retrieve>ab</retrieve>"


class Session:
  """Inserts a text before every second step; answers one call later."""

  version = None
  busy_seconds = 0.0

  def __init__(self, text):
    self.text = text
    self.open, self.submitted = {}, []
    self.closed = False

  @property
  def has_news(self):
    return bool(self.open)

  def left_s(self):
    return 0.0

  def wants(self, boundary):
    return boundary.step_id % 2 == 1

  def submit(self, boundaries):
    self.submitted += boundaries
    self.open.update(dict.fromkeys(boundaries))

  def take(self):
    answers = [
      (b, Insertion(RetrievalEvent(b.step_id, "hit"), self.text))
      for b in self.open
    ]
    self.open.clear()
    return answers

  def close(self):
    self.closed = True


class Hook:
  def __init__(self, text=TEXT):
    self.sessions, self.text = [], text

  def session(self, changed):
    self.sessions.append(Session(self.text))
    return self.sessions[-1]


def roll_out(policy, tag_tokenizer, queries, prompts, hook):
  engine = tag_world.make_engine(
    CONFIG, tag_tokenizer, tag_world.EchoTool(), between_steps=hook
  )
  requests = tag_world.make_requests(CONFIG, queries, prompts)
  trajectories, _ = engine.rollout(policy, requests, seed=1, update=3)
  return trajectories


def test_a_hook_inserts_steps(policy, tag_tokenizer, queries, prompts):
  hook = Hook()
  assert isinstance(hook, BetweenSteps)
  found = roll_out(policy, tag_tokenizer, queries, prompts, hook)
  (session,) = hook.sessions
  assert isinstance(session, BetweenSession)
  assert session.closed
  hits = 0
  for trajectory in found:
    inserted = [
      text
      for kind, text in trajectory.texts(tag_tokenizer)
      if kind is TokenKind.RETRIEVED
    ]
    events = [e for e in trajectory.retrieval_events if e.outcome == "hit"]
    assert inserted == [TEXT] * len(events)
    assert all(event.step_id % 2 for event in events)
    hits += len(events)
  assert hits > 3
  keys = [boundary.key for boundary in session.submitted]
  assert len(set(keys)) == len(keys)
  for boundary in session.submitted:
    assert len(boundary.history) == boundary.step_id
    assert boundary.key[:2] == (1, 3)
    assert boundary.key[3:] == (boundary.request.index, boundary.step_id)


def test_what_has_no_room_is_an_event_alone(
  policy, tag_tokenizer, queries, prompts
):
  hook = Hook("ab" * CONFIG.max_response_tokens)
  found = roll_out(policy, tag_tokenizer, queries, prompts, hook)
  outcomes = [e.outcome for t in found for e in t.retrieval_events]
  assert set(outcomes) == {"no_room"}
  assert not any((t.kinds == TokenKind.RETRIEVED).any() for t in found)


def test_a_buffer_and_a_hook_are_refused(tag_tokenizer, buffer):
  with pytest.raises(InputError, match="one hook between steps"):
    tag_world.make_engine(
      CONFIG,
      tag_tokenizer,
      tag_world.EchoTool(),
      buffer,
      between_steps=Hook(),
    )
