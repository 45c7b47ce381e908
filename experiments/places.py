"""Places that a user names: folders and files on this machine's disks.

A place on an object store is copied here to be read (`fetched`).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re

from experiments import object_store
from rapo_jax.errors import InputError

# One slash is enough: `gs:/bucket` is what a path makes of `gs://bucket`.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(text: str, name: str) -> str:
  """A place as it is meant: `~` and `~user` become home folders.

  Args:
    text: what the user wrote.
    name: of the option or field, for the message.

  Raises:
    InputError: it is empty, a URL, which is not read or written, or not UTF-8,
      which libraries do not open.
  """
  if not text:
    raise InputError(
      f"{name} must not be empty, as an unset variable of the shell is: write "
      "the path out, or . for this folder."
    )
  if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
    raise InputError(
      f"{name} must be a path in UTF-8, got {os.fsencode(text)!r}: rename what "
      "it names, or give a link to it."
    )
  if _SCHEME.match(text):
    raise InputError(
      f"{name} must be a path on this machine, got {text!r}: no URL can "
      "stand here. Copy it here, or mount it, and give its path."
    )
  expanded = os.path.expanduser(text)
  if text.startswith("~") and expanded == text:
    raise InputError(
      f"{name} begins with ~, and there is no such home folder, got {text!r}: "
      "write the path out, or ./~… for a folder of that name."
    )
  return expanded


def fetched(text: str, name: str) -> str:
  """A place to read, as `local`; of an object store, its copy here.

  Args:
    text: what the user wrote: a path, or gs://… or s3://….
    name: of the option or field, for the message.

  Raises:
    InputError: as `local`; or nothing lies there, or the store refuses.
  """
  if object_store.is_url(text):
    return str(object_store.fetched(text))
  return local(text, name)


def workdir_argument(text: str) -> pathlib.Path | str:
  """A folder to write on a command line: a path, or the URL of a store."""
  return text if object_store.is_url(text) else path_argument(text)


def text_argument(text: str) -> str:
  """A place on a command line, as text: it may be a name that is no path.

  Raises:
    argparse.ArgumentTypeError: it is a URL, or `~` of a user without a home.
  """
  try:
    return local(text, "a path")
  except InputError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def path_argument(text: str) -> pathlib.Path:
  """A place on a command line that is a path, for `type=` of argparse.

  `.` and `..` get the name of their folder, so that another can be made of it.
  """
  path = pathlib.Path(text_argument(text))
  return path.resolve() if path.name in ("", "..") else path


def file_argument(text: str) -> pathlib.Path:
  """A file to write on a command line.

  Raises:
    argparse.ArgumentTypeError: as `text_argument`; or a folder lies there.
  """
  path = path_argument(text)
  if path.is_dir():
    raise argparse.ArgumentTypeError(
      f"must be a file, and {path} is a folder: add the name of a file."
    )
  return path
