"""The host's part of a round, and where it ends weak scaling."""

import pytest

from experiments.planner import host_loop


def times(**changes):
  """512 trajectories on 32 devices, which take 18 s, 11 of them decoding."""
  given = {
    "devices": 32,
    "device_seconds": {"v5p": 18.0},
    "decode_seconds": {"v5p": 11.0},
    "trajectories": 512,
    "loop_ms": 2.0,
    "retrieval_ms": 0.0,
  }
  return host_loop.host_times(**{**given, **changes})["v5p"]


def share(k, *, device=18.0, decode=11.0, loop_ms=2.0, retrieval_ms=0.0):
  """Of a round that the host takes, with k times the devices of `times`."""
  host = k * 0.512 * loop_ms + max(0.0, k * 0.512 * retrieval_ms - decode)
  return host / (host + device)


def test_the_loop_is_added_to_a_round():
  host = times()
  assert host.loop_s == host.seconds == pytest.approx(1.024)
  assert host.retrieval_s == 0


def test_retrieval_counts_where_it_is_longer_than_decoding():
  assert times(retrieval_ms=21).retrieval_s == 0
  host = times(retrieval_ms=25)
  assert host.retrieval_s == pytest.approx(512 * 0.025 - 11)
  assert host.seconds == pytest.approx(1.024 + host.retrieval_s)


@pytest.mark.parametrize(
  "ms",
  [
    {"loop_ms": 2.0},
    {"loop_ms": 2.0, "retrieval_ms": 3.0},
    # Retrieval is longer than decoding before the loop is as long as a round.
    {"loop_ms": 2.0, "retrieval_ms": 30.0},
    {"loop_ms": 0.0, "retrieval_ms": 30.0},
  ],
)
def test_the_numbers_of_devices_are_those_where_the_shares_are(ms):
  host = times(**ms)
  for devices, part in (
    (host.small_share_devices, host_loop.SMALL_SHARE),
    (host.half_devices, 0.5),
  ):
    assert share((devices - 1) / 32, **ms) < part
    assert share(devices / 32, **ms) >= part - 1e-12


def test_a_host_that_takes_no_time_has_no_limit():
  host = times(loop_ms=0.0)
  assert host.seconds == 0
  assert host.small_share_devices is host.half_devices is None
  assert "any number" in host_loop.weak_scaling(host, "v5p", 4)


def test_limits_are_in_devices_and_hosts():
  assert host_loop.weak_scaling(times(), "v5p", 4) == (
    "With as many more trajectories as devices, the host takes 5% of a round "
    "at 30 v5p (8 hosts), and as long as the devices at 563 v5p (141 hosts): "
    "there weak scaling ends"
  )
