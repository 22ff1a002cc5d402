"""Which α between base and tuned model are tried, and which is chosen: the search, whatever measures its points.

| path | the model at α |
|---|---|
| `wise-ft` | every weight at (1 - α)·base + α·tuned (Wortsman et al. 2022) |
| `lines` | a layer at depth d of D has α + (1 - α)·d/D of its change: deep layers keep theirs (Wang et al. 2025, LiNeS) |

Both end in the tuned model at α = 1; `wise-ft` begins at the base. Three steps:

1. *The largest α within the budget*, on each path. Losses rise with α as good as always, so it is found by bisection,
   and only where the tuned model itself is over the budget.
2. *A look below it.* Gain does not rise so: the best α is often a smaller one (Wortsman et al. 2022). At most `LOOKS`
   values of the grid, evenly spread between the base and that α, are looked at on the validation split alone. Evenly,
   because that takes nothing for granted of the curve; few, because validation tells neighbours apart poorly, and the
   more are compared, the more of the best one's gain is luck.
3. *Confirmation.* What would win is measured on the benchmarks; where it is over the budget, the next best is.

*Which is best?* Of mixtures whose metric rises on validation, the one under which the labels are likeliest, each being as
sure as fits it best (`tasks/measures/calibration.py`). A few hundred rows cannot tell the accuracy of neighbours; their
log-likelihood is the better judge there (docs/forgetting.md, "What chooses"). Without labels the metric itself decides:
where it is a log-likelihood already, say. Of equals the α nearest to the base wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.recipe import Merge
from tasks.reports import AlphaOutcome

LOOKS = 4
"""Values below the largest α within the budget that are looked at, on each path."""
DIGITS = 9
"""Decimals to which gains are told apart in one number."""
Point = tuple[str, float]
"""A path and an α on it."""
BASE, TUNED = ("wise-ft", 0.0), ("wise-ft", 1.0)
Try = Callable[[Point], AlphaOutcome]


def choose(outcomes: Sequence[AlphaOutcome]) -> AlphaOutcome:
    """Return the first in the order of what is within the budget; the base, where nothing within it gains."""
    return max((outcome for outcome in outcomes if outcome.within_budget), key=_rank)


def rank(gain: float, log_likelihood_gain: float | None, alpha: float) -> tuple[bool, float, float]:
    """Return the place of a mixture among others of its task, the best last; what gains nothing is behind the base."""
    if gain <= 0 or log_likelihood_gain is None:
        return gain > 0, gain, -alpha
    return True, log_likelihood_gain, -alpha


def rank_number(gain: float, log_likelihood_gain: float | None, alpha: float) -> float:
    """Return `rank` as one number, for those who can compare nothing else: it orders as the tuple does, to `DIGITS`.

    The second element is mapped into (-1, 1) by x / (1 + |x|), which keeps order, and rounded; what gains
    lies 1 above that, what does not 1 below; the third element decides between equals by less than a digit is worth.
    """
    gains, value, nearness = rank(gain, log_likelihood_gain, alpha)
    return (1 if gains else -1) + round(value / (1 + abs(value)), DIGITS) + nearness * 10**-DIGITS / 2


def _rank(outcome: AlphaOutcome) -> tuple[bool, float, float, bool]:
    return *rank(outcome.gain, outcome.log_likelihood_gain, outcome.alpha), outcome.path == BASE[0]


def walk(section: Merge, measure: Try, look: Try, looks: int = LOOKS) -> list[AlphaOutcome]:
    """Try points until the best is known to be within the budget; by path, in the order of α, the tuned model last.

    `measure` asks validation and benchmarks, `look` validation alone (its outcomes have no `within_budget`). Beside both
    ends, a path costs at most 1 + log2(steps of the grid) measurements, `looks` looks, and as many confirmations.
    """
    found = {point: measure(point) for point in (BASE, TUNED)}
    for path in section.paths:
        largest = len(section.alphas) - 1
        if not found[TUNED].within_budget:
            largest = _bisect(path, section.alphas, measure, found)
        first = 1 if path == BASE[0] else 0  # on another path, 0 is not the base
        for alpha in spread(section.alphas[first:largest], looks):
            if (path, alpha) not in found:
                found[path, alpha] = look((path, alpha))
    _confirm(found, measure)
    return [found[point] for point in sorted(found, key=lambda point: (point[1] == 1, *point))]


def _bisect(path: str, alphas: Sequence[float], measure: Try, found: dict[Point, AlphaOutcome]) -> int:
    """Return the place of the largest α within the budget; 0 where there is none."""
    low, high = 0, len(alphas) - 1
    if path != BASE[0]:
        found[path, 0.0] = measure((path, 0.0))
        if not found[path, 0.0].within_budget:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        point = (path, alphas[middle])
        found[point] = measure(point)
        low, high = (middle, high) if found[point].within_budget else (low, middle)
    return low


def spread(values: Sequence[float], count: int) -> list[float]:
    """Return `count` of the values, evenly spread and off the ends; all, where there are no more."""
    if len(values) <= count:
        return list(values)
    step = (len(values) + 1) / (count + 1)
    return [values[round(step * (place + 1)) - 1] for place in range(count)]


def _confirm(found: dict[Point, AlphaOutcome], measure: Try) -> None:
    """Measure what would win, until the winner is one that was measured; the base always may."""
    while True:
        point = max(
            (point for point, outcome in found.items() if outcome.within_budget is not False),
            key=lambda point: _rank(found[point]),
        )
        if found[point].within_budget:
            return
        found[point] = measure(point)
