"""What `make bench-forgetting` keeps of each training, and the figures and fronts that it makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from tasks.files import write_text
from tasks.forgetting.way import rank
from tasks.recipe import load_recipe, recipe_path
from tests.bench.figures import ROOT, Figure, publish
from tests.bench.forgetting_cases import CASES, METHODS, Case
from tests.bench.front import Spot, draw_front

OURS, FREE = "Retain", "no budget"
"""Who takes the best by validation of a seed's trainings: of mixtures within the budget, or of tuned models."""
PLAN = 0.8
"""Share of the chosen mixtures that the report halves are to confirm: `decide.power` of the recipes."""
FEWEST_JUDGED = 20
"""Choices below which a share of them is shown, and held against no plan."""
NEAR = 0.95
"""Share of the best gain that ours is to keep within the budget."""


@dataclass(frozen=True)
class Found:
    """One model: what it was chosen by, and what came of it on what nothing was chosen with."""

    validated: float
    """Gain on validation."""
    gain: float
    """On the test split."""
    losses: Mapping[str, float]
    """On the report halves, by suite."""
    share: float
    """The worst loss, as a share of its margin."""
    path: str
    alpha: float
    log_likelihood: float | None = None
    """Gain in calibrated log-likelihood on validation, in nats a row; null: the task has no labels."""
    confirmed: bool | None = None
    """Whether the report halves show, with the recipe's confidence, that every margin was kept. null: of a training from
    before this was asked."""


@dataclass(frozen=True)
class Result:
    """What came of one training."""

    key: str
    """Of the case: `Case.key`."""
    method: str
    seed: int
    seconds: float
    """CPU time of the training."""
    search_seconds: float
    """CPU time of the search for the mixture."""
    tuned: Found
    within: Found
    """The mixture with the base that is best by validation within the budget on the selection halves."""
    largest: Found | None = None
    """That of a search which looks at nothing below the largest α within the budget. null: of a training from before
    `merge` looked below, whose `within` is that one."""


def kept_file(case: Case) -> Path:
    """Return where a case's results are kept."""
    return ROOT / "benchmarks" / "forgetting" / f"{case.recipe}.jsonl"


def kept_results(case: Case) -> list[Result]:
    """Read the results of a case at its present sizes."""
    if not kept_file(case).exists():
        kept_file(case).parent.mkdir(parents=True, exist_ok=True)
        return []
    lines = kept_file(case).read_text(encoding="utf-8").splitlines()
    return [result for result in map(read_result, lines) if result.key == case.key]


def read_result(line: str) -> Result:
    """Read one line of a case's file."""
    said = json.loads(line)
    models = {name: Found(**said[name]) for name in ("tuned", "within", "largest") if said.get(name)}
    return Result(**said | models)


def publish_results(seeds: int) -> None:
    """Print and write the figures of all cases, and draw their fronts."""
    made: list[Figure] = []
    for case in CASES:
        methods = [method.name for method in case.methods(load_recipe(recipe_path(ROOT, case.recipe)))]
        results = whole_seeds(kept_results(case), methods)
        made += coverage(case, results, seeds)
        if not results:
            continue
        ours, free, *alone = spots_of(results)
        made += figures(case.recipe, [ours, free, *alone])
        made += single_figures(case.recipe, case.own, results, alone)
        made += search_figures(case.recipe, results)
        made += look_figures(case.recipe, results)
        made += confirmation_figures(case.recipe, results)
        made += choice_figures(case.recipe, results)
        made += [figure for name in case.shown for figure in shown_figures(case.recipe, name, results)]
        picture = ROOT / "docs" / "images" / f"front-{case.recipe}.svg"
        write_text(picture, draw_front([ours, *alone], case.title, case.gain))
        print(f"drawn in {picture.relative_to(ROOT)}")
    publish("forgetting", made, ["torch", "transformers", "peft"])


def whole_seeds(results: Sequence[Result], methods: Sequence[str]) -> list[Result]:
    """Return the results of the seeds that every method was measured with."""
    seeds = sorted({result.seed for result in results})
    there = {(result.method, result.seed): result for result in results}
    whole = [seed for seed in seeds if all((method, seed) in there for method in methods)]
    return [there[method, seed] for seed in whole for method in methods]


def spots_of(results: Sequence[Result]) -> list[Spot]:
    """Gather results by method, ours first, then the choice that no budget holds: each with its seeds."""
    by_seed: dict[int, list[Result]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(result)
    models = {
        OURS: [max((result.within for result in own), key=_validated) for own in by_seed.values()],
        FREE: [max((result.tuned for result in own), key=_validated) for own in by_seed.values()],
    }
    for result in results:
        models.setdefault(result.method, []).append(result.tuned)
    kinds = {OURS: -1, FREE: -1} | {method.name: method.kind for method in METHODS}
    return [
        Spot(name, kinds[name], [model.share for model in own], [model.gain for model in own])
        for name, own in models.items()
    ]


def _validated(found: Found) -> tuple[bool, float, float]:
    return rank(found.validated, found.log_likelihood, found.alpha)


def coverage(case: Case, results: Sequence[Result], seeds: int) -> Iterator[Figure]:
    """Yield how much of a case has been measured: seeds with every method."""
    there = len({result.seed for result in results})
    methods = len({result.method for result in results})
    yield Figure(
        f"{case.recipe}: seeds, with every method",
        there,
        f"of {methods} methods",
        there,
        there,
        None,
        f">= {seeds}",
        there >= seeds,
    )


def figures(recipe: str, spots: Sequence[Spot]) -> Iterator[Figure]:
    """Yield gain and worst loss of every method, and set ours against the best gain and against each."""
    n = len(spots[0].gains)
    for spot in spots:
        label, losses = f"{recipe}: {spot.name}", (min(spot.losses), max(spot.losses))
        yield Figure(f"{label}: gain", spot.gain, "score", n, n, (min(spot.gains), max(spot.gains)))
        yield Figure(f"{label}: worst loss / margin", spot.loss, "share", n, n, losses)
    ours, free, *alone = spots
    best = max(alone, key=lambda spot: spot.gain)
    within = max(ours.losses) <= 1
    beaten = [spot.name for spot in alone if dominates(ours, spot)]
    goal = f">= {NEAR:g} with every seed within the budget"
    if free.gain > 0:
        label, kept = (
            f"{recipe}: ours keeps of what the same trainings give without a budget",
            ours.gain / free.gain,
        )
        yield Figure(label, kept, "share", n, n, None, goal, kept >= NEAR and within)
    label, kept = f"{recipe}: ours keeps of the best gain in hindsight ({best.name})", ours.gain / best.gain
    met = (kept >= NEAR and within) or len(beaten) == len(alone)
    goal += ", or as good as every method in both"
    yield Figure(label, kept, "share", n, n, None, goal, met)
    label = f"{recipe}: methods that ours equals or beats in both"
    yield Figure(label, len(beaten), f"of {len(alone)}", n, n)
    allowed = [spot for spot in alone if max(spot.losses) <= 1]
    if allowed:
        rival = max(allowed, key=lambda spot: spot.gain)
        label = f"{recipe}: best gain of a single method within the budget ({rival.name})"
        yield Figure(label, rival.gain, "score", n, n)


def single_figures(
    recipe: str, own: str, results: Sequence[Result], alone: Sequence[Spot]
) -> Iterator[Figure]:
    """Yield what ours makes of one training, by the method of the recipe: as much computing as a single method has."""
    models = [result.within for result in results if result.method == own]
    once = Spot(own, -1, [model.share for model in models], [model.gain for model in models])
    label, n = f"{recipe}: ours, of one training ({own})", len(models)
    yield Figure(f"{label}: gain", once.gain, "score", n, n, (min(once.gains), max(once.gains)))
    yield Figure(
        f"{label}: worst loss / margin", once.loss, "share", n, n, (min(once.losses), max(once.losses))
    )
    best = max(alone, key=lambda spot: spot.gain)
    kept, within = once.gain / best.gain, max(once.losses) <= 1
    goal = f">= {NEAR:g} with every seed within the budget"
    yield Figure(
        f"{label}, of the best gain in hindsight ({best.name})",
        kept,
        "share",
        n,
        n,
        None,
        goal,
        kept >= NEAR and within,
    )
    beaten = sum(dominates(once, spot) for spot in alone)
    yield Figure(f"{label}: methods that it equals or beats in both", beaten, f"of {len(alone)}", n, n)
    over = [spot for spot in alone if spot.gain > once.gain and max(spot.losses) <= 1]
    label = f"{recipe}: single methods that gain more than ours of one training, and keep the budget"
    yield Figure(label, len(over), f"of {len(alone)}", n, n)


def dominates(ours: Spot, other: Spot) -> bool:
    """Say whether ours gains as much and loses as little, in the mean over the seeds."""
    return ours.gain >= other.gain and ours.loss <= other.loss


def search_figures(recipe: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield what the search for mixtures costs, beside the trainings."""
    training = sum(result.seconds for result in results)
    search = sum(result.search_seconds for result in results)
    n = len({result.seed for result in results})
    yield Figure(f"{recipe}: CPU time of the searches / of the trainings", search / training, "ratio", n, n)


def confirmation_figures(recipe: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield how often the report halves confirm what was chosen on the selection halves; the base is no choice."""
    for what, models in (
        ("mixtures within the budget", [made.within for made in results if made.within.alpha > 0]),
        ("tuned models as they are", [made.tuned for made in results]),
    ):
        asked = [model.confirmed for model in models if model.confirmed is not None]
        if asked:
            share, n = sum(asked) / len(asked), len(asked)
            judged = what.startswith("mixtures") and n >= FEWEST_JUDGED
            plan = (f">= {PLAN:g}", share >= PLAN) if judged else (None, None)
            yield Figure(
                f"{recipe}: {what} that the report halves confirm", share, "share", n, n, None, *plan
            )


def choice_figures(recipe: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield how well validation orders the models of a seed as the test split does, by metric and by log-likelihood.

    And what the metric alone would have chosen of them: it was the order until log-likelihood took its place.
    """
    seeds = sorted({result.seed for result in results})
    if any(result.tuned.log_likelihood is None for result in results):
        return
    for what, model in (("tuned models", "tuned"), ("mixtures within the budget", "within")):
        pools = [[getattr(made, model) for made in results if made.seed == seed] for seed in seeds]
        gains = [max(own, key=lambda one: (one.validated, -one.alpha)).gain for own in pools]
        label = f"{recipe}: gain of what its metric alone would choose, {what}"
        yield Figure(
            label, sum(gains) / len(gains), "score", len(pools[0]), len(seeds), (min(gains), max(gains))
        )
        for by in ("validated", "log_likelihood"):
            order = [
                float(spearmanr([getattr(one, by) for one in own], [one.gain for one in own])[0])
                for own in pools
            ]
            name = "its metric" if by == "validated" else "log-likelihood"
            label = f"{recipe}: rank correlation of gain on test and {name} on validation, {what}"
            yield Figure(
                label, sum(order) / len(order), "", len(pools[0]), len(seeds), (min(order), max(order))
            )


def shown_figures(recipe: str, suite: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield what ours, and a choice without a budget, lost of a benchmark that decides nothing, and who lost most."""
    by_seed: dict[int, list[Result]] = {}
    by_method: dict[str, list[float]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(result)
        by_method.setdefault(result.method, []).append(result.tuned.losses[suite])
    worst = max(by_method, key=lambda method: sum(by_method[method]))
    for who, losses in (
        (OURS, [max((one.within for one in own), key=_validated).losses[suite] for own in by_seed.values()]),
        (FREE, [max((one.tuned for one in own), key=_validated).losses[suite] for own in by_seed.values()]),
        (f"{worst}, which loses most of it", by_method[worst]),
    ):
        label, n = f"{recipe}: {who}: lost of {suite}, shown only", len(losses)
        yield Figure(label, sum(losses) / n, "score", n, n, (min(losses), max(losses)))


def look_figures(recipe: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield what a look below the largest α changes, over the trainings that were searched so."""
    pairs = [(result.within, result.largest) for result in results if result.largest]
    label = f"{recipe}: trainings whose search looked below the largest α"
    yield Figure(label, len(pairs), f"of {len(results)}", len(results))
    moved = [(within, largest) for within, largest in pairs if within.alpha < largest.alpha]
    if not pairs:
        return
    yield Figure(f"{recipe}: of these, took a smaller one", len(moved), f"of {len(pairs)}", len(pairs))
    for name, unit in (("gain", "score"), ("share", "margins")):
        changes = [getattr(within, name) - getattr(largest, name) for within, largest in moved]
        if changes:
            what = "change in gain" if name == "gain" else "change in worst loss / margin"
            mean, ends = sum(changes) / len(changes), (min(changes), max(changes))
            yield Figure(f"{recipe}: {what} by a smaller α, mean", mean, unit, len(changes), 1, ends)
