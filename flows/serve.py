"""`retain serve`: a Prefect server, a worker and the schedule, on this machine and for nobody else, until Ctrl-C.

A team with a server of its own uses `infra/prefect.yaml` instead.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from flows.console import say
from flows.settings import prefect_defaults, prefect_home, running_server, server_note
from tasks.errors import ConfigError, StageError

WEEKLY = "0 3 * * 1"
"""Mondays at three: when nothing else is said."""
POOL = "retain"
DEPLOYMENT = "retrain"
SUPERVISED = f"{shlex.quote(sys.executable)} -m prefect flow-run execute"
RESCHEDULED = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
"""SIGTERM to a run's supervisor (a machine that is taken away) puts the run back in the queue: it goes on elsewhere."""
HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 20.0


def serve(root: Path, port: int, cron: str | None) -> None:
    """Serve until Ctrl-C, SIGTERM, or until the server or the worker ends by itself.

    Raises:
        ConfigError: the port is taken, a server runs here already, the cron is none, or there is no recipe.
        StageError: the server or the worker did not start, or ended.
    """
    recipes = listed_recipes(root)
    home = prefect_home(root)
    home.mkdir(parents=True, exist_ok=True)
    if running := running_server(home):
        raise ConfigError(f"A server of this repository runs already: {running.removesuffix('/api')}")
    port = _free_port(port)
    url = f"http://{HOST}:{port}/api"
    os.environ["PREFECT_API_URL"] = url
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
    prefect_defaults(root)  # before Prefect is imported
    cron = _checked_cron(cron or WEEKLY)
    try:
        with _stops_by_signal(), _process("server", _server_command(port), root, home) as server:
            _wait_until_healthy(url, server, home / "server.log")
            with _note(home, url, server.pid):
                say("server: ready")
                identity = deploy(root, recipes, cron)
                with _process("worker", _worker_command(), root, home) as worker:
                    _announce(url, identity, recipes, cron)
                    _watch({"server": server, "worker": worker}, home)
    except KeyboardInterrupt:
        say("stopped")


def listed_recipes(root: Path) -> list[str]:
    """Return the recipes that params.yaml lists: those are retrained on schedule.

    Raises:
        ConfigError: there is none.
    """
    try:
        listed = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["recipes"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{root / 'params.yaml'} lists no recipes ({error!r}): add `recipes: [NAME]`."
        ) from None
    if not listed:
        raise ConfigError(f"{root / 'params.yaml'} lists no recipe: retain init NAME DATAFILE makes one.")
    return [str(name) for name in listed]


def deploy(root: Path, recipes: list[str], cron: str) -> str:
    """Create the work pool, the queue for the GPU, and the deployment with a schedule a recipe; return its id."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.flows import EntrypointType
    from prefect.runner.storage import LocalStorage
    from prefect.schedules import Cron
    from prefect.workers.process import ProcessWorker

    from flows.finetune import finetune

    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True
        )
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
    deployment = RunnerDeployment.from_flow(
        finetune,
        name=DEPLOYMENT,
        schedules=[Cron(cron, parameters={"recipe": recipe}, slug=recipe) for recipe in recipes],
        parameters={"recipe": recipes[0]},
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        enforce_parameter_schema=True,
        work_pool_name=POOL,
        job_variables={"working_dir": str(root), "command": SUPERVISED, "env": RESCHEDULED},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.storage = LocalStorage(str(root))  # runs work in this very clone, not in a copy of it
    return str(deployment.apply())


def _announce(url: str, identity: str, recipes: list[str], cron: str) -> None:
    page = f"{url.removesuffix('/api')}/deployments/deployment/{identity}"
    say(f"schedule: {cron} (UTC) for {', '.join(recipes)}")
    say(f"open {page} and choose Run → Custom run")
    say("Ctrl-C stops the server and the worker")
    sys.stdout.flush()


def _checked_cron(cron: str) -> str:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        return CronSchedule(cron=cron).cron
    except ValidationError:
        raise ConfigError(
            f"{cron!r} is no cron expression: five fields, for example '{WEEKLY}' (Mondays at three)."
        ) from None


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of {HOST} cannot be had ({error.strerror}): "
                "choose another with --port, or 0 for a free one."
            ) from None
        return int(probe.getsockname()[1])


def _server_command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def _worker_command() -> list[str]:
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]


@contextmanager
def _process(name: str, command: list[str], root: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own, its output in a log; stop it and its children at the end."""
    with (
        (home / f"{name}.log").open("ab") as log,
        tempfile.TemporaryDirectory(prefix="retain-", ignore_cleanup_errors=True) as scratch,
    ):
        process = subprocess.Popen(
            command,
            cwd=root,
            # Prefect's worker keeps files in a folder of a fixed name there, which may be another user's.
            env={**os.environ, "TMPDIR": scratch},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    import psutil

    try:
        own = psutil.Process(process.pid)
        family = [*own.children(recursive=True), own]
        # Flow runs first: a worker that goes leaves them running on. Their supervisors stop what is below them.
        _terminate(own.children())
    except psutil.NoSuchProcess:
        process.wait()
        return
    for member in _terminate(family):
        member.kill()
    process.wait()


def _terminate(processes: list[Any]) -> list[Any]:
    """Ask processes to stop, give them time, and return those that did not."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    return list(psutil.wait_procs(processes, timeout=STOP_SECONDS)[1])


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StageError(
                f"The Prefect server ended with {server.returncode}. It said last:\n{_tail(log)}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise StageError(
        f"The Prefect server was not ready after {START_SECONDS:.0f} s. It said last:\n{_tail(log)}"
    )


@contextmanager
def _note(home: Path, url: str, pid: int) -> Iterator[None]:
    note = server_note(home)
    note.write_text(json.dumps({"url": url, "pid": pid}) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _watch(processes: dict[str, subprocess.Popen[bytes]], home: Path) -> None:
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise StageError(
                    f"The {name} ended with {process.returncode}. It said last:\n{_tail(home / f'{name}.log')}"
                )
        time.sleep(0.5)


@contextmanager
def _stops_by_signal() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
