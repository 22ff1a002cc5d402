"""bench-forgetting: what its figures claim of known results, and the front that it draws."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from tasks.forgetting.way import LOOKS
from tasks.recipe import Finetune, load_recipe, recipe_path
from tasks.reports import AlphaOutcome
from tests.bench.bench_forgetting import one_training
from tests.bench.figures import ROOT, Figure
from tests.bench.forgetting_cases import CASES, METHODS, Case, Method
from tests.bench.forgetting_figures import (
    FREE,
    OURS,
    Found,
    Result,
    choice_figures,
    confirmation_figures,
    coverage,
    figures,
    look_figures,
    read_result,
    search_figures,
    single_figures,
    spots_of,
    whole_seeds,
)
from tests.bench.front import Spot, draw_front


def found(gain: float, share: float, validated: float = 0.0, alpha: float = 1.0) -> Found:
    return Found(validated, gain, {"articles": share / 10}, share, "wise-ft", alpha)


def result(method: str, seed: int, tuned: Found, within: Found) -> Result:
    return Result("case", method, seed, 10.0, 4.0, tuned, within)


def published(results: list[Result]) -> Mapping[str, Figure]:
    return {figure.figure: figure for figure in figures("case", spots_of(results))}


def trainings(gain: float, share: float) -> list[Result]:
    """Return a sweep of two methods and seeds whose choice within the budget has this gain and loss."""
    return [
        made
        for seed in (1, 2)
        for made in (
            result("full", seed, found(0.10, 8.0, 0.12), found(gain, share, 0.09, 0.6)),
            result("BitFit", seed, found(0.04, 0.5, 0.03), found(0.04, 0.5, 0.03)),
        )
    ]


@pytest.mark.parametrize(
    ("gain", "share", "met"),
    [
        (0.097, 0.9, True),  # near the best, within the budget
        (0.097, 1.1, False),  # near the best, over the budget
        (0.090, 0.9, False),  # too little of the best
        (0.110, 0.4, True),
    ],
)
def test_the_goal_is_near_the_best_gain_within_the_budget(gain: float, share: float, met: bool) -> None:
    made = published(trainings(gain, share))
    assert made["case: ours keeps of the best gain in hindsight (full)"].met is met
    assert made["case: ours keeps of the best gain in hindsight (full)"].value == pytest.approx(gain / 0.10)
    equal = made["case: ours keeps of what the same trainings give without a budget"]
    assert (equal.value, equal.met) == (pytest.approx(gain / 0.10), met)
    rival = made["case: best gain of a single method within the budget (BitFit)"]
    assert rival.value == pytest.approx(0.04)


def test_ours_over_the_budget_with_one_seed_misses() -> None:
    results = trainings(0.099, 0.5)
    results[-2] = result("full", 2, found(0.10, 8.0, 0.12), found(0.099, 1.01, 0.09, 0.6))
    assert published(results)["case: ours keeps of the best gain in hindsight (full)"].met is False


def test_ours_and_its_rival_choose_by_validation_alone() -> None:
    results = [
        result("full", 1, found(-0.1, 9.0, 0.3), found(0.5, 0.2, 0.1, 0.4)),
        result("LP-FT", 1, found(0.2, 2.0, 0.2), found(0.1, 0.3, 0.2, 0.5)),
    ]
    ours, free, *alone = spots_of(results)
    assert (ours.name, ours.gains, ours.losses) == (OURS, [0.1], [0.3]), (
        "0.5 on the test split is not looked at"
    )
    assert (free.name, free.gains, free.losses) == (FREE, [-0.1], [9.0])
    assert [(spot.name, spot.gains) for spot in alone] == [("full", [-0.1]), ("LP-FT", [0.2])]
    assert "case: ours keeps of what the same trainings give without a budget" not in published(results)
    (cost,) = search_figures("case", results)
    assert cost.value == pytest.approx(0.4)


def test_one_training_of_ours_is_set_against_single_methods() -> None:
    results = trainings(0.097, 0.9)
    _, _, *alone = spots_of(results)
    made = {figure.figure: figure.value for figure in single_figures("case", "full", results, alone)}
    assert made["case: ours, of one training (full): gain"] == pytest.approx(0.097)
    assert made["case: ours, of one training (full): worst loss / margin"] == pytest.approx(0.9)
    kept = made["case: ours, of one training (full), of the best gain in hindsight (full)"]
    assert kept == pytest.approx(0.97)
    assert made["case: ours, of one training (full): methods that it equals or beats in both"] == 0
    name = "case: single methods that gain more than ours of one training, and keep the budget"
    assert made[name] == 0


def test_of_equal_mixtures_the_one_nearest_to_the_base_is_taken() -> None:
    results = [
        result("full", 1, found(0.2, 2.0, 0.1), found(0.2, 0.9, 0.1, 1.0)),
        result("LP-FT", 1, found(0.2, 2.0, 0.1), found(0.1, 0.3, 0.1, 0.5)),
    ]
    assert spots_of(results)[0].gains == [0.1]


def test_only_seeds_with_every_method_count() -> None:
    more = [result("full", 3, found(0.5, 20.0), found(0.5, 0.5))]
    results = whole_seeds([*trainings(0.097, 0.9), *more], ["full", "BitFit"])
    assert {made.seed for made in results} == {1, 2}
    assert whole_seeds(more, ["full", "BitFit"]) == []


def test_what_has_not_been_measured_is_a_goal_missed() -> None:
    (seeds,) = coverage(CASES[0], trainings(0.097, 0.9), 3)
    assert (seeds.value, seeds.met) == (2, False)
    assert [figure.value for figure in coverage(CASES[0], [], 3)] == [0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)
def test_every_method_of_a_case_is_a_valid_section(case: Case) -> None:
    recipe = load_recipe(recipe_path(ROOT, case.recipe))
    methods = case.methods(recipe)
    assert len(methods) >= 8
    assert any(method.replays != "no" for method in methods), "every case has original rows to replay"
    for method in methods:
        section = Finetune.model_validate(case.finetune(method, 1, recipe))
        assert section.seed == 1


def test_results_that_are_kept_can_be_read() -> None:
    for file in (ROOT / "benchmarks" / "forgetting").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert read_result(line).seed > 0


def test_the_front_names_every_method_and_marks_ours() -> None:
    spots = [Spot(OURS, -1, [0.2], [0.09]), Spot("a < b", 0, [9.0], [0.1]), Spot("gains", 1, [-0.5], [-0.02])]
    picture = ElementTree.fromstring(draw_front(spots, "Title", "gain"))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in picture.iter(f"{space}text")]
    assert {"a < b", OURS, "gains", "budget", "Title"} <= set(words)
    assert len(list(picture.iter(f"{space}polygon"))) == 2, "ours on the plot, and in the legend"
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    for circle in picture.iter(f"{space}circle"):
        assert 0 < float(circle.get("cx", 0)) < width
        assert 0 < float(circle.get("cy", 0)) < height


def test_what_a_look_below_changed_is_told_of_the_trainings_that_had_one() -> None:
    before = result("full", 1, found(0.1, 8.0), found(0.05, 0.9, alpha=0.6))
    moved = dataclasses.replace(
        before, within=found(0.06, 0.4, alpha=0.4), largest=found(0.05, 0.9, alpha=0.6)
    )
    stayed = dataclasses.replace(before, largest=before.within)
    made = {made.figure: made for made in look_figures("case", [before, moved, stayed])}
    assert made["case: trainings whose search looked below the largest α"].value == 2
    assert made["case: trainings whose search looked below the largest α"].unit == "of 3"
    assert made["case: of these, took a smaller one"].value == 1
    assert made["case: change in gain by a smaller α, mean"].value == pytest.approx(0.01)
    assert made["case: change in worst loss / margin by a smaller α, mean"].value == pytest.approx(-0.5)


def test_without_a_look_below_nothing_is_told_of_one() -> None:
    made = list(look_figures("case", [result("full", 1, found(0.1, 8.0), found(0.05, 0.9))]))
    assert [(figure.value, figure.unit) for figure in made] == [(0, "of 1")]


def test_what_a_training_kept_is_read_back() -> None:
    kept = result("full", 1, found(0.1, 8.0), found(0.05, 0.9, alpha=0.6))
    for written in (kept, dataclasses.replace(kept, largest=found(0.04, 0.5, alpha=0.7))):
        assert read_result(json.dumps(dataclasses.asdict(written))) == written


class FakeArena:
    """A case whose trainings cost nothing: the mixture at 0.4 gains most, and a search without looks stops at 0.6."""

    case = SimpleNamespace(key="case")

    def __init__(self, root: Path, best: float) -> None:
        self.paths, self.best = SimpleNamespace(root=root), best
        self.reported: list[float] = []

    def train(self, method: Method, seed: int, tuned: Path) -> tuple[SimpleNamespace, float]:
        return SimpleNamespace(start="start", tuned="tuned"), 1.0

    def search(self, ends: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(outcomes=self.outcomes, model=lambda path, alpha: (path, alpha))

    def outcomes(self, looks: int = LOOKS) -> list[AlphaOutcome]:
        tried = {0.0: True, 0.6: True, 1.0: False} | ({self.best: True} if looks else {})
        gains = {0.0: 0.0, 0.6: 0.05, 1.0: 0.01, 0.4: 0.07}
        return [
            AlphaOutcome(
                alpha=alpha,
                validation_score=gains[alpha],
                gain=gains[alpha],
                suites=[],
                within_budget=fits,
                blocked_by=[],
            )
            for alpha, fits in sorted(tried.items())
        ]

    def report(self, outcome: AlphaOutcome, start: object, candidate: object) -> Found:
        assert candidate == ("wise-ft", outcome.alpha)
        self.reported.append(outcome.alpha)
        return found(outcome.gain, 0.5, outcome.gain, outcome.alpha)


@pytest.mark.parametrize(("best", "reported"), [(0.4, [1.0, 0.4, 0.6]), (0.6, [1.0, 0.6])])
def test_a_training_tells_what_a_search_without_a_look_below_would_take(
    best: float, reported: list[float], tmp_path: Path
) -> None:
    arena = FakeArena(tmp_path, best)
    made = one_training(arena, METHODS[0], 1)  # type: ignore[arg-type]
    assert made.largest is not None
    assert [made.tuned.alpha, made.within.alpha, made.largest.alpha] == [1.0, best, 0.6]
    assert arena.reported == reported, "nothing is reported twice"


def test_confirmations_are_counted_of_choices_that_were_asked() -> None:
    yes, no = (
        dataclasses.replace(found(0.1, 0.5), confirmed=True),
        dataclasses.replace(found(0.1, 1.2), confirmed=False),
    )
    base = dataclasses.replace(yes, alpha=0.0)
    results = [
        result("full", 1, no, yes),
        result("full", 2, no, no),
        result("BitFit", 1, yes, base),  # the base itself is no choice
        result("BitFit", 2, found(0.1, 0.5), found(0.1, 0.5)),  # from before it was asked
    ]
    made = {figure.figure: figure for figure in confirmation_figures("case", results)}
    chosen = made["case: mixtures within the budget that the report halves confirm"]
    assert (chosen.value, chosen.n, chosen.met) == (0.5, 2, None), "too few to hold against a plan"
    many = {figure.figure: figure for figure in confirmation_figures("case", results * 10)}
    assert many["case: mixtures within the budget that the report halves confirm"].met is False
    tuned = made["case: tuned models as they are that the report halves confirm"]
    assert (tuned.value, tuned.n, tuned.met) == (pytest.approx(1 / 3), 3, None)
    assert list(confirmation_figures("case", results[3:])) == []


def test_how_well_validation_orders_the_models_is_told_by_metric_and_by_log_likelihood() -> None:
    results = []
    for seed in (1, 2):
        for place, method in enumerate(("full", "BitFit", "LP-FT")):
            tuned = dataclasses.replace(found(0.1 * place, 1.0, -0.1 * place), log_likelihood=0.01 * place)
            within = dataclasses.replace(found(0.1 * place, 0.5, 0.1 * place), log_likelihood=-0.01 * place)
            results.append(result(method, seed, tuned, within))
    figures_of = {figure.figure: figure.value for figure in choice_figures("case", results)}
    start = "case: rank correlation of gain on test and "
    said = {name.removeprefix(start): value for name, value in figures_of.items() if name.startswith(start)}
    label = "case: gain of what its metric alone would choose, "
    assert figures_of[label + "tuned models"] == pytest.approx(0.0)
    assert figures_of[label + "mixtures within the budget"] == pytest.approx(0.2)
    assert said == {
        "its metric on validation, tuned models": pytest.approx(-1),
        "log-likelihood on validation, tuned models": pytest.approx(1),
        "its metric on validation, mixtures within the budget": pytest.approx(1),
        "log-likelihood on validation, mixtures within the budget": pytest.approx(-1),
    }
    assert not list(choice_figures("case", [dataclasses.replace(results[0], tuned=found(0.1, 1.0))])), (
        "not measured"
    )
