"""bench-forgetting: what its figures claim of known results, and the front that it draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest

from tasks.recipe import Finetune, load_recipe, recipe_path
from tests.bench.figures import ROOT, Figure
from tests.bench.forgetting_cases import CASES, OURS, Case
from tests.bench.forgetting_figures import Result, coverage, figures, spots_of
from tests.bench.front import Spot, draw_front


def result(method: str, seed: int, gain: float, share: float) -> Result:
    return Result("case", method, seed, 1.0, gain, {"articles": share / 10}, share, 1.0, "")


def published(results: list[Result]) -> Mapping[str, Figure]:
    return {figure.figure: figure for figure in figures("case", spots_of(results))}


def ours_of(gain: float, share: float) -> list[Result]:
    others = [result("full", seed, 0.10, 8.0) for seed in (1, 2)]
    others += [result("BitFit", seed, 0.04, 0.5) for seed in (1, 2)]
    return [*others, result(OURS, 1, gain, share), result(OURS, 2, gain, share)]


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
    found = published(ours_of(gain, share))
    assert found["case: ours keeps of the best gain (full)"].met is met
    assert found["case: ours keeps of the best gain (full)"].value == pytest.approx(gain / 0.10)
    rival = found["case: best gain of a single method within the budget (BitFit)"]
    assert rival.value == pytest.approx(0.04)


def test_only_methods_that_were_measured_with_all_seeds_of_ours_count() -> None:
    more = [result("full", 3, 0.5, 20.0), result("LP-FT", 1, 0.5, 0.1)]
    found = published([*ours_of(0.097, 0.9), *more])
    assert found["case: full: gain"].value == pytest.approx(0.10)
    assert "case: LP-FT: gain" not in found


def test_what_has_not_been_measured_is_a_goal_missed() -> None:
    seeds, methods = coverage(CASES[0], spots_of(ours_of(0.097, 0.9)), 3)
    assert (seeds.value, seeds.met) == (2, False)
    assert (methods.value, methods.goal, methods.met) == (2, "all 13", False)
    assert [figure.value for figure in coverage(CASES[0], [], 3)] == [0, 0]


def test_ours_over_the_budget_with_one_seed_misses() -> None:
    results = ours_of(0.099, 0.5)
    results[-1] = result(OURS, 2, 0.099, 1.01)
    assert published(results)["case: ours keeps of the best gain (full)"].met is False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)
def test_every_method_of_a_case_is_a_valid_section(case: Case) -> None:
    recipe = load_recipe(recipe_path(ROOT, case.recipe))
    methods = case.methods(recipe)
    assert methods[0].name == OURS
    assert len(methods) >= 8
    for method in methods:
        section = Finetune.model_validate(case.finetune(method, 1, recipe))
        assert section.seed == 1


def test_results_that_are_kept_can_be_read() -> None:
    for file in (ROOT / "benchmarks" / "forgetting").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert Result(**json.loads(line)).seed > 0


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
