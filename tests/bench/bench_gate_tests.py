"""Do the statistics of the data gates tell the truth: false alarms, power, and intervals that hold: `make bench-gates`.

Every two-sample test on draws without a difference and with one of stated size, and the intervals of what is estimated.
The faults that are planted in data, and those of real sets, are `bench_gates`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from tasks.measures import labels, mismatch
from tasks.measures.perplexity import perplexity, ratio
from tests.bench.figures import Figure, publish

Vectors = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Vectors, Vectors]]
LEVEL, PERMUTATIONS, DIM = 0.05, 39, 16
NULL_DRAWS, POWER_DRAWS = 1_000, 200
DRAWS_A_CALL = 50

TESTS: dict[str, Callable[[mismatch.Pooled, int, int], mismatch.TwoSample]] = {
    "classifier": lambda *given: mismatch.classifier_test(*given)[0],
    "MMD": mismatch.kernel_test,
}


@dataclass(frozen=True)
class Setting:
    """Two samples of n rows, or of n and n / 3; `group` rows share what they have in common."""

    name: str
    draw: Draw
    group: int = 1


def _alike(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
    rows = chance.standard_normal((2 * n, DIM)) * np.linspace(0.2, 3, DIM)
    return rows[:n], rows[n:]


def _unequal(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
    rows = chance.standard_t(3, (n + n // 3, DIM))
    return rows[:n], rows[n:]


def _grouped(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
    centres = np.repeat(3 * chance.standard_normal((2 * n // 5, DIM)), 5, axis=0)
    rows = centres + chance.standard_normal((2 * n, DIM))
    return rows[:n], rows[n:]


def _moved(by: float) -> Draw:
    def draw(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
        rows = chance.standard_normal((2 * n, DIM))
        rows[n:, 0] += by
        return rows[:n], rows[n:]

    return draw


def _mixed(share: float) -> Draw:
    def draw(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
        rows = chance.standard_normal((2 * n, DIM))
        rows[n : n + round(share * n), 0] += 4
        return rows[:n], rows[n:]

    return draw


def _wider(by: float) -> Draw:
    def draw(chance: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
        rows = chance.standard_normal((2 * n, DIM))
        rows[n:] *= by
        return rows[:n], rows[n:]

    return draw


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("alike", _alike),
        Setting("alike, heavy tails, n and n / 3", _unequal),
        Setting("alike, groups of 5", _grouped, group=5),
        Setting("mean moved by 0.75 of 16", _moved(0.75)),
        Setting("mean moved by 0.25 of 16", _moved(0.25)),
        Setting("mean moved by 0.075 of 16", _moved(0.075)),
        Setting("a tenth from elsewhere", _mixed(0.1)),
        Setting("1.5 times as wide", _wider(1.5)),
    )
}
NULL = ("alike", "alike, heavy tails, n and n / 3", "alike, groups of 5")
POWER = (
    ("mean moved by 0.75 of 16", 100, ("classifier", "MMD")),
    ("mean moved by 0.25 of 16", 1_000, ("classifier", "MMD")),
    ("mean moved by 0.075 of 16", 10_000, ("classifier", "MMD")),
    ("a tenth from elsewhere", 1_000, ("classifier", "MMD")),
    # A linear classifier sees no difference of width: only the kernel has a goal.
    ("1.5 times as wide", 1_000, ("MMD",)),
)


def main() -> None:
    """Measure everything, print the tables, and write `benchmarks/gate-tests.json`; the largest size comes last."""
    figures = [*_shares(), *_perplexities()]
    # One thread a process: the draws are many and small.
    os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as processes:
        for sizes in ((100, 1_000), (10_000,)):
            figures += _tests(processes, sizes)
            publish("gate-tests", figures, ["numpy", "scipy"])


# --- two-sample tests ----------------------------------------------------------------------------------


def _tests(processes: ProcessPoolExecutor, sizes: Sequence[int]) -> Iterator[Figure]:
    for n, name in itertools.product(sizes, NULL):
        # The largest size in one setting only: it is what takes the time.
        if n < 10_000 or name == "alike":
            for test, rate in _rejected(processes, name, n, NULL_DRAWS).items():
                yield _alarms(f"false alarms, {test}, {name}, n {n}", rate, n)
    for name, n, expected in POWER:
        if n in sizes:
            for test, rate in _rejected(processes, name, n, POWER_DRAWS).items():
                yield _power(f"power, {test}, {name}, n {n}", rate, n, test in expected)


def _rejected(processes: ProcessPoolExecutor, setting: str, n: int, draws: int) -> dict[str, float]:
    starts = range(0, draws, DRAWS_A_CALL)
    calls = [processes.submit(rejections, setting, n, start, DRAWS_A_CALL) for start in starts]
    hits = [call.result() for call in calls]
    print(f"{setting}, n {n}: {draws} draws done", flush=True)
    return {test: sum(found[test] for found in hits) / draws for test in TESTS}


def rejections(setting: str, n: int, start: int, draws: int) -> dict[str, int]:
    """Return how many of the draws `start`, `start` + 1, … each test rejects at 5 %."""
    given, hits = SETTINGS[setting], dict.fromkeys(TESTS, 0)
    for seed in range(start, start + draws):
        first, second = given.draw(np.random.default_rng(seed), n)
        groups = [[str(row // given.group) for row in range(len(side))] for side in (first, second)]
        pooled = mismatch.pool(first, second, *groups)
        for test, run in TESTS.items():
            hits[test] += run(pooled, PERMUTATIONS, seed).p_value <= LEVEL
    return hits


def _alarms(name: str, rate: float, n: int) -> Figure:
    interval = labels.wilson(round(rate * NULL_DRAWS), NULL_DRAWS)
    return Figure(name, rate, "share", n, NULL_DRAWS, interval, goal="0.03 to 0.07", met=0.03 <= rate <= 0.07)


def _power(name: str, rate: float, n: int, expected: bool) -> Figure:
    interval = labels.wilson(round(rate * POWER_DRAWS), POWER_DRAWS)
    goal, met = (">= 0.8", rate >= 0.8) if expected else (None, None)
    return Figure(name, rate, "share", n, POWER_DRAWS, interval, goal=goal, met=met)


# --- intervals ------------------------------------------------------------------------------------------


def _shares() -> Iterator[Figure]:
    """How often the intervals of estimated label shares hold the truth, without and with a shift."""
    errors = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    home = np.array([0.5, 0.3, 0.2])
    for name, target in (("no shift", home), ("0.5, 0.3, 0.2 to 0.2, 0.3, 0.5", home[::-1])):
        inside = 0
        for seed in range(POWER_DRAWS):
            chance = np.random.default_rng(seed)
            given, there = chance.choice(3, 500, p=home), chance.choice(3, 500, p=target)
            named = [
                (errors[side].cumsum(axis=1) < chance.random((500, 1))).sum(axis=1) for side in (given, there)
            ]
            rows = [str(row) for row in range(500)]
            found = mismatch.label_shift(named[0], given, named[1], 3, rows, rows, seed)
            inside += int(np.sum((found.intervals[:, 0] <= target) & (target <= found.intervals[:, 1])))
        rate, total = inside / (3 * POWER_DRAWS), 3 * POWER_DRAWS
        yield Figure(
            f"label shares, {name}, n 500: 95 % intervals that hold the truth", rate, "share", 500, POWER_DRAWS,
            labels.wilson(inside, total), goal="0.92 to 0.98", met=0.92 <= rate <= 0.98,
        )  # fmt: skip


def _perplexities() -> Iterator[Figure]:
    """How often the intervals of perplexities and of their ratios hold the truth, rows going by group."""
    for groups in (30, 100):
        inside = np.zeros(2)
        for seed in range(NULL_DRAWS):
            chance = np.random.default_rng(seed)
            one, other = (_surprised(chance, groups, mean) for mean in (3.0, 3.5))
            found, (_, bounds) = perplexity(*one), ratio(perplexity(*other), perplexity(*one))
            inside += [_holds(found.interval, np.exp(3.0)), _holds(bounds, np.exp(0.5))]
        for name, hits in zip(("perplexities", "ratios of perplexities"), inside.tolist(), strict=True):
            rate = hits / NULL_DRAWS
            yield Figure(
                f"{name}, {3 * groups} rows in {groups} groups: 95 % intervals that hold the truth", rate, "share",
                3 * groups, NULL_DRAWS, labels.wilson(int(hits), NULL_DRAWS), goal="0.92 to 0.98",
                met=0.92 <= rate <= 0.98,
            )  # fmt: skip


def _surprised(chance: np.random.Generator, groups: int, mean: float) -> tuple[Vectors, list[str]]:
    """Return (nats, tokens) of three rows a group, whose tokens have a mean loss of `mean`, and their groups."""
    unit = np.repeat(np.arange(groups), 3)
    tokens = chance.geometric(1 / 60, len(unit)).astype(np.float64)
    level = mean + 0.3 * chance.standard_normal(groups)[unit] + 0.4 * chance.standard_normal(len(unit))
    nats = tokens * level + 2 * np.sqrt(tokens) * chance.standard_normal(len(unit))
    return np.stack([nats, tokens], axis=1), [str(group) for group in unit]


def _holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


if __name__ == "__main__":
    main()
