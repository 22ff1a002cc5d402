"""What `make bench-forgetting` keeps of each training, and the figures and fronts that it makes of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.files import write_text
from tasks.recipe import load_recipe, recipe_path
from tests.bench.figures import ROOT, Figure, publish
from tests.bench.forgetting_cases import CASES, METHODS, OURS, Case
from tests.bench.front import Spot, draw_front

NEAR = 0.95
"""Share of the best gain that ours is to keep within the budget."""


@dataclass(frozen=True)
class Result:
    """What came of one model, on what nothing was chosen with."""

    key: str
    """Of the case: `Case.key`."""
    method: str
    seed: int
    seconds: float
    """CPU time of the training."""
    gain: float
    """On the test split."""
    losses: Mapping[str, float]
    """On the report halves, by suite."""
    share: float
    """The worst loss, as a share of its margin."""
    alpha: float
    path: str
    search_seconds: float = 0.0
    """CPU time of the search for the mixture, of ours."""


def kept_file(case: Case) -> Path:
    """Return where a case's results are kept."""
    return ROOT / "benchmarks" / "forgetting" / f"{case.recipe}.jsonl"


def kept_results(case: Case) -> list[Result]:
    """Read the results of a case at its present sizes."""
    if not kept_file(case).exists():
        kept_file(case).parent.mkdir(parents=True, exist_ok=True)
        return []
    lines = kept_file(case).read_text(encoding="utf-8").splitlines()
    results = [Result(**json.loads(line)) for line in lines]
    return [result for result in results if result.key == case.key]


def publish_results(seeds: int) -> None:
    """Print and write the figures of all cases, and draw their fronts."""
    made: list[Figure] = []
    for case in CASES:
        spots = spots_of(kept_results(case))
        made += coverage(case, spots, seeds)
        if len(spots) < 2:
            continue
        made += figures(case.recipe, spots)
        made += search_figures(case.recipe, kept_results(case))
        picture = ROOT / "docs" / "images" / f"front-{case.recipe}.svg"
        write_text(picture, draw_front(spots, case.title, case.gain))
        print(f"drawn in {picture.relative_to(ROOT)}")
    publish("forgetting", made, ["torch", "transformers", "peft"])


def spots_of(results: Sequence[Result]) -> list[Spot]:
    """Gather results by method, ours first: its seeds, and the methods that were measured with all of them."""
    seeds = sorted({result.seed for result in results if result.method == OURS})
    kinds = {OURS: -1} | {method.name: method.kind for method in METHODS}
    spots = []
    for name, kind in kinds.items():
        own = {result.seed: result for result in results if result.method == name}
        if seeds and set(seeds) <= set(own):
            chosen = [own[seed] for seed in seeds]
            spots.append(
                Spot(name, kind, [result.share for result in chosen], [result.gain for result in chosen])
            )
    return spots


def coverage(case: Case, spots: Sequence[Spot], seeds: int) -> Iterator[Figure]:
    """Yield how much of a case has been measured."""
    recipe = load_recipe(recipe_path(ROOT, case.recipe))
    there, wanted = len(spots[0].gains) if spots else 0, len(case.methods(recipe)) - 1
    alone = max(len(spots) - 1, 0)
    yield Figure(f"{case.recipe}: seeds", there, "seeds", there, there, None, f">= {seeds}", there >= seeds)
    yield Figure(
        f"{case.recipe}: single methods measured",
        alone,
        "methods",
        there,
        there,
        None,
        f"all {wanted}",
        alone == wanted,
    )


def figures(recipe: str, spots: Sequence[Spot]) -> Iterator[Figure]:
    """Yield gain and worst loss of every method, and set ours against the best gain and against each."""
    for spot in spots:
        n, label = len(spot.gains), f"{recipe}: {spot.name}"
        yield Figure(
            f"{label}: gain",
            spot.gain,
            "score",
            n,
            n,
            (min(spot.gains), max(spot.gains)),
        )
        yield Figure(
            f"{label}: worst loss / margin", spot.loss, "share", n, n, (min(spot.losses), max(spot.losses))
        )
    ours = next(spot for spot in spots if spot.kind < 0)
    alone = [spot for spot in spots if spot.kind >= 0]
    best = max(alone, key=lambda spot: spot.gain)
    kept, within = ours.gain / best.gain, max(ours.losses) <= 1
    beaten = [spot.name for spot in alone if dominates(ours, spot)]
    yield Figure(
        f"{recipe}: ours keeps of the best gain ({best.name})",
        kept,
        "share",
        len(ours.gains),
        len(ours.gains),
        None,
        f">= {NEAR:g} with every seed within the budget, or as good as every method in both",
        (kept >= NEAR and within) or len(beaten) == len(alone),
    )
    yield Figure(
        f"{recipe}: methods that ours equals or beats in both",
        len(beaten),
        f"of {len(alone)}",
        len(ours.gains),
        len(ours.gains),
    )
    allowed = [spot for spot in alone if max(spot.losses) <= 1]
    if allowed:
        rival = max(allowed, key=lambda spot: spot.gain)
        yield Figure(
            f"{recipe}: best gain of a single method within the budget ({rival.name})",
            rival.gain,
            "score",
            len(rival.gains),
            len(rival.gains),
        )


def dominates(ours: Spot, other: Spot) -> bool:
    """Say whether ours gains as much and loses as little, in the mean over the seeds."""
    return ours.gain >= other.gain and ours.loss <= other.loss


def search_figures(recipe: str, results: Sequence[Result]) -> Iterator[Figure]:
    """Yield what ours costs: its training beside the others', and its search on top."""
    ours = [result for result in results if result.method == OURS]
    alone = [result.seconds for result in results if result.method == "full"]
    n = len(ours)
    if ours and alone:
        full = statistics.median(alone)
        training = statistics.median(result.seconds for result in ours)
        search = statistics.median(result.search_seconds for result in ours)
        yield Figure(f"{recipe}: CPU time of ours / full, training", training / full, "ratio", n, n)
        yield Figure(
            f"{recipe}: CPU time of ours / full, with the search", (training + search) / full, "ratio", n, n
        )
