"""Texts that a data set publishes encrypted, so that no crawler reads them."""

from __future__ import annotations

import base64
import binascii
import hashlib

from rapo_jax import text_files
from rapo_jax.errors import InputError


def decrypted(text: str, canary: str) -> str:
  """BrowseComp's scheme: base64, XOR with SHA-256 of the canary, repeated.

  Raises:
    InputError: it is no base64, or the canary is another row's.
  """
  try:
    data = base64.b64decode(text, validate=True)
  except binascii.Error as error:
    raise InputError(f"no base64: {text[:40]!r}") from error
  key = hashlib.sha256(canary.encode()).digest()
  plain = bytes(a ^ key[i % len(key)] for i, a in enumerate(data))
  return text_files.decode(plain)
