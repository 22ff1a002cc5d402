"""Ctrl-C, SIGTERM and kill in each stage: nothing half-written stays, and the next run goes on to the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.__main__ import run_stage
from tasks.files import folder_fingerprint, sha256_of
from tasks.paths import Paths
from tasks.stages import STAGES
from tests.models_data import tuned_project
from tests.project import CHECKOUT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """Build a tiny project once, without interruption."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        patch.setenv("RETAIN_REGISTRY", str(folder / "registry"))
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        paths = tuned_project(folder, until="decide")
        yield paths


def declared(stage: str, paths: Paths) -> list[Path]:
    """Return the outputs of a stage, as dvc.yaml declares them."""
    described = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"][stage]
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in described.get(kind, [])]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    return [paths.root / str(name).replace("${item.recipe}", "tiny") for name in names]


def content(path: Path) -> str | None:
    if not path.exists():
        return None
    return folder_fingerprint(path) if path.is_dir() else sha256_of(path)


def start(stage: str, paths: Paths) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", stage, "tiny"],
        cwd=paths.root,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", STAGES)
def test_the_next_run_ends_with_the_same_bytes(built: Paths, stage: str, how: signal.Signals) -> None:
    outputs = declared(stage, built)
    before = {path: content(path) for path in outputs}
    assert all(before.values())
    seconds = built.root / ".retain" / "tiny" / "timings" / f"{stage}.json"
    whole = float(yaml.safe_load(seconds.read_text())["seconds"])
    for path in outputs:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    process = start(stage, built)
    # Somewhere between the imports and the end; where exactly does not matter, for it must hold anywhere.
    time.sleep(np.random.default_rng([list(STAGES).index(stage), how]).uniform(0.3, 3.0 + whole))
    process.send_signal(how)
    process.wait(timeout=120)
    for path in outputs:
        assert content(path) in (None, before[path]), f"{path} is half-written"
    run_stage(stage, "tiny", built.root)
    assert {path: content(path) for path in outputs} == before
    if how != signal.SIGKILL:
        assert not [path for path in built.out.rglob(".*") if path.exists()], "nothing is left aside"
    for left in built.out.rglob(".*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
