"""`retain serve`: a schedule that fires, a form that is typed, and nothing left running afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.serve import listed_recipes
from tasks.errors import ConfigError
from tasks.paths import Paths
from tests.project import COMMAND_LINE, Project, make_project


def test_the_recipes_to_retrain_are_those_that_dvc_builds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lists no recipes"):
        listed_recipes(tmp_path)
    (tmp_path / "params.yaml").write_text("recipes: []\n")
    with pytest.raises(ConfigError, match="retain init NAME DATAFILE"):
        listed_recipes(tmp_path)
    (tmp_path / "params.yaml").write_text("recipes: [one, two]\n")
    assert listed_recipes(tmp_path) == ["one", "two"]


@dataclass
class Served:
    """A server under way."""

    project: Project
    process: subprocess.Popen[str]
    url: str
    deployment: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post as Prefect's client does: a busy server says 503, and is asked again."""
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def run(self, **parameters: object) -> Any:
        """Submit the run form."""
        return self.post(f"deployments/{self.deployment}/create_flow_run", {"parameters": parameters})

    def supervisor_in_training(self, run: str, recipe: str) -> psutil.Process:
        """Wait until a run trains, and return the process that supervises it."""
        log = Paths(self.project.root, recipe).stage_log("finetune")
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                    if (
                        f"tasks finetune {recipe}" in " ".join(process.cmdline())
                        and "epoch 1" in log.read_text()
                    ):
                        return next(one for one in process.parents() if "execute" in one.cmdline())
            time.sleep(0.2)
        raise TimeoutError(f"{run} did not train")

    def wait(self, run: str, seconds: float = 600) -> dict[str, Any]:
        """Return a flow run once it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            (found,) = self.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return dict(found)
            time.sleep(1)
        raise TimeoutError(f"{run} did not end")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a project with two stand-in recipes, every other minute, on a free port; runs queue for one slot."""
    root = tmp_path_factory.mktemp("serve") / "a project"
    project = make_project(root, stand_ins=True, names=("tiny", "other"))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, "serve", "--port", "0", "--cron", "*/2 * * * *"],
        cwd=root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "Ctrl-C stops" in line:
            break
    found = re.search(r"open (http://127\.0\.0\.1:\d+)/deployments/deployment/(\S+)", said)
    assert found, said
    family = psutil.Process(process.pid).children(recursive=True)
    yield Served(project, process, f"{found[1]}/api", found[2])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert [child for child in family if child.is_running()] == []
    assert not (root / ".retain" / "prefect" / "server.json").exists()


@pytest.mark.e2e
def test_the_form_is_typed(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/deployments/{served.deployment}", timeout=30) as answer:
        deployment = json.loads(answer.read())
    schema = deployment["parameter_openapi_schema"]
    assert schema["properties"]["recipe"]["enum"] == ["other", "tiny"]
    assert schema["properties"]["promote"]["description"].startswith("Promote if it passes")
    knobs = schema["definitions"]["Changes"]["properties"]
    assert "Peak rate" in knobs["learning_rate"]["description"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert {schedule["parameters"]["recipe"] for schedule in deployment["schedules"]} == {"tiny", "other"}
    assert served.post("v2/concurrency_limits/filter", {})


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"recipe": "nobody"}, "'nobody' is not one of"),
        ({"recipe": "tiny", "changes": {"epochs": 0}}, "changes.epochs"),
        ({"recipe": "tiny", "changes": {"epoch": 1}}, "epoch"),
        ({"recipe": "tiny", "if_running": "maybe"}, "if_running"),
    ],
)
def test_a_wrong_value_is_refused_at_submission(
    served: Served, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.run(**parameters)
    assert caught.value.code == 409
    assert words in caught.value.read().decode()


@pytest.mark.e2e
def test_a_run_from_the_form(served: Served) -> None:
    run = served.run(recipe="tiny", changes={"learning_rate": 3e-4}, promote=False)
    ended = served.wait(run["id"])
    assert ended["state_name"] == "Completed"
    experiments = served.project.git("for-each-ref", "refs/exps")
    assert ended["name"] in experiments


@pytest.mark.e2e
def test_a_refused_run_ends_in_a_state_of_its_own_name(served: Served) -> None:
    run = served.run(recipe="tiny", changes={"learning_rate": 1e-3})
    ended = served.wait(run["id"])
    assert ended["state_name"] == "Refused"
    assert ended["run_count"] == 1, "a refusal is not tried again"
    assert "articles: lost 0.001" in ended["state"]["message"]


@pytest.mark.e2e
def test_a_run_whose_machine_is_taken_away_is_scheduled_again(served: Served) -> None:
    recipe = served.project.root / "recipes" / "other.yaml"
    before = recipe.read_text(encoding="utf-8")
    recipe.write_text(before.replace("epochs: 1", "epochs: 12"), encoding="utf-8")
    run = served.run(recipe="other", promote=False)
    supervisor = served.supervisor_in_training(run["id"], "other")
    supervisor.terminate()
    supervisor.wait(timeout=60)
    supervised = Paths(served.project.root, "other").stage_log("finetune").read_text(encoding="utf-8")
    ended = served.wait(run["id"])
    recipe.write_text(before, encoding="utf-8")
    assert (ended["state_name"], ended["run_count"]) == ("Completed", 2)
    assert "finetune: asked to stop (SIGTERM)" in supervised


@pytest.mark.e2e
def test_the_schedule_fires(served: Served) -> None:
    """With a wrong SQLAlchemy the server looks well and no scheduled run ever starts: wait for a real one."""
    fired: list[dict[str, Any]] = []
    deadline = time.monotonic() + 600
    while not fired and time.monotonic() < deadline:
        time.sleep(2)
        runs = served.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
        fired = [run for run in runs if run["created_by"] and run["created_by"]["type"] == "SCHEDULE"]
    assert fired, "no scheduled run completed"
    assert {run["parameters"]["recipe"] for run in fired} <= {"tiny", "other"}


@pytest.mark.e2e
def test_a_second_server_and_a_taken_port_are_told(served: Served, tmp_path: Path) -> None:
    done = served.project.retain("serve", "--port", "0", check=False)
    assert done.returncode == 1
    assert "A server of this repository runs already: http://127.0.0.1:" in done.stderr
    other = make_project(tmp_path / "another", stand_ins=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = other.retain("serve", "--port", str(taken.getsockname()[1]), check=False)
    assert done.returncode == 1
    assert "choose another with --port" in done.stderr
    done = other.retain("serve", "--port", "0", "--cron", "often", check=False)
    assert done.returncode == 1
    assert "'often' is no cron expression" in done.stderr


@pytest.mark.e2e
def test_a_run_from_the_command_line_shows_in_the_served_ui(served: Served) -> None:
    served.project.retain("run", "other", "--no-register")
    runs = served.post("flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})
    assert [run["parameters"]["recipe"] for run in runs] == ["other"]
    assert os.environ.get("PREFECT_API_URL") != served.url
