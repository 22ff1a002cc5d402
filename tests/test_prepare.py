"""prepare: the same bytes each time, groups kept whole, splits that do not move, and all or nothing."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tasks import reports
from tasks.__main__ import main, run_stage
from tasks.errors import DataError, Preempted, Refused
from tasks.paths import Paths
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
        ([f"text {n},positive" for n in range(60)], "label 'negative' has 0 row"),
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
    assert "add rows of these labels" in caught.value.problems[-1]


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


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Refused("no", ["because"]), 3, "prepare: no\n  - because"),
        (Preempted("asked to stop"), 75, "asked to stop"),
        (DataError("bad"), 1, "prepare: bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_end_has_its_exit_status(
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def end(*sections: object, paths: Paths) -> None:
        raise error

    monkeypatch.chdir(paths.root)
    monkeypatch.setattr("tasks.prepare.prepare", end)
    assert main(["prepare", "tiny"]) == status
    assert words in capsys.readouterr().err


def test_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepair", "tiny"]) == 2
    assert "usage: python -m tasks {prepare,validate" in capsys.readouterr().err
