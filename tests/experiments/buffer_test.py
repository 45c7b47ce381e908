"""Tests of the command line for buffers."""

import dataclasses
import json
import re

import pytest

from experiments import buffer as lib
from experiments import flags
from experiments.buffers import commands
from experiments.stages import agents
from experiments.stages import buffer as buffer_stage
from rapo_jax import models, retrieval
from rapo_jax.retrieval.buffer import store
from rapo_jax.rollout import RolloutEngine
from tests.datasets import files
from tests.fake_endpoint import FakeServer

CALL = "<search> {} </search><result> {} </result>"
ANSWER = "<answer> {} </answer>"


@pytest.fixture(scope="module")
def encoder():
  return retrieval.SentenceEncoder.from_pretrained()


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch, encoder):
  monkeypatch.setattr(commands, "_encoder", lambda *_: encoder)
  monkeypatch.setattr(lib, "use_compilation_cache", lambda: None)


@pytest.fixture
def teacher(tmp_path):
  """Three questions by the authors' format, the last with a poor reward."""
  path = tmp_path / "teacher.jsonl"
  rows = []
  for number, reward in enumerate((1.0, 0.5, -1.0)):
    prompt = f"S\nuser\nWho is {number}?\nassistant\n"
    step = CALL.format(f"who {number}", f"A person {number}.")
    rows.append({"key": prompt, "value": step, "reward": reward})
    answer = ANSWER.format(f"Person {number}")
    rows.append({"key": prompt + step, "value": answer, "reward": reward})
  path.write_text(
    "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
  )
  return path


@pytest.fixture
def chats(tmp_path):
  path = tmp_path / "chats.jsonl"
  record = {
    "messages": [
      {"role": "user", "content": "Who is 0?"},
      {"role": "assistant", "content": "Person 0"},
    ],
    "answer": "Person 0",
  }
  path.write_text(json.dumps(record) + "\n", encoding="utf-8")
  return path


def run(*arguments):
  return lib.main([str(argument) for argument in arguments])


class TestImport:
  def test_several_agents_in_one_buffer(
    self, tmp_path, teacher, chats, capsys, encoder
  ):
    out = tmp_path / "out"
    assert run(
      "import", "--output", out, f"strong={teacher}", chats, "--reward", "f1"
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "left out 1 trajectories by number or reward" in printed
    manifest = store.read_manifest(out)
    assert {n: a.num_traces for n, a in manifest.agents.items()} == {
      "strong": 4,
      "chats": 1,
    }
    traces = list(store.iter_traces(out))
    assert {t.query_id for t in traces if t.question == "Who is 0?"} == {
      traces[0].query_id
    }
    assert retrieval.StepTraceBuffer.load(out, encoder)
    assert run("verify", "--buffer", out) == 0
    # What is there is not replaced unasked.
    assert run("import", "--output", out, teacher) == 2
    assert "--replace" in capsys.readouterr().err
    assert run("import", "--output", out, teacher, "--replace") == 0
    assert list(store.read_manifest(out).agents) == ["teacher"]

  def test_replace_deletes_nothing_but_a_buffer(
    self, tmp_path, teacher, capsys
  ):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").touch()
    assert run("import", "--output", out, teacher, "--replace") == 2
    error = capsys.readouterr().err
    assert "a buffer to be replaced" in error
    assert [*out.iterdir()] == [out / "notes.txt"]

  def test_a_report_in_the_place_of_a_folder(self, tmp_path, teacher, capsys):
    arguments = ("import", "--output", tmp_path / "out", teacher)
    with pytest.raises(SystemExit):
      run(*arguments, "--report", tmp_path)
    assert "must be a file, and" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

  def test_choice(self, tmp_path, teacher):
    out = tmp_path / "out"
    arguments = ("--min_reward", "none", "--exclude_answers")
    assert run("import", "--output", out, teacher, *arguments) == 0
    traces = list(store.iter_traces(out))
    assert [t.reward for t in traces] == [1.0, 0.5, -1.0]
    assert not any(t.answers for t in traces)

  def test_a_broken_line_stops_or_is_counted(self, tmp_path, teacher, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    lines = teacher.read_text(encoding="utf-8").splitlines()
    teacher.write_text(
      "\n".join([*lines[:2], '{"key": ', *lines[2:]]), encoding="utf-8"
    )
    arguments = ("import", "--output", out, teacher, "--report", report)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "teacher.jsonl:3: no JSON" in error
    assert not out.exists()
    assert (
      json.loads(report.read_text(encoding="utf-8"))["lines"]["num_lines"] == 3
    )
    assert run(*arguments, "--on_error", "skip") == 0
    printed = capsys.readouterr().out
    assert "left out 1 broken lines" in printed
    assert "teacher.jsonl:3: no JSON" in printed
    assert (
      json.loads(report.read_text(encoding="utf-8"))["lines"]["num_broken"] == 1
    )

  def test_held_out_questions(self, tmp_path, teacher, capsys):
    out, held_out = tmp_path / "out", tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"question": "who is 0"}), encoding="utf-8")
    report = tmp_path / "report.json"
    arguments = ("import", "--output", out, teacher, "--held_out", held_out)
    assert run(*arguments, "--report", report) == 2
    error = capsys.readouterr().err
    assert "test.jsonl: 1 by text, 0 by meaning" in error
    assert "--overlap drop" in error
    (overlap,) = json.loads(report.read_text(encoding="utf-8"))["overlaps"]
    assert (overlap["question"], overlap["name"]) == (
      "Who is 0?",
      str(held_out),
    )
    text_only = ("--similarity", "none")
    assert run(*arguments, "--overlap", "drop", *text_only) == 0
    assert {t.question for t in store.iter_traces(out)} == {"Who is 1?"}
    assert "1 trajectories left out" in capsys.readouterr().out
    keep = ("--overlap", "keep", "--replace", *text_only)
    assert run(*arguments, *keep) == 0
    assert store.read_manifest(out).num_traces == 4

  def test_goes_on_after_an_interruption(
    self, tmp_path, teacher, chats, monkeypatch, capsys
  ):
    out = tmp_path / "out"
    arguments = ("import", "--output", out, teacher)

    def interrupted(self, progress=None):
      self.flush()
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(store.BufferWriter, "finish", interrupted)
      assert run(*arguments) == 130
    assert run("verify", "--buffer", out) == 1
    assert "--resume" in capsys.readouterr().out
    assert run(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert run("import", "--output", out, chats, "--reward", 1, "--resume") == 2
    assert "with the files and the choice" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    assert store.read_manifest(out).num_traces == 4
    assert [t.trace_id for t in store.iter_traces(out)] == [0, 1, 2, 3]

  def test_two_files_of_one_name_have_other_trajectories(
    self, tmp_path, teacher
  ):
    (tmp_path / "more").mkdir()
    more = tmp_path / "more" / "teacher.jsonl"
    text = teacher.read_text(encoding="utf-8").replace("Who is", "Where is")
    more.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert run("import", "--output", out, teacher, more) == 0
    assert run("verify", "--buffer", out) == 0
    names = {t.trajectory_id for t in store.iter_traces(out)}
    assert names == {
      "teacher/teacher.jsonl:1",
      "teacher/teacher.jsonl:3",
      "1:teacher/teacher.jsonl:1",
      "1:teacher/teacher.jsonl:3",
    }

  @pytest.mark.parametrize(
    ("arguments", "error"),
    [
      (["missing.jsonl"], "no file of trajectories at missing.jsonl"),
      (["=missing.jsonl"], "a source is FILE or AGENT=FILE"),
      (["{chats}"], "no reward"),
      (["{teacher}", "--top_k", "0"], "top_k must be at least 1"),
      (["{teacher}", "--min_reward", "9"], "nothing is left"),
      (["{teacher}", "--held_out", "missing.csv"], "no file of questions"),
      (["{teacher}", "--format", "messages"], "messages must be a list"),
    ],
  )
  def test_cannot_be_done(
    self, tmp_path, teacher, chats, arguments, error, capsys
  ):
    filled = [a.format(teacher=teacher, chats=chats) for a in arguments]
    assert run("import", "--output", tmp_path / "out", *filled) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_question_that_is_no_utf8(tmp_path, teacher, capsys):
  assert run("import", "--output", tmp_path / "out", teacher) == 0
  for command in ("search", "inspect"):
    with pytest.raises(SystemExit) as ended:
      run(command, "--buffer", tmp_path / "out", "--question", "\udcff")
    assert ended.value.code == 2
    assert "--question: it must be UTF-8" in capsys.readouterr().err


class TestPlaces:
  @pytest.fixture
  def out(self, tmp_path, teacher):
    assert run("import", "--output", tmp_path / "out", teacher) == 0
    return tmp_path / "out"

  @pytest.mark.parametrize(
    ("within", "buffer"),
    [
      ("out", "."),
      ("out", "./"),
      ("out/index", ".."),
      ("", "out/"),
      ("", "./out"),
      ("", "out/index/.."),
      ("", "~/out"),
    ],
  )
  def test_a_buffer_by_any_path(self, out, within, buffer, monkeypatch):
    monkeypatch.chdir(out.parent / within)
    monkeypatch.setenv("HOME", str(out.parent))
    assert run("inspect", "--buffer", buffer) == 0
    assert (out.parent / "out.html").is_file()
    assert run("verify", "--buffer", buffer) == 0
    assert run("search", "--buffer", buffer, "--question", "Who is 0?") == 0

  def test_a_link_to_a_buffer(self, out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    assert run("inspect", "--buffer", tmp_path / "link") == 0
    assert (tmp_path / "link.html").is_file()

  def test_what_a_link_leads_to_is_replaced(self, out, tmp_path, teacher):
    (tmp_path / "link").symlink_to(out)
    arguments = ("import", "--output", tmp_path / "link", f"new={teacher}")
    assert run(*arguments) == 2
    assert run(*arguments, "--replace") == 0
    assert (tmp_path / "link").is_symlink()
    assert list(store.read_manifest(out).agents) == ["new"]

  def test_an_output_in_the_home_folder(self, tmp_path, teacher, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("import", "--output", "~/b", "x=~/teacher.jsonl") == 0
    assert (tmp_path / "b" / "manifest.json").is_file()
    assert not (tmp_path / "~").exists()

  @pytest.mark.parametrize("url", ["gs://b/run", "s3://b", "file:///tmp/b"])
  def test_a_url_is_refused(self, url, tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
      run("import", "--output", url, teacher)
    assert ended.value.code == 2
    assert "must be a path on this machine" in capsys.readouterr().err
    assert run("import", "--output", "out", f"x={url}") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.jsonl"]


CONFIG = "experiments/configs/quickstart.py"
OVERRIDES = (
  "--config.tasks=compute",
  "--config.tasks.compute.world.num_train=3",
  "--config.buffer.num_trajectories=2",
  "--config.buffer.top_k_trajectories=1",
)


class TestBuildFromAnEndpoint:
  @pytest.fixture
  def truths(self):
    config = flags.apply_overrides(flags.load_config(CONFIG), list(OVERRIDES))
    train = config.task("compute").questions().train
    return {query.question: query.ground_truth[0] for query in train}

  def build(self, out, url, *arguments):
    arguments = ("--model", "teacher", "--max_retries", 0, *arguments)
    return run(
      "build", "--config", CONFIG, "--output", out, "--endpoint", url,
      *arguments, *OVERRIDES,
    )  # fmt: skip

  def test_goes_on_where_it_was(self, tmp_path, truths, capsys):
    out = tmp_path / "out"
    failing = {next(iter(truths))}

    def reply(messages):
      question = messages[1]["content"]
      if question in failing:
        return 500
      if len(messages) == 2:
        return "<think> Add. </think><python> print(1 + 1) </python>"
      assert messages[-1]["content"] == "<result> 2 </result>"
      return rf"<answer> \boxed{{{truths[question]}}} </answer>"

    server = FakeServer(reply)
    with server.serve() as url:
      assert self.build(out, url) == 2
      error = capsys.readouterr().err
      assert "2 of 6 trajectories failed" in error
      assert "status 500" in error
      assert self.build(out, url) == 2
      assert "go on with it (--resume)" in capsys.readouterr().err
      failing.clear()
      # A line that the interruption cut off.
      with (tmp_path / "out.journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"query_id": ')
      server.requests.clear()
      assert self.build(out, url, "--resume") == 0
    # Two trajectories of two requests on the question that failed.
    assert len(server.requests) == 4
    traces = list(store.iter_traces(out))
    # The best of two on each of three questions, in two steps.
    assert len(traces) == 6
    assert {t.source for t in traces} == {"teacher"}
    assert {t.reward for t in traces} == {1.0}

  def test_the_reward_is_the_task_s(self, tmp_path, truths, capsys):
    def reply(messages):
      truth = truths[messages[1]["content"]]
      # The same number in another spelling: another text for the recipe.
      return rf"<answer> \boxed{{{truth}.0}} </answer>"

    with FakeServer(reply).serve() as url:
      setting = "--config.tasks.compute.reward="
      assert self.build(tmp_path / "recipe", url, f"{setting}recipe") == 2
      assert "6 trajectories by number or reward" in capsys.readouterr().err
      assert self.build(tmp_path / "math", url, f"{setting}math") == 0
    assert len(list(store.iter_traces(tmp_path / "math"))) == 3

  def test_an_endpoint_that_refuses(self, tmp_path, truths, capsys):
    with FakeServer(lambda _: 401).serve() as url:
      assert self.build(tmp_path / "out", url) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err

  def test_held_out_questions_are_not_asked(self, tmp_path, truths, capsys):
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(
      json.dumps({"question": next(iter(truths))}), encoding="utf-8"
    )
    server = FakeServer(lambda _: "<answer> no </answer>")
    leaks = ("--held_out", held_out, "--similarity", "none")
    with server.serve() as url:
      assert self.build(tmp_path / "out", url, *leaks) == 2
      assert "1 by text" in capsys.readouterr().err
      assert not server.requests
      self.build(tmp_path / "out", url, *leaks, "--overlap", "drop")
    assert len(server.requests) == 4
    # Nothing was rewarded.
    assert "nothing is left" in capsys.readouterr().err

  @pytest.mark.parametrize(
    ("arguments", "error"),
    [
      ((), "build needs the agent"),
      (("--endpoint", "http://127.0.0.1:1/v1"), "--endpoint needs --model"),
      (("--task", "web"), "--task must be one of multihop"),
    ],
  )
  def test_cannot_be_done(self, tmp_path, arguments, error, capsys):
    out = tmp_path / "out"
    assert run("build", "--config", CONFIG, "--output", out, *arguments) == 2
    assert error in capsys.readouterr().err


class TestBuildFromSolutions:
  OWN = (
    "--config.tasks=gsm8k",
    "--config.tasks.gsm8k.tools=python",
  )

  @pytest.fixture
  def arguments(self, tmp_path):
    rows = [
      {"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
      {"question": "Six by two?", "answer": "6/2 = <<6/2=3>>3\n#### 3"},
      {"question": "A wrong one?", "answer": "1 = <<1+1=1>>1\n#### 1"},
    ]
    files.write(tmp_path, "gsm8k/train.jsonl", rows)
    test = [{"question": "Else?", "answer": "#### 3"}]
    files.write(tmp_path, "gsm8k/test.jsonl", test)
    return (
      "build", "--config", CONFIG, "--solutions", *self.OWN,
      f"--config.tasks.gsm8k.path={tmp_path}",
      f"--config.tasks.gsm8k.data_dir={tmp_path}",
    )  # fmt: skip

  def test_steps_with_results(self, tmp_path, arguments, teacher, capsys):
    out = tmp_path / "out"
    assert run(*arguments, "--output", out) == 0
    assert (
      "2 of 3 training questions have a solution" in capsys.readouterr().out
    )
    traces = list(store.iter_traces(out))
    assert len(traces) == 4
    assert {t.source for t in traces} == {"solutions"}
    assert {t.reward for t in traces} == {1.0}
    assert {t.query_id for t in traces} == {"train-0", "train-1"}
    assert traces[2].step.endswith(
      "<python> print(6/2) </python><result> 3.0 </result>"
    )
    assert traces[3].history == (traces[2].step,)
    other, both = tmp_path / "other", tmp_path / "both"
    assert run("import", "--output", other, teacher) == 0
    assert run("merge", out, other, "--output", both) == 0
    assert set(store.read_manifest(both).agents) == {"solutions", "teacher"}

  def test_held_out_questions(self, tmp_path, arguments, capsys):
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(
      json.dumps({"question": "six by two"}), encoding="utf-8"
    )
    arguments += ("--held_out", held_out, "--similarity", "none")
    out = ("--output", tmp_path / "out")
    assert run(*arguments, *out) == 2
    assert "1 by text" in capsys.readouterr().err
    assert run(*arguments, *out, "--overlap", "drop") == 0
    assert store.read_manifest(tmp_path / "out").num_traces == 2

  def test_cannot_be_done(self, tmp_path, arguments, capsys):
    out = ("--output", tmp_path / "out")
    assert run(*arguments, *out, "--workdir", tmp_path) == 2
    assert "takes the place of an agent" in capsys.readouterr().err
    compute = "--config.tasks=compute"
    assert run("build", "--config", CONFIG, "--solutions", *out, compute) == 2
    assert "needs worked solutions" in capsys.readouterr().err


def test_build_from_the_agent_of_an_experiment(tmp_path, monkeypatch):
  """Interrupted after the first questions, and gone on with."""
  overrides = (
    *OVERRIDES,
    "--config.retrieval.min_reward=-2.0",
    "--config.rollout.max_response_tokens=64",
    "--config.rollout.max_step_tokens=16",
    "--config.rollout.max_tool_tokens=32",
    "--config.rollout.max_prompt_tokens=128",
  )
  config = flags.apply_overrides(flags.load_config(CONFIG), list(overrides))
  tokenizer = agents.train_byte_level_tokenizer(["some text"] * 20, 300)
  shape = dataclasses.replace(config.policy.random, vocab_size=300)
  for name in ("base", "off_policy"):
    path = tmp_path / "work" / "agents" / "compute" / name
    model = agents.random_model(shape)
    models.save_pretrained(model, path, tokenizer=tokenizer)
  monkeypatch.setattr(buffer_stage, "QUERIES_AT_A_TIME", 2)
  monkeypatch.setattr(commands.checks, "quick_checks", lambda config: None)

  def build(name, *arguments):
    return run(
      "build", "--config", CONFIG, "--workdir", tmp_path / "work",
      "--output", tmp_path / name, *overrides, *arguments,
    )  # fmt: skip

  assert build("whole") == 0
  rollout = RolloutEngine.rollout
  calls = []

  def interrupted(*args, **kwargs):
    if len(calls) == 1:
      raise KeyboardInterrupt
    calls.append(args)
    return rollout(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(RolloutEngine, "rollout", interrupted)
    assert build("parts") == 130
  assert build("parts") == 2
  assert build("parts", "--resume") == 0
  whole, parts = (
    list(store.iter_traces(tmp_path / name)) for name in ("whole", "parts")
  )
  assert len(whole) >= 3
  assert whole == parts


def test_merge(tmp_path, teacher, chats, capsys):
  one, two, out = (tmp_path / name for name in ("one", "two", "out"))
  assert run("import", "--output", one, teacher) == 0
  assert run("import", "--output", two, chats, "--reward", "1") == 0
  assert run("merge", one, two, "--output", out) == 0
  assert list(store.read_manifest(out).agents) == ["chats", "teacher"]
  assert run("merge", one, tmp_path / "none", "--output", out, "--replace") == 2
  assert "holds no Step-Trace Buffer" in capsys.readouterr().err


def test_search(tmp_path, teacher, capsys):
  out = tmp_path / "out"
  assert run("import", "--output", out, teacher) == 0
  capsys.readouterr()
  arguments = ("search", "--buffer", out, "--question", "Who is 1?")
  history = CALL.format("who 1", "A person 1.")
  assert run(*arguments, "--history", history, "--num_neighbors", 2) == 0
  first, *_ = rows = capsys.readouterr().out.splitlines()
  assert first.startswith("1. similarity 1.000, reward 0.5, teacher, step 1 of")
  assert "   → <answer> Person 1 </answer>" in rows
  assert sum(row[0].isdigit() for row in rows) == 2
  with pytest.raises(SystemExit) as ended:
    run(*arguments, "--num_neighbors", 0)
  assert ended.value.code == 2
  assert "num_neighbors" in capsys.readouterr().err


class TestInspect:
  def test_a_page_that_fetches_nothing(self, tmp_path, teacher, chats, capsys):
    out = tmp_path / "out"
    arguments = (teacher, chats, "--reward", 1)
    assert run("import", "--output", out, *arguments) == 0
    assert run(
      "inspect", "--buffer", out, "--question", "Who is 1?",
      "--history", CALL.format("who 1", "A person 1."),
    ) == 0  # fmt: skip
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert str(tmp_path / "out.html") in capsys.readouterr().out
    assert "5 step traces by 2 agents" in page
    for fetched in ("http://", "https://", "<script", "<link", "src="):
      assert fetched not in page
    # Two of three trajectories of the teacher call a tool once.
    row = page[page.index("<th>teacher</th>") :].partition("</tr>")[0]
    assert re.findall(r"<td>(.*?)</td>", row) == [
      "2", "4", "16", "0.750", "2", "2",
    ]  # fmt: skip
    # A dot a key, and the nearest neighbour of the history first.
    manifest = store.read_manifest(out)
    assert page.count('<circle class="dot') == manifest.num_keys
    neighbors = page[page.index('id="neighbors"') :]
    assert neighbors.index("Person 1 &lt;") < neighbors.index("Samples")

  def test_text_of_traces_is_no_markup(self, tmp_path, chats):
    record = json.loads(chats.read_text(encoding="utf-8"))
    record["messages"][0]["content"] = "<script>alert(1)</script>?"
    chats.write_text(json.dumps(record), encoding="utf-8")
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert run("import", "--output", out, chats, "--reward", 1) == 0
    assert run("inspect", "--buffer", out, "--output", page) == 0
    assert "<script" not in page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")

  def test_a_history_needs_its_question(self, tmp_path, capsys):
    assert run("inspect", "--buffer", tmp_path, "--history", "step") == 2
    assert "--question" in capsys.readouterr().err


def test_verify_names_the_change_and_the_remedy(tmp_path, teacher, capsys):
  out = tmp_path / "out"
  assert run("import", "--output", out, teacher) == 0
  with (out / "traces.parquet").open("ab") as file:
    file.write(b"x")
  assert run("verify", "--buffer", out) == 1
  printed = capsys.readouterr().out
  assert "traces.parquet" in printed
  assert f"import --replace --output {out}" in printed


@pytest.mark.parametrize(
  "command", ["build", "import", "inspect", "search", "merge", "verify"]
)
def test_help(command, capsys):
  with pytest.raises(SystemExit) as status:
    run(command, "--help")
  assert status.value.code == 0
  assert "--" in capsys.readouterr().out
