"""merge: bisection over α, the choice, and the models it makes, on a tiny base."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import f1_score

from tasks import merge as stage
from tasks import reports
from tasks.families import family, load_model
from tasks.files import folder_fingerprint
from tasks.forgetting import search, way
from tasks.merge import merge
from tasks.paths import Paths
from tasks.recipe import Suite as Margin
from tasks.recipe import load_recipe
from tasks.sources import base_folder
from tasks.splits import read_splits
from tests.models_data import tuned_project

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return tuned_project(tmp_path_factory.mktemp("merge"))


def run(paths: Paths, margin: float = 0.5) -> reports.MergeReport:
    recipe = load_recipe(paths.root / "recipes" / "tiny.yaml")
    section = recipe.merge.model_copy(update={"alphas": ALPHAS})
    budget = {"articles": recipe.budget["articles"].model_copy(update={"margin": margin})}
    merge(section, recipe.evaluate, budget, recipe.decide, paths=paths)
    return reports.read_report(paths.merge, reports.MergeReport)


def outcome(alpha: float, gain: float, allowed: bool | None = True) -> reports.AlphaOutcome:
    return reports.AlphaOutcome(
        alpha=alpha, validation_score=gain, gain=gain, suites=[], within_budget=allowed, blocked_by=[]
    )


def test_the_most_gain_within_the_budget_is_chosen() -> None:
    made = [outcome(0, 0), outcome(0.3, 0.05), outcome(0.6, 0.04), outcome(1, 0.2, allowed=False)]
    assert way.choose(made).alpha == 0.3


def test_of_equal_gains_the_nearest_to_the_base() -> None:
    assert way.choose([outcome(0, 0), outcome(0.5, 0.1), outcome(1, 0.1)]).alpha == 0.5


def test_what_was_not_measured_is_not_chosen() -> None:
    assert way.choose([outcome(0, 0), outcome(0.5, 0.1, allowed=None), outcome(1, 0.05)]).alpha == 1


def test_a_tuned_model_that_forgot_nothing_is_looked_below_on_validation_alone(project: Paths) -> None:
    report = run(project, margin=0.99)
    assert [found.alpha for found in report.outcomes] == ALPHAS
    measured = {found.alpha for found in report.outcomes if found.within_budget is not None}
    assert measured == {0.0, 1.0, report.alpha}
    for found in report.outcomes:
        assert bool(found.suites) == (found.alpha in measured)
    assert not report.rescued
    assert report.model == folder_fingerprint(project.chosen)


def test_a_search_made_of_the_recipe_is_that_of_the_stage(project: Paths) -> None:
    report = run(project)
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
    recipe = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"alphas": ALPHAS})})
    base = reports.read_report(project.base, reports.Base)
    folder = base_folder(base, project.root)
    schema, tables = read_splits(project)
    ends = search.Ends.load(family(schema.task), folder, project.tuned, "cpu", recipe.evaluate.precision)
    budget = {"articles": recipe.budget["articles"].model_copy(update={"margin": 0.5})}
    made = search.Search.of_recipe(recipe, project, base, ends, tables, budget=budget)
    assert made.outcomes() == report.outcomes
    assert search.Search.of_recipe(recipe, project, base, ends, tables).budget == recipe.budget


def test_gain_on_validation_may_be_counted_in_macro_f1(project: Paths) -> None:
    plain = run(project, margin=0.99)
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
    section = recipe.evaluate.model_copy(update={"metric": "macro_f1"})
    budget = {"articles": recipe.budget["articles"].model_copy(update={"margin": 0.99})}
    merge(recipe.merge, section, budget, recipe.decide, paths=project)
    report = reports.read_report(project.merge, reports.MergeReport)
    assert report.metric == "macro_f1"
    rows = pd.read_parquet(project.validation)
    said = load_model(project.tuned).measure(rows).predictions
    truth = rows["label"].to_numpy()
    assert report.tuned.validation_score == pytest.approx(f1_score(truth, said, average="macro"))
    assert report.tuned.validation_score != pytest.approx(plain.tuned.validation_score)
    likelier = []
    folder = base_folder(reports.read_report(project.base, reports.Base), project.root)
    for model in (load_model(project.tuned), family(recipe.task).load_start(folder, project.tuned)):
        each = model.measure(rows).calibrated
        assert each is not None
        likelier.append(-np.mean([each[truth == label].mean() for label in np.unique(truth)]))
    assert report.tuned.log_likelihood_gain == pytest.approx(likelier[0] - likelier[1])


def test_the_chosen_model_is_the_interpolation(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "choose", lambda found: next(item for item in found if item.alpha == 0.5))
    monkeypatch.setattr(search.Search, "_leaves_room", lambda self, outcome: False)
    report = run(project)
    assert report.alpha == 0.5
    assert report.rescued
    start, tuned, chosen = (
        load_file(path)["weight"]
        for path in (
            project.tuned / "start_head.safetensors",
            project.tuned / "head.safetensors",
            project.chosen / "head.safetensors",
        )
    )
    assert np.allclose(chosen, (start + tuned) / 2, atol=1e-7)


def test_bisection_finds_the_largest_alpha_that_leaves_room(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(self: search.Search, point: way.Point) -> reports.AlphaOutcome:
        asked.append(point[1])
        return outcome(point[1], point[1], allowed=point[1] <= 0.5)

    monkeypatch.setattr(search.Search, "_measure", measure)
    monkeypatch.setattr(search.Search, "look", lambda self, point: outcome(point[1], point[1], None))
    report = run(project)
    assert report.alpha == 0.5
    assert report.rescued
    assert sorted(asked) == [0.0, 0.5, 0.75, 1.0]


def test_when_nothing_fits_the_base_is_the_answer(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.Search, "_leaves_room", lambda self, outcome: False)
    report = run(project)
    assert report.alpha == 0.0
    assert not report.rescued
    assert report.outcomes[-1].blocked_by == ["articles"]
    start = load_file(project.tuned / "start_head.safetensors")
    assert np.array_equal(load_file(project.chosen / "head.safetensors")["weight"], start["weight"])


def test_both_paths_are_searched_and_each_keeps_to_its_own_weights(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiNeS at α = 0 keeps nothing of the embeddings' change, all of the head's, half of a block's in the middle."""
    monkeypatch.setattr(search.Search, "_leaves_room", lambda self, outcome: False)
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
    section = recipe.merge.model_copy(update={"alphas": ALPHAS, "paths": ["wise-ft", "lines"]})
    made = {}
    model = search.Search.model

    def kept(self: search.Search, path: str, alpha: float) -> object:
        made[(path, alpha)] = {
            name: value.clone() for name, value in model(self, path, alpha).network.state_dict().items()
        }
        return model(self, path, alpha)

    monkeypatch.setattr(search.Search, "model", kept)
    merge(section, recipe.evaluate, recipe.budget, recipe.decide, paths=project)
    start, tuned, ramp = made[("wise-ft", 0.0)], made[("wise-ft", 1.0)], made[("lines", 0.0)]
    embeddings, head = "encoder.embeddings.word_embeddings.weight", "head.weight"
    assert np.allclose(ramp[embeddings], start[embeddings], atol=1e-7)
    assert np.allclose(ramp[head], tuned[head], atol=1e-7)
    block = "encoder.encoder.layer.0.attention.self.query.weight"
    assert np.allclose(ramp[block], start[block] + (tuned[block] - start[block]) / 3, atol=1e-7)


def test_flips_are_the_worst_of_the_selection_half(project: Paths) -> None:
    report = run(project)
    losses = [flip.base - flip.candidate for flip in report.flips]
    assert all(loss > 0 for loss in losses)
    assert losses == sorted(losses, reverse=True)
    assert len(losses) <= 10
    assert all("→" in flip.extract for flip in report.flips)


def test_flips_show_what_decides_first_and_each_suite_in_turn() -> None:
    """Ranks lose less than a whole point, right answers a whole one: sorted by loss alone, they would fill the ten."""
    lost = {"answers": [1.0] * 12, "ranks": [0.9, 0.5, 0.2, 0.1, 0.1, 0.1], "titles": [0.75, -0.5, 0.8]}
    fakes: dict[str, object] = {
        "_suites": [
            SimpleNamespace(
                name=name,
                examples=pd.DataFrame({"id": [f"e{row}" for row in range(len(values))]}),
                extract=str,
                picture=lambda row: None,
            )
            for name, values in lost.items()
        ],
        "_reference": SimpleNamespace(outcomes=lambda suite: np.array(lost[suite.name])),
        "_tuned_subject": SimpleNamespace(outcomes=lambda suite: np.zeros(len(lost[suite.name]))),
        "budget": {
            "answers": Margin(informative=True),
            "ranks": Margin(margin=0.1),
            "titles": Margin(margin=0.1),
        },
    }
    made = search.Search.__new__(search.Search)
    vars(made).update(fakes)
    found = [(flip.suite, flip.base) for flip in made.flips()]
    ranks = [("ranks", loss) for loss in lost["ranks"]]
    assert found == [*ranks, ("titles", 0.8), ("titles", 0.75), ("answers", 1.0), ("answers", 1.0)]


def test_same_inputs_give_the_same_bytes(project: Paths) -> None:
    run(project)
    first = project.merge.read_bytes(), folder_fingerprint(project.chosen)
    run(project)
    assert (project.merge.read_bytes(), folder_fingerprint(project.chosen)) == first


def test_the_chosen_model_classifies(project: Paths) -> None:
    run(project)
    assert len(load_model(project.chosen).answer(["the phone was good"])) == 1


def test_a_margin_that_moves_measures_no_model_again(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.Search, "_leaves_room", lambda self, outcome: False)
    before = run(project, margin=0.5)
    assert len(before.outcomes) > 2

    def measured_again(self: object, table: object) -> object:
        raise AssertionError("a model was measured again")

    monkeypatch.setattr(type(load_model(project.chosen)), "measure", measured_again)
    again = run(project, margin=0.01)
    assert [(found.alpha, found.gain) for found in again.outcomes] == [
        (found.alpha, found.gain) for found in before.outcomes
    ]
