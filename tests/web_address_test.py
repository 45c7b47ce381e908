"""Addresses hold no secrets, and errors repeat none."""

import pytest

from rapo_jax.web_address import check_address, without_secrets

SECRET = "canary"


@pytest.mark.parametrize(
  "url",
  [
    "http://localhost",
    "https://node7:8000/retrieve",
    "http://[::1]:8000/v1",
    "http://127.0.0.1:9/a/b@c",
  ],
)
def test_an_address(url):
  check_address(url, "a server", "")
  assert without_secrets(url).startswith("http")


@pytest.mark.parametrize(
  "url",
  [
    "https://me:canary@host:8000",
    "https://canary@host",
    "https://me:can/canary@host",
    "https://me:@host",
    "http://host/retrieve?token=canary",
    "http://host?canary",
    "http://host/#canary",
    "http://me:canary@host:8000/?token=canary#canary",
    "me:canary@host:8000",
    "http://me:canary#1@host:8000",
    "http://me:canary?1@host:8000",
    "http://host?token=a@canary",
    "http://host#a@canary",
    "me:canary@http://host:8000",
    "ftp://me:canary@host",
    "http://me:canary@[::1",
    "http://me:canary@host:port",
    "http://me:canary@",
    "http:///x?canary",
    "",
  ],
)
def test_what_is_refused_is_not_repeated(url):
  with pytest.raises(ValueError, match="The URL of a server") as caught:
    check_address(url, "a server", "Set TOKEN.")
  assert SECRET not in str(caught.value)
