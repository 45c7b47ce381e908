"""Several hosts that run one program: who leads, and how the others follow."""

from rapo_jax.hosts.led import (
  Doing,
  Follower,
  Leader,
  PerHost,
  Post,
  check_led,
  count,
  gather,
  held,
  is_shared,
  leading,
  led,
  share_of,
)
from rapo_jax.hosts.link import (
  JOIN_S,
  SILENCE_S,
  Link,
  Lost,
  Place,
  await_file,
  join,
)
from rapo_jax.hosts.plain import decode, encode, travels
from rapo_jax.hosts.schedulers import Found, detect
from rapo_jax.hosts.waits import waited_s, waiting

__all__ = [
  "JOIN_S",
  "SILENCE_S",
  "Doing",
  "Follower",
  "Found",
  "Leader",
  "Link",
  "Lost",
  "PerHost",
  "Place",
  "Post",
  "await_file",
  "check_led",
  "count",
  "decode",
  "detect",
  "encode",
  "gather",
  "held",
  "is_shared",
  "join",
  "leading",
  "led",
  "share_of",
  "travels",
  "waited_s",
  "waiting",
]
