"""The commands about releases, over a registry with two versions of a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.paths import Paths
from tasks.registry import open_registry
from tasks.reports import DecideReport, read_report, write_report
from tasks.stages import STAGES
from tests.conftest import Run
from tests.models_data import tuned_project
from tests.project import Project
from tests.test_summary import run_reports
from tests.tiny import make_tiny_base, tiny_classifier


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    made = []
    for seed in (1, 2):
        base = make_tiny_base(folder / f"base{seed}", seed)
        tiny_classifier(base, seed=seed, max_length=32).save(folder / f"model{seed}")
        made.append(folder / f"model{seed}")
    return made


@pytest.fixture
def repository(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository whose registry has two versions, the first of them champion."""
    root = tmp_path / "a clone"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(root)
    monkeypatch.setenv("RETAIN_REGISTRY", str(root / "registry"))
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    registry = open_registry(str(root / "registry"))
    reports = run_reports("pass")
    for name in ("decision", "merge", "evaluate"):
        write_report(tmp_path / f"{name}.json", getattr(reports, name))
    for model in models:
        registry.publish(
            "sentiment",
            model,
            metrics={
                "task": {"test": {"accuracy": 0.87, "gain": 0.04}},
                "forgetting": {"laws": {"loss": 0.002}},
            },
            lineage={"recipe": "sentiment"},
            reports={name: tmp_path / f"{name}.json" for name in ("decision", "merge", "evaluate")},
            run_id=f"run-of-{model.name}",
        )
    registry.move_alias("sentiment", "champion", 1, expected=None, reason="passed")
    return root


def test_releases_are_listed_with_aliases_and_figures(repository: Path, retain: Run) -> None:
    status, out, _ = retain("releases")
    assert status == 0
    header, first, second = out.splitlines()
    assert header.split()[:3] == ["NAME", "VERSION", "ALIASES"]
    assert first.split()[:6] == ["sentiment", "1", "champion", "0.870", "+0.040", "+0.002"]
    assert second.split()[2] == "–"
    rows = [json.loads(line) for line in retain("releases", "sentiment", "--json")[1].splitlines()]
    assert [row["version"] for row in rows] == [1, 2]
    assert rows[0]["aliases"] == ["champion"]


def test_an_empty_registry_says_how_to_fill_it(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIN_REGISTRY", str(repository / "empty"))
    assert "`retain run RECIPE` makes the first" in retain("releases")[1]
    status, _, err = retain("releases", "sentiment")
    assert (status, "Releases: none" in err) == (1, True)


def test_promote_and_rollback(repository: Path, retain: Run) -> None:
    assert (
        "Version 2 of sentiment is the champion now; it was version 1" in retain("promote", "sentiment", 2)[1]
    )
    assert "champion already" in retain("promote", "sentiment", 2)[1]
    assert "Version 1 of sentiment is the champion again" in retain("rollback", "sentiment")[1]
    status, _, err = retain("promote", "sentiment", 9)
    assert (status, "no version 9" in err) == (1, True)
    status, _, err = retain("rollback", "sentiment")
    assert (status, "nothing to go back to" in err) == (1, True)


def test_predict_takes_arguments_a_file_or_standard_input(
    repository: Path, retain: Run, tmp_path: Path
) -> None:
    status, out, _ = retain("predict", "sentiment", "a good phone", "a bad film")
    assert status == 0
    assert [line.split()[0] in ("negative", "positive") for line in out.splitlines()] == [True, True]
    status, piped, _ = retain("predict", "sentiment@1", stdin="a good phone\n\na bad film\n")
    assert (status, piped) == (0, out)
    (tmp_path / "lines.txt").write_text("a good phone\na bad film\n")
    assert retain("predict", "sentiment@champion", "--file", tmp_path / "lines.txt")[1] == out
    made = [json.loads(line) for line in retain("predict", "sentiment@2", "--json", "fine")[1].splitlines()]
    assert set(made[0]) == {"text", "label", "probability", "probabilities"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sentiment@latest", "x"), "`latest` is not a thing"),
        (("sentimant", "x"), "Releases here: sentiment"),
        (("sentiment", "x", "--file", "nowhere.txt"), "not both"),
        (("sentiment", "--file", "nowhere.txt"), "there is no such file"),
    ],
)
def test_predict_says_what_is_wrong(
    repository: Path, retain: Run, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = retain("predict", *arguments)
    assert (status, out) == (1, "")
    assert message in err


def test_a_damaged_release_is_not_used(repository: Path, retain: Run) -> None:
    for blob in (repository / "registry" / "blobs").rglob("*"):
        if blob.is_file():
            blob.write_bytes(b"damaged")
    status, out, err = retain("predict", "sentiment@2", "x")
    assert (status, out) == (1, "")
    assert "is not what its name says" in err


def test_show_tells_what_a_release_gained_and_lost(repository: Path, retain: Run) -> None:
    status, out, _ = retain("show", "sentiment@2")
    assert status == 0
    assert "**PASS**" in out
    assert "sentiment version 2" in out
    assert "run-of-model2" in out


def test_blank_lines_are_counted_and_a_byte_order_mark_is_no_text(
    repository: Path, retain: Run, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_bytes("\ufeffa good phone\r\n\r\n  \r\na bad film".encode())
    status, out, err = retain("predict", "sentiment", "--json", "--file", tmp_path / "lines.txt")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a good phone", "a bad film"]
    assert (status, err) == (0, "retain: 2 blank lines were left out.\n")
    (tmp_path / "lines.txt").write_text("a good phone\n" * 600)
    assert len(retain("predict", "sentiment", "--file", tmp_path / "lines.txt")[1].splitlines()) == 600


def test_a_file_that_is_no_text_is_said(repository: Path, retain: Run, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("größer".encode("utf-16"))
    status, out, err = retain("predict", "sentiment", "--file", tmp_path / "lines.txt")
    assert (status, out) == (1, "")
    assert "lines.txt is no UTF-8 text" in err


def test_a_release_that_no_recipe_made_has_no_summary(
    repository: Path, retain: Run, models: list[Path]
) -> None:
    registry = open_registry(str(repository / "registry"))
    for number, lineage in enumerate(({}, {"recipe": "../../../outside"}), 1):
        registry.publish("other", models[0], metrics={}, lineage=lineage, reports={}, run_id="r")
        status, _, err = retain("show", f"other@{number}")
        assert (status, "its lineage names no recipe" in err) == (1, True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a tiny project whose decision is a PASS, and let DVC know all of it."""
    folder = tmp_path_factory.mktemp("register")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        patch.setenv("RETAIN_REGISTRY", str(folder / "none yet"))
        paths = tuned_project(folder, until="decide")
    decision = read_report(paths.decision, DecideReport)
    write_report(paths.decision, decision.model_copy(update={"verdict": "PASS"}))
    Project(paths.root).dvc("commit", "--force", "--quiet")
    return folder


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(built / "project", tmp_path / "project", symlinks=True)
    monkeypatch.setenv("RETAIN_HOME", str(built / "store"))
    monkeypatch.setenv("RETAIN_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def test_register_publishes_once_and_says_so_as_ci_reads_it(
    project: Project, retain: Run, tmp_path: Path
) -> None:
    status, out, err = retain("register", "tiny", "--no-promote", "--json")
    assert status == 0, err
    assert '"created": true' in out
    assert '"promoted": false' in out
    made = json.loads(out)
    assert (made["name"], made["version"], made["champion"], made["verdict"]) == ("tiny", 1, None, "PASS")
    assert retain("register", "tiny", "--promote")[1] == (
        "tiny version 1 was released before, now the champion.\n"
    )
    again = retain("register", "tiny", "--promote", "--json")[1]
    assert '"created": false' in again
    assert '"promoted": false' in again
    manifest = open_registry(str(tmp_path / "registry")).resolve("tiny", "champion")
    assert manifest.git_commit == project.git("rev-parse", "HEAD").strip()
    assert set(manifest.lineage["lock"]) == {f"{stage}@tiny" for stage in STAGES}
    assert retain("predict", "tiny", "a good phone")[0] == 0
    assert "tiny version 1" in retain("show", "tiny@champion")[1]
    kept = tmp_path / "kept"
    assert retain("show", "tiny@1", "--benchmarks", str(kept))[1] == f"wrote articles to {kept}\n"
    half = Paths(project.root, "tiny").report_half / "articles"
    assert (kept / "articles" / "report" / "examples.parquet").read_bytes() == (
        half / "examples.parquet"
    ).read_bytes()
    assert "holds something" in retain("show", "tiny@1", "--benchmarks", str(kept))[2]
    both = ("--benchmarks", str(tmp_path / "too"), "--html", str(tmp_path / "page.html"))
    assert retain("show", "tiny", *both)[0] != 0
    assert retain("show", "tiny@1", *both)[0] == 0
    assert (tmp_path / "too" / "articles").is_dir()
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tiny is none" in retain("show", "tiny", "--benchmarks", str(kept))[2]


def test_register_refuses_what_is_not_up_to_date(project: Project, retain: Run, tmp_path: Path) -> None:
    project.change("learning_rate: 1.0e-4", "learning_rate: 2.0e-4")
    status, out, err = retain("register", "tiny", "--json")
    assert (status, out) == (1, "")
    assert "tiny is not up to date (finetune" in err
    assert "`retain run tiny`" in err
    assert not (tmp_path / "registry").exists()


def test_register_ends_with_3_when_the_decision_is_no_pass(
    project: Project, retain: Run, tmp_path: Path
) -> None:
    paths = Paths(project.root, "tiny")
    decision = read_report(paths.decision, DecideReport)
    paths.decision.unlink()  # a link into the cache, maybe
    write_report(
        paths.decision,
        decision.model_copy(update={"verdict": "FAIL", "reasons": ["lost all", "gained none"]}),
    )
    project.dvc("commit", "--force", "--quiet")
    status, out, err = retain("register", "tiny", "--json")
    assert (status, out) == (3, "")
    assert "FAIL: tiny must not ship" in err
    assert "lost all" in err
    assert "gained none" in err
    assert not (tmp_path / "registry").exists()


def test_register_needs_a_recipe(repository: Path, retain: Run) -> None:
    status, _, err = retain("register", "nothing")
    assert (status, "There is no recipe" in err) == (1, True)
