"""Draw gain against forgetting, a point a training, methods told apart by colour and sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#5b7f95", "#b5651d", "#6b8e23", "#8b5a8c", "#2e8b7a", "#a0522d", "#4682b4", "#808000", "#c0392b")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 64, 250, 24, 340


@dataclass(frozen=True)
class Point:
    """One training: how much it lost, as a share of what is allowed, and what it gained."""

    method: str
    loss: float
    gain: float
    ours: bool = False


def draw_front(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Return an SVG: losses to the right (cut at four times what is allowed), gains upwards, the limit dashed."""
    most = min(max([point.loss for point in points] + [1.2]) * 1.05, 4.0)
    least = min([point.loss for point in points] + [0.0])
    low, high = min(point.gain for point in points), max(point.gain for point in points)
    pad = 0.08 * (high - low) or 0.01
    low, high = min(low, 0.0) - pad, high + pad

    def x(value: float) -> float:
        return LEFT + (min(value, most) - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    methods = list(dict.fromkeys(point.method for point in points))
    colour = {method: COLOURS[place % len(COLOURS)] for place, method in enumerate(methods)}
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *(_tick(LEFT - 8, y(value) + 4, f"{value:+.2f}", "end") for value in _ticks(low, high)),
        *(_rule(LEFT, WIDTH - RIGHT, y(value), y(value), "#e6e6e6") for value in _ticks(low, high)),
        *(_tick(x(value), BOTTOM + 18, f"{value:g}", "middle") for value in _ticks(least, most)),
        _rule(x(1), x(1), TOP, BOTTOM, "#c0392b", dashed=True),
        _tick(x(1) + 4, TOP + 10, "allowed", "start"),
        _rule(LEFT, WIDTH - RIGHT, BOTTOM, BOTTOM, "#333"),
        _rule(LEFT, LEFT, TOP, BOTTOM, "#333"),
        _tick((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, x_label, "middle"),
        _tick(LEFT - 50, TOP - 8, y_label, "start"),
    ]
    for point in points:
        parts.append(_sign(x(point.loss), y(point.gain), colour[point.method], point.ours))
    for place, method in enumerate(methods):
        middle = TOP + 12 + 20 * place
        ours = any(point.ours for point in points if point.method == method)
        parts.append(_sign(WIDTH - RIGHT + 22, middle, colour[method], ours))
        parts.append(_tick(WIDTH - RIGHT + 34, middle + 4, method.partition(":")[0], "start"))
    title = escape(f"{y_label} against {x_label}, by method")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{title}</title>{"".join(parts)}</svg>\n'
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next(
        size
        for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
        if (high - low) / size <= 7 or size == 2.0
    )
    first = int(low / step) - 1
    return [
        round(place * step, 4) for place in range(first, int(high / step) + 2) if low <= place * step <= high
    ]


def _sign(x: float, y: float, colour: str, ours: bool) -> str:
    if ours:
        corners = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
        return f'<polygon points="{corners}" fill="{colour}" stroke="#222"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" fill-opacity="0.8"/>'


def _rule(x1: float, x2: float, y1: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'
