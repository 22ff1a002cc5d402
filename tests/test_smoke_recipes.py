"""The recipes of the repository, whole, in their smoke profiles, on real weights and data: an honest verdict each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import BIN, CHECKOUT, COMMAND_LINE

DATA = Path(os.environ.get("RETAIN_TEST_DATA", "nowhere"))
NEEDS = {
    "support-intents": "banking77",
    "legal-clauses": "cuad_clauses",
    "medical-imaging": "pneumoniamnist",
    "support-chat": "star_support_dialogues",
}
MEASURED_BY = {"support-chat": "Log-likelihood a token"}

pytestmark = [pytest.mark.e2e, pytest.mark.realdata]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh clone of what is committed here."""
    target = tmp_path_factory.mktemp("smoke") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(target)], check=True)
    return target


def command(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RETAIN_"))}
    environment = {
        **kept,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(clone),
        "RETAIN_HOME": str(clone.parent / "store"),
        "RETAIN_DATA": str(DATA),
        "HF_HUB_OFFLINE": "1",
        # Nobody has told git a name here, as on a machine that only trains.
        "HOME": str(clone.parent / "home"),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    return subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("recipe", NEEDS)
@pytest.mark.timeout(1800)
def test_a_recipe_ends_in_an_honest_verdict(recipe: str, clone: Path) -> None:
    if not (DATA / NEEDS[recipe]).is_dir():
        pytest.skip(f"RETAIN_TEST_DATA has no {NEEDS[recipe]}: see docs/datasets.md")
    if recipe == "medical-imaging":
        images = DATA / "cifar10_small"
        base = ["data/bases/cifar10-resnet", "--architecture", "resnet", "--epochs", "6"]
        made = command(
            clone, "-m", "tasks.pretrain", str(images / "images"), str(images / "labels.csv"), *base
        )
        assert made.returncode == 0, made.stdout + made.stderr
    words = ["run", recipe, "--profile", "smoke", "--set", "register.promote=false"]
    done = command(clone, "-c", COMMAND_LINE, *words)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    said = done.stdout
    verdict = next((word for word in ("PASS", "FAIL", "INCONCLUSIVE") if f"**{word}**" in said), "")
    assert verdict, said
    assert (done.returncode == 0) == (verdict == "PASS"), said
    for heading in ("What it forgot", "How far the tuning was taken", "Training", "Data"):
        assert f"## {heading}" in said
    kept_base, measure = "nothing of it was kept" in said, MEASURED_BY.get(recipe, "Accuracy")
    assert ("## What it gained" in said) == (not kept_base), "the base has gained nothing over itself"
    assert (measure.lower() if kept_base else measure) in said
