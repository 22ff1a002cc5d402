"""The rescue under simulation: how often the report half confirms the mixture that the selection half chose.

The tuned model loses more than its margin; on the way back to the base the loss falls. `merge`'s own search looks for the
largest α that leaves room on the selection half, and the release rule judges that α on the report half. Beside it: the
largest α whose loss on the selection half is below the margin, and the one that a plain bound there would take.
`make bench-merge` also times the search on the real weights of the last `make demo`, as a share of its training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.forgetting.rule import PairedLoss, errors_to_margin
from tasks.paths import Paths
from tests.bench.bench_rule import independent
from tests.bench.figures import ROOT, Figure, publish

REPEATS = 2000
LEVEL, POWER = 0.05, 0.8
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
MARGIN = 0.03
Draws = NDArray[np.float64]
Errors = Callable[[float], float]


@dataclass(frozen=True)
class Tuned:
    """A tuned model: what it loses at α = 1 on average, and how the examples differ."""

    name: str
    binary: bool
    loss: float
    spread: float
    """Standard deviation of the examples' losses in nats, or share of the answers that also turn right."""
    examples: int
    """Of each half."""


TUNED = (
    Tuned("nats, a little over the margin", False, 0.04, 0.15, 300),
    Tuned("nats, far over the margin", False, 0.2, 0.15, 300),
    Tuned("accuracy, a little over the margin", True, 0.05, 0.02, 700),
    Tuned("accuracy, far over the margin", True, 0.2, 0.02, 700),
)
ROOMS: dict[str, float] = {
    "ours": errors_to_margin(1 - LEVEL, POWER),
    "bound below the margin": 1.645,
    "loss below the margin": 0.0,
}


def main() -> None:
    """Simulate, time the last demo's search, print and write."""
    figures = [figure for tuned in TUNED for figure in _simulated(tuned)]
    publish("merge", [*figures, *_timed(Paths(ROOT, "sentiment"))], ["numpy", "scipy"])


def _simulated(tuned: Tuned) -> Iterator[Figure]:
    for rule, room in ROOMS.items():
        rng = np.random.default_rng(9)
        passed, alphas = [], []
        for _ in range(REPEATS):
            selection, report = _example_thresholds(tuned, rng), _example_thresholds(tuned, rng)
            alpha = _largest(tuned, selection, room)
            if alpha:
                alphas.append(alpha)
                passed.append(_loss(tuned, report, alpha).p_not_below(MARGIN) <= LEVEL)
        share = float(np.mean(passed)) if passed else float("nan")
        error = 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / max(len(passed), 1))
        ours = rule == "ours"
        yield Figure(
            f"{tuned.name}: the report half confirms the choice, {rule} (mean α {np.mean(alphas):.2f})",
            share,
            "share",
            tuned.examples,
            len(passed),
            (max(share - error, 0.0), min(share + error, 1.0)),
            f">= {POWER:g}" if ours else None,
            share >= POWER if ours else None,
        )


def _example_thresholds(tuned: Tuned, rng: np.random.Generator) -> Draws:
    """Draw what makes examples differ: a normal deviate each, or the chance at which each answer turns."""
    return rng.random((2, tuned.examples)) if tuned.binary else rng.standard_normal((1, tuned.examples))


def _loss(tuned: Tuned, drawn: Draws, alpha: float) -> PairedLoss:
    """Return the paired losses at α: the mean falls with its square, as curvature has it, the spread with α."""
    mean = tuned.loss * alpha**2
    if not tuned.binary:
        values = mean + tuned.spread * alpha * drawn[0]
    else:  # an answer that turned at a small α stays turned at a larger one
        values = (drawn[0] < mean + tuned.spread * alpha).astype(float)
        values -= (drawn[1] < tuned.spread * alpha).astype(float) * (values == 0)
    return independent(values, tuned.binary)


def _largest(tuned: Tuned, drawn: Draws, room: float) -> float:
    """Bisect as `merge` does; 0 when no α leaves the room."""

    def leaves_room(alpha: float) -> bool:
        loss = _loss(tuned, drawn, alpha)
        return loss.mean + room * loss.standard_error <= MARGIN

    if leaves_room(1.0):
        return 1.0
    low, high = 0, len(ALPHAS) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if leaves_room(ALPHAS[middle]) else (low, middle)
    return ALPHAS[low]


def _timed(paths: Paths) -> Iterator[Figure]:
    """Read how long the stages of the last demo took; start-up is what a process took beyond its stage."""
    timings = {
        stage: paths.scratch / "timings" / f"{stage}.json" for stage in ("finetune", "merge", "evaluate")
    }
    if not all(path.is_file() for path in timings.values()):
        print("no timings of sentiment here: `make demo` first")
        return
    seconds = {
        stage: json.loads(path.read_text(encoding="utf-8"))["seconds"] for stage, path in timings.items()
    }
    yield Figure(
        "sentiment: merge / finetune, start-up apart", seconds["merge"] / seconds["finetune"], "share", 1
    )


if __name__ == "__main__":
    main()
