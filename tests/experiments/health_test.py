"""Which rows of metrics are alerts, which stop, and after how many updates."""

import math

import pytest

from experiments import health
from experiments.health import HealthConfig, Monitor
from rapo_jax.rollout import NonFiniteRollout
from rapo_jax.tools import ToolStatus

_FINE = {
  "reward/mean": 0.3,
  "reward/min": -1.0,
  "reward/max": 1.0,
  "reward/accuracy": 0.4,
  "reward/format_whole": 0.9,
  "groups/live_fraction": 0.5,
  "rollout/retrievals": 3.0,
  "rollout/retrievals_missed": 1.0,
  "rollout/retrievals_failed": 0.0,
  "rollout/retrievals_without_room": 0.0,
  "rollout/entropy": 0.8,
  "rollout/finished_length": 0.1,
  "rollout/finished_step_limit": 0.1,
  "rollout/repetitive_fraction": 0.0,
  "clip_fraction_low": 0.01,
  "clip_fraction_high": 0.02,
  "gradient_norm": 0.4,
}
_DEAD = {"groups/live_fraction": 0.0}
_SAME = {**_DEAD, "reward/mean": 0.0, "reward/min": 0.0, "reward/max": 0.0}
_MUTE = {"rollout/retrievals": 0.0, "rollout/retrievals_missed": 0.0}


def _tool(name="python", **counts):
  numbers = dict.fromkeys(map(str, ToolStatus), 0.0) | counts
  return {f"tools/{name}/{status}": n for status, n in numbers.items()}


def _kinds(monitor, update, **changes):
  row = _FINE | {name.replace("__", "/"): v for name, v in changes.items()}
  return {alert.kind for alert in monitor.look(update, row)}


def _after(rows, config=None, retrieves=True):
  """Alerts of the last of some rows, the first of which is update 1."""
  monitor = Monitor(config, retrieves=retrieves)
  alerts = []
  for update, changes in enumerate(rows, 1):
    alerts = monitor.look(update, _FINE | changes)
  return {alert.kind: alert for alert in alerts}


def test_a_sound_run_is_left_alone():
  assert _after([{}] * 50) == {}


@pytest.mark.parametrize(
  ("changes", "kind", "words"),
  [
    (_DEAD, "no_signal", "no group has rewards that differ"),
    (_SAME, "same_reward", "every reward of the update is 0"),
    (
      {"reward/accuracy": 0.0, "reward/format_whole": 0.1, "score/ok": 1.0}
      | {"score/think_unpaired": 9.0},
      "broken_format",
      "90 % of the trajectories break the format, most often as think_unpaired",
    ),
    (_MUTE, "no_retrieval", "no retrieval was tried"),
    ({"rollout/retrievals": 0.0}, "no_hit", "none of 1 retrievals"),
    ({"rollout/finished_length": 0.9}, "cut_off", "100 % of the trajectories"),
    ({"rollout/repetitive_fraction": 0.9}, "repetition", "90 %"),
    ({"clip_fraction_high": 0.6}, "clipping", "61 % of the tokens"),
  ],
)
def test_a_lasting_sign_warns_with_its_figures(changes, kind, words):
  assert kind not in _after([changes] * 2)
  alert = _after([{}, changes, changes, changes])[kind]
  assert words in alert.text
  assert (alert.first, alert.last) == (2, 4)
  assert not alert.stops


def test_one_sound_update_ends_the_stretch():
  assert _after([_DEAD, _DEAD, {}, _DEAD, _DEAD]) == {}


def test_no_signal_stops_after_its_updates_and_not_before():
  assert not _after([_DEAD] * 9)["no_signal"].stops
  assert _after([_DEAD] * 10)["no_signal"].stops
  lenient = HealthConfig(no_signal="warn")
  assert not _after([_DEAD] * 50, lenient)["no_signal"].stops
  assert "no_signal" not in _after([_DEAD] * 50, HealthConfig(no_signal="off"))
  early = HealthConfig(same_reward="stop", stop_updates=2)
  assert _after([_SAME] * 2, early)["same_reward"].stops


def test_a_policy_that_is_always_right_is_never_stopped():
  solved = _DEAD | {"reward/accuracy": 1.0}
  alert = _after([solved] * 50)["no_signal"]
  assert not alert.stops
  assert "too easy" in alert.text


def test_what_a_method_without_retrieval_does_not_retrieve_is_fine():
  assert _after([_MUTE] * 9, retrieves=False) == {}


@pytest.mark.parametrize(
  ("counts", "kind", "stops"),
  [
    ({"failed": 8.0}, "broken_tool", True),
    ({"timeout": 8.0}, "broken_tool", True),
    ({"late": 8.0}, "broken_tool", True),
    ({"timeout": 4.0, "refused": 3.0, "failed": 1.0}, "broken_tool", True),
    ({"error": 8.0}, "erring_tool", False),
    ({"error": 32.0}, "erring_tool", True),
    ({"error": 20.0, "timeout": 12.0}, "erring_tool", True),
  ],
)
def test_a_tool_of_which_no_call_ends_well(counts, kind, stops):
  alerts = _after([{}, _tool(**counts)])
  assert alerts.keys() == {kind}
  assert alerts[kind].stops == stops
  assert alerts[kind].tool == "python"
  assert alerts[kind].first == 2


@pytest.mark.parametrize("counts", [{}, {"timeout": 7.0}, {"error": 7.0}])
def test_few_calls_prove_nothing(counts):
  assert _after([_tool(**counts)]) == {}


@pytest.mark.parametrize(
  ("counts", "kind"),
  [({"timeout": 3.0}, "broken_tool"), ({"error": 3.0}, "erring_tool")],
)
def test_few_calls_an_update_prove_something_together(counts, kind):
  assert _after([_tool(**counts)] * 2) == {}
  assert _after([_tool(**counts)] * 3).keys() == {kind}
  assert _after([_tool(**counts)] * 12)[kind].stops
  assert _after([_tool(**counts)] * 2 + [_tool(ok=1.0)]) == {}


def test_calls_that_err_are_counted_over_updates_until_one_ends_well():
  bad = _tool(error=16.0)
  assert not _after([bad])["erring_tool"].stops
  assert _after([bad, bad])["erring_tool"].stops
  assert not _after([bad, _tool(ok=1.0), bad])["erring_tool"].stops


def test_an_entropy_far_below_the_first_one():
  fallen = {"rollout/entropy": 0.03}  # 0.8 * 0.05 = 0.04
  assert "low_entropy" in _after([{}, fallen, fallen, fallen])
  assert _after([{}, *[{"rollout/entropy": 0.05}] * 5]) == {}


def test_a_gradient_far_above_the_usual_one_at_once():
  rows = [{}] * 6 + [{"gradient_norm": 10.0}]
  alert = _after(rows)["gradient_spike"]
  assert "10, 25 times the median" in alert.text
  assert "gradient_spike" not in _after([*rows, {}])
  # Updates without a signal have norm 0, which is nothing to compare with.
  assert _after([{"gradient_norm": 0.0}] * 20 + [{}]) == {}


def test_skipped_minibatches_warn_at_once_and_stop_when_they_last():
  skipped = {"update/skipped": 1.0, "update/minibatches": 2.0}
  first = _after([{}, skipped])["not_finite"]
  assert "1 of 2 minibatches" in first.text
  assert first.show
  assert not first.stops
  rows = [skipped, skipped, {}, skipped, skipped]
  assert not _after(rows)["not_finite"].stops
  assert _after([*rows, skipped])["not_finite"].stops
  warn = HealthConfig(not_finite="warn")
  assert not _after([skipped] * 30, warn)["not_finite"].stops


def test_tool_calls_that_end_well_less_often_than_before():
  good = {"rollout/tool_calls": 10.0, "rollout/tool_failures": 1.0}
  bad = {"rollout/tool_calls": 10.0, "rollout/tool_failures": 6.0}
  few = {"rollout/tool_calls": 2.0, "rollout/tool_failures": 2.0}
  alert = _after([good, bad, bad, bad])["fewer_valid_calls"]
  assert "40 % of the tool calls end well, and it was 90 %" in alert.text
  assert _after([good, bad, bad, good]) == {}
  assert _after([good, few, few, few]) == {}


def test_right_answers_that_grow_unlikely():
  likely = {"rollout/right_log_prob": -0.4}
  unlikely = {"rollout/right_log_prob": -1.5}
  alert = _after([likely, unlikely, unlikely, unlikely])["fading_right"]
  assert "-1.50 nats a token, and it was -0.40" in alert.text
  # Updates without a right answer say nothing.
  assert _after([likely, {}, {}, {}]) == {}


def test_an_alert_may_ask_for_a_checkpoint():
  low = {"rollout/entropy": 0.01}
  save = HealthConfig(low_entropy="save", warn_updates=1)
  monitor = Monitor(save)
  asked = [
    [alert.saves for alert in monitor.look(number, _FINE | changes)]
    for number, changes in enumerate([{}, low, low], 1)
  ]
  # When it begins, and not again each update.
  assert asked == [[], [True], [False]]


def test_rows_of_an_older_run_lack_figures_and_cost_nothing():
  monitor = Monitor(retrieves=True)
  for update in range(1, 30):
    assert monitor.look(update, {"loss": 0.1}) == []
  assert _kinds(monitor, 30, reward__format_whole=0.0) == set()


def test_figures_that_are_not_numbers_are_no_sign():
  assert _after([dict.fromkeys(_FINE, math.nan)] * 20) == {}


def test_a_terminal_hears_of_it_once_then_every_twenty_updates():
  monitor = Monitor(HealthConfig(no_signal="warn"))
  told = [
    update
    for update in range(1, 50)
    for alert in monitor.look(update, _FINE | _DEAD)
    if alert.show
  ]
  assert told == [3, 23, 43]
  monitor.look(50, _FINE)
  again = [
    u for u in (51, 52, 53) for a in monitor.look(u, _FINE | _DEAD) if a.show
  ]
  assert again == [53]


def test_a_resumed_monitor_goes_on_where_the_rows_end():
  rows = [{"update": u} | _FINE | _DEAD for u in range(9)]
  monitor = Monitor().replay(rows)
  assert monitor.look(9, _FINE | _DEAD)[0].first == 1
  assert monitor.look(10, _FINE | _DEAD)[0].stops


def test_looking_twice_counts_once():
  monitor = Monitor()
  row = _FINE | _tool(error=20.0)
  assert monitor.look(1, row) is monitor.look(1, row)
  assert not monitor.look(1, row)[0].stops


def test_metrics_count_the_updates_in_a_row():
  monitor = Monitor()
  monitor.look(1, _FINE | _DEAD)
  assert monitor.metrics()["health/no_signal"] == 1
  assert monitor.metrics()["health/warnings"] == 0
  for update in (2, 3):
    monitor.look(update, _FINE | _DEAD)
  assert monitor.metrics()["health/no_signal"] == 3
  assert monitor.metrics()["health/warnings"] == 1
  assert monitor.metrics()["health/clipping"] == 0


def test_a_report_lists_each_stretch_once():
  rows = [{"update": 0, "eval/accuracy": 0.0}]
  rows += [
    {"update": u} | _FINE | (_DEAD if u in (1, 2, 3, 4, 7, 8, 9) else {})
    for u in range(1, 11)
  ]
  alerts = health.alerts_of(rows, HealthConfig(), retrieves=False)
  assert [(a.kind, a.first, a.last) for a in alerts] == [
    ("no_signal", 1, 4),
    ("no_signal", 7, 9),
  ]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("warn_updates", 0),
    ("stop_updates", -1),
    ("tool_calls", 0),
    ("broken_share", 0.0),
    ("entropy_share", 1.5),
    ("clip_fraction", math.nan),
    ("gradient_ratio", 1.0),
    ("gradient_ratio", math.nan),
  ],
)
def test_settings_out_of_range_are_refused(field, value):
  with pytest.raises(ValueError, match=field):
    HealthConfig(**{field: value})


def test_a_broken_tool_stops_an_evaluation_and_one_that_errs_does_not():
  config = HealthConfig()
  with pytest.raises(health.HealthStop, match="evaluation on web: no call"):
    health.check_tools(config, _tool(timeout=8.0), "evaluation on web")
  health.check_tools(config, _tool(error=90.0), "evaluation on web")
  health.check_tools(config, _tool(timeout=8.0, ok=1.0), "evaluation on web")
  lenient = HealthConfig(broken_tool="warn")
  health.check_tools(lenient, _tool(timeout=8.0), "evaluation on web")


def test_a_rollout_that_is_not_finite_is_named():
  with (
    pytest.raises(health.HealthStop, match="update 3 of web: no number"),
    health.finite_rollout("update 3 of web"),
  ):
    raise NonFiniteRollout("no number")
