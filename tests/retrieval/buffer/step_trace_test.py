import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax import retrieval


class TestKeyText:
  def test_short_history_is_whole(self, encoder):
    key = retrieval.key_text("Q?", ["first step", "second step"], encoder)
    assert key == "Q?\nfirst step\nsecond step"

  def test_without_history_it_is_the_question(self, encoder):
    assert retrieval.key_text("Q?", [], encoder) == "Q?"

  def test_tags_are_left_out(self, encoder):
    step = "<think> a </think><search> b </search><result> c </result>"
    retrieved = f"<retrieve>{step}</retrieve>"
    expected = "Q?\na b c"
    assert retrieval.key_text("Q?", [step], encoder) == expected
    assert retrieval.key_text("Q?", [retrieved], encoder) == expected
    # Other markup is text.
    assert retrieval.key_text("Q?", ["<b>x</b>"], encoder) == "Q?\n<b>x</b>"

  def test_oldest_steps_go_first_and_then_words(self, encoder):
    # [CLS], [SEP], "q" and "?" leave 252 wordpieces; "city" is one, the
    # newest step takes 150 and of the one before it 102 of 150 stay.
    old, middle, new = ("river " * 150, "city " * 150, "bridge " * 150)
    key = retrieval.key_text("q?", [old, middle, new], encoder)
    question, kept_middle, kept_new = key.split("\n")
    assert question == "q?"
    assert kept_middle.split() == ["city"] * 102
    assert kept_new.split() == ["bridge"] * 150
    assert encoder.num_tokens(key) == 256

  def test_cut_at_a_word_and_not_inside_it(self, encoder):
    # "unbelievability" takes several wordpieces, of which the cut would
    # keep some.
    word = "unbelievability"
    assert len(encoder.tokenize(word)) > 2
    for extra in range(1, 6):
      step = word + " city" * (252 - extra)
      key = retrieval.key_text("q?", [step], encoder)
      kept = set(key.split("\n")[1].split())
      assert kept <= {word, "city"}
      assert encoder.num_tokens(key) <= 256

  def test_a_question_too_long_keeps_its_beginning(self, encoder):
    question = " ".join(f"word{i}" for i in range(400))
    assert retrieval.key_text(question, ["history"], encoder) == question
    cut = " ".join(question.split()[:250])
    with_history, without = encoder.encode(
      [retrieval.key_text(question, ["history"], encoder), cut]
    )
    assert with_history @ without > 0.999

  def test_text_without_spaces_is_cut_too(self, encoder):
    # Each ideograph is a word and a wordpiece; 252 fit beside "q?".
    key = retrieval.key_text("q?", ["水" * 300], encoder)
    assert key == "q?\n" + "水" * 252

  def test_a_word_that_does_not_fit_is_left_out(self, encoder):
    question = " ".join(["q"] * 253)
    assert encoder.num_tokens(question) == 255
    key = retrieval.key_text(question, ["unbelievability"], encoder)
    assert key == question

  @settings(max_examples=60, deadline=None)
  @given(
    question=st.text(max_size=60),
    history=st.lists(
      st.text(max_size=40).map(lambda text: f"{text} " * 12), max_size=5
    ),
  )
  def test_never_beyond_the_encoder_and_always_the_newest(
    self, encoder, question, history
  ):
    key = retrieval.key_text(question, history, encoder)
    assert key.startswith(question)
    assert encoder.num_tokens(key) <= encoder.max_tokens
    if history:
      newest = history[-1].replace("<retrieve>", "").strip(" \t\r\n")
      room = encoder.max_tokens - encoder.num_tokens(question)
      if len(encoder.tokenize(newest)) <= room:
        assert key.endswith(newest)


class TestStepTraces:
  def test_cut_into_steps(self):
    steps = [
      "<think> a </think><search> b </search><result> c </result>",
      "<retrieve><think> d </think></retrieve>",
      "<think> e </think><answer> \\boxed{f} </answer>",
    ]
    traces = retrieval.step_traces(
      "Q?", steps, reward=1, source="s", query_id="q7", first_trace_id=10
    )
    assert [trace.trace_id for trace in traces] == [10, 11, 12]
    assert [trace.step_index for trace in traces] == [0, 1, 2]
    assert [trace.answers for trace in traces] == [False, False, True]
    assert [trace.reward for trace in traces] == [1.0] * 3
    assert traces[1].step == "<think> d </think>"
    assert traces[0].history == ()
    assert traces[2].history == (steps[0], "<think> d </think>")
    assert {(t.question, t.source, t.query_id) for t in traces} == {
      ("Q?", "s", "q7")
    }

  # An ideographic space is white space of Unicode alone.
  @pytest.mark.parametrize(
    "blank", ["", " \n", "\u3000", "<retrieve> </retrieve>"]
  )
  def test_a_blank_step_gives_no_trace(self, blank):
    traces = retrieval.step_traces(
      "Q?",
      ["a", blank, "b"],
      reward=1,
      source="s",
      query_id="q",
      first_trace_id=5,
    )
    assert [trace.step for trace in traces] == ["a", "b"]
    assert [trace.trace_id for trace in traces] == [5, 6]
    assert [trace.step_index for trace in traces] == [0, 2]
    assert [len(trace.history) for trace in traces] == [0, 2]

  def test_no_steps(self):
    assert not retrieval.step_traces(
      "Q?", [], reward=1.0, source="s", query_id="q", first_trace_id=0
    )


class TestThoughtsThatATemplateOpened:
  def steps(self, *texts):
    traces = retrieval.step_traces(
      "q",
      texts,
      reward=1.0,
      source="s",
      query_id="i",
      first_trace_id=0,
    )
    return [trace.step for trace in traces]

  def test_get_their_opening_tag(self):
    assert self.steps(
      "a </think><search> b </search>", "<think> c </think>"
    ) == [
      "<think>a </think><search> b </search>",
      "<think> c </think>",
    ]

  def test_one_that_goes_on_behind_a_result_keeps_the_first(self):
    steps = ("<think> a <search> b </search>", "c </think> d")
    assert self.steps(*steps) == list(steps)


class TestSelectTopK:
  def test_best_of_each_question_stable(self):
    query_ids = ["a", "b", "a", "a", "b", "a"]
    rewards = [0.5, 0.0, 1.0, 0.5, 0.3, -1.0]
    # a: 1.0 (2), 0.5 (0), 0.5 (3); b: 0.3 (4). Zero and below never count.
    select = retrieval.select_top_k
    assert select(query_ids, rewards, k=2) == [0, 2, 4]
    assert select(query_ids, rewards, k=9) == [0, 2, 3, 4]
    assert select(query_ids, rewards, k=9, min_reward=0.4) == [0, 2, 3]
    assert select([], [], k=5) == []
