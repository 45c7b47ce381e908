"""Addresses of servers, which are stored and printed and so hold no secret."""

from __future__ import annotations

import re
import urllib.parse

from rapo_jax.errors import InputError

_PARAMETERS = re.compile(r"[?#]")


def check_address(url: str, name: str, remedy: str) -> None:
  """Refuses an address that is not one, or that holds credentials.

  An address goes into work folders, checkpoints, logs and messages. The error
  repeats nothing of what may be secret.

  Args:
    url: the address.
    name: what has this address, for the error.
    remedy: how credentials are given instead.

  Raises:
    InputError: it does not begin with http:// or https://, or has no host. Or
      it holds a user, a password, parameters or a fragment.
  """
  shown = without_secrets(url)
  try:
    parts = urllib.parse.urlsplit(url)
    # An invalid port fails here.
    host, _ = parts.hostname, parts.port
  except ValueError:
    parts, host = urllib.parse.urlsplit(""), None
  if parts.scheme not in ("http", "https") or not host:
    raise InputError(
      f"The URL of {name} begins with http:// or https:// and has a host, got"
      f" {shown!r}. Write it as http://HOST:PORT."
    )
  if "@" in parts.netloc or "?" in url or "#" in url:
    raise InputError(
      f"The URL of {name} must hold no user, password, parameters or fragment,"
      f" since it is stored and printed: {shown!r} with one was given. {remedy}"
    )


def without_secrets(url: str) -> str:
  """An address without user, password, parameters and fragment."""
  scheme, found, rest = url.partition("://")
  if not scheme.isalnum():
    scheme, found, rest = "", "", url
  place = _PARAMETERS.split(rest, maxsplit=1)[0]
  if "@" in rest[len(place) :]:
    # Of a password or of a parameter: nobody can tell which part is secret.
    return f"{scheme}{found}…"
  # A password may hold a slash that nobody escaped.
  return f"{scheme}{found}{place.rpartition('@')[2]}"
