"""Config files, typed overrides and their errors.

A config file is a Python file whose docstring says what it reproduces and whose
`get_config()` returns a frozen dataclass, nested as deep as one likes. The
dataclasses hold names, types and defaults; an override on the command line is
read by the type of the field it names:

    config = load_config("experiments/configs/quickstart.py")
    config = apply_overrides(config, ["--config.train.learning_rate=3e-4"])

A name or a value that does not fit fails here, before anything runs, with the
nearest name or the expected type in the message.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import enum
import functools
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments import objects
from rapo_jax.discovery import KNOWN
from rapo_jax.errors import InputError

PREFIX = "--config."
_ROOT = pathlib.Path(__file__).resolve().parent
_PACKAGED = _ROOT / "configs"
_TRUE = ("true", "yes", "1")
_FALSE = ("false", "no", "0")

Config = TypeVar("Config")


class ConfigError(InputError):
  """A config file or an override that cannot be used as it stands."""


class _Mismatch(Exception):
  """A value that does not fit an annotation; turned into a ConfigError."""


def load_config(path: str | pathlib.Path) -> Any:
  """Runs a config file and returns what its `get_config()` returns.

  Args:
    path: Python file with a docstring and `get_config()`, or the name of a
      config in `experiments/configs`, such as `quickstart`.

  Returns:
    A frozen dataclass whose values all fit their annotations.

  Raises:
    ConfigError: the file is missing, cannot be read or fails; it has no
      docstring or no `get_config`; it returns anything but a frozen dataclass,
      or holds a value of a wrong type or one that has no name on disk.
  """
  path, config = load_value(path, "config", packaged_configs())
  check_config(path, config)
  return config


def load_value(
  path: str | pathlib.Path,
  kind: str,
  packaged: Mapping[str, pathlib.Path],
) -> tuple[pathlib.Path, Any]:
  """Runs a Python file and its function `get_<kind>()`.

  Args:
    path: the file, or a name in `packaged`.
    kind: what the file gives, such as "config".
    packaged: files that are found by their name alone.

  Returns:
    Path of the file, and what the function returns.

  Raises:
    ConfigError: the file is missing, cannot be read or fails, or it has no
      docstring or no such function.
  """
  path = _find_file(pathlib.Path(path).expanduser(), kind, packaged)
  module = _run_file(path)
  if not (module.__doc__ or "").strip():
    raise ConfigError(
      f"{path} has no docstring: a {kind} says what it reproduces, with which"
      " command and on which hardware. Add one at the top of the file."
    )
  function = getattr(module, f"get_{kind}", None)
  if not callable(function):
    raise ConfigError(
      f"{path} has no get_{kind}(): define a function of that name that"
      f" returns the {kind}."
    )
  return path, _call(path, function)


def check_config(path: pathlib.Path, config: Any) -> None:
  """Refuses a config that a command cannot override or write down.

  Args:
    path: of the file that gave it, for the message.
    config: what it gave.

  Raises:
    ConfigError: it is no frozen dataclass, or holds a value of a wrong type or
      one that has no name on disk.
  """
  if not _is_instance(config) or not type(config).__dataclass_params__.frozen:
    raise ConfigError(
      f"get_config() of {path} returned a {type(config).__name__}: return an"
      " instance of a frozen dataclass."
    )
  check_types(config)
  try:
    to_dict(config)
  except InputError as error:
    raise ConfigError(f"{path}: {error}") from error


def parse_arguments(
  parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  """Parses a command line; what begins with `--config.` comes back as it is.

  Args:
    parser: knows all other arguments.
    arguments: of the command line; None for those of the process.

  Returns:
    What the parser knows, and the overrides.

  Raises:
    ConfigError: there is another argument; names the nearest one.
  """
  known, rest = parser.parse_known_args(arguments)
  for argument in rest:
    name = argument.partition("=")[0]
    if name.startswith(PREFIX) or not name.startswith("--"):
      continue
    # Usage names all that the command has; argparse has no list of its own.
    known_flags = re.findall(r"--[a-z_]+", parser.format_usage())
    letters = {re.sub(r"[-_]", "", flag): flag for flag in known_flags}
    near = difflib.get_close_matches(re.sub(r"[-_]", "", name), letters, n=1)
    if near:
      raise ConfigError(
        f"unknown argument {name!r}. Did you mean {letters[near[0]]}?"
      )
  return known, rest


def packaged_configs() -> dict[str, pathlib.Path]:
  """The configs that a command finds by their name alone."""
  return {path.stem: path for path in sorted(_PACKAGED.glob("[!_]*.py"))}


def _find_file(
  path: pathlib.Path, kind: str, packaged: Mapping[str, pathlib.Path]
) -> pathlib.Path:
  """The file itself, or the packaged one of that name."""
  if path.is_file():
    return path
  if str(path).removesuffix(".py") in packaged:
    return packaged[path.stem]
  what = "is a folder" if path.is_dir() else "is not there"
  names = sorted(p.name for p in path.parent.glob("*.py"))
  near = difflib.get_close_matches(path.name, names, n=1)
  hint = f" Did you mean {path.parent / near[0]}?" if near else ""
  if not near:
    near = difflib.get_close_matches(path.stem, packaged, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
  raise ConfigError(
    f"a {kind} is a Python file, and {path} {what}.{hint} These are named"
    f" without a path: {', '.join(packaged)}."
  )


def _run_file(path: pathlib.Path) -> types.ModuleType:
  name = f"config_{path.stem}_{_digest(str(path.resolve()))[:8]}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{path} is not a Python file: a config ends in .py.")
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their own module up by name to resolve annotations.
  sys.modules[name] = module
  objects.register_config(module, path)
  folder = path.resolve().parent
  if str(folder) not in sys.path and _ROOT not in folder.parents:
    # As for a script: what lies beside the file can be imported.
    sys.path.insert(0, str(folder))
  _call(path, functools.partial(spec.loader.exec_module, module))
  return module


def _call(path: pathlib.Path, function: Callable[[], Any]) -> Any:
  """Runs the user's code; whatever it raises is the config file's fault."""
  try:
    return function()
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    if isinstance(error, SyntaxError):
      lines = [error.lineno]
    where = f"{path}, line {lines[-1]}" if lines and lines[-1] else str(path)
    # What our own configs refuse says all that is to be said.
    ours = isinstance(error, InputError) or type(error) is ValueError
    kind = "" if ours else f"{type(error).__name__}: "
    message = str(error).rstrip(".")
    raise ConfigError(
      f"{where}: {kind}{message}. Correct the config file."
    ) from error


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
  """Returns a copy of a config with some fields set from text.

  Args:
    config: frozen dataclass.
    overrides: arguments of the form `--config.<field>.<field>=<value>`, applied
      together: a rule over two fields is checked once both are set. Values are
      read by the field's annotation: `3` or `3e-4` for float, `true`/`false`
      for bool, `none` for an optional field, `1,2` or `(1, 2)` for a tuple, an
      enum's value or name for an enum.

  Returns:
    A config of the same type; the given one is left as it is.

  Raises:
    ConfigError: on an unknown field (naming the nearest one), on a value of a
      wrong type or that the dataclass refuses, or on an argument of another
      form.
  """
  waiting = [_split(config, override) for override in overrides]
  while waiting:
    # Which values there are comes first: others may set fields of these.
    choices = set(_choice_paths(config))
    depths = [name.count(".") for name, _ in waiting if name in choices]
    now = [
      (name, text)
      for name, text in waiting
      if not depths or (name in choices and name.count(".") == min(depths))
    ]
    waiting = [each for each in waiting if each not in now]
    changes: _Changes = {}
    for name, text in now:
      read = functools.partial(_from_text, text=text)
      _place(config, config, tuple(name.split(".")), (), read, changes)
    config = _rebuild(config, changes, ())
  return config


def with_setting(config: Config, path: str, value: Any) -> Config:
  """Returns a copy of a config with one field set.

  Args:
    config: frozen dataclass.
    path: of the field, as `--config.<path>` has it.
    value: of the field, as it is.

  Raises:
    ConfigError: there is no such field, or the dataclass refuses the value.
  """
  changes: _Changes = {}
  _place(config, config, tuple(path.split(".")), (), lambda *_: value, changes)
  rebuilt: Config = _rebuild(config, changes, ())
  return rebuilt


def _split(config: Any, override: str) -> tuple[str, str]:
  """Field and text of an override."""
  name, separator, text = override.removeprefix(PREFIX).partition("=")
  if not override.startswith(PREFIX) or not separator or not name:
    example = next(field_paths(config), "seed")
    if override.startswith(PREFIX) and name in field_paths(config):
      example = name
    raise ConfigError(
      f"cannot read {override!r}: write {PREFIX}<field>=<value>, for example"
      f" {PREFIX}{example}=…"
    )
  return name, text


def field_paths(config: Any) -> Iterator[str]:
  """Dotted paths of all fields that hold a value, depth first."""
  for name in _names(config):
    value = _value(config, name)
    if _is_node(value):
      yield from (f"{name}.{rest}" for rest in field_paths(value))
    else:
      yield name


def _choice_paths(config: Any) -> Iterator[str]:
  """Dotted paths of the fields whose value is chosen by a name, or names."""
  for name in _names(config):
    value = _value(config, name)
    if isinstance(value, _Group) or _known(config, name):
      yield name
    if _is_node(value):
      yield from (f"{name}.{rest}" for rest in _choice_paths(value))


def _known(node: Any, name: str) -> Mapping[str, Any]:
  """Values that can be chosen for a field by their names."""
  if isinstance(node, _Group):
    return {}
  fields = {field.name: field for field in dataclasses.fields(node)}
  return fields[name].metadata.get(KNOWN, {})


class _Group(dict[str, Any]):
  """Values of one field by their names."""


def _is_node(value: Any) -> bool:
  """Whether a value has fields that an override can set."""
  return isinstance(value, _Group) or _is_instance(value)


def _names(node: Any) -> list[str]:
  if isinstance(node, _Group):
    return list(node)
  return [field.name for field in dataclasses.fields(node)]


def _annotation(node: Any, name: str) -> Any:
  if isinstance(node, _Group):
    return type(node[name])
  return typing.get_type_hints(type(node))[name]


def _value(node: Any, name: str) -> Any:
  """A field's value; those with names as a group."""
  if isinstance(node, _Group):
    return node[name]
  value = getattr(node, name)
  if _are_named(_annotation(node, name)):
    return _Group({item.name: item for item in value})
  return value


def to_dict(config: Any, declared: Any = None) -> Any:
  """Plain JSON-ready form: dicts, lists, strings, numbers, booleans, None.

  Functions and objects that no annotation tells are named, see
  `experiments.objects`. A tuple of values with names becomes a dict by name.

  Args:
    config: a config, or a value in one.
    declared: annotation of the value; None for a config.

  Raises:
    InputError: a function or an object has no name to be found by.
  """
  if config is None or isinstance(config, str | bool | int | float):
    return config.value if isinstance(config, enum.Enum) else config
  if isinstance(config, enum.Enum):
    return to_dict(config.value)
  if isinstance(config, pathlib.PurePath):
    return str(config)
  if isinstance(config, np.generic):
    return to_dict(config.item(), Any)
  if isinstance(config, dict):
    return {str(key): to_dict(value, Any) for key, value in config.items()}
  if isinstance(config, list | tuple):
    if _are_named(declared):
      return {item.name: to_dict(item, Any) for item in config}
    return [to_dict(value, Any) for value in config]
  hints = _hints(type(config))
  if declared is None or type(config) in _options(declared):
    fields = dataclasses.fields(config)
    plain = {field.name: getattr(config, field.name) for field in fields}
  else:
    plain = objects.describe(config)
  return {
    name: to_dict(value, hints.get(name, Any)) for name, value in plain.items()
  }


def _hints(kind: type) -> dict[str, Any]:
  """Annotations of a dataclass's fields; none of another class."""
  if not dataclasses.is_dataclass(kind):
    return {}
  return typing.get_type_hints(kind)


def _are_named(annotation: Any) -> bool:
  """Whether a field holds a tuple of values that are found by their names."""
  if typing.get_origin(annotation) is not tuple:
    return False
  kinds = _options(typing.get_args(annotation)[0])
  return all(isinstance(kind, type) and _has_name(kind) for kind in kinds)


def _has_name(kind: type) -> bool:
  fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
  # An enum's members have a name too, and are written by their value.
  return not issubclass(kind, enum.Enum) and (
    isinstance(getattr(kind, "name", None), property | str)
    or any(field.name == "name" for field in fields)
  )


def config_hash(config: Any) -> str:
  """16 hexadecimal digits that change with any value of the config.

  Numbers that are equal, such as 1 and 1.0, give the same digits.
  """
  plain = json.dumps(to_dict(config))
  # Whole floats are read as the integers that they are equal to.
  equal = json.loads(plain, parse_float=_number)
  return _digest(json.dumps(equal, sort_keys=True))[:16]


def _number(text: str) -> int | float:
  value = float(text)
  return int(value) if value.is_integer() else value


def check_types(config: Any, path: str = "config") -> None:
  """Checks every value of a config against its annotation.

  Dataclasses do not check types, so that `learning_rate="3e-4"` in a config
  file would go unnoticed until deep in a run.

  Args:
    config: dataclass instance.
    path: dotted name of the config in error messages.

  Raises:
    ConfigError: naming the first field whose value does not fit.
  """
  hints = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value, name = getattr(config, field.name), f"{path}.{field.name}"
    try:
      _check(value, hints[field.name])
    except _Mismatch:
      raise ConfigError(
        f"{name} must be {_describe(hints[field.name])}, but the config file"
        f" gives {value!r} ({type(value).__name__})."
      ) from None
    if _is_instance(value):
      check_types(value, name)
    elif _are_named(hints[field.name]):
      for item in filter(_is_instance, value):
        check_types(item, f"{name}.{item.name}")


class _Value(NamedTuple):
  """A new value, as opposed to changes of fields inside it."""

  value: Any


_Changes = dict[str, "_Value | _Changes"]


def _place(
  root: Any,
  node: Any,
  names: tuple[str, ...],
  above: tuple[str, ...],
  read: Callable[[Any, str, str], Any],
  changes: _Changes,
) -> None:
  """Puts what is read for the field `names` below `node` into `changes`."""
  name, rest = names[0], names[1:]
  path = ".".join((*above, name))
  if name not in _names(node):
    raise ConfigError(_unknown(root, node, (*above, *names), above))
  earlier = changes.get(name)
  if isinstance(earlier, _Value if rest else dict):
    raise ConfigError(
      f"{PREFIX}{path} is given whole, and fields of it, too: leave one of "
      "them out."
    )
  if not rest:
    changes[name] = _Value(read(node, name, path))
    return
  child = _child(node, name, path)
  if not _is_node(child):
    raise ConfigError(
      f"{PREFIX}{'.'.join((*above, *names))}: {path} is"
      f" {_describe(_annotation(node, name))} and has no fields."
      f" Set it whole: {PREFIX}{path}=<value>."
    )
  below = changes.setdefault(name, {})
  assert isinstance(below, dict)
  _place(root, child, rest, (*above, name), read, below)


def _from_text(node: Any, name: str, path: str, *, text: str) -> Any:
  """The value of a field of `node` that a text gives."""
  annotation = _annotation(node, name)
  if _are_named(annotation):
    return _choose(node, name, path, text)
  if known := _known(node, name):
    return _choose_one(known, path, text, annotation)
  return _parse(path, text, annotation)


def _choose(node: Any, name: str, path: str, text: str) -> tuple[Any, ...]:
  """Values by their names: those that are there, and the known ones."""
  choices = {**_known(node, name), **_value(node, name)}
  wanted = _read_tuple(text, (str, ...))
  return tuple(_chosen(choices, word, path, text) for word in wanted)


def _choose_one(
  choices: Mapping[str, Any], path: str, text: str, annotation: Any
) -> Any:
  """A value by its name; none where the field may be None."""
  if types.NoneType in _options(annotation) and text.lower() == "none":
    return None
  return _chosen(choices, text.strip(), path, text)


def _chosen(choices: Mapping[str, Any], word: str, path: str, text: str) -> Any:
  if word in choices:
    return choices[word]
  near = difflib.get_close_matches(word, choices, n=1)
  hint = f" Did you mean {near[0]}?" if near else ""
  raise ConfigError(
    f"{PREFIX}{path} must be chosen by name, of {', '.join(choices)}, but got"
    f" {text!r}.{hint}"
  )


def _rebuild(node: Any, changes: _Changes, above: tuple[str, ...]) -> Any:
  """Copy of `node` with all changes made at once."""
  values = {}
  for name, change in changes.items():
    if isinstance(change, _Value):
      values[name] = change.value
    else:
      path = (*above, name)
      child = _child(node, name, ".".join(path))
      values[name] = _rebuild(child, change, path)
  if isinstance(node, _Group):
    return tuple({**node, **values}.values())
  try:
    return dataclasses.replace(node, **values)
  except ValueError as error:
    name, message = ".".join((PREFIX[:-1], *above)), str(error)
    field = message.partition(" ")[0]
    if field in {f.name for f in dataclasses.fields(node)}:
      raise ConfigError(f"{name}.{message}") from error
    raise ConfigError(f"{name}: {message}") from error


def _child(node: Any, name: str, path: str) -> Any:
  """A nested config; its default where it is None so far."""
  child = _value(node, name)
  if child is None:
    child = _default_child(path, _annotation(node, name))
  return child


def _default_child(path: str, annotation: Any) -> Any:
  """Default instance for an optional nested config that is None so far."""
  for option in _options(annotation):
    if isinstance(option, type) and dataclasses.is_dataclass(option):
      try:
        return option()
      except TypeError as error:
        raise ConfigError(
          f"{path} is none and {option.__name__} has fields without defaults"
          f" ({error}). Set {path} in the config file."
        ) from error
  return None


def _unknown(
  root: Any, node: Any, names: tuple[str, ...], above: tuple[str, ...]
) -> str:
  wanted = ".".join(names)
  known = list(field_paths(root))
  near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
  if not near:  # The right leaf under a wrong parent, or the other way round.
    leaves = {path.rpartition(".")[2]: path for path in reversed(known)}
    leaf = difflib.get_close_matches(names[-1], leaves, n=1, cutoff=0.75)
    near = [leaves[leaf[0]]] if leaf else []
  message = f"unknown config field {wanted!r}."
  if near:
    return f"{message} Did you mean {PREFIX}{near[0]}?"
  fields = ", ".join(_names(node))
  return f"{message} Fields of {'.'.join(('config', *above))}: {fields}."


def _parse(path: str, text: str, annotation: Any) -> Any:
  try:
    return _read(text, annotation)
  except _Mismatch:
    raise ConfigError(
      f"{PREFIX}{path} must be {_describe(annotation)}, but got {text!r}."
      f"{_near_choice(text, annotation)}"
    ) from None


def _near_choice(text: str, annotation: Any) -> str:
  """Names the choice that a text comes near: `bf16` means bfloat16."""
  for option in _options(annotation):
    if typing.get_origin(option) is tuple:
      entry = typing.get_args(option)[0]
      return _near_choice(text, entry) or " Separate its entries by commas."
    if typing.get_origin(option) is typing.Literal:
      choices = {str(c).lower(): str(c) for c in typing.get_args(option)}
      near_text = difflib.get_close_matches(
        text.strip("'\"").lower(), choices, n=1, cutoff=0.5
      )
      if near_text:
        return f" Did you mean {choices[near_text[0]]}?"
  return ""


def _options(annotation: Any) -> tuple[Any, ...]:
  """Members of a union, or the annotation itself."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def _read(text: str, annotation: Any) -> Any:
  """Value of type `annotation` that `text` stands for."""
  options = _options(annotation)
  if types.NoneType in options and text.lower() in ("none", "null"):
    return None
  # str last: it takes any text.
  for option in sorted(options, key=lambda option: option is str):
    try:
      return _read_one(text, option)
    except _Mismatch:
      continue
  raise _Mismatch


def _read_one(text: str, annotation: Any) -> Any:
  origin = typing.get_origin(annotation)
  if annotation is str:
    try:
      # What the locale did not read is in the argument's bytes.
      return os.fsencode(text).decode("utf-8")
    except UnicodeError:
      raise _Mismatch from None
  if annotation is bool:
    return _read_bool(text)
  if annotation in (int, float):
    return _read_number(text, annotation)
  if origin is typing.Literal:
    for value in typing.get_args(annotation):
      if text == str(value):
        return value
    raise _Mismatch
  if origin is tuple or annotation is tuple:
    return _read_tuple(text, typing.get_args(annotation))
  if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
    return _read_enum(text, annotation)
  if isinstance(annotation, type) and issubclass(annotation, pathlib.PurePath):
    return annotation(text)
  raise _Mismatch


def _read_bool(text: str) -> bool:
  if text.lower() not in _TRUE + _FALSE:
    raise _Mismatch
  return text.lower() in _TRUE


def _read_number(text: str, kind: type) -> int | float:
  try:
    value = kind(text)
  except ValueError:
    raise _Mismatch from None
  if isinstance(value, float) and math.isnan(value):
    raise _Mismatch  # No setting of ours means anything at NaN.
  return value


def _read_enum(text: str, kind: type[enum.Enum]) -> enum.Enum:
  for member in kind:
    if text == str(member.value) or text.lower() == member.name.lower():
      return member
  raise _Mismatch


def _read_tuple(text: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  """Reads `1,2`, `(1, 2)` or `[1, 2]`, quoted and nested where needed."""
  text = text.strip()
  try:
    values = ast.literal_eval(text) if text[:1] in ("(", "[") else None
  except (SyntaxError, ValueError):
    values = None  # Words without quotes: split at the commas below.
  if isinstance(values, list | tuple):
    items = [v if isinstance(v, list | tuple) else str(v) for v in values]
    items = [repr(v) if isinstance(v, list | tuple) else v for v in items]
  else:
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    items = [item.strip() for item in inner.split(",") if item.strip()]
  return tuple(
    _read(item, kind)
    for item, kind in _zip_types(items, arguments or (str, ...))
  )


def _zip_types(
  items: Sequence[Any], arguments: tuple[Any, ...]
) -> list[tuple[Any, Any]]:
  if len(arguments) == 2 and arguments[1] is Ellipsis:
    return [(item, arguments[0]) for item in items]
  if len(items) != len(arguments):
    raise _Mismatch
  return list(zip(items, arguments, strict=True))


def _check(value: Any, annotation: Any) -> None:
  """Raises _Mismatch unless a value fits an annotation."""
  options = _options(annotation)
  if len(options) > 1:
    if not any(_fits(value, option) for option in options):
      raise _Mismatch
    return
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation is Any:
    return
  if origin is typing.Literal:
    fits = value in arguments
  elif annotation is float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
  elif annotation is int:
    fits = isinstance(value, int) and not isinstance(value, bool)
  elif annotation is None:
    fits = value is None
  else:
    fits = isinstance(value, origin or annotation)
  if not fits:
    raise _Mismatch
  if origin is tuple:
    for item, kind in _zip_types(value, arguments):
      _check(item, kind)


def _fits(value: Any, annotation: Any) -> bool:
  try:
    _check(value, annotation)
  except _Mismatch:
    return False
  return True


def _describe(annotation: Any) -> str:
  """How an error names an annotation: `float or none`, `one of a, b`."""
  options = _options(annotation)
  if len(options) > 1:
    return " or ".join(_describe(option) for option in options)
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation in (None, types.NoneType):
    return "none"
  if annotation is bool:
    return "bool (true or false)"
  if origin is typing.Literal:
    return f"one of {', '.join(str(a) for a in arguments)}"
  if origin is tuple and arguments[-1] is Ellipsis:
    return f"a tuple of {_describe(arguments[0])}"
  if origin is tuple:
    return f"a tuple ({', '.join(_describe(a) for a in arguments)})"
  if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
    return f"one of {', '.join(str(m.value) for m in annotation)}"
  if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
    return f"{annotation.__name__} (set its fields one by one)"
  return getattr(annotation, "__name__", str(annotation))


def _is_instance(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
