"""How near is the accuracy to expect elsewhere, over real pairs of samples: `make bench-harm`.

A probe is fitted on each pair's home sample and scored on its target, with labels; each method estimates that score
without them. The method and its constants were chosen on some families of pairs (`shifts.CHOOSING`) and are tried on
the others; figures are given for both. Of the choosing families each is also left out in turn, of fitting the weights
and of choosing the form (`left_out.py`). `--kept FILE` takes up results that an earlier call wrote there; `--seeds 0`
adds none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from tasks.measures import harm, labels
from tasks.measures.calibration import tempered
from tasks.measures.rectified import rectified_accuracy
from tests.bench.figures import Figure, publish
from tests.bench.left_out import OUR_FORM, chosen_without, with_regions
from tests.bench.left_out import Evidence as Parts
from tests.bench.rival_harm import METHODS, Evidence
from tests.bench.shifts import ALIKE_FAMILY, CHOOSING, HELD_OUT, Domains, Drawn, Shift, domains

SEEDS = 3
OURS = "transport, held-out regions and disagreement"
LABELLED_ROWS = 50
"""Of the target that are labelled where the estimate is put right by some."""


@dataclass(frozen=True)
class Result:
    """One pair with one seed: accuracies at home and on the target, what each method expected there."""

    name: str
    family: str
    seed: int
    at_home: float
    actual: float
    expected: dict[str, float]
    interval: tuple[float, float]
    transport: float
    disagreement: float
    region_loss: float
    rectified: float
    rectified_interval: tuple[float, float]


def main() -> None:
    """Estimate and measure every pair, print the table, and write `benchmarks/harm.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=[*CHOOSING, *HELD_OUT])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="0: only what is kept")
    parser.add_argument("--kept", type=Path, help="file of results, a line each: read, and added to")
    options = parser.parse_args()
    done = _kept(options.kept)
    have = {(result.name, result.seed) for result in done}
    results = done + list(_results(options.families, options.seeds, have, options.kept))
    wanted = [result for result in results if result.family in (*options.families, ALIKE_FAMILY)]
    publish("harm", list(figures(wanted)), ["numpy", "scipy", "scikit-learn", "torch", "transformers"])


def _kept(path: Path | None) -> list[Result]:
    if path is None or not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _results(
    families: Sequence[str], seeds: int, have: set[tuple[str, int]], kept: Path | None
) -> Iterator[Result]:
    if not seeds:
        return
    found = domains(families)
    studied: dict[tuple[str, int, int], harm.Home] = {}
    for shift in found.shifts:
        for seed in range(seeds):
            if (shift.name, seed) in have:
                continue
            result = _measured(found, shift, seed, studied)
            print(_told(result), flush=True)
            if kept:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
            yield result


def _told(result: Result) -> str:
    low, high = result.interval
    said = f"{result.expected[OURS]:.3f} expected ({low:.3f} to {high:.3f})"
    return (
        f"{result.name}, seed {result.seed}: {result.at_home:.3f} at home, {said}, {result.actual:.3f} there"
    )


def _measured(
    found: Domains, shift: Shift, seed: int, studied: dict[tuple[str, int, int], harm.Home]
) -> Result:
    home, target = found.draw(shift, seed)
    names = np.unique(home.labels)
    key = shift.home, len(home.labels), seed
    if key not in studied:
        studied[key] = _study(home, seed)
    known = studied[key]
    ours = harm.expected_accuracy(known, target.vectors, target.groups.tolist())
    scores = known.outcome.scores_of(target.vectors)
    right = names[scores.argmax(axis=1)] == target.labels
    heat = known.temperature
    evidence = Evidence(
        home.vectors,
        target.vectors,
        known.column,
        tempered(known.outcome.scores, heat),
        tempered(scores, heat),
        seed,
    )
    labelled = np.random.default_rng(seed).permutation(len(right)) < LABELLED_ROWS
    backed = rectified_accuracy(ours.confidence, labelled, right, target.groups.tolist())
    return Result(
        name=shift.name,
        family=shift.family,
        seed=seed,
        at_home=known.accuracy,
        actual=float(right.mean()),
        expected={OURS: ours.accuracy} | {name: method(evidence) for name, method in METHODS.items()},
        interval=ours.interval,
        transport=ours.transport,
        disagreement=ours.disagreement,
        region_loss=ours.region_loss,
        rectified=backed.accuracy,
        rectified_interval=backed.interval,
    )


def _study(home: Drawn, seed: int) -> harm.Home:
    column = np.unique(home.labels, return_inverse=True)[1].astype(np.int64)
    groups = home.groups.tolist()
    outcome = labels.probe(home.vectors, column, groups, seed)
    if outcome is None:
        raise SystemExit("A home sample has one label or fewer than five groups.")
    return harm.study(home.vectors, outcome, column, groups, seed)


def figures(results: Sequence[Result]) -> Iterator[Figure]:
    """Summarize by method over the pairs that chose, those that did not, and all; then every pair."""
    shifted = [result for result in results if result.family != ALIKE_FAMILY]
    scopes = {"all pairs": shifted} | {
        name: [result for result in results if result.family in families]
        for name, families in (
            ("pairs that chose the method", CHOOSING),
            ("held-out pairs", HELD_OUT),
            ("pairs without a shift", (ALIKE_FAMILY,)),
        )
    }
    for scope, some in scopes.items():
        if some:
            yield from _summary(scope, some)
    for family in HELD_OUT:
        if some := [result for result in shifted if result.family == family]:
            yield from _of_family(family, some)
    if chose := [result for result in results if _origin(result) in CHOOSING]:
        yield from _left_out(chose)
    for name in dict.fromkeys(result.name for result in results):
        mine = [result for result in results if result.name == name]
        lost = [result.at_home - result.actual for result in mine]
        yield Figure(f"{name}: loss", float(np.mean(lost)), "accuracy", len(mine), len(mine), _range(lost))
        for method in (OURS, *METHODS):
            said = [result.at_home - result.expected[method] for result in mine]
            label = f"{name}: loss by {method}"
            yield Figure(label, float(np.mean(said)), "accuracy", len(mine), len(mine), _range(said))


def _summary(scope: str, results: Sequence[Result]) -> Iterator[Figure]:
    names = list(dict.fromkeys(result.name for result in results))
    seeds = len({result.seed for result in results})
    lost = np.array([result.at_home - result.actual for result in results])
    yield Figure(f"{scope}: mean loss", float(lost.mean()), "accuracy", len(names), seeds)
    for method in (OURS, *METHODS):
        said = np.array([result.at_home - result.expected[method] for result in results])
        ours = method == OURS
        error, order = float(np.abs(said - lost).mean()), _rank_correlation(results, said, lost)
        label = f"{scope}: {method}"
        near, ordered = ("<= 0.05", error <= 0.05), (">= 0.85", order >= 0.85)
        near_goal, near_met = near if ours else (None, None)
        order_goal, order_met = ordered if ours else (None, None)
        yield Figure(
            f"{label}: mean absolute error",
            error,
            "accuracy",
            len(names),
            seeds,
            goal=near_goal,
            met=near_met,
        )
        yield Figure(
            f"{label}: promises too much by", float((lost - said).mean()), "accuracy", len(names), seeds
        )
        yield Figure(
            f"{label}: rank correlation", order, "", len(names), seeds, goal=order_goal, met=order_met
        )
    yield from _interval_figures(scope, results)


def _interval_figures(scope: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Give how often our intervals cover, and what some labelled rows of the target make of ours."""
    names = {result.name for result in results}
    seeds = len({result.seed for result in results})
    covered = np.mean([r.interval[0] <= r.actual <= r.interval[1] for r in results])
    width = np.mean([r.interval[1] - r.interval[0] for r in results])
    met = bool(0.85 <= covered <= 0.95)
    label = f"{scope}: {OURS}"
    yield Figure(f"{label}: 90 % intervals that cover", float(covered), "share", len(results), seeds, None,
                 "0.85 to 0.95", met)  # fmt: skip
    yield Figure(f"{label}: width of the intervals", float(width), "accuracy", len(results), seeds)
    covered = np.mean([r.rectified_interval[0] <= r.actual <= r.rectified_interval[1] for r in results])
    error = float(np.mean([abs(r.rectified - r.actual) for r in results]))
    label = f"{scope}: put right by {LABELLED_ROWS} labelled rows"
    yield Figure(f"{label}: mean absolute error", error, "accuracy", len(names), seeds)
    yield Figure(f"{label}: 90 % intervals that cover", float(covered), "share", len(results), seeds, None,
                 "0.85 to 0.95", bool(0.85 <= covered <= 0.95))  # fmt: skip


def _of_family(family: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Give our error, order and cover on one family that did not choose."""
    lost = np.array([result.at_home - result.actual for result in results])
    said = np.array([result.at_home - result.expected[OURS] for result in results])
    covered = float(np.mean([r.interval[0] <= r.actual <= r.interval[1] for r in results]))
    pairs, seeds = len({result.name for result in results}), len({result.seed for result in results})
    label = f"held out, {family}"
    yield Figure(f"{label}: mean loss", float(lost.mean()), "accuracy", pairs, seeds)
    yield Figure(f"{label}: mean absolute error", float(np.abs(said - lost).mean()), "accuracy", pairs, seeds)
    order = _rank_correlation(results, said, lost)
    yield Figure(f"{label}: rank correlation", order, "", pairs, seeds)
    yield Figure(f"{label}: 90 % intervals that cover", covered, "share", len(results), seeds)


def _origin(result: Result) -> str:
    """Return the family that a result's rows come from, where nothing shifted too."""
    return result.name.partition(":")[0]


def _left_out(results: Sequence[Result]) -> Iterator[Figure]:
    """Give each choosing family's error by weights, and by a form, that the others chose; no shift chooses as well."""
    parts = _parts(results)
    everything = np.ones(len(results), dtype=bool)
    crossed, nested = parts.crossed(OUR_FORM, everything), np.full(len(results), np.nan)
    for family, form, lost in chosen_without(parts):
        nested[parts.families == family] = lost
        weights = parts.weights(OUR_FORM, parts.families != family)
        print(f"{family}: the others choose {' + '.join(form)}; our weights {np.round(weights, 2).tolist()}")
    shifted = np.array([result.family != ALIKE_FAMILY for result in results])
    for said, how in ((crossed, "our weights"), (nested, "form and weights")):
        for scope in ("all", *dict.fromkeys(parts.families.tolist())):
            mine = shifted & ((parts.families == scope) | (scope == "all"))
            some = [result for result, use in zip(results, mine, strict=True) if use]
            label = f"{how} chosen without the family, {scope}"
            pairs, seeds = len({result.name for result in some}), len({result.seed for result in some})
            error = float(np.abs(said - parts.lost)[mine].mean())
            yield Figure(f"{label}: mean absolute error", error, "accuracy", pairs, seeds)
            order = _rank_correlation(some, said[mine], parts.lost[mine])
            yield Figure(f"{label}: rank correlation", order, "", pairs, seeds)


def _parts(results: Sequence[Result]) -> Parts:
    at_home = np.array([result.at_home for result in results])
    methods = {name: at_home - [result.expected[name] for result in results] for name in list(METHODS)[1:]}
    disagreement = [result.disagreement for result in results]
    methods |= {"transport": np.array([result.transport for result in results])}
    parts = with_regions(methods, disagreement, [result.region_loss for result in results])
    families = np.array([_origin(result) for result in results])
    return Parts(families, at_home - [result.actual for result in results], parts)


def _rank_correlation(results: Sequence[Result], said: np.ndarray, lost: np.ndarray) -> float:
    """Return Spearman's rank correlation of the pairs' means over seeds; 0 where an estimate is constant."""
    names = np.array([result.name for result in results])
    pairs = list(dict.fromkeys(names.tolist()))
    means = np.array([[values[names == pair].mean() for pair in pairs] for values in (said, lost)])
    if np.ptp(means[0]) < 1e-12 or len(pairs) < 3:
        return 0.0
    return float(spearmanr(means[0], means[1])[0])


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


if __name__ == "__main__":
    main()
