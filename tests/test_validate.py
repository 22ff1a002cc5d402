"""`validate`: planted defects are found by row, real texts left alone, mistakes of the recipe all listed."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ConfigError
from tasks.paths import Paths
from tasks.recipe import Validate
from tasks.reports import Expectation, ValidateReport, read_report
from tasks.validate import validate
from tests.gate_data import Row, ordinary, reviews, write_splits


def section(expectations: list[dict[str, Any]] | None = None) -> Validate:
    return Validate.model_validate(
        {"min_rows_per_class": 50, "max_characters": 500, "expectations": expectations or []}
    )


def run(paths: Paths, **more: Any) -> ValidateReport:
    validate(section(**more), paths=paths)
    return read_report(paths.validate, ValidateReport)


def failures(report: ValidateReport) -> list[Expectation]:
    return [expectation for expectation in report.expectations if not expectation.success]


def with_train(*rows: Row) -> dict[str, list[Row]]:
    tables = ordinary()
    return {**tables, "train": [*tables["train"], *rows]}


def test_ordinary_data_fails_nothing_and_leaves_data_docs_and_no_other_files(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    paths = write_splits(tmp_path, ordinary(shop=reviews(10, 5000)))
    report = run(paths)
    assert failures(report) == []
    assert report.failed_expectations == 0
    assert report.rows == 210
    assert len(report.expectations) == 11
    assert (paths.scratch / "data_docs" / "index.html").is_file()
    made = set(Path(tempfile.gettempdir()).iterdir()) - before
    assert not [path for path in made if (path / "static").exists()], (
        "GX left Data Docs in the temporary folder"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "x" * 501,
        "broken \ufffd sign",
        "a bell \x07 rings",
        "next line \x85 of Latin-1",
        "the cafÃ© closed",
        "it doesnâ€™t work",
        "ten Â£ too much",
        "ÐŸÑ€Ð¸Ð²ÐµÑ‚ from Moscow",
        "æ—¥æœ¬ is far",
        "so happy ðŸ˜€",
    ],
)
def test_planted_defect_is_found_by_its_row(tmp_path: Path, text: str) -> None:
    report = run(write_splits(tmp_path, with_train((text, 1))))
    found = failures(report)
    assert len(found) == 1
    assert found[0].failed_ids == ["train/t120"]
    assert found[0].failed_count == 1
    assert found[0].observed == "1 of 201 rows do not hold"


def test_real_texts_in_many_scripts_are_no_mojibake(tmp_path: Path) -> None:
    texts = [
        "“NÃO”, disse ela: «É verdade»… e a AMANHÃ?",
        "l’été dernier à « Évry » — c’était l’île d’Yeu…",
        "Ærø, Århus, Ålesund – Øl og smørrebrød",
        "Привет, как дела?",
        "日本語のレビューです。",
        "naïve café, 5 £, 20 °C, ½ price, tabs\tand\nlines",
        "So happy 😀 👩‍👩‍👧 ❤️",
        "ΑΒΓ «ελληνικά» …",
        "‘ALLÉ’ “CAFÉ” Ã ê",
    ]
    report = run(write_splits(tmp_path, with_train(*[(text, 0) for text in texts])))
    assert failures(report) == []


def test_null_text_unknown_label_repeated_id_and_small_class_are_all_reported(tmp_path: Path) -> None:
    tables = {"train": reviews(60), "validation": reviews(40, 1000), "test": reviews(40, 2000)}
    texts: list[str | None] = [text for text, _ in tables["train"]]
    texts[3] = None
    labels = [7, *[label for _, label in tables["train"]][1:]]
    ids = ["same", "same", *[f"t{number}" for number in range(2, 60)]]
    paths = write_splits(tmp_path, tables, text={"train": texts}, label={"train": labels}, id={"train": ids})
    found = {(item.type, str(item.arguments)): item for item in failures(run(paths))}
    by_type = {kind: item for (kind, _), item in found.items()}
    assert by_type["expect_compound_columns_to_be_unique"].failed_ids == ["train/same", "train/same"]
    assert by_type["expect_column_values_to_not_be_null"].failed_ids == ["train/t3"]
    assert by_type["expect_column_values_to_be_in_set"].failed_ids == ["train/same"]
    small = [item for (kind, _), item in found.items() if kind == "expect_table_row_count_to_be_between"]
    assert [item.arguments["where"] for item in small] == [
        {"split": "train", "label": "negative"},
        {"split": "train", "label": "positive"},
    ]
    assert small[1].observed == "observed 30"


def test_same_id_in_two_splits_is_no_failure(tmp_path: Path) -> None:
    tables = ordinary()
    ids = {name: [str(number) for number in range(len(rows))] for name, rows in tables.items()}
    assert failures(run(write_splits(tmp_path, tables, id=ids))) == []


def test_expectations_of_the_recipe_see_labels_by_name_and_the_split(tmp_path: Path) -> None:
    expectations = [
        {
            "type": "expect_column_values_to_be_in_set",
            "arguments": {"column": "label", "value_set": ["positive"]},
        },
        {
            "type": "expect_column_distinct_values_to_contain_set",
            "arguments": {"column": "split", "value_set": ["test"]},
        },
    ]
    report = run(write_splits(tmp_path, ordinary()), expectations=expectations)
    [only] = failures(report)
    assert only.failed_count == 100
    assert len(only.failed_ids) == 20
    assert only.arguments == expectations[0]["arguments"]


def test_every_mistake_in_the_recipes_expectations_is_listed(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary())
    expectations = [
        {"type": "expect_column_values_to_not_be_nul", "arguments": {"column": "text"}},
        {"type": "expect_column_values_to_not_be_null", "arguments": {"colum": "text", "mostly": 7}},
        {"type": "expect_column_to_exist", "arguments": {"column": "text", "meta": {"position": 0}}},
    ]
    with pytest.raises(ConfigError, match=r"3 expectation\(s\)") as caught:
        run(paths, expectations=expectations)
    first, second, third = caught.value.problems
    assert "validate.expectations.0" in first
    assert "did you mean expect_column_values_to_not_be_null" in first
    assert "column: field required" in second
    assert "colum: extra fields not permitted" in second
    assert "meta" in third
    assert not paths.validate.exists()


def test_expectation_on_a_column_that_is_not_there_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    expectations = [
        {"type": "expect_column_mean_to_be_between", "arguments": {"column": "price", "min_value": 1}}
    ]
    with pytest.raises(ConfigError, match="could not be evaluated") as caught:
        run(write_splits(tmp_path, ordinary()), expectations=expectations)
    assert '"price" in BatchData does not exist' in caught.value.problems[0]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, with_train(("", 0), ("", 1)))
    run(paths)
    first = paths.validate.read_bytes()
    run(paths)
    assert paths.validate.read_bytes() == first
    assert json.loads(first)["failed_expectations"] == 1
