"""The hosts' part of a round, and where it ends weak scaling."""

import pytest

from experiments.planner import host_loop


def times(chip="v5p", **changes):
  """512 trajectories on 32 devices, which take 18 s, 11 of them decoding."""
  given = {
    "devices": 32,
    "device_seconds": {chip: 18.0},
    "decode_seconds": {chip: 11.0},
    "trajectories": 512,
    "loop_ms": 8.0,
    "retrieval_ms": 0.0,
    "leader_ms": 1.0,
  }
  return host_loop.host_times(**{**given, **changes})[chip]


def test_each_host_runs_the_loop_of_its_own_trajectories():
  host = times()
  # Eight hosts of four devices.
  assert host.loop_s == pytest.approx(64 * 0.008)
  assert host.leader_s == pytest.approx(512 * 0.001)
  assert host.retrieval_s == 0
  assert host.seconds == pytest.approx(1.024)
  # A host of GPUs has eight.
  assert times("h100").loop_s == pytest.approx(128 * 0.008)
  # Some host has one more.
  assert times(trajectories=513).loop_s == pytest.approx(65 * 0.008)


def test_retrieval_counts_where_it_is_longer_than_decoding():
  assert times(retrieval_ms=8 * 21).retrieval_s == 0
  host = times(retrieval_ms=8 * 25)
  assert host.retrieval_s == pytest.approx(512 * 0.025 - 11)
  assert host.seconds == pytest.approx(1.024 + host.retrieval_s)


@pytest.mark.parametrize(("leader_ms", "retrieval_ms"), [(1.0, 30), (7, 500)])
def test_the_numbers_of_devices_are_those_where_the_times_are(
  leader_ms, retrieval_ms
):
  def time(devices):
    return times(
      devices=devices,
      trajectories=512 * devices // 32,
      leader_ms=leader_ms,
      retrieval_ms=retrieval_ms,
    )

  host = time(32)
  others = 18 + host.loop_s + host.retrieval_s
  for devices, seconds in (
    (host.small_share_devices, others / 19),
    (host.half_devices, others),
  ):
    assert time(devices - 4).leader_s < seconds
    assert time(devices + 4).leader_s >= seconds
  # However many hosts there are, each has its part.
  assert time(3200).loop_s == host.loop_s
  assert time(3200).retrieval_s == host.retrieval_s


def test_a_host_that_takes_no_time_has_no_limit():
  host = times(loop_ms=0.0, leader_ms=0.0)
  assert host.seconds == 0
  assert host.small_share_devices is host.half_devices is None
  assert "no time" in host_loop.weak_scaling(host, "v5p")


def test_limits_are_in_devices_and_hosts():
  assert host_loop.weak_scaling(times(), "v5p") == (
    "With as many more trajectories as devices, host 0 takes 5% of a round to "
    "score and pack them at 61 v5p (16 hosts), and as long as all else at "
    "1,157 v5p (290 hosts): there weak scaling ends."
  )
