"""What a summary says of how far tuning moved the model, and where it lost: sentences, cells and drawings."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.reports import Drift, FlipSlice
from tasks.summary import charts

SHOWN_SLICES = 12
FEWEST_EXAMPLES = 5
"""Slices of fewer examples are left to `merge.json`."""
NAMES = {"tuned": "tuned model", "chosen": "mixture that was kept"}

Drawing = tuple[str, str, tuple[str, ...]]
"""A drawing (SVG), its caption, and the names of its series."""


def drift_sentence(drifts: Sequence[Drift]) -> str:
    """Say in words how far the answers moved, on both sorts of input."""
    return " ".join(_answers(item) for item in drifts)


def _answers(item: Drift) -> str:
    name = f"The {NAMES[item.model]}"
    if item.task_kl is None or item.original_kl is None:
        return f"{name} answers with vectors, which have no divergence; what its layers do is drawn below."
    return (
        f"{name} differs from where tuning started by {item.task_kl:.3g} nats an answer on its task "
        f"({item.task_inputs} inputs) and by {item.original_kl:.3g} on what the benchmarks ask "
        f"({item.original_inputs}): KL(base ‖ model)."
    )


def drift_drawings(drifts: Sequence[Drift]) -> list[Drawing]:
    """Draw by depth how far weights moved, and how unlike the base's the features are."""
    depths = max((len(item.layers) for item in drifts), default=0)
    if depths < 2:
        return []
    weights = [
        charts.Line(NAMES[item.model], [(layer.depth, layer.weights) for layer in item.layers])
        for item in drifts
    ]
    drawings = [_drawing(weights, "weights moved", "Change of the weights, as a share of their size.")]
    features = [
        charts.Line(f"{NAMES[item.model]}, {inputs}", points)
        for item in drifts
        for inputs, points in (("its task", _unlike(item, "task")), ("benchmarks", _unlike(item, "original")))
        if len(points) > 1
    ]
    if features:
        caption = (
            "How unlike the base's the features are: 1 less linear CKA, which ignores rotation and scale."
        )
        drawings.append(_drawing(features, "features moved", caption))
    return drawings


def _unlike(item: Drift, inputs: str) -> list[tuple[float, float]]:
    found = [(layer.depth, getattr(layer, inputs)) for layer in item.layers]
    return [(depth, 1 - alike) for depth, alike in found if alike is not None]


def _drawing(lines: list[charts.Line], y_label: str, caption: str) -> Drawing:
    drawing = charts.line_chart(lines, y_label=y_label, x_label="depth (0: embeddings)", percent=True)
    return drawing, caption, tuple(line.name for line in lines)


def slice_cells(slices: Sequence[FlipSlice]) -> list[tuple[str, ...]]:
    """Return the cells of the slices on which the tuned model lost, the worst first: at most twelve."""
    lost = [item for item in slices if item.loss > 0 and item.examples >= FEWEST_EXAMPLES]
    worst = sorted(lost, key=lambda item: (-item.loss, item.suite, item.slice))
    return [
        (
            item.suite,
            item.slice,
            f"{item.examples:,}",
            f"{item.lost:,}",
            f"{item.won:,}",
            f"{-item.loss:+.3f}".replace("-", "−"),
        )
        for item in worst[:SHOWN_SLICES]
    ]
