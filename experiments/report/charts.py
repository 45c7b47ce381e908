"""Charts of the report as inline SVG, coloured by the page's style sheet.

Every mark carries the class `m-<method>`, which the page gives one colour in
light and another in dark; shapes differ too, for eyes that tell colours badly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from rapo_jax.rewards import ScoreStatus

_WIDTH, _HEIGHT = 340, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 38
# Of a letter in the labels, wide ones among them.
_CHAR_WIDTH = 7
_LABELS = 108
_ROW = 24
_MARKED_POINTS = 12
STATUSES = tuple(str(status) for status in ScoreStatus)
"""Order in which a share chart stacks the recipe's statuses."""
_BAND_COLOURS = 6
# From the middle of a mark to its first corner, and the way around it.
_OUTLINES = {
  "square": (-3.5, -3.5, "h7v7h-7z"),
  "triangle": (0.0, -4.4, "l4.4 7.6h-8.8z"),
  "diamond": (0.0, -5.0, "l4.4 5l-4.4 5l-4.4 -5z"),
  "down": (0.0, 4.4, "l4.4 -7.6h-8.8z"),
  "cross": (-1.5, -4.5, "h3v3h3v3h-3v3h-3v-3h-3v-3h3z"),
}

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Lines:
  """One method in a line chart: a thin line a seed and a bold mean.

  Attributes:
    method: by name, for its colour.
    label: its name for people.
    seeds: points of each seed.
    mean: points of the mean over seeds.
    shape: of its marks, of `methods.SHAPES`.
    marked: points of the mean that carry a mark, where it has many; all carry
      one where it has few.
  """

  method: str
  label: str
  seeds: Mapping[str, Points]
  mean: Points
  shape: str = "circle"
  marked: Points = ()


def line_chart(
  lines: Sequence[Lines],
  *,
  x_label: str,
  y_label: str,
  y_range: tuple[float, float] | None = None,
  y_format: Callable[[float], str] | None = None,
) -> Markup:
  """Lines of all methods over one x; empty text when there is no point.

  Args:
    lines: methods, drawn in order, so that the last lies on top.
    x_label: name and unit of x.
    y_label: name of y, for those who cannot see the chart.
    y_range: fixed range; from the points when None.
    y_format: text of a y value.
  """
  points = [
    point
    for line in lines
    for series in (*line.seeds.values(), line.mean)
    for point in series
  ]
  if not points:
    return Markup("")
  y_format = y_format or number
  low, high = y_range or _range([y for _, y in points])
  right = max(x for x, _ in points) or 1.0

  def place(point: tuple[float, float]) -> tuple[float, float]:
    x, y = point
    share = (min(max(y, low), high) - low) / (high - low)
    return (
      _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT),
      _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM),
    )

  parts = [_y_axis(low, high, place, y_format), _x_axis(right, place, x_label)]
  for line in lines:
    parts += _method_lines(line, place, y_format, x_label)
  return _svg(_WIDTH, _HEIGHT, f"{y_label} against {x_label}", parts)


def _method_lines(
  line: Lines,
  place: Callable[[tuple[float, float]], tuple[float, float]],
  y_format: Callable[[float], str],
  x_label: str,
) -> list[Markup]:
  name = line.label
  parts = [
    Markup('<path class="seed {}" d="{}"><title>{}</title></path>').format(
      _class(line.method), _path(map(place, points)), f"{name}, seed {seed}"
    )
    for seed, points in line.seeds.items()
    if len(line.seeds) > 1
  ]
  parts.append(
    Markup('<path class="bold {}" d="{}"/>').format(
      _class(line.method), _path(map(place, line.mean))
    )
  )
  few = len(line.mean) <= _MARKED_POINTS
  parts += [
    _mark(
      line.method,
      line.shape,
      *place((x, y)),
      f"{name}, {x_label} {number(x)}: {y_format(y)}",
    )
    for x, y in (line.mean if few else line.marked)
  ]
  return parts


def dot_chart(
  rows: Sequence[tuple[str, str, str, Mapping]], *, title: str
) -> Markup:
  """One row a method: a dot a seed, the mean and its interval, 0 to 100 %.

  Args:
    rows: (method, label, shape, estimate), as in `results["accuracy"][task]`.
    title: what the chart shows, for those who cannot see it.
  """
  left, height = _label_room(row[1] for row in rows), len(rows) * _ROW + 30
  span = _WIDTH - left - _RIGHT
  parts = _vertical_grid(
    [(left + v / 100 * span, f"{v}") for v in (0, 25, 50, 75, 100)], height
  )
  for i, (method, label, shape, estimate) in enumerate(rows):
    y = _ROW * (i + 0.5) + 2
    mean = left + span * estimate["mean"]
    parts.append(_row_text(left, y, label))
    if estimate["interval"] is not None:
      low, high = (left + span * v for v in estimate["interval"])
      parts.append(_interval(_class(method), low, high, y))
    parts += [
      _mark(
        method,
        shape,
        left + span * value,
        y,
        f"{label}, seed {seed}: {100 * value:.1f} %",
        faint=True,
      )
      for seed, value in estimate["seeds"].items()
    ]
    parts.append(_mean_tick(_class(method), mean, y))
  return _svg(_WIDTH, height, title, parts)


def difference_chart(
  rows: Sequence[tuple[str, Mapping]],
  *,
  title: str,
  method: str = "rapo",
  shape: str = "circle",
) -> Markup:
  """One row a task: a dot a pair of runs, the mean, its interval, a 0 line.

  Args:
    rows: (task, estimate) as in `results["differences"]`.
    title: what the chart shows, for those who cannot see it.
    method: which is compared, for the colour.
    shape: of its marks.
  """
  left, height = _label_room(row[0] for row in rows), len(rows) * _ROW + 30
  # A signed number under the last tick is wider than a plain one.
  span = _WIDTH - left - 1.5 * _RIGHT
  values = [
    100 * value
    for _, row in rows
    for value in (*(row["interval"] or ()), *row["seeds"].values())
  ]
  low, high = _range([*values, 0.0])

  def place(value: float) -> float:
    return left + (value - low) / (high - low) * span

  parts = _vertical_grid(
    [
      (place(tick), f"{tick:+g}".replace("-", "−") if tick else "0")
      for tick in _ticks(low, high, 4 if left == _LABELS else 2)
    ],
    height,
  )
  parts.append(_line("zero", place(0), 2, place(0), height - 26))
  for i, (task, row) in enumerate(rows):
    y = _ROW * (i + 0.5) + 2
    parts.append(_row_text(left, y, task))
    if row["interval"] is not None:
      ends = [place(100 * v) for v in row["interval"]]
      parts.append(_interval(_class(method), ends[0], ends[1], y))
    parts += [
      _mark(
        method,
        shape,
        place(100 * value),
        y,
        f"{task}, seed {seed}: {100 * value:+.1f} points",
        faint=True,
      )
      for seed, value in row["seeds"].items()
    ]
    parts.append(_mean_tick(_class(method), place(100 * row["mean"]), y))
  return _svg(_WIDTH, height, title, parts)


def histogram(
  values: Sequence[float], *, x_label: str, num_bins: int = 24
) -> Markup:
  """Bars of how many values fall where; empty text without values.

  Whole numbers that are few get a bar each.

  Args:
    values: finite numbers.
    x_label: name and unit of a value.
    num_bins: bars, at most.
  """
  if not len(values):
    return Markup("")
  data = np.asarray(values, np.float64)
  low, high = float(data.min()), float(data.max())
  whole = bool((data == np.round(data)).all()) and high - low < num_bins
  if whole or high == low:
    low, high = low - 0.5, high + 0.5
  bins = round(high - low) if whole else num_bins
  counts, edges = np.histogram(data, bins, (low, high))
  top = float(counts.max())
  span = _WIDTH - _LEFT - _RIGHT
  floor = _HEIGHT - _BOTTOM

  def place(point: tuple[float, float]) -> tuple[float, float]:
    x, y = point
    return (
      _LEFT + (x - low) / (high - low) * span,
      floor - y / top * (floor - _TOP),
    )

  parts = [_y_axis(0.0, top, place, number)]
  for count, start, end in zip(counts, edges, edges[1:], strict=False):
    (x1, y), (x2, _) = place((start, count)), place((end, count))
    what = f"{start + 0.5:g}" if whole else f"{start:.3g} to {end:.3g}"
    parts.append(
      Markup(
        '<path class="bar-up" d="M{} {}H{}V{}H{}z"><title>{}</title></path>'
      ).format(
        *(f"{v:.1f}" for v in (x1 + 0.5, floor, x2 - 0.5, y, x1 + 0.5)),
        f"{what}: {count:,}",
      )
    )
  parts.append(_line("axis", _LEFT, floor, _WIDTH - _RIGHT, floor))
  for tick in _ticks(low, high, 5):
    if not whole or tick == round(tick):
      x, _ = place((tick, 0))
      parts.append(_text(x, floor + 16, number(tick), "middle"))
  middle = (_LEFT + _WIDTH - _RIGHT) / 2
  parts.append(_text(middle, _HEIGHT - 5, x_label, "middle"))
  return _svg(_WIDTH, _HEIGHT, f"Histogram of {x_label}", parts)


def share_chart(
  points: Sequence[tuple[float, Sequence[float]]],
  *,
  title: str,
  statuses: Sequence[str] = STATUSES,
) -> Markup:
  """Shares of score statuses as bands over updates; empty without a point.

  Args:
    points: (update, count of each status), ascending.
    title: what the chart shows, for those who cannot see it.
    statuses: bands, from the bottom.
  """
  if not points:
    return Markup("")
  counts = np.array([values for _, values in points], np.float64)
  edges = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)
  edges = np.concatenate([np.zeros((len(points), 1)), edges], axis=1)
  right = points[-1][0] or 1.0
  floor = _HEIGHT - _BOTTOM

  def place(point: tuple[float, float]) -> tuple[float, float]:
    x, y = point
    return (
      _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT),
      floor - min(y, 1.0) * (floor - _TOP),
    )

  # One update has no width: it is drawn as wide as it can be.
  updates = [update for update, _ in points]
  if len(updates) == 1:
    updates, edges = [0.0, updates[0]], np.repeat(edges, 2, axis=0)
  parts = [_y_axis(0.0, 1.0, place, lambda v: f"{100 * v:.0f} %")]
  for band, status in enumerate(statuses):
    if not counts[:, band].any():
      continue
    lower = list(zip(updates, edges[:, band], strict=True))
    upper = list(zip(updates, edges[:, band + 1], strict=True))
    parts.append(
      Markup('<path class="{}" d="{}z"><title>{}</title></path>').format(
        band_class(status, band),
        _path(map(place, [*lower, *reversed(upper)])),
        f"{status.replace('_', ' ')}: {counts[:, band].sum():,.0f}",
      )
    )
  parts.append(_x_axis(right, place, "updates"))
  return _svg(_WIDTH, _HEIGHT, title, parts)


def band_class(status: str, band: int) -> str:
  """CSS classes of a status: its own colour, else the colour of its place."""
  return f"band b-{band % _BAND_COLOURS} s-{status}"


def map_chart(
  points: Sequence[tuple[float, float, str, str]], *, title: str
) -> Markup:
  """Points in a plane without axes: only neighbourhoods have a meaning.

  Args:
    points: (x, y, class of the style sheet, tooltip).
    title: what the chart shows, for those who cannot see it.
  """
  width, height, edge = 900, 560, 10
  xs = np.array([point[0] for point in points])
  ys = np.array([point[1] for point in points])

  def scaled(values: np.ndarray, size: int) -> np.ndarray:
    span = float(np.ptp(values)) or 1.0
    return edge + (values - values.min()) / span * (size - 2 * edge)

  parts = [
    Markup(
      '<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{}</title></circle>'
    ).format(kind, f"{x:.1f}", f"{y:.1f}", hint)
    for x, y, (_, _, kind, hint) in zip(
      scaled(xs, width), scaled(-ys, height), points, strict=True
    )
  ]
  return _svg(width, height, title, parts)


def key_mark(method: str, shape: str) -> Markup:
  """The mark of a method, for a legend."""
  return _svg(
    22,
    12,
    "",
    [
      Markup('<path class="bold {}" d="M0 6H22"/>').format(_class(method)),
      _mark(method, shape, 11, 6, ""),
    ],
  )


def number(value: float) -> str:
  """Short text of a number: 12.5k, 3.1M, 0.25."""
  if value < 0:
    return f"−{number(-value)}"
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.3g}{letter}"
  return f"{value:.3g}"


def _class(method: str) -> str:
  return f"m-{method}"


def _svg(
  width: float, height: float, title: str, parts: Sequence[Markup]
) -> Markup:
  # Without a title it stands beside a text that says the same.
  hidden = Markup('aria-hidden="true"')
  name = Markup('role="img" aria-label="{}"').format(title) if title else hidden
  return Markup('<svg viewBox="0 0 {} {}" {}>{}</svg>').format(
    f"{width:g}", f"{height:g}", name, Markup("").join(parts)
  )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
  return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(
    kind, *(f"{v:.1f}" for v in (x1, y1, x2, y2))
  )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
  return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
    f"{x:.1f}", f"{y:.1f}", anchor, text
  )


def _label_room(labels: Iterable[str]) -> int:
  """Width before the rows of a chart; at most half of it is for labels."""
  longest = max(map(len, labels), default=0)
  return min(max(_LABELS, 20 + _CHAR_WIDTH * longest), _WIDTH // 2)


def _row_text(left: float, y: float, text: str) -> Markup:
  room = int(left - 10) // _CHAR_WIDTH
  # The end tells the evaluation sets of one task apart.
  shown = text if len(text) <= room else f"…{text[1 - room :]}"
  return _text(left - 10, y + 4, shown, "end")


def _interval(kind: str, low: float, high: float, y: float) -> Markup:
  return _line(f"interval {kind}", low, y, high, y)


def _mean_tick(kind: str, x: float, y: float) -> Markup:
  return _line(f"tick {kind}", x, y - 8, x, y + 8)


def _vertical_grid(
  ticks: Sequence[tuple[float, str]], height: float
) -> list[Markup]:
  parts = []
  for x, text in ticks:
    parts.append(_line("grid", x, 2, x, height - 26))
    parts.append(_text(x, height - 10, text, "middle"))
  return parts


def _path(points: object) -> Markup:
  pairs = [f"{x:.1f} {y:.1f}" for x, y in points]  # type: ignore[attr-defined]
  return escape("M" + "L".join(pairs) if pairs else "")


def _mark(
  method: str,
  shape: str,
  x: float,
  y: float,
  title: str,
  faint: bool = False,
) -> Markup:
  """A mark of `methods.SHAPES` with a tooltip."""
  kind = f"mark {'faint ' if faint else ''}{_class(method)}"
  hint = Markup("<title>{}</title>").format(title) if title else Markup("")
  if shape == "circle":
    return Markup(
      '<circle class="{}" cx="{}" cy="{}" r="3.8">{}</circle>'
    ).format(kind, f"{x:.1f}", f"{y:.1f}", hint)
  across, down, path = _OUTLINES[shape]
  start = f"M{x + across:.1f} {y + down:.1f}{path}"
  return Markup('<path class="{}" d="{}">{}</path>').format(kind, start, hint)


def _y_axis(low, high, place, y_format) -> Markup:
  parts = []
  for tick in _ticks(low, high, 4):
    _, y = place((0, tick))
    parts.append(_line("grid", _LEFT, y, _WIDTH - _RIGHT, y))
    parts.append(_text(_LEFT - 7, y + 4, y_format(tick), "end"))
  return Markup("").join(parts)


def _x_axis(right, place, x_label) -> Markup:
  y = _HEIGHT - _BOTTOM
  parts = [_line("axis", _LEFT, y, _WIDTH - _RIGHT, y)]
  for tick in _ticks(0.0, right, 4):
    x, _ = place((tick, 0))
    parts.append(_text(x, y + 16, number(tick), "middle"))
  middle = (_LEFT + _WIDTH - _RIGHT) / 2
  parts.append(_text(middle, _HEIGHT - 5, x_label, "middle"))
  return Markup("").join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
  # A share or a count does not go below 0 for the sake of a margin.
  return (0.0 if low >= 0 and low - room < 0 else low - room, high + room)


def _ticks(low: float, high: float, about: int) -> list[float]:
  """Round values between two ends, some `about` of them."""
  rough = (high - low) / about
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 10) for i in range(first, last + 1)]
