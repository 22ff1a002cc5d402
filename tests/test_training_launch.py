"""The same command on two devices: it ends as on one, whatever ends it, and leaves no process behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tasks import reports
from tasks.__main__ import run_stage
from tasks.files import folder_fingerprint
from tasks.paths import Paths
from tests.models_data import tuned_project
from tests.project import CHECKOUT

pytestmark = pytest.mark.e2e
ORDINARY = "  epochs: 6\n  checkpoint_every: 1\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a tiny project once, as far as the stage."""
    folder = tmp_path_factory.mktemp("launch")
    tuned_project(folder, until="gate")
    return folder


@pytest.fixture(scope="module")
def built_still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build one whose base has no dropout, of which each process would draw its own."""
    folder = tmp_path_factory.mktemp("launch-still")
    tuned_project(folder, until="gate", dropout=0.0)
    return folder


@pytest.fixture
def paths(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    return copied(built, tmp_path, monkeypatch)


@pytest.fixture
def paths_still(built_still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    return copied(built_still, tmp_path, monkeypatch)


def copied(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    shutil.copytree(built / "project", tmp_path / "project", symlinks=True)
    shutil.copytree(built / "store", tmp_path / "store")
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return Paths(tmp_path / "project", "tiny")


def change(paths: Paths, lines: str) -> None:
    recipe = paths.root / "recipes" / "tiny.yaml"
    assert "  epochs: 1\n" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("  epochs: 1\n", lines))


def start(paths: Paths) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", "finetune", "tiny"],
        cwd=paths.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ranks_at_work(process: subprocess.Popen[str], paths: Paths, step: int = 3) -> list[psutil.Process]:
    """Wait until there is a checkpoint; return the processes that train."""
    checkpoints, end = paths.root.parent / "store" / "checkpoints", time.monotonic() + 120
    while not [path for path in checkpoints.glob("*/step-*") if int(path.name[5:]) >= step]:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if "tasks.training.launch" in child.cmdline()]
    assert len(ranks) == 2
    return ranks


def gone(ranks: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(ranks, timeout=30)[1]


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_devices_end_as_one_does(paths_still: Paths, sharding: str) -> None:
    paths = paths_still
    change(paths, ORDINARY)
    run_stage("finetune", "tiny", paths.root)
    alone, story = reports.read_report(paths.finetune, reports.FinetuneReport), pd.read_csv(paths.history)
    recipe = paths.root / "recipes" / "tiny.yaml"
    recipe.write_text(
        recipe.read_text().replace(ORDINARY, ORDINARY + f"  devices: 2\n  sharding: {sharding}\n")
    )
    process = start(paths)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert "training on 2 devices" in said
    assert said.count("epoch 1: validation loss") == 1, "the first process speaks for all"
    together = reports.read_report(paths.finetune, reports.FinetuneReport)
    assert together.steps == alone.steps
    assert together.trainable_parameters == alone.trainable_parameters
    losses = pd.read_csv(paths.history)["loss"].to_numpy()
    assert losses == pytest.approx(story["loss"].to_numpy(), abs=1e-4)
    assert (paths.tuned / "model.safetensors").exists()
    assert not list((paths.root.parent / "store" / "checkpoints").glob("*"))


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_preempted_both_stop_and_go_on_to_the_same_bytes(paths: Paths, sharding: str) -> None:
    change(paths, ORDINARY + f"  devices: 2\n  sharding: {sharding}\n")
    whole = start(paths)
    assert whole.wait(timeout=200) == 0
    before = folder_fingerprint(paths.tuned), paths.history.read_bytes()
    shutil.rmtree(paths.tuned)
    process = start(paths)
    ranks = ranks_at_work(process, paths)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 75, said
    assert "run it again to go on" in said
    assert "Traceback" not in said
    assert gone(ranks)
    assert not paths.tuned.exists()
    again = start(paths)
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said
    assert "going on from the checkpoint at step" in said
    assert (folder_fingerprint(paths.tuned), paths.history.read_bytes()) == before


def test_a_crash_of_one_ends_the_stage_with_a_reason_and_the_next_run_goes_on(paths: Paths) -> None:
    change(paths, "  epochs: 200\n  checkpoint_every: 1\n  devices: 2\n")
    process = start(paths)
    ranks = ranks_at_work(process, paths)
    ranks[1].kill()
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 1, said
    assert "of those that trained was ended by signal 9; most often, the machine ran out of memory" in said
    assert gone(ranks)
    again = start(paths)
    ranks_at_work(again, paths, step=5)
    again.terminate()
    assert "going on from the checkpoint at step" in again.communicate(timeout=60)[0]


def test_no_process_outlives_the_stage(paths: Paths) -> None:
    change(paths, "  epochs: 200\n  checkpoint_every: 1\n  devices: 2\n")
    process = start(paths)
    ranks = ranks_at_work(process, paths)
    process.kill()
    process.communicate(timeout=30)
    assert gone(ranks)


def test_an_error_in_a_process_is_the_stages_own(paths: Paths) -> None:
    change(paths, ORDINARY + "  devices: 2\n  sharding: shard\n  freeze_layers: 9\n")
    process = start(paths)
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 1, said
    assert "finetune: finetune.freeze_layers is 9, but the model has 3 layers" in said
    assert "Traceback" not in said


def test_more_devices_than_there_are_start_nothing(paths: Paths) -> None:
    change(paths, ORDINARY + "  devices: 4096\n")
    process = start(paths)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1, said
    assert "finetune.devices is 4096, but this machine shows" in said
