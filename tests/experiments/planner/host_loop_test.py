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


def test_the_loop_is_added_to_a_round():
  host = times()
  assert host.loop_s == host.seconds == pytest.approx(1.024)
  assert host.retrieval_s == 0


def test_retrieval_counts_where_it_is_longer_than_decoding():
  assert times(retrieval_ms=21).retrieval_s == 0
  host = times(retrieval_ms=25)
  assert host.retrieval_s == pytest.approx(512 * 0.025 - 11)
  assert host.seconds == pytest.approx(1.024 + host.retrieval_s)


@pytest.mark.parametrize(("loop_ms", "retrieval_ms"), [(2.0, 3.0), (7, 50)])
def test_the_numbers_of_devices_are_those_where_the_times_are(
  loop_ms, retrieval_ms
):
  def time(devices):
    return times(
      devices=devices,
      trajectories=512 * devices / 32,
      loop_ms=loop_ms,
      retrieval_ms=retrieval_ms,
    )

  host = times(loop_ms=loop_ms, retrieval_ms=retrieval_ms)
  for devices, seconds in (
    (host.small_share_devices, lambda time: time.loop_s - 18 / 19),
    (host.half_devices, lambda time: time.loop_s - 18),
    (host.retrieval_devices + 1, lambda time: time.retrieval_s - 1e-12),
  ):
    assert seconds(time(devices - 2)) < 0
    assert seconds(time(devices)) >= 0


def test_a_host_that_takes_no_time_has_no_limit():
  host = times(loop_ms=0.0)
  assert host.seconds == 0
  assert host.small_share_devices is host.half_devices is None
  assert host.retrieval_devices is None
  assert "any number" in host_loop.weak_scaling(host, "v5p", 4)


def test_limits_are_in_devices_and_hosts():
  assert host_loop.weak_scaling(times(), "v5p", 4) == (
    "With as many more trajectories as devices, the host loop takes 5% of a "
    "round at 30 v5p (8 hosts), and as long as the devices at 563 v5p (141 "
    "hosts): there weak scaling ends."
  )
  said = host_loop.weak_scaling(times(retrieval_ms=200), "h100", 8)
  assert said.endswith(
    "Retrieval takes as long as decoding at 4 h100 (1 host)."
  )
