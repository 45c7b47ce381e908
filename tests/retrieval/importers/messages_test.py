"""Tests of reading chat messages."""

import json
import pathlib

import pytest

from rapo_jax.retrieval import importers
from rapo_jax.retrieval.buffer.agent_trajectory import question_id
from rapo_jax.tools import TagSet


def read(tmp_path, *records, on_error="stop", reward=None):
  path = tmp_path / "chats.jsonl"
  path.write_text(
    "".join(json.dumps(r) + "\n" for r in records), encoding="utf-8"
  )
  report = importers.ImportReport()
  found = importers.read_messages(
    path, "agent", report=report, on_error=on_error, reward=reward
  )
  return [trajectory for trajectory, _ in found], report


def user(text):
  return {"role": "user", "content": text}


def assistant(text, **kwargs):
  return {"role": "assistant", "content": text, **kwargs}


def call(name, arguments, call_id="c0"):
  function = {"name": name, "arguments": json.dumps(arguments)}
  return {"id": call_id, "type": "function", "function": function}


def tool(text, call_id="c0"):
  return {"role": "tool", "tool_call_id": call_id, "content": text}


class TestCallsInText:
  def test_steps_are_cut_after_results_and_tags_are_ours(self, tmp_path):
    search = {"name": "search", "arguments": {"query": ["Emma", "Austen"]}}
    record = {
      "messages": [
        {"role": "system", "content": "Seek."},
        user("Use tools.\n\nUser: Who wrote Emma?"),
        assistant(
          "<think>\nLook.\n</think>\n<tool_call>\n"
          + json.dumps(search)
          + "\n</tool_call>"
        ),
        user("<tool_response>\nA </result> <|im_end|>\n</tool_response>"),
        assistant("<think> So. </think>\n<answer> Austen </answer>"),
      ],
      "reward": 0.5,
      "functions": [{"name": "search"}],
      "tag": "easy",
      "correct": False,
      "level": 0,
      "note": "",
      "query_id": " ",
    }
    (trajectory,), report = read(tmp_path, record)
    assert trajectory.question == "Who wrote Emma?"
    assert trajectory.steps == (
      "<think>\nLook.\n</think>\n<search> Emma\nAusten </search>\n"
      "<result> A &lt;/result> &lt;|im_end|> </result>",
      "<think> So. </think>\n<answer> Austen </answer>",
    )
    step = trajectory.steps[0]
    assert TagSet(("search",)).parse_call(step).argument == " Emma\nAusten "
    assert trajectory.reward == 0.5
    extras = {"tag": "easy", "correct": False, "level": 0}
    assert trajectory.extras == extras
    assert trajectory.query_id == question_id("Who wrote Emma?")
    assert (report.num_trajectories, report.num_steps) == (1, 2)

  def test_other_arguments_and_tools_stay_as_text(self, tmp_path):
    visit = {"name": "visit", "arguments": {"url": ["u"], "goal": "Find it."}}
    other = {"name": "zoom", "arguments": {"box": [1, 2]}}
    calls = "".join(
      f"<tool_call>{json.dumps(c)}</tool_call>" for c in (visit, other)
    )
    (trajectory,), _ = read(
      tmp_path,
      {
        "messages": [
          user("Q?"),
          assistant(calls),
          user("<tool_response>r</tool_response>"),
          assistant("Done <retrieve>."),
        ],
        "reward": 1,
      },
    )
    assert trajectory.steps == (
      "<open> u\ngoal: Find it. </open>"
      'zoom({"box": [1, 2]})\n<result> r </result>',
      "<answer> Done &lt;retrieve>. </answer>",
    )

  def test_real_conversations(self, sample_data):
    path = sample_data / "webdancer" / "sample_traj.jsonl"
    report = importers.ImportReport()
    trajectories = [
      trajectory
      for trajectory, _ in importers.read_trajectories(
        pathlib.Path(path), "webdancer", report=report, reward=lambda *_: 1.0
      )
    ]
    assert report.num_used == report.num_lines == len(trajectories)
    assert not any("User:" in t.question for t in trajectories)
    for trajectory in trajectories:
      *calls, last = trajectory.steps
      assert calls
      assert "<answer>" in last
      for step in calls:
        assert (
          TagSet(
            (
              "search",
              "open",
            )
          )
          .parse_call(step)
          .argument
        )
        assert step.endswith("</result>")
        assert "tool_call>" not in step


class TestCallsBesideText:
  def test_openai(self, tmp_path):
    (trajectory,), _ = read(
      tmp_path,
      {
        "messages": [
          user("Q?"),
          assistant("Two things.", tool_calls=[
            call("search", {"query": "a"}, "c0"),
            call("python", {"code": "print(1)"}, "c1"),
          ]),
          tool("1", "c1"),
          tool("found", "c0"),
          assistant(None, reasoning_content="So.", tool_calls=[
            call("search", {"query": "b"}),
          ]),
          tool([{"type": "text", "text": "more"}]),
          assistant("Yes."),
        ],
        "reward": 1,
        "query_id": "q7",
      },
    )  # fmt: skip
    assert trajectory.query_id == "q7"
    assert trajectory.steps == (
      "<think> Two things. </think>\n<python> print(1) </python>\n"
      "<result> 1 </result>",
      "<search> a </search>\n<result> found </result>",
      "<think> So. </think>\n<search> b </search>\n<result> more </result>",
      "<answer> Yes. </answer>",
    )

  def test_arguments_that_are_no_json_are_the_argument(self, tmp_path):
    broken = call("python", {})
    broken["function"]["arguments"] = "print(1)"
    (trajectory,), _ = read(
      tmp_path,
      {
        "messages": [
          user("Q?"),
          assistant("", tool_calls=[broken]),
          tool("1"),
          assistant("1"),
        ],
        "reward": 1,
      },
    )
    assert trajectory.steps[0].startswith("<python> print(1) </python>")


def test_an_indented_program_stays_as_it_is(tmp_path):
  program = "    x = 6\n    print(x * 7)\n"
  (trajectory,), _ = read(
    tmp_path,
    {
      "messages": [
        user("Q?"),
        {
          "role": "assistant",
          "content": "",
          "tool_calls": [call("python", {"code": program})],
        },
        tool("42"),
        assistant("<answer> 42 </answer>"),
      ],
      "reward": 1,
    },
  )
  called = TagSet(("python",)).parse_call(trajectory.steps[0])
  assert called.argument == "    x = 6\n    print(x * 7)"


def test_a_thought_that_the_template_opened_is_whole(tmp_path):
  (trajectory,), _ = read(
    tmp_path,
    {
      "messages": [
        user("Q?"),
        {
          "role": "assistant",
          "content": "look\n</think>\n",
          "tool_calls": [call("search", {"query": "q"})],
        },
        tool("found"),
        assistant("so\n</think>\n\nAusten"),
      ],
      "reward": 1,
    },
  )
  for step in trajectory.steps:
    assert step.count("<think>") == step.count("</think>") == 1
  assert trajectory.steps[0].startswith("<think>look\n</think>")
  assert trajectory.steps[1].endswith("<answer> Austen </answer>")


@pytest.mark.parametrize(
  ("tool_call", "expected"),
  [
    (call("search", {"query_list": ["a", "b"]}), "<search> a\nb </search>"),
    (call("python", {"script": "print(1)"}), "<python> print(1) </python>"),
    (call("visit", {"link": "u", "n": 2}), "<open> u\nn: 2 </open>"),
    (call("search", {"k": 3, "text": "a"}), "<search> a\nk: 3 </search>"),
    (call("search", None), "<search>  </search>"),
    ({"name": "search", "arguments": None}, "<search>  </search>"),
  ],
)
def test_the_first_text_is_the_argument_of_a_call(
  tmp_path, tool_call, expected
):
  messages = [user("Q?"), assistant("", tool_calls=[tool_call]), tool("r")]
  record = {"messages": [*messages, assistant("a")], "reward": 1}
  (trajectory,), _ = read(tmp_path, record)
  assert trajectory.steps[0] == f"{expected}\n<result> r </result>"


@pytest.mark.parametrize(
  ("said", "expected"),
  [
    (
      [assistant("I know it."), assistant("Paris")],
      "<think> I know it. </think>\n<answer> Paris </answer>",
    ),
    (
      [assistant("<think>So.</think>Hm."), assistant("Paris"), assistant("")],
      "<think>So.</think>\n<think> Hm. </think>\n<answer> Paris </answer>",
    ),
    (
      [assistant("Paris", reasoning="<think>So.</think>")],
      "<think> So. </think>\n<answer> Paris </answer>",
    ),
  ],
)
def test_the_last_turn_is_the_answer(tmp_path, said, expected):
  record = {"messages": [user("Q?"), *said], "reward": 1}
  (trajectory,), _ = read(tmp_path, record)
  assert trajectory.steps == (expected,)


SEARCHED = (
  "<think>a</think><search>x</search>\n<result> Doc </result>",
  "<think>b</think><answer>Paris</answer>",
)


@pytest.mark.parametrize(
  "messages",
  [
    [
      user("Q?"),
      assistant(
        "<think>a</think><search>x</search><result>Doc</result>"
        "<think>b</think><answer>Paris</answer>"
      ),
    ],
    [
      user("Q?"),
      assistant("<think>a</think><search>x</search>"),
      user("<information>Doc</information>"),
      assistant("<think>b</think><answer>Paris</answer>"),
    ],
    [
      {"from": "human", "value": "Q?"},
      {"from": "gpt", "value": "<think>a</think><search>x</search>"},
      {"from": "observation", "value": "Doc"},
      {"from": "gpt", "value": "<think>b</think><answer>Paris</answer>"},
    ],
  ],
)
def test_calls_in_our_tags_have_results(tmp_path, messages):
  (trajectory,), _ = read(tmp_path, {"conversations": messages, "reward": 1})
  assert trajectory.question == "Q?"
  assert trajectory.steps == SEARCHED


def test_a_document_that_names_our_tags_stays_whole(tmp_path):
  messages = [
    user("Q?"),
    assistant("", tool_calls=[call("search", {"query": "x"})]),
    tool("before <result> in </result> behind"),
    assistant("a"),
  ]
  (trajectory,), _ = read(tmp_path, {"messages": messages, "reward": 1})
  assert trajectory.steps[0].endswith(
    "<result> before &lt;result> in &lt;/result> behind </result>"
  )


@pytest.mark.parametrize(
  "calls",
  [
    {
      "from": "function_call",
      "value": '{"name": "search", "arguments": {"query": "x"}}',
    },
    assistant(
      None, function_call={"name": "search", "arguments": '{"query": "x"}'}
    ),
  ],
)
def test_older_names_of_calls(tmp_path, calls):
  result = {"role": "function", "name": "search", "content": "Doc"}
  record = {"messages": [user("Q?"), calls, result, assistant("a")]}
  (trajectory,), _ = read(tmp_path, record | {"reward": 1})
  assert trajectory.steps[0] == "<search> x </search>\n<result> Doc </result>"


class TestRewards:
  RECORD = {"messages": [user("Q?"), assistant("<answer> b </answer>")]}  # noqa: RUF012

  def test_computed_from_the_answers(self, tmp_path):
    seen = []
    reward = lambda *args: seen.append(args) or 0.25  # noqa: E731
    (trajectory,), _ = read(
      tmp_path, {**self.RECORD, "answer": [["a", 5]]}, reward=reward
    )
    assert seen == [("b", ["a", "5"])]
    assert trajectory.reward == 0.25

  def test_a_structure_around_the_answers(self, tmp_path):
    reward = lambda _, accepted: float(accepted == ["b"])  # noqa: E731
    record = {**self.RECORD, "answer": {"target": ["b", ""]}}
    (trajectory,), _ = read(tmp_path, record, reward=reward)
    assert trajectory.reward == 1.0

  def test_answers_that_cannot_be_read(self, tmp_path):
    record = {**self.RECORD, "answer": {"town": "b"}}
    with pytest.raises(ValueError, match=r"jsonl:1: .*exactly one of target"):
      read(tmp_path, record, reward=lambda *_: 1.0)

  def test_none(self, tmp_path):
    with pytest.raises(ValueError, match=r"jsonl:1: .*no reward.*--reward 1"):
      read(tmp_path, self.RECORD)


@pytest.mark.parametrize(
  ("messages", "reason"),
  [
    ("text", "messages must be a list"),
    ([assistant("a")], "no message of role user"),
    ([user("Q?")], "ends without an answer"),
    ([user("Q?"), assistant("<think>It is")], "ends without an answer"),
    ([user("Q?"), assistant("", reasoning="It is")], "ends without an answer"),
    ([user("Q?"), assistant("<search> a </search>")], "no result"),
    ([user("Q?"), user("R?")], "message 1 is a second question"),
    ([user("Q?"), tool("r")], "message 1 is a result that no call waits for"),
    ([user("Q?"), assistant("", tool_calls=[call("f", {})])], "no result"),
    (
      [user("Q?"), assistant("", tool_calls=[call("f", {})]), assistant("a")],
      "message 2 comes before a tool's result",
    ),
    ([user("Q?"), assistant("", tool_calls=["f"])], "call that is no object"),
    ([user("Q?"), assistant("<tool_call>{</tool_call>")], "no JSON: "),
    (
      [user("Q?"), assistant("", tool_calls=5), assistant("a")],
      "tool_calls that are no list: 5",
    ),
    (
      [user("Q?"), assistant("", tool_calls=[None]), tool("r")],
      "call that is no object",
    ),
    (
      [
        user("Q?"),
        assistant("", tool_calls=[call("search", {}, ["z"])]),
        tool("r", ["z"]),
      ],
      "id that is no text",
    ),
    (
      [user("Q?"), assistant("", tool_calls=[call("search", "\ud83d")])],
      "arguments that cannot be read: a text holds half a character",
    ),
    (
      [user("Q?"), assistant("<tool_call>" + "[" * 9999 + "</tool_call>")],
      "nested too deeply",
    ),
    ([user("Q?"), assistant("a", reasoning=["b"])], "reasoning that is no"),
    ([user("Q?"), assistant(5)], "content that is no text"),
    ([{"content": "Q?"}, assistant("a")], "no message of role user"),
    ([user("Q?"), assistant("<tool_call>[]</tool_call>")], "is no object"),
    ([user("Q?"), assistant([{"type": "image_url"}])], "is no text"),
    ([user("Q?"), {"role": "critic", "content": "c"}], "unknown role 'critic'"),
    ([user(" "), assistant("a")], "the question is blank"),
  ],
)
def test_a_conversation_that_cannot_be_used(tmp_path, messages, reason):
  bad = {"messages": messages, "reward": 1}
  good = {"messages": [user("Q?"), assistant("a")], "reward": 1}
  trajectories, report = read(tmp_path, bad, good, on_error="skip")
  assert len(trajectories) == 1
  assert reason in report.problems[0].reason
  with pytest.raises(ValueError, match="jsonl:1: "):
    read(tmp_path, bad, good)


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"question": ["Q?"]}, "question must be a text"),
    ({"query_id": {"a": 1}}, "query_id must be a text or a whole number"),
    ({"query_id": True}, "query_id must be a text or a whole number"),
    ({"reward": "1"}, "reward must be a number, got '1'"),
    ({"reward": None, "score": [1]}, "score must be a number"),
    ({"note": "half \ud83d"}, "half a character"),
    ({"note": float("nan")}, "NaN is not a number"),
  ],
)
def test_a_field_of_the_wrong_type(tmp_path, fields, reason):
  good = {"messages": [user("Q?"), assistant("a")], "reward": 1}
  trajectories, report = read(tmp_path, good, good | fields, on_error="skip")
  assert len(trajectories) == 1
  (problem,) = report.problems
  assert problem.line == 2
  assert reason in problem.reason
  with pytest.raises(ValueError, match=r"chats.jsonl:2: .*--on_error skip"):
    read(tmp_path, good, good | fields)


def test_the_id_0_is_an_id(tmp_path):
  record = {"messages": [user("Q?"), assistant("a")], "reward": 1}
  (trajectory,), _ = read(tmp_path, record | {"query_id": 0})
  assert trajectory.query_id == "0"
