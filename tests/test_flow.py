"""The flow: how each outcome ends, what is tried again, and what an interrupted run leaves behind."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter, ValidationError

from flows import runs
from flows.build import open_repo
from flows.changes import Changes, changes_of
from flows.run_lock import is_held, only_run
from flows.settings import DEFAULTS, prefect_defaults, running_server, server_note
from tasks.errors import ConfigError, Preempted, Refused, StageError
from tasks.paths import Paths
from tasks.recipe import load_recipe
from tasks.reports import write_report
from tasks.stops import Stopped, Terminated, sigterm_stops
from tests.project import COMMAND_LINE, STAGES, Project, make_project
from tests.test_summary import run_reports


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "a project", stand_ins=True)


# --- quick: the parts ----------------------------------------------------------------------------------


def test_an_expected_error_is_a_state_of_its_own_name() -> None:
    from flows.states import ends_in_state, may_go_on

    @ends_in_state
    def fails(error: BaseException) -> None:
        raise error

    for error, name in (
        (Refused("no", ["a"]), "Refused"),
        (Preempted("stop"), "Preempted"),
        (StageError("x"), "Failed"),
    ):
        state = fails(error)
        assert state is not None
        assert (state.name, state.is_failed(), state.message) == (name, True, str(error))
        assert may_go_on(None, None, state) is (name == "Preempted")
    stopped = fails(Terminated())
    assert stopped is not None
    assert (stopped.name, may_go_on(None, None, stopped)) == ("Preempted", False)
    full = fails(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.parquet"))
    assert full is not None
    assert full.name == "Failed"
    assert full.message.startswith("No space left on device (x.parquet). Nothing half-written is kept")
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())


@pytest.mark.filterwarnings("ignore:.*without a flow run id")
def test_prefect_logs_an_expected_error_once(caplog: pytest.LogCaptureFixture) -> None:
    import flows.states  # noqa: F401

    log = logging.getLogger("prefect.task_runs")
    with caplog.at_level("INFO", "prefect.task_runs"):
        log.error("Task run failed with state: Refused('no')", exc_info=True)
        log.error("Finished in state Refused('no')")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("Task run failed with exception: a bug keeps its traceback")
    assert [record.message.split("(")[0] for record in caplog.records] == [
        "Finished in state Refused",
        "Task run failed with exception: a bug keeps its traceback",
    ]


@pytest.mark.filterwarnings("ignore:.*without a flow run id")
def test_the_terminal_leaves_the_reason_to_the_command_line() -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    from flows.states import reason_left_to_the_end

    written, kept = io.StringIO(), io.StringIO()
    console, other = PrefectConsoleHandler(stream=written), logging.StreamHandler(kept)
    root, log = logging.getLogger(), logging.getLogger("prefect.task_runs")
    for handler in (console, other):
        root.addHandler(handler)
    try:
        with reason_left_to_the_end():
            for state in ("Failed('a')", "Refused('b', type=FAILED)", "Crashed('c')", "Completed()"):
                log.error("Finished in state %s", state, extra={"task_run_name": "gate"})
    finally:
        for handler in (console, other):
            root.removeHandler(handler)
    assert re.findall(r"state (\w+)", written.getvalue()) == ["Crashed", "Completed"]
    assert len(kept.getvalue().splitlines()) == 4, "all others have them all"
    assert console.filters == []


def test_ctrl_c_while_the_server_is_started_is_no_error_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import Settings

    from flows import temporary_server

    started = []

    def interrupted(*_: object, **__: object) -> dict[str, str]:
        signal.raise_signal(signal.SIGINT)
        return {}

    monkeypatch.setattr(Settings, "to_environment_variables", interrupted)
    process = subprocess.CompletedProcess([], 0)
    process.kill = started.clear  # type: ignore[attr-defined]
    monkeypatch.setattr(
        temporary_server, "ServerProcess", lambda command, **_: started.append(command) or process
    )
    at_exit = []
    monkeypatch.setattr(temporary_server.atexit, "register", at_exit.append)
    with pytest.raises(KeyboardInterrupt):
        temporary_server._run(SubprocessASGIServer(port=1))
    assert started, "it comes when the server has been started"
    assert at_exit == [started.clear], "which is ended with this process, though Prefect does not know of it"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


SERVER = """
import signal, sys, types
from flows.temporary_server import SHIELDED, _end_with
signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
vars(signal).pop("sigtimedwait", None)  # macOS has none
server = types.SimpleNamespace(should_exit=False)
print("waits", flush=True)
_end_with(int(sys.argv[1]), server)
sys.exit(7 if server.should_exit else 1)
"""


@pytest.mark.parametrize("told", [True, False])
def test_the_server_ends_when_its_parent_says_so_or_has_gone_and_by_no_signal(told: bool) -> None:
    from flows.temporary_server import ServerProcess

    command = [sys.executable, "-c", SERVER, str(os.getpid())]
    process = ServerProcess(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"waits\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    if told:
        process.terminate()
    else:
        process.stdin.close()
    assert process.wait(timeout=60) == 7
    if told:
        process.terminate()  # is no error of one that has ended
        process.stdin.close()
    process.stdout.close()


def test_one_sigterm_stops_and_a_second_does_not_disturb_what_cleans_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    @sigterm_stops()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Stopped, match="run it again to go on"):
        work()
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_sigterm_as_soon_as_it_is_heeded_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before, install = signal.getsignal(signal.SIGTERM), signal.signal

    def installed_and_sent(number: int, handler: object) -> object:
        found = install(number, handler)  # type: ignore[arg-type]
        if handler != before:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(signal, "signal", installed_and_sent)
    with pytest.raises(Stopped), sigterm_stops():
        raise AssertionError("it has been stopped")
    assert signal.getsignal(signal.SIGTERM) == before


def test_changes_are_typed_and_named_by_field() -> None:
    changes = Changes(learning_rate=1e-5, fields={"merge.alphas": [0, 1]})
    assert changes.by_field() == {"finetune.learning_rate": 1e-5, "merge.alphas": [0, 1]}
    assert changes_of({}) is None
    with pytest.raises(ValidationError, match="epochs"):
        Changes(epochs=0)
    with pytest.raises(ValidationError, match="Extra inputs"):
        TypeAdapter(Changes).validate_python({"epoch": 1})


def test_every_knob_of_the_form_is_a_field_of_the_recipe() -> None:
    from tasks.recipe import Finetune

    knobs = set(Changes.model_fields) - {"fields"}
    assert knobs
    assert knobs <= set(Finetune.model_fields)


def test_prefect_is_told_to_be_quiet_and_patient(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, "PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "7")
    prefect_defaults(project.root)
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "7", "what is set stands"
    home = project.root / ".retain" / "prefect"
    assert os.environ["PREFECT_HOME"] == str(home)
    assert home.is_dir()
    for name in (*DEFAULTS, "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_is_gone_is_not_used(tmp_path: Path) -> None:
    assert running_server(tmp_path) is None
    server_note(tmp_path).write_text('{"url": "http://127.0.0.1:9/api"}')
    assert running_server(tmp_path) is None


def test_a_recipe_is_held_and_let_go(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "tiny")
    lock = paths.scratch / "run.lock"
    with only_run(paths, "calm-otter", "wait", print):
        assert is_held(lock)
        with (
            pytest.raises(StageError, match=r"by process \d+ \(run calm-otter, since "),
            only_run(paths, "second", "refuse", print),
        ):
            pass
    assert not is_held(lock)


@pytest.mark.parametrize(
    ("recipe", "fields", "words"),
    [
        ("tiney", {}, "Recipes here: tiny, unlisted."),
        ("unlisted", {}, "list 'unlisted' under `recipes:` in params.yaml"),
        ("tiny", {"finetune.epoch": 2}, "did you mean epochs?"),
        ("tiny", {"finetune.epochs": 2}, "?? tasks/mine.py"),
    ],
)
def test_what_cannot_run_is_refused_before_a_server_starts(
    project: Project, monkeypatch: pytest.MonkeyPatch, recipe: str, fields: dict[str, int], words: str
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(project.root / ".retain" / "prefect"))
    from flows import finetune as module

    def start() -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(module, "start_server", start)
    shutil.copy(project.recipe(), project.recipe("unlisted"))
    project.commit("Another recipe")
    if fields == {"finetune.epochs": 2}:
        (project.root / "tasks" / "mine.py").touch()
    with pytest.raises(ConfigError) as caught:
        module.run_recipe(recipe, changes=fields, root=project.root)
    assert words in str(caught.value)


def test_a_stage_that_refuses_has_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> str:
        raise Refused("The data may not train:", ["too few rows"])

    monkeypatch.setattr(runs, "build_stage", refuse)
    monkeypatch.setattr(runs, "_logger", lambda: logging.getLogger("test"))
    paths, recipe = Paths(project.root, "tiny"), load_recipe(project.recipe())
    with open_repo(project.root) as repo:
        run = runs.Run("calm-otter", repo, recipe, paths, project.root, {}, print)
        with pytest.raises(Refused) as caught:
            run.build("gate")
    result = run.result(caught.value)
    assert (result.verdict, result.executed, result.reasons) == ("GATE", ["gate"], ["too few rows"])


def test_a_model_that_passed_and_was_not_registered_is_a_refusal(project: Project) -> None:
    paths, recipe = Paths(project.root, "tiny"), load_recipe(project.recipe())
    decision = run_reports("pass").decision
    assert decision is not None
    write_report(paths.decision, decision)
    with open_repo(project.root) as repo:
        run = runs.Run("calm-otter", repo, recipe, paths, project.root, {}, print)
        run.outcomes["decide"] = "unchanged"
        assert (run.result().exit_code, run.result().refusal) == (0, "")
        result = run.result(Refused("The champion of tiny is version 2. Compare again."))
    assert (result.verdict, result.exit_code) == ("PASS", 3)
    assert result.refusal == "The champion of tiny is version 2. Compare again."


# --- whole runs ----------------------------------------------------------------------------------------


def start(project: Project) -> subprocess.Popen[str]:
    """Start a run in a session of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, "run", "tiny", "--no-register"],
        cwd=project.root,
        # Where a service manager starts it there is no SHELL, and dash does not become the command that it is given.
        env={**project.environment, "SHELL": "/bin/sh"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def flow_states(project: Project) -> list[str]:
    """Return how Prefect noted the end of each run."""
    with closing(sqlite3.connect(project.root / ".retain" / "prefect" / "prefect.db")) as database:
        return [name for (name,) in database.execute("SELECT state_name FROM flow_run")]


def in_training(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until a run trains; return the processes it has started: Prefect's server, the stage."""
    assert run.stdout is not None
    for line in run.stdout:
        if "epoch 1" in line:
            break
    family = psutil.Process(run.pid).children(recursive=True)
    assert any("temporary_server" in " ".join(child.cmdline()) for child in family)
    return family


# Ctrl-C reaches every process of the terminal, SIGTERM the one that was started or all: `timeout`, systemd.
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "send", "status", "state"),
    [
        (signal.SIGINT, os.killpg, 130, "Crashed"),
        (signal.SIGTERM, os.kill, 75, "Preempted"),
        (signal.SIGTERM, os.killpg, 75, "Preempted"),
    ],
)
def test_an_interrupted_run_ends_and_the_next_goes_on(
    project: Project, number: int, send: Callable[[int, int], None], status: int, state: str
) -> None:
    project.change("epochs: 1", "epochs: 20")
    run = start(project)
    family = in_training(run)
    send(run.pid, number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == status, said
    assert "Traceback" not in said
    assert "run it again to go on" in said
    assert flow_states(project) == [state]
    assert [child for child in family if child.is_running() and child.status() != "zombie"] == []
    project.change("epochs: 20", "epochs: 2")
    again = project.retain("run", "tiny", "--no-register")
    ran = re.findall(r" - (\w+): executed", again.stderr + again.stdout)
    assert ran == list(STAGES[STAGES.index("finetune") :])


@pytest.mark.e2e
def test_a_killed_run_takes_its_stage_and_its_server_along(project: Project) -> None:
    project.change("epochs: 1", "epochs: 100")
    run = start(project)
    family = in_training(run)
    run.kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []


@pytest.mark.e2e
def test_a_gate_that_refuses_ends_the_flow(project: Project) -> None:
    project.change("failed_expectations: {refuse_above: 0}", "failed_expectations: {refuse_above: -1}")
    done = project.retain("run", "tiny", check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 3
    assert flow_states(project) == ["Refused"]
    assert said.count("The data may not train:") == 1, "in the stage's log; the summary has the reasons"
    assert "retain: refused (GATE): tiny was not released." in said
    assert "finetune begins" not in said
    assert said.count("gate begins") == 1, "never tried again"
    assert "Ran: prepare, validate, check, gate. The stages after gate wait" in done.stdout
    assert "Ran: gate. The stages after gate wait" in project.retain("run", "tiny", check=False).stdout


@pytest.mark.e2e
def test_a_preempted_stage_is_tried_again(project: Project) -> None:
    project.change("batch_size: 16", "batch_size: 75")
    done = project.retain("run", "tiny", "--no-register")
    said = done.stdout + done.stderr
    assert said.count("finetune begins") == 2
    assert "finetune: executed" in said


@pytest.mark.e2e
def test_a_failed_stage_ends_the_flow_without_a_traceback_and_a_bug_with_its_own(project: Project) -> None:
    project.change("batch_size: 16", "batch_size: 13")
    done = project.retain("run", "tiny", check=False)
    assert done.returncode == 1
    assert "retain: finetune: the loss is not finite\n  - step 3\n  - step 4\n" in done.stderr
    assert (done.stdout + done.stderr).count("the loss is not finite") == 2, (
        "in the stage's log and at the end"
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "merge begins" not in done.stdout + done.stderr
    project.change("batch_size: 13", "batch_size: 14")
    done = project.retain("run", "tiny", check=False)
    assert done.returncode == 1
    assert "ValueError: a bug" in done.stderr


@pytest.mark.e2e
def test_a_run_with_nothing_to_do_runs_no_stage_and_a_damaged_cache_is_built_again(project: Project) -> None:
    project.retain("run", "tiny", "--no-register")
    done = project.retain("run", "tiny", "--no-register")
    assert ": executed" not in done.stdout + done.stderr
    assert "Nothing to do: every stage is up to date." in done.stdout
    assert "Finished in state Cached('unchanged'" in done.stdout + done.stderr
    decision = Paths(project.root, "tiny").decision
    before = decision.read_bytes()
    decision.unlink()
    for path in (project.root / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file() and path.read_bytes() == before:
            path.chmod(0o644)
            path.write_text("damaged")
    done = project.retain("run", "tiny", "--no-register")
    assert "decide: executed" in done.stdout + done.stderr
    assert decision.read_bytes() == before
