"""Draw gain against forgetting: a numbered disc for a method's mean, a cross for the range of its seeds, ours a star.

The way to the right is asinh: linear near zero, logarithmic far out, because what nothing holds back loses ten times
what is allowed. What is asked for, the best gain less five percent within the budget, is the tinted corner.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#4c6a92", "#b0683c", "#6f7f3a", "#8a5a8c", "#3f8480")
"""Methods of one kind share a colour; their numbers tell them apart."""
INK, FAINT, GOAL, ACCENT = "#2b2b2b", "#e7e7e7", "#e6f2e6", "#c2272d"
WIDTH, HEIGHT = 924, 480
LEFT, RIGHT, TOP, BOTTOM = 78, 596, 64, 396
FIGURES = 318
"""How far right of the drawing the legend's figures end."""
KNEE = 0.7
"""Where the scale to the right turns from linear to logarithmic."""
MARKS = (-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Spot:
    """One method: for each seed how much it lost, as a share of what is allowed, and what it gained."""

    name: str
    kind: int
    """Which colour; ours is -1."""
    losses: Sequence[float]
    gains: Sequence[float]

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)

    @property
    def gain(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.gains)


@dataclass(frozen=True)
class Scale:
    """Where values lie on the paper."""

    least: float
    most: float
    low: float
    high: float

    @classmethod
    def around(cls, spots: Sequence[Spot]) -> Scale:
        """Return a scale that holds all spots, zero, and the limit."""
        losses = [loss for spot in spots for loss in spot.losses] + [0.0, 1.5]
        gains = [gain for spot in spots for gain in spot.gains] + [0.0]
        spread, rise = _bend(max(losses)) - _bend(min(losses)), max(gains) - min(gains) or 1.0
        return cls(
            _bend(min(losses)) - 0.06 * spread,
            _bend(max(losses)) + 0.06 * spread,
            min(gains) - 0.06 * rise,
            max(gains) + 0.1 * rise,
        )

    def x(self, loss: float) -> float:
        """Return how far right a loss lies."""
        return LEFT + (_bend(loss) - self.least) / (self.most - self.least) * (RIGHT - LEFT)

    def y(self, gain: float) -> float:
        """Return how far down a gain lies."""
        return BOTTOM - (gain - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def draw_front(spots: Sequence[Spot], title: str, gain: str) -> str:
    """Return an SVG; the spot of `kind` -1 is ours, the others are numbered as they come."""
    scale, alone = Scale.around(spots), [spot for spot in spots if spot.kind >= 0]
    wanted = 0.95 * max(spot.gain for spot in alone)
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 26, title, size=17, weight=600),
        _text(LEFT, 46, f"{gain}; {_seeds(len(spots[0].gains))}", fill="#666"),
        *_ground(scale, wanted),
        *(part for number, spot in enumerate(alone, 1) for part in _cross(scale, spot, number)),
        *(part for number, spot in enumerate(alone, 1) for part in _disc(scale, spot, number)),
        *(part for spot in spots if spot.kind < 0 for part in _ours(scale, spot)),
        *_legend(spots),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" role="img"><title>{escape(title)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean and range of {count} seeds"


def _ground(scale: Scale, wanted: float) -> Iterator[str]:
    """Yield axes, marks, the limit, and the corner that is asked for."""
    limit = scale.x(1)
    if wanted > 0:
        height = scale.y(wanted) - TOP
        yield f'<rect x="{LEFT}" y="{TOP}" width="{limit - LEFT:.1f}" height="{height:.1f}" fill="{GOAL}"/>'
    for value in _steps(scale.low, scale.high):
        yield _line(LEFT, RIGHT, scale.y(value), scale.y(value), "#bbb" if value == 0 else FAINT)
        yield _text(LEFT - 8, scale.y(value) + 4, f"{value:+.3g}" if value else "0", anchor="end")
    for mark in MARKS:
        if scale.least <= _bend(mark) <= scale.most:
            yield _line(scale.x(mark), scale.x(mark), BOTTOM, BOTTOM + 5, INK)
            yield _text(scale.x(mark), BOTTOM + 19, f"{mark:g}×" if mark else "0", anchor="middle")
    yield _line(limit, limit, TOP, BOTTOM, ACCENT, dash="6 4")
    yield _text(limit + 6, BOTTOM - 8, "budget", fill=ACCENT)
    if wanted > 0:
        yield _line(LEFT, RIGHT, scale.y(wanted), scale.y(wanted), "#5c8f5c", dash="2 3")
        yield _text(LEFT + 8, TOP + 15, "95 % of the best gain, or more", fill="#5c8f5c")
    yield _line(LEFT, RIGHT, BOTTOM, BOTTOM, INK)
    yield _line(LEFT, LEFT, TOP, BOTTOM, INK)
    yield _text(
        (LEFT + RIGHT) / 2, BOTTOM + 42, "worst loss, as a multiple of what is allowed", anchor="middle"
    )
    yield _text(0, 0, "gain", anchor="middle", turn=(24, (TOP + BOTTOM) / 2))


def _cross(scale: Scale, spot: Spot, number: int) -> Iterator[str]:
    colour = COLOURS[spot.kind % len(COLOURS)] if spot.kind >= 0 else ACCENT
    x, y = scale.x(spot.loss), scale.y(spot.gain)
    yield _line(scale.x(min(spot.losses)), scale.x(max(spot.losses)), y, y, colour, width=1.6, opacity=0.45)
    yield _line(x, x, scale.y(min(spot.gains)), scale.y(max(spot.gains)), colour, width=1.6, opacity=0.45)


def _disc(scale: Scale, spot: Spot, number: int) -> Iterator[str]:
    yield from _sign(scale.x(spot.loss), scale.y(spot.gain), spot.kind, number)


def _sign(x: float, y: float, kind: int, number: int) -> Iterator[str]:
    colour = COLOURS[kind % len(COLOURS)]
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="{colour}" stroke="white" stroke-width="1.2"/>'
    yield _text(x, y + 3.8, str(number), anchor="middle", size=10.5, weight=600, fill="white")


def _ours(scale: Scale, spot: Spot) -> Iterator[str]:
    yield from _cross(scale, spot, 0)
    yield _star(scale.x(spot.loss), scale.y(spot.gain))


def _star(x: float, y: float) -> str:
    corners = [
        (x + radius * math.sin(turn * math.pi / 5), y - radius * math.cos(turn * math.pi / 5))
        for turn, radius in enumerate([13, 5.6] * 5)
    ]
    points = " ".join(f"{right:.1f},{down:.1f}" for right, down in corners)
    return f'<polygon points="{points}" fill="{ACCENT}" stroke="white" stroke-width="1.2"/>'


def _legend(spots: Sequence[Spot]) -> Iterator[str]:
    left, y, number = RIGHT + 34, TOP + 12.0, 0
    yield _text(RIGHT + FIGURES, TOP - 8, "gain · loss", anchor="end", fill="#666", size=11)
    for spot in spots:
        if spot.kind < 0:
            yield _star(left, y)
        else:
            number += 1
            yield from _sign(left, y, spot.kind, number)
        weight = 600 if spot.kind < 0 else 400
        yield _text(left + 18, y + 4, spot.name, weight=weight)
        yield _text(
            RIGHT + FIGURES, y + 4, f"{spot.gain:+.3f} · {spot.loss:.1f}×", anchor="end", weight=weight
        )
        y += 25


def _bend(loss: float) -> float:
    return math.asinh(loss / KNEE)


def _steps(low: float, high: float) -> list[float]:
    size = next(
        step
        for exponent in range(-4, 4)
        for step in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent)
        if (high - low) / step <= 7
    )
    return [round(place * size, 6) for place in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _line(
    x1: float,
    x2: float,
    y1: float,
    y2: float,
    stroke: str,
    *,
    dash: str = "",
    width: float = 1.0,
    opacity: float = 1.0,
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
        f'stroke-width="{width:g}" stroke-opacity="{opacity:g}"{dashes}/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: float = 12,
    weight: int = 400,
    fill: str = INK,
    turn: tuple[float, float] | None = None,
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    if turn:
        place = f'transform="translate({turn[0]:.1f} {turn[1]:.1f}) rotate(-90)"'
    halo = "" if fill == "white" else ' paint-order="stroke" stroke="white" stroke-width="3"'
    return (
        f'<text {place} text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}" fill="{fill}"{halo}>'
        f"{escape(words)}</text>"
    )
