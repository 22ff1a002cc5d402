"""Ask DVC for one stage at a time, in this process, and follow what the stage says while it runs.

DVC decides whether a stage runs, is taken from the cache, or stands as it is. It starts the same command that
`dvc repro` starts, so both leave the same lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.console import environment
from tasks.errors import ConfigError, PipelineError, Preempted, Refused, StageError
from tasks.paths import Paths
from tasks.stage_log import ONLY_LOG
from tasks.stages import STAGES

if TYPE_CHECKING:
    from dvc.repo import Repo

Outcome = Literal["executed", "restored", "unchanged"]
Say = Callable[[str], None]

LOCK_WAIT_SECONDS = 600.0
STOP_WAIT_SECONDS = 30.0


@contextmanager
def open_repo(root: Path, *, lock_wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[Repo]:
    """Open the DVC repository at `root`, and work there meanwhile: DVC names stages relative to the working folder.

    Raises:
        ConfigError: there is none, or it is not usable.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    for name in ("dvc", "dvc_data", "dvc_objects"):  # they report by exceptions, which we show
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.chdir(root):
        try:
            repo = Repo(str(root))
        except DvcException as error:
            raise ConfigError(f"{root} is no DVC repository ({error}): run `dvc init` there.") from error
        _make_patient(repo, lock_wait_seconds)
        try:
            yield repo
        finally:
            repo.close()


def check_listed(repo: Repo, recipe: str) -> None:
    """Check that `dvc.yaml` builds this recipe.

    Raises:
        ConfigError: it does not, or DVC cannot read it.
    """
    from dvc.exceptions import DvcException

    try:
        names = {stage.addressing for stage in repo.index.stages}
    except DvcException as error:
        raise ConfigError(f"DVC cannot read the pipeline: {_words(error)}") from error
    if missing := [stage for stage in STAGES if f"{stage}@{recipe}" not in names]:
        raise ConfigError(
            f"dvc.yaml has no {missing[0]}@{recipe}: list {recipe!r} under `recipes:` in params.yaml, where DVC looks."
        )


def is_current(repo: Repo, recipe: str, stage: str) -> bool:
    """Say whether DVC has nothing to do for this stage."""
    with dvc_errors(f"{stage}@{recipe}"):
        return not _patiently(lambda: repo.status(targets=[f"{stage}@{recipe}"]))


def build_stage(repo: Repo, recipe: str, stage: str, say: Say, *, force: bool = False) -> Outcome:
    """Bring one stage up to date, handing each line it prints to `say` while it runs.

    Raises:
        Refused: the stage said no.
        Preempted: the stage was asked to stop, and saved its work.
        StageError: it failed, or DVC did; the message holds what the stage said last.
    """
    if not force and is_current(repo, recipe, stage):
        return "unchanged"
    log = Paths(Path(repo.root_dir), recipe).stage_log(stage)
    log.unlink(missing_ok=True)
    with (
        dvc_errors(f"{stage}@{recipe}", stage, log),
        _stage_environment(),
        _stage_ends_with_us(stage, recipe),
        _following(log, say),
    ):
        _patiently(lambda: repo.reproduce(targets=[f"{stage}@{recipe}"], single_item=True, force=force))
    return "executed" if log.exists() else "restored"


def order_lock(repo: Repo) -> None:
    """Put the blocks of `dvc.lock` in the order in which one `dvc repro` of everything writes them.

    DVC appends what is new, so the order would tell which recipe was run first.
    """
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import plan_repro
    from dvc.utils.serialize import dump_yaml, load_yaml

    path = Path(repo.root_dir) / "dvc.lock"
    if not path.exists():
        return
    with lock_repo(repo):
        order = {
            stage.name: place
            for place, stage in enumerate(plan_repro(repo.index.graph))
            if hasattr(stage, "name")
        }
        lock = load_yaml(str(path))
        names = list(lock["stages"])
        ordered = sorted(names, key=lambda name: order.get(name, len(order)))
        if ordered != names:
            lock["stages"] = {name: lock["stages"][name] for name in ordered}
            dump_yaml(str(path), lock)
    repo._reset()


def last_words(log: Path, stage: str) -> str:
    """Return the error that a stage printed at its end, or its traceback, or its last lines."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    starts = [number for number, line in enumerate(lines) if line.startswith(f"{stage}: ")]
    if starts:
        return "\n".join(lines[starts[-1] :]).removeprefix(f"{stage}: ").strip()
    began = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    return "\n".join(lines[-15:] if not began else lines[began[-1] :][-60:]).strip()


# --- how a stage is started, followed and ended --------------------------------------------------------


def _stage_environment() -> AbstractContextManager[None]:
    # `python` in dvc.yaml must be the Python of this environment, whether or not it is activated.
    own, found = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    return environment({"PATH": os.pathsep.join([own, found]), ONLY_LOG: "log"})


@contextmanager
def _following(log: Path, say: Say) -> Iterator[None]:
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(log, say, stop), name="follow-log", daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def _follow(log: Path, say: Say, stop: threading.Event) -> None:
    rest, place = "", 0
    while True:
        last = stop.is_set()
        if log.exists():
            with log.open("rb") as file:
                file.seek(place)
                new = file.read()
            # A multi-byte character may be half written: leave its bytes for the next turn.
            whole = new if last else new[: new.rfind(b"\n") + 1]
            place += len(whole)
            *lines, rest = re.split(r"[\r\n]+", whole.decode("utf-8", errors="replace"))
            for line in lines:
                if line.strip():
                    say(line)
        if last:
            if rest.strip():
                say(rest)
            return
        stop.wait(0.2)


@contextmanager
def _stage_ends_with_us(stage: str, recipe: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _stop_stage(stage, recipe)
        raise


def _stop_stage(stage: str, recipe: str) -> None:
    import psutil

    ours = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[-4:] == ["-m", "tasks", stage, recipe]:
                process.terminate()
                ours.append(process)
        except psutil.NoSuchProcess:
            continue
    for process in psutil.wait_procs(ours, timeout=STOP_WAIT_SECONDS)[1]:
        process.kill()


# --- DVC's locks and errors ----------------------------------------------------------------------------


def _make_patient(repo: Repo, seconds: float) -> None:
    """Let the repository's lock wait longer than DVC's 3 s.

    DVC takes the lock again after a stage has run: giving up there would throw the stage's work away.
    """
    from dvc.lock import Lock, LockError

    if not isinstance(repo.lock, Lock):
        return

    class PatientLock(Lock):
        def lock(self) -> None:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    return super().lock()
                except LockError:
                    if time.monotonic() > deadline:
                        raise

    repo.lock = PatientLock(repo.lock.lockfile)


def _patiently(call: Callable[[], Any], seconds: float = LOCK_WAIT_SECONDS) -> Any:
    """Call again while another DVC process holds this very stage's files; it has not run yet then."""
    from dvc.exceptions import DvcException

    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except DvcException as error:
            if "is busy, it is being blocked by" not in _words(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


@contextmanager
def dvc_errors(what: str, stage: str = "", log: Path | None = None) -> Iterator[None]:
    """Turn what DVC raises inside into the errors of this project; `log` is that of the stage that runs inside."""
    from dvc.exceptions import DvcException
    from dvc.stage.exceptions import StageCmdFailedError

    try:
        yield
    except DvcException as error:
        for cause in _causes(error):
            if isinstance(cause, PipelineError):
                raise cause from None
        failed = next((cause for cause in _causes(error) if isinstance(cause, StageCmdFailedError)), None)
        if failed is None:
            raise StageError(f"{what}: DVC could not do it: {_words(error)}") from error
        found = re.search(r"exited with (-?\d+)$", str(failed))
        status = int(found[1]) if found else 1
        raise stage_failure(stage, status, last_words(log, stage) if log else "") from error


def stage_failure(stage: str, status: int, said: str) -> BaseException:
    """Return the error that a stage's exit status and last words mean."""
    if status in (130, -2):
        return KeyboardInterrupt()
    kinds: dict[int, type[PipelineError]] = {3: Refused, 75: Preempted, 1: StageError}
    if status in kinds:
        return kinds[status](f"{stage}: {said or 'it gave no reason'}")
    signal_number = -status if status < 0 else status - 128
    if 0 < signal_number < 65:
        reason = f"was ended by signal {signal_number}"
        if signal_number == 9:
            reason += " (most often: the machine ran out of memory; try a smaller finetune.batch_size)"
    else:
        reason = f"exited with status {status}"
    return StageError(f"{stage} {reason}. It said last:\n{said or '(nothing)'}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _words(error: BaseException) -> str:
    return ": ".join(dict.fromkeys(str(cause) for cause in _causes(error) if str(cause)))
