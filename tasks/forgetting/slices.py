"""Where a model lost and won: examples that flipped, by label, length and what else tells a benchmark's examples apart.

Of selection halves only: what people have looked at measures nothing any more. It explains, and never gates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.forgetting.suites import Suite
from tasks.reports import FlipSlice

LENGTHS = ("short", "middle", "long")
SLICE = "slice"
"""Column of what a recipe tells a benchmark's examples apart by."""


def flip_slices(suite: Suite, base: NDArray[np.float64], tuned: NDArray[np.float64]) -> list[FlipSlice]:
    """Return each slice's flips, the worst loss first within a way of slicing; outcomes are `(examples,)`."""
    found: list[FlipSlice] = []
    for name, values in _ways(suite):
        loss = base - tuned
        own = [
            FlipSlice(
                suite=suite.name,
                slice=f"{name} {value}",
                examples=int(rows.sum()),
                lost=int((loss[rows] > 0).sum()),
                won=int((loss[rows] < 0).sum()),
                loss=float(loss[rows].mean()),
            )
            for value in sorted(set(values))
            if (rows := values == value).any()
        ]
        found += sorted(own, key=lambda item: (-item.loss, item.slice))
    return found


def _ways(suite: Suite) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Yield what examples are told apart by, and each one's value of it."""
    examples = suite.examples
    if SLICE in examples:
        yield str(suite.info.settings.get(SLICE) or SLICE), examples[SLICE].to_numpy(dtype=str)
    if "label" in examples:
        names = suite.info.labels
        said = [names[label] if label < len(names) else str(label) for label in examples["label"]]
        yield "label", np.array(said, dtype=str)
    if suite.asked != "image" and len(examples) >= len(LENGTHS):
        yield "length", _thirds(examples[suite.asked])


def _thirds(texts: pd.Series) -> NDArray[np.str_]:
    """Say of each text whether it is among the shortest, middle or longest third; equals are told apart by place."""
    rank = texts.str.len().rank(method="first").to_numpy() - 1
    return np.array(LENGTHS, dtype=str)[(rank * len(LENGTHS) / len(texts)).astype(int)]
