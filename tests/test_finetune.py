"""finetune: the same bytes each time, whole or absent, and nothing lost when it is stopped at any point."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks import reports
from tasks.__main__ import run_stage
from tasks.errors import ConfigError, StageError
from tasks.files import folder_fingerprint
from tasks.paths import Paths
from tasks.recipe import load_recipe, recipe_path
from tasks.training.checkpoints import newest_checkpoint, save_checkpoint
from tests.models_data import tuned_project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a tiny project once, with an uninterrupted fine-tune of four epochs."""
    folder = tmp_path_factory.mktemp("finetune")
    tuned_project(folder, until="gate")
    recipe = folder / "project" / "recipes" / "tiny.yaml"
    text = recipe.read_text().replace("  epochs: 1\n", "  epochs: 4\n  checkpoint_every: 1\n")
    recipe.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        run_stage("finetune", "tiny", folder / "project")
    return folder


@pytest.fixture
def paths(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Return a copy that has not been fine-tuned, with a store of its own."""
    shutil.copytree(built / "project", tmp_path / "project", symlinks=True)
    shutil.copytree(built / "store", tmp_path / "store")
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    paths = Paths(tmp_path / "project", "tiny")
    for output in (paths.tuned, paths.history, paths.finetune):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    return paths


def outputs(paths: Paths) -> dict[str, str | bytes]:
    return {
        "model": folder_fingerprint(paths.tuned),
        "history": paths.history.read_bytes(),
        "report": paths.finetune.read_bytes(),
    }


def start(paths: Paths, slow: bool = True) -> subprocess.Popen[str]:
    """Start the stage as both doors do; `slow` makes a step last long enough to be stopped in."""
    command = ["-m", "tasks", "finetune", "tiny"]
    if slow:
        patch = (
            "import time, sys; from tasks.training import loop; step = loop.Trainer._step\n"
            "def slowly(self, batch, original):\n"
            "    time.sleep(0.1); print('at step', self.progress.step + 1, flush=True)\n"
            "    return step(self, batch, original)\n"
            "loop.Trainer._step = slowly\n"
            "from tasks.__main__ import main; sys.exit(main(['finetune', 'tiny']))"
        )
        command = ["-c", patch]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=paths.root,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
        },  # as many threads as here: sums differ
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_at(process: subprocess.Popen[str], step: int, how: int) -> tuple[int, str]:
    """Send a signal when the step begins; return the exit status and what was said."""
    said = []
    for line in process.stdout or ():
        said.append(line)
        if line.strip() == f"at step {step}":
            process.send_signal(how)
            break
    said.append(process.communicate(timeout=60)[0])
    return process.returncode, "".join(said)


def test_the_same_inputs_give_the_same_bytes(built: Path, paths: Paths) -> None:
    run_stage("finetune", "tiny", paths.root)
    assert outputs(paths) == outputs(Paths(built / "project", "tiny"))
    assert not list((paths.root.parent / "store" / "checkpoints").glob("*")), (
        "scratch is gone when it is done"
    )


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.e2e
@pytest.mark.parametrize("step", [3, 12])
def test_stopped_anywhere_it_ends_with_the_same_bytes(
    built: Path, paths: Paths, how: int, status: int, step: int
) -> None:
    ended, said = stop_at(start(paths), step, how)
    assert ended == status, said
    assert not paths.tuned.exists()
    assert not paths.finetune.exists()
    assert not [path for path in paths.out.iterdir() if path.name.startswith(".")]
    if how == signal.SIGTERM:
        assert "run it again to go on" in said
    again = start(paths, slow=False)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert f"going on from the checkpoint at step {step - (how != signal.SIGTERM)} of " in said
    assert outputs(paths) == outputs(Paths(built / "project", "tiny"))


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": torch.tensor(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    damaged = tmp_path / "step-00000003" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    state = newest_checkpoint(tmp_path)
    assert state is not None
    assert int(state["step"]) == 2
    assert "skipping the damaged checkpoint" in caplog.text
    assert newest_checkpoint(tmp_path / "nowhere") is None


def change(paths: Paths, before: str, after: str) -> None:
    recipe = paths.root / "recipes" / "tiny.yaml"
    assert before in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(before, after))


def test_a_ruinous_rate_is_refused_with_the_recipe_unless_forced(paths: Paths) -> None:
    change(paths, "learning_rate: 1.0e-4", "learning_rate: 0.01")
    with pytest.raises(
        ConfigError, match=r"more than ten times the 0\.0001 .* set force_learning_rate: true"
    ):
        load_recipe(recipe_path(paths.root, "tiny"))
    change(paths, "learning_rate: 0.01", "learning_rate: 0.01\n  force_learning_rate: true")
    run_stage("finetune", "tiny", paths.root)


def test_splits_that_were_not_cleared_do_not_train(paths: Paths) -> None:
    paths.passport.unlink()
    with pytest.raises(StageError, match="has not been cleared"):
        run_stage("finetune", "tiny", paths.root)


def test_a_probe_leaves_the_base_as_it_is(paths: Paths) -> None:
    from safetensors.numpy import load_file

    from tasks.sources import base_folder

    change(paths, "method: lp-ft", "method: probe")
    run_stage("finetune", "tiny", paths.root)
    base = load_file(
        base_folder(reports.read_report(paths.base, reports.Base), paths.root) / "model.safetensors"
    )
    tuned = load_file(paths.tuned / "model.safetensors")
    shared = set(base) & set(tuned)
    assert shared
    assert all(np.array_equal(base[name], tuned[name]) for name in shared)
    report = reports.read_report(paths.finetune, reports.FinetuneReport)
    assert (report.steps, report.trainable_parameters) == (0, 2 * 32 + 2)


def test_rows_cut_at_the_limit_are_counted(paths: Paths) -> None:
    change(paths, "max_length: 32\n  precision", "max_length: 8\n  precision")
    change(paths, "epochs: 4", "epochs: 1")
    run_stage("finetune", "tiny", paths.root)
    report = reports.read_report(paths.finetune, reports.FinetuneReport)
    assert report.truncated_rows > 50
