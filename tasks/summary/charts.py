"""Draw the small charts of a summary as inline SVG: no script, no style of their own, every text escaped.

Colours come from the page's style sheet by class, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Scale:
    """Map a value to a coordinate, linearly."""

    low: float
    high: float
    start: float
    """Coordinate of `low`, in user units."""
    end: float
    """Coordinate of `high`, in user units."""

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


@dataclass(frozen=True)
class Line:
    """One named series of points, drawn with the class `series-<index>`."""

    name: str
    points: Sequence[tuple[float, float]]


def interval_chart(value: float, lower: float, upper: float, margin: float | None, level: str) -> str:
    """Draw a loss with its bounds against the margin; `level` is pass, fail, inconclusive or info."""
    width, height, middle = 260, 46, 17
    edge = margin if margin is not None else 0.0
    low, high = min(lower, 0.0, -edge), max(upper, edge, 0.0)
    pad = 0.08 * (high - low or 1.0)
    x = Scale(low - pad, high + pad, 4, width - 4)
    parts = []
    if margin is not None:
        parts.append(f'<rect class="zone" x="4" y="4" width="{x(margin) - 4:.1f}" height="26" rx="3"/>')
    parts.append(_rule(x(0), x(0), 4, 30, "zero"))
    if margin is not None:
        parts.append(_rule(x(margin), x(margin), 1, 33, "margin"))
    parts.append(_rule(x(lower), x(upper), middle, middle, f"bar {level}"))
    parts += [_rule(x(end), x(end), middle - 5, middle + 5, f"bar {level}") for end in (lower, upper)]
    parts.append(f'<circle class="dot {level}" cx="{x(value):.1f}" cy="{middle}" r="4.5"/>')
    parts += _zero_and_margin_labels(x, margin, width)
    limit = "no margin" if margin is None else f"allowed {margin:.3g}"
    return _svg(parts, width, height, f"loss {value:.3f}, between {lower:.3f} and {upper:.3f}; {limit}")


def _zero_and_margin_labels(x: Scale, margin: float | None, width: int) -> list[str]:
    if margin is None:
        return [_text("0", x(0), 43, "middle")]
    label = f"allowed {margin:.3g}"
    half = 3.1 * len(label)
    if x(margin) - x(0) > half + 12 and x(margin) + half < width:
        return [_text("0", x(0), 43, "middle"), _text(label, x(margin), 43, "middle")]
    if x(margin) + 2 * half < width:
        return [_text("0", x(0) - 2, 43, "end"), _text(label, x(margin) - 3, 43, "start")]
    return [_text("0", x(0), 43, "middle"), _text(label, width - 2, 43, "end")]


def gain_chart(
    base: float,
    candidate: float,
    interval: tuple[float, float],
    bounds: tuple[float, float],
    *,
    percent: bool = True,
    name: str = "accuracy",
) -> str:
    """Draw base (ring) → candidate (dot) with the gain's interval, on a scale that all rows share."""
    width, height, middle = 240, 40, 14
    x = Scale(*bounds, 12, width - 18)
    level = "pass" if candidate >= base else "fail"
    low, high = (min(max(base + end, bounds[0]), bounds[1]) for end in interval)
    parts = [
        _rule(12, width - 18, middle, middle, "axis"),
        *(_rule(x(tick), x(tick), middle - 3, middle + 3, "axis") for tick in ticks(*bounds, count=4)),
        *(_text(tick_label(tick, percent), x(tick), 36, "middle") for tick in ticks(*bounds, count=4)),
        f'<rect class="span {level}" x="{x(low):.1f}" y="{middle - 5}" '
        f'width="{max(x(high) - x(low), 1):.1f}" height="10" rx="5"/>',
        _rule(x(base), x(candidate), middle, middle, f"bar {level}"),
        f'<circle class="ring" cx="{x(base):.1f}" cy="{middle}" r="4.5"/>',
        f'<circle class="dot {level}" cx="{x(candidate):.1f}" cy="{middle}" r="4.5"/>',
    ]
    return _svg(parts, width, height, f"{name} {base:.3f} before, {candidate:.3f} after")


def line_chart(
    lines: Sequence[Line],
    *,
    y_label: str,
    x_label: str,
    percent: bool = False,
    mark: float | None = None,
    limit: float | None = None,
    limit_label: str = "",
) -> str:
    """Draw lines over a common axis; `mark` is a vertical line (the choice), `limit` a horizontal one."""
    width, height, left, bottom = 460, 220, 50, 184
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points] + ([] if limit is None else [limit, 0.0])
    low, high = _padded(min(ys), max(ys))
    x, y = Scale(min(xs), max(xs), left, width - 14), Scale(low, high, bottom, 24)
    parts = [_text(y_label, 2, 12, "start", "label")]
    for tick in ticks(low, high):
        parts.append(_rule(left, width - 14, y(tick), y(tick), "grid"))
        parts.append(_text(tick_label(tick, percent), left - 6, y(tick) + 4, "end"))
    for tick in ticks(min(xs), max(xs), count=6):
        parts.append(_text(f"{tick:g}", x(tick), bottom + 17, "middle"))
    parts.append(_text(x_label, width - 14, height - 3, "end", "label"))
    if limit is not None:
        parts.append(_rule(left, width - 14, y(limit), y(limit), "margin"))
        parts.append(_text(limit_label, left + 4, y(limit) - 5, "start"))
    if mark is not None:
        parts.append(_rule(x(mark), x(mark), 20, bottom, "mark"))
    for index, line in enumerate(lines):
        parts += _series(line, index, x, y)
    return _svg(parts, width, height, f"{y_label} over {x_label}: " + ", ".join(line.name for line in lines))


def _series(line: Line, index: int, x: Scale, y: Scale) -> Iterable[str]:
    path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
    yield f'<polyline class="series series-{index % 6}" points="{path}"/>'
    if len(line.points) <= 30:
        for px, py in line.points:
            yield f'<circle class="point series-{index % 6}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="3"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def tick_label(tick: float, percent: bool = False) -> str:
    """Write a tick with as many digits as it has."""
    return f"{round(100 * tick, 10):g}%" if percent else f"{tick:g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.06 * (high - low) or max(abs(high) * 0.1, 0.01)
    return low - pad, high + pad


def _rule(x1: float, x2: float, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], width: int, height: int, description: str) -> str:
    text = escape(description)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{text}"><title>{text}</title>{"".join(parts)}</svg>'
    )
