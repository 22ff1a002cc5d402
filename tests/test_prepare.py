"""prepare: the same bytes each time, groups kept whole, splits that do not move, and all or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import reports
from tasks.__main__ import main, run_stage
from tasks.errors import DataError
from tasks.paths import Paths
from tasks.prepare import prepare
from tasks.recipe import UNLABELLED, Benchmark, FeatureBenchmark, Table, load_recipe, recipe_path
from tasks.splits import first_by_hash, hash_positions
from tests.project import make_project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    project = make_project(folder / "project")
    shutil.copytree(folder / "project-data", project.root / "data" / "raw" / "tiny")
    return folder


@pytest.fixture
def paths(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("RETAIN_HOME", str(made / "store"))
    shutil.copytree(made / "project", tmp_path / "project", symlinks=True)
    return Paths(tmp_path / "project", "tiny")


def contents(paths: Paths) -> dict[str, str]:
    files = [path for path in paths.out.rglob("*") if path.is_file()]
    return {str(path.relative_to(paths.out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(paths: Paths) -> pd.DataFrame:
    tables = {name: pd.read_parquet(getattr(paths, name)) for name in ("train", "validation", "test")}
    return pd.concat([table.assign(split=name) for name, table in tables.items()])


def write_rows(paths: Paths, *more: str) -> None:
    with (paths.raw / "train.csv").open("a") as file:
        file.writelines(f"{row}\n" for row in more)


def test_the_same_bytes_each_time(paths: Paths) -> None:
    run_stage("prepare", "tiny", paths.root)
    first = contents(paths)
    run_stage("prepare", "tiny", paths.root)
    assert contents(paths) == first
    assert {
        "splits/train.parquet",
        "splits/schema.json",
        "base.json",
        "report/articles/benchmark.json",
    } <= set(first)


def test_a_rows_split_does_not_depend_on_the_other_rows(paths: Paths) -> None:
    run_stage("prepare", "tiny", paths.root)
    before = rows(paths).set_index("text")["split"]
    write_rows(paths, *(f"a new {number} phone,positive" for number in range(50)))
    run_stage("prepare", "tiny", paths.root)
    after = rows(paths).set_index("text")["split"]
    assert len(after) == len(before) + 50
    assert (after.loc[before.index] == before).all()


def test_groups_are_never_separated(paths: Paths) -> None:
    recipe = paths.root / "recipes" / "tiny.yaml"
    recipe.write_text(
        recipe.read_text().replace("train: {file: train.csv}", "train: {file: train.csv, group: patient}")
    )
    source = pd.read_csv(paths.raw / "train.csv")
    source.assign(patient=[f"p{row // 4}" for row in range(len(source))]).to_csv(
        paths.raw / "train.csv", index=False
    )
    run_stage("prepare", "tiny", paths.root)
    assert (rows(paths).groupby("group")["split"].nunique() == 1).all()
    assert rows(paths)["group"].nunique() == 30


def test_a_benchmark_is_named_by_what_it_asks_whatever_wrote_its_files(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that writes other bytes of the same examples must not begin a ledger, and its count of attempts, anew."""

    def named() -> dict[str, str]:
        run_stage("prepare", "tiny", paths.root)
        found = sorted(paths.report_half.glob("*/benchmark.json"))
        assert found
        return {
            path.parent.name: reports.read_report(path, reports.BenchmarkInfo).fingerprint for path in found
        }

    before, bytes_before = named(), contents(paths)
    monkeypatch.setattr("tasks.forgetting.halves.write_table", lambda rows, path: rows.to_parquet(path))
    assert named() == before
    assert contents(paths) != bytes_before


def test_halves_of_a_benchmark_share_no_group(paths: Paths) -> None:
    run_stage("prepare", "tiny", paths.root)
    selection, report = (
        pd.read_parquet(half / "articles" / "examples.parquet")
        for half in (paths.selection, paths.report_half)
    )
    assert len(selection) + len(report) == 40
    assert not set(selection["group"]) & set(report["group"])
    info = reports.read_report(paths.report_half / "articles" / "benchmark.json", reports.BenchmarkInfo)
    assert (info.examples, info.metric) == (len(report), "mrr")


def test_positions_of_another_purpose_have_nothing_to_do_with_these() -> None:
    groups = pd.Series([f"g{number}" for number in range(2000)])
    one, two = hash_positions(groups, 7), hash_positions(groups, 7, "sample")
    assert abs(one.corr(two)) < 0.06
    assert abs(one.mean() - 0.5) < 0.03


def test_a_sample_by_hash_keeps_its_rows_when_others_come() -> None:
    few = pd.DataFrame({"group": [f"g{number}" for number in range(100)]})
    many = pd.DataFrame({"group": [f"g{number}" for number in range(120)]})
    kept = set(first_by_hash(few, 30, 7)["group"])
    assert len(kept) == 30
    assert len(kept & set(first_by_hash(many, 30, 7)["group"])) >= 20
    assert first_by_hash(few, None, 7) is few
    assert first_by_hash(few, 30, 7).index.is_monotonic_increasing


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([f"text {n},positive" for n in range(60)], "train: label 'negative' has 0 row"),
        (
            [f"text {n},positive" for n in range(60)] + ["bad,negative", "sad,negative"],
            "label 'negative' has",
        ),
    ],
)
def test_a_class_too_thin_is_said_for_each_split(paths: Paths, rows: list[str], problem: str) -> None:
    (paths.raw / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match="a class is too thin") as caught:
        run_stage("prepare", "tiny", paths.root)
    assert any(problem in line for line in caught.value.problems)
    assert "add rows of these labels, merge labels or take them out" in caught.value.problems[-1]


def test_a_failure_leaves_what_was_there(paths: Paths) -> None:
    run_stage("prepare", "tiny", paths.root)
    before = contents(paths)
    write_rows(paths, "a row,wrong")
    with pytest.raises(DataError, match=r"train\.csv cannot be used"):
        run_stage("prepare", "tiny", paths.root)
    (paths.raw / "articles.jsonl").write_text('{"query": "only"}\n')
    (paths.raw / "train.csv").write_text((paths.raw / "train.csv").read_text().replace("a row,wrong\n", ""))
    with pytest.raises(
        DataError, match=r"articles\.jsonl: it is not of the form jsonl with 'query' and 'document'"
    ):
        run_stage("prepare", "tiny", paths.root)
    assert contents(paths) == before


def test_a_full_disk_is_said_without_a_traceback_and_leaves_nothing(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device", "splits/train.parquet")

    monkeypatch.chdir(paths.root)
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        assert main(["prepare", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "prepare: No space left on device (splits/train.parquet)" in said
    assert "make room" in said
    assert contents(paths) == {}
    assert main(["prepare", "tiny"]) == 0


def one_label(paths: Paths, label: str) -> str:
    """Write a table of one class beside the training rows; return its name."""
    rows = "".join(f"the book {number} is good,{label}\n" for number in range(60))
    (paths.raw / "probe.csv").write_text(f"text,label\n{rows}")
    return "probe.csv"


def feature_benchmark(file: str, **more: int) -> dict[str, Benchmark]:
    table = Table(file=file, **more)
    return {"known": FeatureBenchmark(kind="probe", table=table)}


def prepare_with(paths: Paths, benchmarks: dict[str, Benchmark]) -> None:
    recipe = load_recipe(recipe_path(paths.root, "tiny"))
    prepare(recipe.task, recipe.base, recipe.data, benchmarks, paths=paths)


def test_a_feature_benchmark_takes_max_rows_and_no_group_lies_in_two_parts(paths: Paths) -> None:
    prepare_with(paths, feature_benchmark("train.csv", max_rows=60))
    halves = {half: half / "known" for half in (paths.selection, paths.report_half)}
    parts = [set(pd.read_parquet(folder / "examples.parquet")["group"]) for folder in halves.values()]
    fits = [set(pd.read_parquet(folder / "fit.parquet")["group"]) for folder in halves.values()]
    assert fits[0] == fits[1]
    parts.append(fits[0])
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_a_benchmark_whose_fitting_part_has_one_class_is_said_here(paths: Paths) -> None:
    file = one_label(paths, "positive")
    with pytest.raises(DataError, match="benchmark known: its fitting part has one class only; give it rows"):
        prepare_with(paths, feature_benchmark(file))
    assert contents(paths) == {}


def test_a_benchmark_too_small_names_what_stays_empty(paths: Paths) -> None:
    (paths.raw / "articles.jsonl").write_text('{"query": "one", "document": "text"}\n')
    with pytest.raises(DataError, match=r"too few groups to split: 2 rows .* Give it more rows"):
        run_stage("prepare", "tiny", paths.root)
    (paths.raw / "articles.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"0 rows leave nothing for selection, report, corpus"):
        run_stage("prepare", "tiny", paths.root)


def test_a_pair_that_is_null_or_blank_is_dropped_and_counted(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    with (paths.raw / "articles.jsonl").open("a") as file:
        file.write('\n{"query": null, "document": "x"}\n{"query": "x", "document": " "}\n')
        file.write('{"query": "a\u2028b", "document": "one line"}\n')
    with caplog.at_level("INFO"):
        run_stage("prepare", "tiny", paths.root)
    assert "benchmark articles: 43 pairs, 2 of them dropped as empty" in caplog.text
    queries = pd.read_parquet(paths.selection / "articles" / "corpus.parquet")["text"]
    assert len(queries) == 41


def test_replayed_rows_may_lack_labels(paths: Paths) -> None:
    (paths.raw / "original.csv").write_text(
        "text\n" + "".join(f"what it learned from {n}\n" for n in range(30))
    )
    recipe = load_recipe(recipe_path(paths.root, "tiny"))
    replay = Table(file="original.csv", may_lack_labels=True)
    data = recipe.data.model_copy(update={"replay": replay})
    prepare(recipe.task, recipe.base, data, recipe.benchmarks, paths=paths)
    found = pd.read_parquet(paths.replay)
    assert found["label"].tolist() == [UNLABELLED] * 30
    run_stage("validate", "tiny", paths.root)
    report = reports.read_report(paths.validate, reports.ValidateReport)
    assert report.failed_expectations == 0


def test_weak_ratings_are_counted_in_the_schema(paths: Paths) -> None:
    source = pd.read_csv(paths.raw / "train.csv")
    rating = source.pop("label").map({"positive": 2.0, "negative": -2.0})
    rating[:6] = 0.1
    source.assign(rating=rating).to_csv(paths.raw / "train.csv", index=False)
    table = "train: {file: train.csv, sign_of: rating, drop_below: 0.5}"
    recipe = recipe_path(paths.root, "tiny")
    recipe.write_text(recipe.read_text().replace("train: {file: train.csv}", table))
    run_stage("prepare", "tiny", paths.root)
    schema = reports.read_report(paths.schema, reports.SplitSchema)
    assert schema.dropped == {"train": {"|rating| < 0.5": 6}}
    assert sum(schema.rows.values()) == 114


@given(
    st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=30),
    st.lists(st.text(min_size=1), max_size=30),
    st.integers(0, 2**32),
)
def test_where_a_group_goes_depends_on_it_and_the_seed_alone(
    few: list[str], more: list[str], seed: int
) -> None:
    alone = hash_positions(pd.Series(few, dtype=object), seed)
    among = hash_positions(pd.Series([*few, *more, *few], dtype=object), seed)
    assert among.tolist()[: len(few)] == alone.tolist() == among.tolist()[len(few) + len(more) :]
    assert among.between(0, 1, inclusive="left").all()


def test_a_full_disk_at_the_last_file_leaves_what_was_there(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage("prepare", "tiny", paths.root)
    before = contents(paths)
    write_rows(paths, "a new phone,positive")

    def full(path: Path, report: object) -> None:
        if path.name == "base.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_report(path, report)

    write_report = reports.write_report
    monkeypatch.setattr(reports, "write_report", full)
    with pytest.raises(OSError, match="No space left"):
        run_stage("prepare", "tiny", paths.root)
    assert contents(paths) == before
    assert not [path for path in paths.out.iterdir() if path.name.startswith(".")]


def test_rows_that_only_have_a_number_share_no_group_across_files(paths: Paths) -> None:
    recipe = load_recipe(recipe_path(paths.root, "tiny"))
    (paths.raw / "own.csv").write_bytes((paths.raw / "train.csv").read_bytes())
    table = recipe.data.train.model_copy(update={"id": None, "group": None, "group_pattern": None})
    own = table.model_copy(update={"file": "own.csv"})
    data = recipe.data.model_copy(update={"train": table, "test": own})
    prepare(recipe.task, recipe.base, data, recipe.benchmarks, paths=paths)
    train, test = pd.read_parquet(paths.train), pd.read_parquet(paths.test)
    assert not set(train["group"]) & set(test["group"])
    assert len(test) == test["group"].nunique()
