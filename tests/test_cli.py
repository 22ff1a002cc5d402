"""The command line: quick, clear, and with the exit status that scripts count on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.cli import _came_of_it
from flows.console import duration, find_root, parse_settings, say_table
from flows.kept_runs import KeptRun
from flows.plan import Plan, PlannedStage
from tasks import errors
from tasks.files import FORBIDDEN
from tasks.paths import Paths
from tasks.reports import write_report
from tasks.trials import Trial
from tests.conftest import Run
from tests.test_summary import run_reports

ROOT = Path(__file__).parent.parent
HEAVY = ("prefect", "dvc", "torch", "pandas", "great_expectations", "pydantic", "yaml", "jinja2", "rich")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with the recipe `sentiment` and work in it."""
    root = tmp_path / "a clone"
    (root / "recipes").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "recipes/sentiment.yaml"):
        (root / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(root)
    monkeypatch.setenv("RETAIN_REGISTRY", str(root / "registry"))
    return root


def write_reports(root: Path) -> None:
    """Leave the reports of a run of `sentiment`."""
    source, paths = run_reports(), Paths(root, "sentiment")
    for name in ("base", "schema", "gate", "merge", "evaluate", "decision"):
        write_report(getattr(paths, name), getattr(source, name))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['retain', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "LOADED []" in done.stdout
    assert "predict" in done.stdout


def test_help_lists_every_command(retain: Run) -> None:
    status, out, _ = retain("--help")
    assert status == 0
    for command in (
        "init", "plan", "run", "status", "show", "register", "releases", "promote", "rollback", "predict",
        "layers", "clean", "fetch", "serve", "doctor",
    ):  # fmt: skip
        assert re.search(rf"^  {command}\b", out, re.MULTILINE), command


def test_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retain: Run) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = retain("status")
    assert (status, out) == (1, "")
    assert "is in no Retain repository" in err
    assert "Traceback" not in err


def test_the_repository_is_found_from_below(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = repository / "recipes"
    monkeypatch.chdir(below)
    assert find_root() == repository


@pytest.mark.parametrize(
    "arguments", [("plan",), ("nonsense",), ("run", "sentiment", "--if-running", "maybe")]
)
def test_usage_is_status_2(repository: Path, retain: Run, arguments: tuple[str, ...]) -> None:
    status, _, err = retain(*arguments)
    assert status == 2
    assert "Usage: retain" in err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("wrong", ["one", "two"]), 1),
        (errors.Refused("it forgot"), 3),
        (errors.Preempted("stopped"), 75),
    ],
)
def test_expected_errors_print_without_traceback(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("flows.plan.make_plan", fail)
    found, out, err = retain("plan", "sentiment")
    assert found == status
    assert err == f"retain: {error}\n"
    assert out == ""


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_no_bug(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code), "data/raw")

    monkeypatch.setattr("flows.plan.make_plan", fail)
    status, _, err = retain("plan", "sentiment")
    assert status == 1
    assert err == f"retain: data/raw: {os.strerror(code)}. {FORBIDDEN[code]}\n"


def test_a_bug_keeps_its_traceback(repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.plan.make_plan", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retain("plan", "sentiment")


def test_an_unknown_recipe_names_the_known(repository: Path, retain: Run) -> None:
    status, _, err = retain("plan", "sentimant")
    assert status == 1
    assert "Recipes here: sentiment" in err


def test_settings_are_read_as_yaml_and_numbers() -> None:
    found = parse_settings(
        ["finetune.learning_rate=5e-4", "finetune.epochs=1", "register.promote=true", "merge.alphas=[0, 1]"]
    )
    assert found == {
        "finetune.learning_rate": 0.0005,
        "finetune.epochs": 1,
        "register.promote": True,
        "merge.alphas": [0, 1],
    }


def test_every_wrong_setting_is_named(repository: Path, retain: Run) -> None:
    status, _, err = retain("plan", "sentiment", "--set", "epochs=1", "--set", "a.b", "--set", "a.c=[")
    assert status == 1
    assert [part in err for part in ("'epochs=1'", "'a.b'", "'a.c=['")] == [True] * 3


def test_plan_prints_why_and_cost(repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (
        PlannedStage("gate", "up to date", (), 0.3),
        PlannedStage("finetune", "runs", ("finetune.epochs: 2 → 1",), 61.0),
        PlannedStage("merge", "may run", ("if the result of finetune changes",), 20.0),
        PlannedStage("decide", "may run", ("if the result of merge changes",), None),
    )
    monkeypatch.setattr("flows.plan.make_plan", lambda *arguments: Plan("sentiment", stages))
    status, out, _ = retain("plan", "sentiment")
    assert status == 0
    assert re.search(r"finetune +runs +61 s +finetune\.epochs: 2 → 1", out)
    assert "About 61 s, 81 s at most, and unknown for decide" in out
    stages = tuple(PlannedStage(stage.name, "up to date", (), None) for stage in stages)
    assert "Nothing to do" in retain("plan", "sentiment")[1]
    stages = (PlannedStage("prepare", "runs", ("has not run yet",), None),)
    assert "How long it takes is not known" in retain("plan", "sentiment")[1]
    assert "has no profile quick" in retain("plan", "sentiment", "--profile", "quick")[2]


@pytest.mark.parametrize("allowed", [{"retrieval": 0.02}, {}], ids=["gating", "shown only"])
def test_tune_shows_what_orders_its_trials(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch, allowed: dict[str, float]
) -> None:
    losses = dict.fromkeys(allowed, 0.01)
    made = Trial(
        0, {}, "complete", 0.02, 0.0312, alpha=0.6, tuned_gain=0.03, losses=losses, kept=losses, model="m"
    )
    unlabelled = replace(made, number=1, log_likelihood_gain=None)
    monkeypatch.setattr("flows.tune.margins", lambda *_: allowed)
    monkeypatch.setattr("flows.tune.search", lambda *_: [made, unlabelled, Trial(2, {}, "pruned")])
    _, said, _ = retain("tune", "sentiment", "--no-run")
    share = "50%" if allowed else "0%"
    rows = [line.split()[:7] for line in said.splitlines() if line.strip()]
    assert ["0", "+0.0200", "+0.0312", "0.6", share, "+0.0300", share] in rows
    assert ["1", "+0.0200", "0.6", share, "+0.0300", share] in rows
    assert ["2", "pruned"] in rows
    assert "orders the trials that gain" in said


def test_show_writes_a_page_and_marks_what_is_out_of_date(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reports(repository)
    stages = (PlannedStage("finetune", "runs", ("finetune.epochs: 2 → 1",), None),)
    monkeypatch.setattr("flows.plan.make_plan", lambda *arguments: Plan("sentiment", stages))
    status, out, _ = retain("show", "sentiment")
    assert status == 0
    assert out.startswith("# sentiment: May ship")
    assert "Out of date: finetune (finetune.epochs: 2 → 1)" in out
    status, out, _ = retain("show", "sentiment", "--html", "page.html")
    assert (status, out) == (0, "wrote page.html\n")
    assert "May ship" in (repository / "page.html").read_text()


def test_show_says_where_a_page_cannot_be_written(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reports(repository)
    monkeypatch.setattr("flows.plan.make_plan", lambda *arguments: Plan("sentiment", ()))
    (repository / "folder").mkdir()
    status, out, err = retain("show", "sentiment", "--html", "folder")
    assert (status, out) == (1, "")
    assert err == "retain: --html folder cannot be written: Is a directory.\n"
    assert [path.name for path in repository.iterdir() if path.name.startswith(".")] == []


def test_show_before_any_run_knows_what_was_kept(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [KeptRun(name, "sentiment", "{}", "c" * 40) for name in ("new-otter", "old-owl")]
    other = KeptRun("newest-ox", "another", "{}", "c" * 40)
    monkeypatch.setattr("flows.kept_runs.kept_runs", lambda root: [other, *kept])
    status, _, err = retain("show", "sentiment")
    assert status == 1
    assert "kept as the experiment new-otter: `retain show new-otter` shows it" in err
    assert "ox" not in err


@pytest.mark.parametrize(
    ("what", "ends"),
    [("calm-oter", "; did you mean calm-otter?"), ("sentimant", "; did you mean sentiment?"), ("x", ":")],
)
def test_show_of_a_mistyped_name_names_what_is_near_and_where_the_others_are(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch, what: str, ends: str
) -> None:
    kept = [KeptRun(name, "sentiment", "{}", "c" * 40) for name in ("calm-otter", "old-owl")]
    monkeypatch.setattr("flows.kept_runs.kept_runs", lambda root: kept)
    status, _, err = retain("show", what)
    assert status == 1
    assert err.splitlines() == [
        f"retain: There is no recipe and no experiment {what}{ends}",
        "  - recipes: sentiment",
        "  - experiments, the newest: calm-otter, old-owl (`dvc exp list --all-commits` lists all)",
    ]


def test_a_registry_is_no_address(repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_REGISTRY", "ftp://host/x")
    status, _, err = retain("releases")
    assert status == 1
    assert "RETAIN_REGISTRY is ftp://host/x: a registry is a folder, or a bucket" in err


def test_show_before_any_run(repository: Path, retain: Run) -> None:
    status, _, err = retain("show", "sentiment")
    assert status == 1
    assert "has not run here yet" in err


def test_init_then_plan_needs_dvc(repository: Path, retain: Run) -> None:
    lines = [f"the {thing} is {how},{how}" for thing in range(20) for how in ("good", "bad")]
    (repository / "mine.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    status, out, _ = retain("init", "mine", "mine.csv")
    assert status == 0
    assert "wrote recipes/mine.yaml" in out
    status, _, err = retain("plan", "mine")
    assert status == 1
    assert "DVC cannot say" in err


def test_doctor_fails_on_a_bad_finding(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.doctor import Finding

    found = [Finding("ok", "Python", "3.11"), Finding("bad", "fastapi", "0.155", "pip install")]
    monkeypatch.setattr("flows.doctor.examine", lambda root: iter(found))
    status, out, _ = retain("doctor")
    assert status == 1
    assert out.splitlines() == ["ok   Python: 3.11", "bad  fastapi: 0.155", "     → pip install"]
    found.pop()
    assert retain("doctor")[0] == 0


@pytest.mark.parametrize(
    ("verdict", "executed", "words"),
    [
        ("FAIL", [], "Nothing to do: every stage is up to date."),
        ("GATE", ["gate"], "Ran: gate. The stages after gate wait until it lets the data through."),
        ("GATE", ["check", "gate"], "Ran: check, gate. The stages after gate wait"),
    ],
)
def test_a_run_in_which_little_ran_says_what_and_why(verdict: Any, executed: list[str], words: str) -> None:
    from flows.runs import FlowResult

    (line,) = _came_of_it(FlowResult("sentiment", "calm-otter", verdict, ["no"], executed, []))
    assert line.startswith(words)


def test_a_run_that_passed_and_was_not_registered_says_why(
    repository: Path, retain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import finetune
    from flows.runs import FlowResult

    moved = "The champion of sentiment is version 2. Compare again."
    result = FlowResult("sentiment", "calm-otter", "PASS", [], [], [], summary="# PASS", refusal=moved)
    monkeypatch.setattr(finetune, "run_recipe", lambda *given, **named: result)
    status, out, err = retain("run", "sentiment")
    assert "Nothing to do" not in out
    assert (status, err) == (3, f"retain: refused (PASS): {moved}\n")


def test_durations_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert [duration(value) for value in (0.31, 61, 600, 9000)] == ["0.3 s", "61 s", "10 min", "2.5 h"]
    say_table(("a", "long"), [("value", "x")])
    assert capsys.readouterr().out == "a      long\nvalue  x\n"


def test_the_console_script_is_this(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "status", "--nonsense"],
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert "No such option" in done.stderr
