"""Tests of config loading and overrides."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import pathlib
import textwrap
from typing import Literal

import pytest
from absl.testing import parameterized

from experiments import flags
from experiments.config import ExperimentConfig


class Reduction(enum.Enum):
  SEQUENCE = "sequence"
  TOKEN = "token"


@dataclasses.dataclass(frozen=True)
class Train:
  learning_rate: float = 5e-4
  num_updates: int = 20
  betas: tuple[float, float] = (0.9, 0.999)
  reduction: Reduction = Reduction.SEQUENCE
  clip_ratio: float | None = None
  dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class Logging:
  project: str = "rapo"
  tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class Sample:
  train: Train = dataclasses.field(default_factory=Train)
  logging: Logging | None = None
  seeds: tuple[int, ...] = (0, 1)
  families: tuple[str, ...] = ("multihop",)
  pairs: tuple[tuple[str, int], ...] = ()
  name: str = "quickstart"
  data_path: pathlib.Path = pathlib.Path("data")


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two fields with a rule over both."""

  total: int = 16
  part: int = 8

  def __post_init__(self) -> None:
    if not 0 <= self.part <= self.total:
      raise ValueError(f"part must not exceed total, got {self.part}.")


@dataclasses.dataclass(frozen=True)
class Paired:
  pair: Pair = Pair()


class OverrideTest(parameterized.TestCase):
  def test_a_rule_over_two_fields_is_checked_once_both_are_set(self):
    overrides = ["--config.pair.total=4", "--config.pair.part=2"]
    for order in (overrides, overrides[::-1]):
      config = flags.apply_overrides(Paired(), order)
      self.assertEqual(config.pair, Pair(4, 2))

  def test_what_a_dataclass_refuses_names_it(self):
    with self.assertRaisesRegex(
      flags.ConfigError, r"--config\.pair\.part must not exceed total, got 8"
    ):
      flags.apply_overrides(Paired(), ["--config.pair.total=4"])

  @parameterized.parameters(
    ("train.learning_rate=3e-4", lambda c: c.train.learning_rate, 3e-4),
    ("train.learning_rate=1", lambda c: c.train.learning_rate, 1.0),
    ("train.num_updates=1_000", lambda c: c.train.num_updates, 1000),
    ("train.clip_ratio=3", lambda c: c.train.clip_ratio, 3.0),
    ("train.clip_ratio=none", lambda c: c.train.clip_ratio, None),
    ("train.betas=0.8,0.9", lambda c: c.train.betas, (0.8, 0.9)),
    ("train.reduction=token", lambda c: c.train.reduction, Reduction.TOKEN),
    ("train.reduction=TOKEN", lambda c: c.train.reduction, Reduction.TOKEN),
    ("train.dtype=bfloat16", lambda c: c.train.dtype, "bfloat16"),
    ("logging.tensorboard=false", lambda c: c.logging.tensorboard, False),
    ("seeds=3,4,5", lambda c: c.seeds, (3, 4, 5)),
    ("seeds=(7,)", lambda c: c.seeds, (7,)),
    ("seeds=()", lambda c: c.seeds, ()),
    ("families=web,compute", lambda c: c.families, ("web", "compute")),
    ("families=['a,b', \"c\"]", lambda c: c.families, ("a,b", "c")),
    ("pairs=(('a', 1), ('b', 2))", lambda c: c.pairs, (("a", 1), ("b", 2))),
    ("name=a=b, c", lambda c: c.name, "a=b, c"),
    ("name=none", lambda c: c.name, "none"),
    ("data_path=/x/y", lambda c: c.data_path, pathlib.Path("/x/y")),
  )
  def test_reads_a_value_by_the_field_s_type(self, override, read, expected):
    config = flags.apply_overrides(Sample(), [f"--config.{override}"])
    value = read(config)
    self.assertEqual(value, expected)
    self.assertIs(type(value), type(expected))
    flags.check_types(config)

  def test_later_overrides_win_and_the_config_is_left_alone(self):
    config = Sample()
    changed = flags.apply_overrides(
      config, ["--config.name=a", "--config.name=b"]
    )
    self.assertEqual((config.name, changed.name), ("quickstart", "b"))

  @parameterized.parameters(
    # A typing error, a right leaf under a wrong parent, a missing parent.
    ("train.learning_rat=1", "--config.train.learning_rate"),
    ("trian.learning_rate=1", "--config.train.learning_rate"),
    ("optimizer.learning_rate=1", "--config.train.learning_rate"),
    ("num_updates=1", "--config.train.num_updates"),
    ("seed=1", "--config.seeds"),
  )
  def test_unknown_name_names_the_nearest(self, override, nearest):
    with pytest.raises(flags.ConfigError, match="Did you mean") as error:
      flags.apply_overrides(Sample(), [f"--config.{override}"])
    self.assertIn(f"Did you mean {nearest}?", str(error.value))

  def test_unknown_name_with_nothing_near_lists_the_fields(self):
    with pytest.raises(flags.ConfigError) as error:
      flags.apply_overrides(Sample(), ["--config.train.zzz=1"])
    self.assertIn("unknown config field 'train.zzz'", str(error.value))
    self.assertIn(
      "Fields of config.train: learning_rate, num_updates", str(error.value)
    )

  @parameterized.parameters(
    ("train.num_updates=2.5", "must be int, but got '2.5'"),
    ("train.num_updates=1e3", "must be int, but got '1e3'"),
    ("train.num_updates=none", "must be int, but got 'none'"),
    ("train.learning_rate=fast", "must be float, but got 'fast'"),
    ("train.learning_rate=nan", "must be float, but got 'nan'"),
    ("train.clip_ratio=x", "must be float or none, but got 'x'"),
    ("train.betas=1,2,3", "must be a tuple (float, float)"),
    ("train.reduction=mean", "must be one of sequence, token, but got 'mean'"),
    ("train.dtype=fp8", "must be one of float32, bfloat16, but got 'fp8'"),
    (
      "train.dtype=bf16",
      "must be one of float32, bfloat16, but got 'bf16'. Did you mean bfloat16",
    ),
    (
      "seeds=0-4",
      "must be a tuple of int, but got '0-4'. Separate its entries",
    ),
    ("logging.tensorboard=2", "must be bool (true or false), but got '2'"),
    ("seeds=1,b", "must be a tuple of int, but got '1,b'"),
    ("train=x", "must be Train (set its fields one by one), but got 'x'"),
  )
  def test_wrong_type_states_field_type_and_value(self, override, message):
    with pytest.raises(flags.ConfigError) as error:
      flags.apply_overrides(Sample(), [f"--config.{override}"])
    self.assertIn(
      f"--config.{override.partition('=')[0]} {message}", str(error.value)
    )

  @parameterized.parameters(
    "--config.name", "--confg.name=1", "name=1", "--config.=1"
  )
  def test_another_form_says_what_to_write(self, argument):
    with pytest.raises(flags.ConfigError, match="write --config"):
      flags.apply_overrides(Sample(), [argument])

  def test_a_field_of_a_plain_value_is_refused(self):
    with pytest.raises(
      flags.ConfigError, match=r"has no fields\. Set it whole"
    ):
      flags.apply_overrides(Sample(), ["--config.name.first=x"])


class DictTest(parameterized.TestCase):
  def test_to_dict_is_plain_json(self):
    config = Sample(logging=Logging())
    content = flags.to_dict(config)
    self.assertEqual(json.loads(json.dumps(content)), content)
    self.assertEqual(content["train"]["reduction"], "sequence")
    self.assertEqual(content["data_path"], "data")
    self.assertEqual(content["train"]["betas"], [0.9, 0.999])

  def test_hash_changes_with_any_value_and_with_nothing_else(self):
    self.assertEqual(flags.config_hash(Sample()), flags.config_hash(Sample()))
    changed = flags.apply_overrides(
      Sample(), ["--config.train.learning_rate=1"]
    )
    self.assertNotEqual(flags.config_hash(Sample()), flags.config_hash(changed))
    self.assertLen(flags.config_hash(Sample()), 16)

  def test_equal_numbers_have_one_hash(self):
    one, other = (
      dataclasses.replace(Sample(), train=Train(learning_rate=rate))
      for rate in (1, 1.0)
    )
    self.assertEqual(flags.config_hash(one), flags.config_hash(other))

  def test_field_paths(self):
    paths = list(flags.field_paths(Sample()))
    self.assertIn("train.learning_rate", paths)
    self.assertIn("logging", paths)

  @parameterized.parameters(
    (Train(learning_rate=1), None),
    (Train(learning_rate="1"), "config.learning_rate must be float"),
    (Train(num_updates=True), "config.num_updates must be int"),
    (Train(betas=(1.0,)), "config.betas must be a tuple (float, float)"),
    (Train(clip_ratio="x"), "config.clip_ratio must be float or none"),
    (Sample(train=Train(num_updates=1.5)), "config.train.num_updates must be"),
    (Sample(seeds=[1]), "config.seeds must be a tuple of int"),
  )
  def test_check_types(self, config, message):
    if message is None:
      flags.check_types(config)
      return
    with pytest.raises(flags.ConfigError) as error:
      flags.check_types(config)
    self.assertIn(message, str(error.value))


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
  path.write_text(textwrap.dedent(text), encoding="utf-8")
  return path


_CONFIG = '''
  """A sample. Command: none. Hardware: none."""
  from __future__ import annotations
  import dataclasses

  @dataclasses.dataclass(frozen=True)
  class Inner:
    depth: int = 2

  @dataclasses.dataclass(frozen=True)
  class Config:
    inner: Inner = dataclasses.field(default_factory=Inner)
    rate: float = 1.0

  def get_config():
    return Config(%s)
'''


def test_load_config_then_override(tmp_path):
  path = _write(tmp_path / "sample.py", _CONFIG % "rate=2")
  config = flags.load_config(path)
  assert config.rate == 2
  config = flags.apply_overrides(config, ["--config.inner.depth=5"])
  assert config.inner.depth == 5


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config():\n  return 1\n", "has no docstring"),
    ('"""Doc."""\n', r"has no get_config\(\)"),
    ('"""Doc."""\ndef get_config():\n  return {}\n', "returned a dict"),
    ('"""Doc."""\ndef get_config(:\n', r"sample\.py, line 2: SyntaxError: "),
    ('"""Doc."""\nimport no_such', "line 2: ModuleNotFoundError: No module"),
    ('"""Doc."""\n\nx = 1 / 0\n', "line 3: ZeroDivisionError: division"),
    ('"""Doc."""\nraise SystemExit(3)\n', "line 2: SystemExit: 3"),
    ('"""Doc."""\n\0', "sample.py: .*null bytes"),
    (
      '"""Doc."""\nfrom experiments.config import TrainConfig\n\n'
      'def get_config():\n  return TrainConfig(stop_mismatch="0.1")\n',
      r"line 5: stop_mismatch must be a number, got '0.1' \(str\): .* quotes\."
      " Correct",
    ),
    (
      '"""Doc."""\ndef get_config():\n  return get_config.x\n',
      "line 3: AttributeError: .* Correct the config file",
    ),
    (_CONFIG % "rate='x'", "config.rate must be float.*gives 'x'"),
  ],
)
def test_load_config_errors(tmp_path, text, message):
  path = _write(tmp_path / "sample.py", text)
  with pytest.raises(flags.ConfigError, match=message):
    flags.load_config(path)


def test_load_config_of_a_file_that_is_no_text(tmp_path):
  path = tmp_path / "sample.py"
  path.write_bytes(b"\x93NUMPY\xff\xfe")
  with pytest.raises(flags.ConfigError, match=r"sample\.py.*SyntaxError"):
    flags.load_config(path)


def test_load_config_of_a_folder_says_so(tmp_path):
  with pytest.raises(flags.ConfigError, match="is a folder"):
    flags.load_config(tmp_path)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py"])
def test_a_packaged_config_is_found_from_any_folder(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert flags.load_config(name).name == "quickstart"


def test_a_file_goes_before_a_packaged_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _write(tmp_path / "quickstart.py", _CONFIG % "rate=3")
  assert flags.load_config("quickstart.py").rate == 3


def test_an_unknown_name_lists_the_packaged_configs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(flags.ConfigError) as error:
    flags.load_config("quickstrat")
  assert "Did you mean quickstart?" in str(error.value)
  names = ", ".join(sorted(flags.packaged_configs()))
  assert f"are named without a path: {names}." in str(error.value)


@pytest.mark.parametrize(
  ("argument", "nearest"),
  [
    ("--dry-run", "--dry_run"),
    ("--dryrun", "--dry_run"),
    ("--stages=all", "--stage"),
    ("--work-dir=x", "--workdir"),
  ],
)
def test_another_spelling_of_an_argument_names_it(argument, nearest):
  parser = argparse.ArgumentParser(allow_abbrev=False)
  for name in ("--dry_run", "--stage", "--workdir"):
    parser.add_argument(name)
  with pytest.raises(flags.ConfigError) as error:
    flags.parse_arguments(parser, [argument])
  assert f"Did you mean {nearest}?" in str(error.value)


def test_overrides_come_back_as_they_are():
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--stage")
  overrides = ["--config.stage=1", "--confg.name=1", "5"]
  known, rest = flags.parse_arguments(parser, ["--stage", "all", *overrides])
  assert (known.stage, rest) == ("all", overrides)


def test_load_config_of_a_missing_file_names_the_nearest(tmp_path):
  _write(tmp_path / "quickstart.py", '"""Doc."""')
  with pytest.raises(flags.ConfigError, match=r"Did you mean .*quickstart\.py"):
    flags.load_config(tmp_path / "quickstrat.py")


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_is_not_set_whole_and_in_part(order):
  overrides = ["--config.policy.lora=none", "--config.policy.lora.rank=8"]
  with pytest.raises(flags.ConfigError, match=r"policy\.lora is given whole"):
    flags.apply_overrides(ExperimentConfig("test"), overrides[::order])
  overrides = [f"--config.policy.lora.rank={rank}" for rank in (4, 8)]
  config = flags.apply_overrides(ExperimentConfig("test"), overrides)
  assert config.policy.lora.rank == 8
