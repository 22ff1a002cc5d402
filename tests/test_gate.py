"""`gate`: every reason at once, nothing inconclusive passes silently, and no stale passport survives a refusal."""

from pathlib import Path

import pandas as pd
import pytest

from tasks.errors import ConfigError, Refused, StageError
from tasks.gate import gate
from tasks.passport import verify_passport
from tasks.paths import Paths
from tasks.recipe import Bound, Decide, Gate, Suite
from tasks.reports import (
    BenchmarkInfo,
    CheckReport,
    Expectation,
    GateReport,
    Measure,
    Passport,
    SplitSchema,
    ValidateReport,
    read_report,
    write_report,
)
from tasks.tables import write_table
from tests.gate_data import ordinary, write_splits


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return write_splits(tmp_path, ordinary())


def measured(paths: Paths, failed: int = 0, splits: str | None = None, **values: float | None) -> None:
    """Write the two reports that `gate` reads."""
    splits = splits or read_report(paths.schema, SplitSchema).fingerprint
    expectations = [
        Expectation(
            type="expect_a",
            arguments={},
            success=False,
            observed="1 of 9 rows do not hold",
            failed_ids=["train/1"],
            failed_count=1,
        )
    ] * failed
    write_report(
        paths.validate,
        ValidateReport(splits=splits, rows=9, expectations=expectations, failed_expectations=failed),
    )
    measures = [
        Measure(name=name, value=value, meaning=f"Means {name}.", remedy=f"Mend {name}.")
        for name, value in values.items()
    ]
    write_report(paths.check, CheckReport(splits=splits, rows=9, sampled_rows={}, measures=measures))


def bounds(**measures: Bound) -> Gate:
    return Gate(failed_expectations=Bound(refuse_above=0), measures=measures)


RULE = Decide(confidence=0.95, power=0.8, bootstrap_draws=1000, seed=7)
COPIES = Bound(warn_above=0.02, refuse_above=0.2)
DIVERSITY = Bound(warn_below=0.25, refuse_below=0.1)


def test_good_data_gets_a_passport_for_its_splits(paths: Paths) -> None:
    measured(paths, copies=0.0, diversity=0.9, unbounded=0.5)
    gate(bounds(copies=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    report = read_report(paths.gate, GateReport)
    assert report.level == "pass"
    assert [item.name for item in report.items] == ["failed_expectations", "copies", "diversity"]
    assert report.items[1].reason == "0 is not above 0.2 (refuse) and not above 0.02 (warn)."
    passport = read_report(paths.passport, Passport)
    assert passport.cleared_by == ["copies", "diversity", "failed_expectations"]
    verify_passport(paths)


def test_every_crossed_bound_is_a_reason_and_the_old_passport_is_gone(paths: Paths) -> None:
    measured(paths, copies=0.0, diversity=0.9)
    gate(bounds(copies=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    measured(paths, failed=2, copies=0.5, diversity=0.06)
    with pytest.raises(Refused, match="3 of 3 bounds are crossed") as caught:
        gate(bounds(copies=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    assert caught.value.exit_code == 3
    expectations, copies, diversity = caught.value.problems
    assert "2 is above 0 (refuse)" in expectations
    assert "expect_a (1 of 9 rows do not hold)" in expectations
    assert copies == "copies: 0.5 is above 0.2 (refuse). Means copies. Mend copies."
    assert diversity.startswith("diversity: 0.06 is below 0.1 (refuse).")
    assert not paths.passport.exists()
    assert read_report(paths.gate, GateReport).level == "refuse"


def test_a_warning_passes_and_says_so(paths: Paths) -> None:
    measured(paths, copies=0.1, diversity=0.2)
    gate(bounds(copies=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    report = read_report(paths.gate, GateReport)
    assert [item.level for item in report.items] == ["pass", "warn", "warn"]
    assert report.level == "warn"
    assert paths.passport.exists()


def test_a_value_on_its_bound_is_not_beyond_it(paths: Paths) -> None:
    measured(paths, copies=0.02, diversity=0.25)
    gate(bounds(copies=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    assert read_report(paths.gate, GateReport).level == "pass"


def test_an_inconclusive_measure_never_passes_silently(paths: Paths) -> None:
    measured(paths, copies=None)
    gate(bounds(copies=COPIES), {}, RULE, paths=paths)
    [_, item] = read_report(paths.gate, GateReport).items
    assert (item.level, item.value, item.reason) == ("warn", None, "Means copies.")


def test_an_inconclusive_measure_refuses_where_the_recipe_says_so(paths: Paths) -> None:
    measured(paths, copies=None)
    bound = Bound(warn_above=0.02, inconclusive="refuse")
    with pytest.raises(Refused) as caught:
        gate(bounds(copies=bound), {}, RULE, paths=paths)
    assert caught.value.problems == ["copies: Means copies. Mend copies."]
    assert not paths.passport.exists()


@pytest.mark.parametrize(("share", "level"), [(0.0, "pass"), (0.3, "warn")])
def test_rows_that_teach_nothing_are_judged_without_a_bound(paths: Paths, share: float, level: str) -> None:
    measured(paths, unsupervised_share=share)
    gate(bounds(), {}, RULE, paths=paths)
    assert read_report(paths.gate, GateReport).level == level


def test_a_set_that_teaches_nothing_is_refused_without_a_bound(paths: Paths) -> None:
    measured(paths, unsupervised_share=1.0)
    with pytest.raises(Refused) as caught:
        gate(bounds(), {}, RULE, paths=paths)
    assert caught.value.problems[0].startswith("unsupervised_share: 1 is above 0.5 (refuse).")
    assert not paths.passport.exists()


def test_the_recipes_own_bound_on_rows_that_teach_nothing_holds(paths: Paths) -> None:
    measured(paths, unsupervised_share=0.3)
    with pytest.raises(Refused):
        gate(bounds(unsupervised_share=Bound(refuse_above=0.1)), {}, RULE, paths=paths)


def test_moving_a_bound_does_not_change_the_passport(paths: Paths) -> None:
    measured(paths, copies=0.1)
    gate(bounds(copies=COPIES), {}, RULE, paths=paths)
    first = paths.passport.read_bytes(), paths.gate.read_bytes()
    gate(bounds(copies=Bound(refuse_above=0.5)), {}, RULE, paths=paths)
    assert paths.passport.read_bytes() == first[0]
    assert paths.gate.read_bytes() != first[1]


def test_bounds_on_unknown_measures_are_all_listed_with_the_known_ones(paths: Paths) -> None:
    measured(paths, copies=0.1, diversity=0.5)
    with pytest.raises(ConfigError, match=r"it takes: copies, diversity$") as caught:
        gate(bounds(copy=COPIES, zebra=COPIES, diversity=DIVERSITY), {}, RULE, paths=paths)
    assert caught.value.problems[:2] == ["gate.measures.copy; did you mean copies?", "gate.measures.zebra"]
    assert not paths.passport.exists()


def test_reports_on_other_splits_are_not_judged(paths: Paths) -> None:
    measured(paths, splits="a" * 64, copies=0.0)
    with pytest.raises(StageError, match="other splits") as caught:
        gate(bounds(copies=COPIES), {}, RULE, paths=paths)
    assert len(caught.value.problems) == 2


def test_passport_is_required_and_holds_for_these_files_only(paths: Paths) -> None:
    with pytest.raises(StageError, match="has not been cleared"):
        verify_passport(paths)
    measured(paths, copies=0.0)
    gate(bounds(copies=COPIES), {}, RULE, paths=paths)
    verify_passport(paths)
    paths.test.write_bytes(paths.train.read_bytes())
    with pytest.raises(StageError, match="not for these splits") as caught:
        verify_passport(paths)
    assert len(caught.value.problems) == 2


def test_a_target_that_the_schema_does_not_name_is_no_part_of_what_was_cleared(paths: Paths) -> None:
    measured(paths, copies=0.0)
    gate(bounds(copies=COPIES), {}, RULE, paths=paths)
    paths.targets.mkdir()
    (paths.targets / "extra.parquet").write_bytes(paths.train.read_bytes())
    with pytest.raises(StageError, match="do not belong together") as caught:
        verify_passport(paths)
    assert "extra.parquet" in caught.value.problems[0]


def benchmark(paths: Paths, examples: int, groups: int, metric: str = "mrr") -> None:
    """Write the report half of a benchmark."""
    folder = paths.report_half / "laws"
    info = BenchmarkInfo(name="laws", kind="retrieval", metric=metric, examples=examples, fingerprint="f")
    write_report(folder / "benchmark.json", info)
    names = [f"q{row}" for row in range(examples)]
    group = [f"g{row % groups}" for row in range(examples)]
    table = pd.DataFrame({"id": names, "query": names, "document_id": "d", "group": group})
    write_table(table, folder / "examples.parquet")
    write_table(pd.DataFrame({"id": ["d"], "text": ["t"]}), folder / "corpus.parquet")


@pytest.mark.parametrize(
    ("examples", "groups", "level"),
    [(173, 173, "pass"), (400, 180, "pass"), (172, 172, "refuse"), (400, 50, "refuse"), (5, 5, "refuse")],
)
def test_a_budget_that_its_benchmark_cannot_show_to_be_kept_is_refused_before_training(
    paths: Paths, examples: int, groups: int, level: str
) -> None:
    measured(paths, copies=0.0, contaminated_laws_share=0.0)
    benchmark(paths, examples, groups)
    budget = {"laws": Suite(margin=0.03), "talk": Suite(informative=True)}
    if level == "refuse":
        with pytest.raises(Refused, match="1 of 4 bounds") as caught:
            gate(bounds(copies=COPIES), budget, RULE, paths=paths)
        assert f"worth {groups} independent ones" in caught.value.problems[0]
        assert "from 173 on, where tuning moves the outcomes by 0.15" in caught.value.problems[0]
        assert "Give benchmark laws more examples" in caught.value.problems[0]
    else:
        gate(bounds(copies=COPIES), budget, RULE, paths=paths)
    assert read_report(paths.gate, GateReport).items[-1].level == level
    assert paths.passport.exists() == (level != "refuse")


@pytest.mark.parametrize("metric", ["accuracy", "acc", "acc_norm"])
def test_right_or_wrong_answers_that_would_seldom_show_a_margin_are_refused(
    paths: Paths, metric: str
) -> None:
    measured(paths, copies=0.0, contaminated_laws_share=0.0)
    benchmark(paths, 435, 435, metric)
    budget = {"laws": Suite(margin=0.03)}
    with pytest.raises(Refused) as caught:
        gate(bounds(copies=COPIES), budget, RULE, paths=paths)
    (problem,) = caught.value.problems
    assert "80% of the time from 436 on, where tuning changes 5% of the answers and loses nothing" in problem
    carried = float(problem.split("margin to ")[1].split()[0])
    assert carried == 0.031
    gate(bounds(copies=COPIES), {"laws": Suite(margin=carried)}, RULE, paths=paths)
    benchmark(paths, 436, 436, metric)
    gate(bounds(copies=COPIES), budget, RULE, paths=paths)


def test_the_margin_that_the_advice_names_is_one_that_passes(paths: Paths) -> None:
    measured(paths, copies=0.0, contaminated_laws_share=0.0)
    benchmark(paths, 60, 60)
    with pytest.raises(Refused) as caught:
        gate(bounds(copies=COPIES), {"laws": Suite(margin=0.03)}, RULE, paths=paths)
    margin = float(caught.value.problems[0].split("margin to ")[1].split()[0])
    gate(bounds(copies=COPIES), {"laws": Suite(margin=margin)}, RULE, paths=paths)


def test_a_rank_correlation_of_few_pairs_is_refused_at_any_margin(paths: Paths) -> None:
    measured(paths, copies=0.0, contaminated_laws_share=0.0)
    benchmark(paths, 80, 80, "spearman")
    with pytest.raises(Refused) as caught:
        gate(bounds(copies=COPIES), {"laws": Suite(margin=0.2)}, RULE, paths=paths)
    assert "can be shown from 100 on" in caught.value.problems[0]
    assert "more examples, or mark it `informative: true`" in caught.value.problems[0]
    benchmark(paths, 100, 100, "spearman")
    gate(bounds(copies=COPIES), {"laws": Suite(margin=0.2)}, RULE, paths=paths)


def test_a_benchmark_that_was_taught_measures_no_forgetting(paths: Paths) -> None:
    measured(paths, copies=0.0, contaminated_laws_share=0.2)
    benchmark(paths, 200, 200)
    budget = {"laws": Suite(margin=0.03)}
    with pytest.raises(Refused) as caught:
        gate(bounds(copies=COPIES), budget, RULE, paths=paths)
    assert caught.value.problems[0].startswith("contaminated_laws_share: 0.2 is above 0.015 (refuse)")
    measured(paths, copies=0.0, contaminated_laws_share=0.02)
    with pytest.raises(
        Refused, match="1 of 4 bounds"
    ):  # two of its hundred would hide two thirds of the margin
        gate(bounds(copies=COPIES), budget, RULE, paths=paths)
    measured(paths, copies=0.0, contaminated_laws_share=0.2)
    gate(bounds(copies=COPIES, contaminated_laws_share=Bound(refuse_above=0.5)), budget, RULE, paths=paths)
    measured(paths, copies=0.0)
    with pytest.raises(StageError, match="does not say whether the training rows hold benchmark laws"):
        gate(bounds(copies=COPIES), budget, RULE, paths=paths)


@pytest.mark.parametrize(
    ("backed_by", "interval", "level", "why"),
    [
        (None, (0.3, 0.5), "refuse", ""),
        (0, (0.3, 0.5), "warn", "no labelled row backs it"),
        (40, (0.3, 0.65), "warn", "its interval reaches the bound"),
        (40, (0.3, 0.5), "refuse", ""),
    ],
)
def test_an_estimate_refuses_only_where_labelled_rows_back_it(
    paths: Paths, backed_by: int | None, interval: tuple[float, float], level: str, why: str
) -> None:
    measured(paths)
    report = read_report(paths.check, CheckReport)
    estimate = Measure(
        name="expected",
        value=0.4,
        interval=interval,
        confidence=0.9,
        backed_by=backed_by,
        meaning="Means it.",
        remedy="Label rows.",
    )
    write_report(paths.check, report.model_copy(update={"measures": [estimate]}))
    section = bounds(expected=Bound(warn_below=0.7, refuse_below=0.6))
    if level == "refuse":
        with pytest.raises(Refused, match="1 of 2 bounds are crossed"):
            gate(section, {}, RULE, paths=paths)
    else:
        gate(section, {}, RULE, paths=paths)
    item = read_report(paths.gate, GateReport).items[-1]
    assert item.level == level
    assert "0.4 (90 % interval" in item.reason
    assert why in item.reason
