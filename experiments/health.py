"""Whether a run can learn anything: warnings, and stops where it cannot.

A `Monitor` reads the row of metrics of each update. Its warnings depend on the
rows alone. So a resumed run and the report come to the same ones.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from rapo_jax.ranges import check_numbers
from rapo_jax.tools import ToolStatus
from rapo_jax.trajectory import SYSTEM_FAULTS

Action = Literal["off", "warn", "save", "stop"]
Row = Mapping[str, float]

FEW_WHOLE = 0.1
"""With a smaller share of whole formats a run begins without a signal."""
WARM_START = (
  "where all rewards are alike nothing is learned. Start from an instruct "
  "model that knows these tags, or warm-start the base agent (warm_start, see "
  "docs/real_models.md)."
)
_BROKEN = (*map(ToolStatus, SYSTEM_FAULTS), ToolStatus.TIMEOUT)
_GRADIENT_WINDOW = 20
_REPEAT_EVERY = 20


class HealthStop(RuntimeError):
  """A run ends because it cannot learn; its message holds the remedy."""


@dataclasses.dataclass(frozen=True)
class HealthConfig:
  """What a run does when an update looks wrong.

  "off": nothing. "warn": it says so, and logs the update's trajectories.
  "save": the same, and it keeps a checkpoint of the update. "stop": it warns,
  and ends if that lasts.

  Attributes:
    no_signal: no group has rewards that differ. All right never stops a run.
    same_reward: every reward of an update is the same.
    broken_format: nothing is right and most trajectories break the format.
    no_retrieval: a method that retrieves has not tried to.
    no_hit: it has tried and found nothing.
    broken_tool: every call of a tool failed, was refused or timed out; acts in
      the first update with at least `tool_calls` such calls.
    erring_tool: no call of a tool ended well; warns from `tool_calls` calls on
      and stops after `erring_calls` in a row.
    low_entropy: entropy below `entropy_share` of that of the first update.
    cut_off: the length or the step limit ended most trajectories.
    repetition: most trajectories repeat their own n-grams.
    clipping: more than `clip_fraction` of the tokens have a clipped ratio.
    gradient_spike: gradient norm above `gradient_ratio` times the median of
      the last 20 updates; acts at once.
    not_finite: a minibatch was skipped, since its loss or gradient was not
      finite; warns at once and stops after `skipped_updates` such updates in a
      row.
    fewer_valid_calls: the share of tool calls that are well formed and end well
      has fallen below `valid_share` of its highest.
    fading_right: the mean log-prob of the tokens of right answers has fallen by
      more than `fading_nats` from its highest.
    warn_updates: updates in a row after which a warning is given.
    stop_updates: updates in a row after which "stop" ends the run.
    tool_calls: calls of a tool that are enough to judge it: in a row, in one
      update or several, without one that ended well.
    erring_calls: calls in a row without one that ended well.
    broken_share: "most" in broken_format, cut_off and repetition, in (0, 1].
    entropy_share: see `low_entropy`.
    clip_fraction: see `clipping`.
    gradient_ratio: see `gradient_spike`.
    skipped_updates: see `not_finite`.
    valid_share: see `fewer_valid_calls`, in (0, 1].
    fading_nats: see `fading_right`, in nats a token.
  """

  no_signal: Action = "stop"
  same_reward: Action = "warn"
  broken_format: Action = "warn"
  no_retrieval: Action = "warn"
  no_hit: Action = "warn"
  broken_tool: Action = "stop"
  erring_tool: Action = "stop"
  low_entropy: Action = "warn"
  cut_off: Action = "warn"
  repetition: Action = "warn"
  clipping: Action = "warn"
  gradient_spike: Action = "warn"
  not_finite: Action = "stop"
  fewer_valid_calls: Action = "warn"
  fading_right: Action = "warn"
  warn_updates: int = 3
  stop_updates: int = 10
  tool_calls: int = 8
  erring_calls: int = 32
  broken_share: float = 0.8
  entropy_share: float = 0.05
  clip_fraction: float = 0.5
  gradient_ratio: float = 20.0
  skipped_updates: int = 3
  valid_share: float = 0.5
  fading_nats: float = 1.0

  def __post_init__(self) -> None:
    check_numbers(
      self,
      "warn_updates",
      "stop_updates",
      "tool_calls",
      "erring_calls",
      "skipped_updates",
      at_least=1,
    )
    check_numbers(
      self,
      "broken_share",
      "entropy_share",
      "clip_fraction",
      "valid_share",
      above=0,
      at_most=1,
    )
    check_numbers(self, "gradient_ratio", above=1)
    check_numbers(self, "fading_nats", above=0)

  def actions(self) -> dict[str, Action]:
    """What to do about each kind, by its name."""
    return {
      "no_signal": self.no_signal,
      "same_reward": self.same_reward,
      "broken_format": self.broken_format,
      "no_retrieval": self.no_retrieval,
      "no_hit": self.no_hit,
      "broken_tool": self.broken_tool,
      "erring_tool": self.erring_tool,
      "low_entropy": self.low_entropy,
      "cut_off": self.cut_off,
      "repetition": self.repetition,
      "clipping": self.clipping,
      "gradient_spike": self.gradient_spike,
      "not_finite": self.not_finite,
      "fewer_valid_calls": self.fewer_valid_calls,
      "fading_right": self.fading_right,
    }


@dataclasses.dataclass(frozen=True)
class Sign:
  """What one update says of one kind of trouble.

  Attributes:
    kind: field of `HealthConfig`.
    text: what is wrong and what helps; "" where the update is fine.
    tool: which tool it is about; "" for the run.
    at_once: whether one update is enough for the action.
    spares: whether it may warn and never stop, whatever the action.
  """

  kind: str
  text: str
  tool: str = ""
  at_once: bool = False
  spares: bool = False


@dataclasses.dataclass(frozen=True)
class Alert:
  """A sign that has lasted long enough to be shown.

  Attributes:
    kind: field of `HealthConfig`.
    tool: which tool it is about; "" for the run.
    first: first update of the stretch that shows the sign.
    last: latest one.
    text: what is wrong, with its numbers, and what helps.
    show: whether a terminal shows it at this update: when it begins, and every
      20 updates while it lasts.
    stops: whether the run has to end.
    saves: whether a checkpoint of the update is to be kept.
  """

  kind: str
  tool: str
  first: int
  last: int
  text: str
  show: bool
  stops: bool
  saves: bool = False

  def describe(self) -> str:
    """One line: kind, updates and text."""
    return f"{self.kind}, {updates_text(self.first, self.last)}: {self.text}"


class Monitor:
  """Follows the metrics of one run.

  Args:
    config: what to do about each kind.
    retrieves: whether the run's method retrieves.
  """

  def __init__(
    self, config: HealthConfig | None = None, *, retrieves: bool = False
  ):
    self._config = config or HealthConfig()
    self._actions = self._config.actions()
    self._retrieves = retrieves
    self._fine: dict[tuple[str, str], int] = {}
    self._shown: dict[tuple[str, str], int] = {}
    self._erring: dict[str, collections.Counter[str]] = {}
    self._first_entropy: float | None = None
    self._most_valid = 0.0
    self._most_likely = -math.inf
    self._norms: collections.deque[float] = collections.deque(
      maxlen=_GRADIENT_WINDOW
    )
    self._update = 0
    self._alerts: list[Alert] = []
    self._lasting: dict[str, int] = {}

  def replay(self, rows: Iterable[Row]) -> Monitor:
    """Takes in the rows of a run that goes on; returns itself."""
    for row in rows:
      if row["update"]:
        self.look(int(row["update"]), row)
    return self

  def look(self, update: int, row: Row) -> list[Alert]:
    """Takes in an update; asked about the same one again it says the same.

    Args:
      update: its number, from 1 on.
      row: its metrics. What is missing counts as fine.

    Returns:
      Alerts of this update.
    """
    if update == self._update:
      return self._alerts
    self._update, self._alerts = update, []
    self._lasting = dict.fromkeys(self._actions, 0)
    for sign in self._signs(row):
      if self._actions[sign.kind] == "off":
        continue
      key = (sign.kind, sign.tool)
      if not sign.text:
        self._fine[key] = update
        self._shown.pop(key, None)
        continue
      first = update if sign.at_once else self._fine.get(key, 0) + 1
      lasted = update - first + 1
      self._lasting[sign.kind] = max(self._lasting[sign.kind], lasted)
      self._warn(sign, first, lasted)
    return self._alerts

  def _warn(self, sign: Sign, first: int, lasted: int) -> None:
    config, key = self._config, (sign.kind, sign.tool)
    if not sign.at_once and lasted < min(
      config.warn_updates, config.stop_updates
    ):
      return
    stops = (
      self._actions[sign.kind] == "stop"
      and not sign.spares
      and (sign.at_once or lasted >= config.stop_updates)
    )
    show = stops or self._update - self._shown.get(key, -math.inf) >= (
      _REPEAT_EVERY
    )
    if show:
      self._shown[key] = self._update
    self._alerts.append(
      Alert(
        sign.kind,
        sign.tool,
        first,
        self._update,
        sign.text,
        show,
        stops,
        saves=show and self._actions[sign.kind] == "save",
      )
    )

  def metrics(self) -> dict[str, float]:
    """`health/<kind>`: updates in a row that show it, and `health/warnings`."""
    return {
      **{f"health/{kind}": count for kind, count in self._lasting.items()},
      "health/warnings": len(self._alerts),
    }

  def _signs(self, row: Row) -> Iterator[Sign]:
    yield from _reward_signs(row, self._config)
    if self._retrieves:
      yield from _retrieval_signs(row)
    for tool in sorted(
      {n.split("/")[1] for n in row if n.startswith("tools/")}
    ):
      yield from self._tool_signs(row, tool)
    yield from _policy_signs(row, self._config)
    yield self._entropy_sign(row)
    yield self._gradient_sign(row)
    yield self._skipped_sign(row)
    yield self._valid_calls_sign(row)
    yield self._right_sign(row)

  def _tool_signs(self, row: Row, tool: str) -> Iterator[Sign]:
    now = {s: row.get(f"tools/{tool}/{s}", 0.0) for s in ToolStatus}
    if not any(now.values()):
      return
    # Of the updates since one in which a call ended well.
    counts = self._erring.setdefault(tool, collections.Counter())
    counts.update(now)
    well = now[ToolStatus.OK]
    if well:
      counts.clear()
    calls = sum(counts.values())
    shown = ", ".join(f"{counts[s]:.0f} {s}" for s in ToolStatus if counts[s])
    text = (
      f"no call of {tool} was answered ({shown}): the tool or the machine is "
      "broken, not the agent. See the first error in the log and in "
      "trajectories.jsonl."
    )
    broken = any(
      sum(each[status] for status in _BROKEN)
      == sum(each.values())
      >= self._config.tool_calls
      for each in (now, counts)
    )
    yield Sign("broken_tool", text if broken else "", tool, at_once=broken)
    erring = not well and not broken and calls >= self._config.tool_calls
    text = (
      f"every call of {tool} ended badly, {calls:.0f} in a row ({shown}): a "
      "library may be missing, or the prompt may promise what the tool does "
      "not do. See the results of its calls in trajectories.jsonl."
    )
    yield Sign(
      "erring_tool",
      text if erring else "",
      tool,
      at_once=erring,
      spares=calls < self._config.erring_calls,
    )

  def _entropy_sign(self, row: Row) -> Sign:
    entropy = row.get("rollout/entropy", math.nan)
    if self._first_entropy is None and math.isfinite(entropy):
      self._first_entropy = entropy
    floor = self._config.entropy_share * (self._first_entropy or 0.0)
    low = entropy < floor
    text = (
      f"the entropy has fallen from {self._first_entropy:.3g} to "
      f"{entropy:.3g} nats: the policy writes one thing and explores no more. "
      "Lower optimizer.learning_rate or raise objective.clip_epsilon_high."
      if low
      else ""
    )
    return Sign("low_entropy", text)

  def _gradient_sign(self, row: Row) -> Sign:
    norm = row.get("gradient_norm", math.nan)
    text = ""
    if len(self._norms) >= _GRADIENT_WINDOW // 4:
      usual = statistics.median(self._norms)
      if usual > 0 and norm > self._config.gradient_ratio * usual:
        text = (
          f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the "
          "median of the updates before. Should it last, lower "
          "optimizer.learning_rate or optimizer.max_gradient_norm."
        )
    # An update without a signal has norm 0 and says nothing of the usual one.
    if math.isfinite(norm) and norm > 0:
      self._norms.append(norm)
    return Sign("gradient_spike", text, at_once=bool(text))

  def _skipped_sign(self, row: Row) -> Sign:
    skipped = row.get("update/skipped", 0.0)
    in_a_row = self._update - self._fine.get(("not_finite", ""), 0)
    text = (
      f"loss or gradient of {skipped:.0f} of "
      f"{row.get('update/minibatches', math.nan):.0f} minibatches was not "
      "finite, so they were skipped and the policy did not move. They lie in "
      "skipped/ in the run's folder. Lower optimizer.learning_rate, or compute "
      "in float32 (rollout.dtype)."
    )
    return Sign(
      "not_finite",
      text if skipped else "",
      at_once=bool(skipped),
      spares=in_a_row < self._config.skipped_updates,
    )

  def _valid_calls_sign(self, row: Row) -> Sign:
    calls = row.get("rollout/tool_calls", 0.0)
    text = ""
    if calls >= self._config.tool_calls:
      valid = 1 - row.get("rollout/tool_failures", 0.0) / calls
      self._most_valid = max(self._most_valid, valid)
      if valid < self._config.valid_share * self._most_valid:
        text = (
          f"{100 * valid:.0f} % of the tool calls end well, and it was "
          f"{100 * self._most_valid:.0f} %: the policy forgets how to call. "
          "See the calls in trajectories.jsonl; lower optimizer.learning_rate."
        )
    return Sign("fewer_valid_calls", text)

  def _right_sign(self, row: Row) -> Sign:
    likely = row.get("rollout/right_log_prob", math.nan)
    text = ""
    if math.isfinite(likely):
      self._most_likely = max(self._most_likely, likely)
      if likely < self._most_likely - self._config.fading_nats:
        text = (
          f"the log-prob of right answers is {likely:.2f} nats a token, and it "
          f"was {self._most_likely:.2f}: wrong answers push right ones down "
          "with them. Lower optimizer.learning_rate, or raise "
          "objective.clip_epsilon_high."
        )
    return Sign("fading_right", text)


@contextlib.contextmanager
def finite_rollout(where: str) -> Iterator[None]:
  """Says which rollout it was whose numbers were not finite.

  Raises:
    HealthStop: for a `NonFiniteRollout`, with its message.
  """
  # Seconds to import; warnings of a log need no rollout.
  from rapo_jax.rollout import NonFiniteRollout

  try:
    yield
  except NonFiniteRollout as error:
    raise HealthStop(f"{where}: {error}") from error


def check_tools(config: HealthConfig, row: Row, where: str) -> None:
  """Refuses a rollout that is not trained on if a tool of it is broken.

  Its accuracy, or the buffer that it fills, would be of an agent without tools.

  Args:
    config: what to do about `broken_tool`.
    row: `tools/*` of the rollout.
    where: which rollout it is, for the message.

  Raises:
    HealthStop: a tool is broken, and `broken_tool` is "stop".
  """
  for alert in Monitor(config).look(1, row):
    if alert.kind == "broken_tool" and alert.stops:
      raise HealthStop(
        f"{where}: {alert.text} To go on all the same, set "
        "train.health.broken_tool to warn."
      )


class Stretches:
  """Each stretch of updates with a sign once, with its last text.

  Args:
    config: what the run does about each kind.
    retrieves: whether its method retrieves.
  """

  def __init__(self, config: HealthConfig, *, retrieves: bool):
    self._monitor = Monitor(config, retrieves=retrieves)
    self._found: list[Alert] = []
    self._open: dict[tuple[str, str], int] = {}

  def add(self, row: Row) -> None:
    """Takes in the metrics of an update, from the first one on, in order."""
    update = int(row["update"])
    for alert in self._monitor.look(update, row) if update else ():
      key = (alert.kind, alert.tool)
      at = self._open.get(key)
      if at is not None and self._found[at].last == update - 1:
        first = self._found[at].first
        self._found[at] = dataclasses.replace(alert, first=first)
      else:
        self._open[key] = len(self._found)
        self._found.append(alert)

  @property
  def alerts(self) -> list[Alert]:
    """In the order in which they begin."""
    return sorted(self._found, key=lambda alert: alert.first)


def alerts_of(
  rows: Iterable[Row], config: HealthConfig, *, retrieves: bool
) -> list[Alert]:
  """The stretches of a run; see `Stretches`.

  Args:
    rows: metrics of a run, from its first update on.
    config: what it does about each kind.
    retrieves: whether its method retrieves.
  """
  stretches = Stretches(config, retrieves=retrieves)
  for row in rows:
    stretches.add(row)
  return stretches.alerts


def updates_text(first: int, last: int) -> str:
  """A stretch of updates in words."""
  return f"update {last}" if first == last else f"updates {first} to {last}"


def first_update_text(row: Row) -> str:
  """Share of trajectories that close their tags, with a remedy if it is low.

  Args:
    row: metrics of an update; of an older one without this share, "".
  """
  whole = row.get("reward/format_whole")
  if whole is None or math.isnan(whole):
    return ""
  text = (
    f"{100 * whole:.0f} % of the trajectories of the first update close their "
    "tags and give an answer"
  )
  return f"{text}: {WARM_START}" if whole < FEW_WHOLE else f"{text}."


def _reward_signs(row: Row, config: HealthConfig) -> Iterator[Sign]:
  mean = row.get("reward/mean", math.nan)
  accuracy = row.get("reward/accuracy", math.nan)
  whole = row.get("reward/format_whole", math.nan)
  shown = f"mean reward {mean:.2f}, accuracy {accuracy:.2f}"
  if not math.isnan(whole):
    shown += f", {100 * whole:.0f} % close their tags"
  solved = accuracy == 1
  remedy = (
    "The questions are too easy for this policy; use harder ones, or stop here."
    if solved
    else "Use a stronger base agent or a warm start, easier questions, or more "
    "rollouts a question (rollout.num_generations)."
  )
  dead = row.get("groups/live_fraction", 1.0) == 0
  text = f"no group has rewards that differ, so nothing is learned ({shown})."
  yield Sign("no_signal", f"{text} {remedy}" if dead else "", spares=solved)
  low, high = row.get("reward/min", math.nan), row.get("reward/max", math.nan)
  same = low == high
  text = f"every reward of the update is {low:g} ({shown}). {remedy}"
  yield Sign("same_reward", text if same else "", spares=solved)
  broken = accuracy == 0 and whole <= 1 - config.broken_share
  statuses = {
    name.removeprefix("score/"): count
    for name, count in row.items()
    if name.startswith("score/")
  }
  most = max(statuses, key=lambda status: statuses[status], default="unknown")
  text = (
    f"no answer is right, and {100 * (1 - whole):.0f} % of the trajectories"
  )
  text += f" break the format, most often as {most}: {WARM_START}"
  yield Sign("broken_format", text if broken else "")


def _retrieval_signs(row: Row) -> Iterator[Sign]:
  hits = row.get("rollout/retrievals", math.nan)
  tries = hits + sum(
    row.get(f"rollout/retrievals_{name}", 0.0)
    for name in ("missed", "failed", "without_room")
  )
  text = (
    "no retrieval was tried, so this is GRPO: no hybrid trajectory has had a "
    "second step, or rollout.retrieval_prob is too low."
  )
  yield Sign("no_retrieval", text if tries == 0 else "")
  text = (
    f"none of {tries:.0f} retrievals found a step, so this is GRPO: lower "
    "retrieval.min_similarity or retrieval.min_reward, or use a buffer of "
    "these questions."
  )
  yield Sign("no_hit", text if tries > 0 and hits == 0 else "")


def _policy_signs(row: Row, config: HealthConfig) -> Iterator[Sign]:
  cut = row.get("rollout/finished_length", 0.0) + row.get(
    "rollout/finished_step_limit", 0.0
  )
  text = (
    f"{100 * cut:.0f} % of the trajectories end at the length or step limit: "
    "raise rollout.max_response_tokens or rollout.max_step_tokens, and see in "
    "trajectories.jsonl whether the policy still ends its turns."
  )
  yield Sign("cut_off", text if cut >= config.broken_share else "")
  repeated = row.get("rollout/repetitive_fraction", 0.0)
  text = (
    f"{100 * repeated:.0f} % of the trajectories mostly repeat themselves: the "
    "policy has collapsed. Go back to a checkpoint from before and lower "
    "optimizer.learning_rate."
  )
  yield Sign("repetition", text if repeated >= config.broken_share else "")
  clipped = row.get("clip_fraction_low", 0.0) + row.get(
    "clip_fraction_high", 0.0
  )
  text = (
    f"{100 * clipped:.0f} % of the tokens have a clipped ratio and train "
    "nothing: lower optimizer.learning_rate or update.epochs."
  )
  yield Sign("clipping", text if clipped > config.clip_fraction else "")
