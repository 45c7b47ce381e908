"""Several hosts that run one program: who leads, and how the others follow."""

from rapo_jax.hosts.led import (
  Doing,
  Follower,
  Leader,
  check_led,
  held,
  is_shared,
  leading,
  led,
)
from rapo_jax.hosts.link import JOIN_S, SILENCE_S, Link, Lost, Place, join
from rapo_jax.hosts.plain import decode, encode, travels
from rapo_jax.hosts.schedulers import Found, detect

__all__ = [
  "JOIN_S",
  "SILENCE_S",
  "Doing",
  "Follower",
  "Found",
  "Leader",
  "Link",
  "Lost",
  "Place",
  "check_led",
  "decode",
  "detect",
  "encode",
  "held",
  "is_shared",
  "join",
  "leading",
  "led",
  "travels",
]
