"""The release rule under simulation: how often it passes a model at the margin, and one that lost nothing.

Beside it, on the same draws, two rules in use: a point difference below a tolerance, and the plain bound of a paired
z test below it. `make bench-rule`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tasks.forgetting.rule import PairedLoss, examples_needed, fewest_examples, paired_loss
from tests.bench.figures import Figure, publish

Draws = NDArray[np.float64]
REPEATS = 2000
LEVEL = 0.05
POPULATION = 200_000


@dataclass(frozen=True)
class Setting:
    """How paired losses arise: `population(mean)` is a large sample whose mean loss is `mean`."""

    name: str
    population: Callable[[float], Draws]
    margin: float
    sizes: tuple[int, ...]
    group: int = 1
    """Examples of a group, which share their loss."""


def flips(discordance: float) -> Callable[[float], Draws]:
    """Right or wrong: `discordance` of the examples change, either way."""

    def population(mean: float) -> Draws:
        lost, won = (discordance + mean) / 2, (discordance - mean) / 2
        lost, won = (lost, won) if won >= 0 else (mean, 0.0)
        counts = [round(share * POPULATION) for share in (lost, won)]
        rest = POPULATION - sum(counts)
        return np.repeat([1.0, -1.0, 0.0], [*counts, rest])

    return population


def ranks(spread: float) -> Callable[[float], Draws]:
    """Reciprocal ranks that move by a log-normal factor; what is lost is lost from good ranks."""

    def population(mean: float) -> Draws:
        rng = np.random.default_rng(5)
        before = np.maximum(1, np.ceil(np.exp(rng.normal(0.4, 1.3, POPULATION))))
        noise = rng.normal(0, spread, POPULATION)
        low, high = -1.0, 3.0
        for _ in range(40):
            shift = (low + high) / 2
            loss = 1 / before - 1 / np.maximum(1, np.round(before * np.exp(noise + shift)))
            low, high = (shift, high) if loss.mean() < mean else (low, shift)
        return loss

    return population


def total_losses(mean: float) -> Draws:
    """A share `mean` of the examples is lost wholly, the others stay: what hides best."""
    lost = round(mean * POPULATION)
    return np.repeat([1.0, 0.0], [lost, POPULATION - lost])


SETTINGS = (
    Setting("accuracy, 5 % change", flips(0.05), 0.03, (100, 200, 700)),
    Setting("accuracy, 20 % change", flips(0.2), 0.05, (60, 200, 700)),
    Setting("accuracy, losses only", total_losses, 0.03, (100, 200, 700)),
    Setting("ranks, stable", ranks(0.25), 0.02, (150, 375, 1000)),
    Setting("ranks, moving", ranks(0.5), 0.03, (100, 200, 1000)),
    Setting("ranks, restless", ranks(1.0), 0.03, (200, 1000)),
    Setting("accuracy, groups of 5", flips(0.2), 0.05, (300, 1000), group=5),
)

Rule = Callable[[PairedLoss, float], bool]


def retain(loss: PairedLoss, margin: float) -> bool:
    """Return our verdict."""
    return loss.p_not_below(margin) <= LEVEL


def point_difference(loss: PairedLoss, margin: float) -> bool:
    """Pass when the mean loss is below the tolerance, whatever the number of examples."""
    return loss.mean <= margin


def plain_bound(loss: PairedLoss, margin: float) -> bool:
    """Pass when the bound of a z test over examples is below the tolerance."""
    n = len(loss.values)
    error = float(loss.values.std(ddof=1)) / math.sqrt(n)
    return loss.mean + float(stats.norm.isf(LEVEL)) * error < margin


RULES: dict[str, Rule] = {"ours": retain, "point difference": point_difference, "plain bound": plain_bound}


def main() -> None:
    """Simulate every setting, print the table, and write it."""
    publish("rule", [figure for setting in SETTINGS for figure in _figures(setting)], ["numpy", "scipy"])


def _figures(setting: Setting) -> Iterator[Figure]:
    at_margin, at_zero = setting.population(setting.margin), setting.population(0.0)
    margin = float(at_margin.mean())  # what the population really lost, to the last example
    for size in setting.sizes:
        rates = {name: _rate(rule, setting, at_margin, margin, size) for name, rule in RULES.items()}
        for name, rate in rates.items():
            yield _figure(
                f"{setting.name}, n {size}: false PASS, {name}",
                rate,
                size,
                at_most=LEVEL,
                ours=name == "ours",
            )
    stated = _stated(setting, at_zero)
    power = _rate(retain, setting, at_zero, setting.margin, stated)
    yield _figure(
        f"{setting.name}, n {stated} as stated: power at no loss", power, stated, at_least=0.8, ours=True
    )
    small = fewest_examples(setting.margin, 1 - LEVEL) - 2
    agree = paired_loss(np.ones(small), np.ones(small), [str(row) for row in range(small)])
    yield _figure(
        f"{setting.name}, n {small}, all agree: PASS",
        float(retain(agree, setting.margin)),
        small,
        at_most=0.0,
        ours=True,
    )


def _stated(setting: Setting, population: Draws) -> int:
    """Return the number of examples that the rule itself asks for, from a pilot of the middle size."""
    size = setting.sizes[len(setting.sizes) // 2]
    needed = [
        examples_needed(loss, setting.margin, 1 - LEVEL, 0.8)
        for loss in _draw(setting, population, size, 21, seed=11)
    ]
    return int(np.median([count for count in needed if count is not None]))


def _rate(rule: Rule, setting: Setting, population: Draws, margin: float, size: int) -> float:
    passed = [rule(loss, margin) for loss in _draw(setting, population, size, REPEATS, seed=7)]
    return float(np.mean(passed))


def _draw(setting: Setting, population: Draws, size: int, repeats: int, seed: int) -> Iterator[PairedLoss]:
    rng = np.random.default_rng(seed)
    groups = max(size // setting.group, 1)
    names = [str(row // setting.group) for row in range(groups * setting.group)]
    binary = bool(np.isin(population, (-1, 0, 1)).all())
    for _ in range(repeats):
        values = np.repeat(rng.choice(population, groups), setting.group)
        # Outcomes whose difference is the drawn loss: binary ones stay binary.
        base = np.where(values < 0, 0.0, 1.0) if binary else np.maximum(values, 0.0)
        yield paired_loss(base, base - values, names)


def _figure(
    name: str,
    value: float,
    n: int,
    *,
    ours: bool,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    error = 1.96 * math.sqrt(max(value * (1 - value), 1e-9) / REPEATS)
    limit = at_most if at_most is not None else at_least
    # A rate of 5 % is not told from one a little above it by this many draws: the goal allows their noise.
    noise = 1.645 * math.sqrt(LEVEL * (1 - LEVEL) / REPEATS)
    met = value <= limit + noise if at_most else value >= limit if at_least else value == 0
    return Figure(
        figure=name,
        value=value,
        unit="share",
        n=n,
        seeds=REPEATS,
        interval=(max(value - error, 0.0), min(value + error, 1.0)),
        goal=(f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}") if ours else None,
        met=bool(met) if ours else None,
    )


if __name__ == "__main__":
    main()
