"""evaluate: records, figures and bytes, on a tiny model."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tasks import reports
from tasks.evaluate import evaluate
from tasks.files import folder_fingerprint
from tasks.paths import Paths
from tasks.recipe import load_recipe
from tests.models_data import tuned_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = tuned_project(tmp_path_factory.mktemp("evaluate"), until="merge")
    base = reports.read_report(paths.base, reports.Base)
    pin = reports.Pin(
        registry_name="tiny",
        champion=None,
        champion_model=None,
        candidate_model=reports.read_report(paths.merge, reports.MergeReport).model,
        first_base=base.first_base,
    )
    reports.write_report(paths.pin, pin)
    return paths


@pytest.fixture(scope="module")
def report(project: Paths) -> reports.EvaluateReport:
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
    evaluate(recipe.evaluate, recipe.decide, paths=project)
    return reports.read_report(project.evaluate, reports.EvaluateReport)


def test_there_is_a_record_for_each_example_of_the_report_half(
    project: Paths, report: reports.EvaluateReport
) -> None:
    for name in ("articles",):
        table = pd.read_parquet(project.records / "suites" / f"{name}.parquet")
        examples = pd.read_parquet(project.report_half / name / "examples.parquet")
        assert table["id"].tolist() == examples["id"].tolist()
        assert list(table) == ["id", "group", "base", "candidate"]
        suite = next(suite for suite in report.suites if suite.name == name)
        assert suite.base == pytest.approx(table["base"].mean())
        assert suite.loss == pytest.approx((table["base"] - table["candidate"]).mean())
        assert suite.chance > 0


def test_the_task_is_scored_on_the_test_split(project: Paths, report: reports.EvaluateReport) -> None:
    table = pd.read_parquet(project.records / "targets" / "test.parquet")
    (test,) = report.targets
    assert test.examples == len(table) == len(pd.read_parquet(project.test))
    assert test.candidate == pytest.approx(table["candidate"].mean())
    assert test.gain_interval[0] <= test.gain <= test.gain_interval[1]
    assert test.champion is None


def test_it_says_which_models_it_measured(project: Paths, report: reports.EvaluateReport) -> None:
    assert report.candidate_model == folder_fingerprint(project.chosen)
    assert report.base_model == reports.read_report(project.base, reports.Base).fingerprint


def test_metrics_are_flat_numbers_for_dvc(project: Paths, report: reports.EvaluateReport) -> None:
    metrics = json.loads(project.metrics.read_text())
    assert metrics["task"]["test"]["accuracy"] == pytest.approx(report.targets[0].candidate, abs=1e-4)
    assert metrics["forgetting"]["articles"]["loss"] == pytest.approx(report.suites[0].loss, abs=1e-4)


def test_a_gain_may_be_counted_in_macro_f1(project: Paths, report: reports.EvaluateReport) -> None:
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
    try:
        section = recipe.evaluate.model_copy(update={"metric": "macro_f1"})
        evaluate(section, recipe.decide, paths=project)
        (test,) = reports.read_report(project.evaluate, reports.EvaluateReport).targets
        table = pd.read_parquet(project.records / "targets" / "test.parquet")
        metrics = json.loads(project.metrics.read_text())
    finally:
        evaluate(recipe.evaluate, recipe.decide, paths=project)
    (accuracy,) = report.targets
    assert test.metric == "macro_f1"
    assert test.candidate == pytest.approx(test.macro_f1) == pytest.approx(accuracy.macro_f1)
    assert test.gain == pytest.approx(accuracy.macro_f1_gain)
    assert table["candidate"].mean() == pytest.approx(test.candidate)
    assert metrics["task"]["test"]["macro_f1"] == pytest.approx(test.candidate, abs=1e-4)
    assert test.candidate != pytest.approx(accuracy.candidate), "the classes are not answered equally well"


def test_the_champion_of_the_same_content_is_the_candidate(
    project: Paths, report: reports.EvaluateReport
) -> None:
    before = project.pin.read_bytes()
    pin = reports.read_report(project.pin, reports.Pin)
    same = pin.model_copy(update={"champion": 4, "champion_model": report.candidate_model})
    reports.write_report(project.pin, same)
    try:
        recipe = load_recipe(project.root / "recipes" / "tiny.yaml")
        evaluate(recipe.evaluate, recipe.decide, paths=project)
        table = pd.read_parquet(project.records / "targets" / "test.parquet")
        assert table["champion"].tolist() == table["candidate"].tolist()
        assert reports.read_report(project.evaluate, reports.EvaluateReport).champion == 4
    finally:
        project.pin.write_bytes(before)


def test_same_inputs_give_the_same_bytes(project: Paths) -> None:
    recipe = load_recipe(project.root / "recipes" / "tiny.yaml")

    def contents() -> dict[str, bytes]:
        evaluate(recipe.evaluate, recipe.decide, paths=project)
        files = [project.evaluate, project.metrics, *sorted(project.records.rglob("*.parquet"))]
        return {str(file): file.read_bytes() for file in files}

    assert contents() == contents()
