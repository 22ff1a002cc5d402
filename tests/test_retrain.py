"""`infra/ci/retrain.sh` in fresh clones, with a bare git remote and a folder for the data, as CI calls it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.project import CHECKOUT, Project, make_project

pytestmark = pytest.mark.e2e


class Forge:
    """A git remote, a DVC remote and a registry that outlive every clone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = make_project(folder / "first", stand_ins=True)
        self.first.pin_raw_data()
        self.first.dvc("remote", "add", "--force", "local", str(folder / "data-remote"))
        self.first.dvc("push", "--quiet")
        self.first.commit("raw data, and where data go")
        self.first.command(
            "git", "clone", "--quiet", "--bare", str(self.first.root), str(folder / "forge.git")
        )
        self.first.git("remote", "add", "origin", str(folder / "forge.git"))
        self.clones = 0

    def retrain(self, *words: str) -> tuple[int, str, Project]:
        """Run the script in a fresh clone; return its status, what it printed, and the clone."""
        self.clones += 1
        clone = Project(self.folder / f"clone {self.clones}")
        self.first.command("git", "clone", "--quiet", str(self.folder / "forge.git"), str(clone.root))
        done = subprocess.run(
            ["bash", str(clone.root / "infra/ci/retrain.sh"), *(words or ("tiny",))],
            cwd=clone.root,
            env={
                **clone.environment,
                "RETAIN_REGISTRY": str(self.folder / "registry"),
                "GITHUB_OUTPUT": str(clone.root / "outcome.txt"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr, clone

    def branches(self) -> list[str]:
        """Return the branches of the remote that retrain made."""
        found = self.first.git("ls-remote", "--heads", "origin").split()
        return [name for name in found if name.startswith("refs/heads/retrain/")]

    def change(self, before: str, after: str) -> None:
        """Change the recipe on main, as a person would."""
        self.first.change(before, after)
        self.first.commit("a change")
        self.first.git("push", "--quiet", "origin", "main")


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path)


def test_released_then_nothing_to_do_then_released_again(forge: Forge) -> None:
    main = forge.first.git("rev-parse", "HEAD").strip()
    status, said, clone = forge.retrain()
    assert status == 0, said
    assert "outcome: released" in said
    assert (clone.root / "outcome.txt").read_text() == "outcome=released\n"
    assert (clone.root / "report.md").read_text().startswith("# Retrain of `tiny`: released\n")
    assert "May ship" in (clone.root / "report.md").read_text()
    (branch,) = forge.branches()
    assert branch.startswith("refs/heads/retrain/tiny/")
    forge.first.git("fetch", "--quiet", "origin")
    files = forge.first.git("diff", "--name-only", main, branch.replace("refs/heads/", "origin/")).split()
    assert files == ["dvc.lock"]
    assert main in forge.first.git("ls-remote", "origin", "refs/heads/main"), "main stays where it is"
    assert len(list((forge.folder / "registry" / "tiny").glob("*.json"))) == 1

    status, said, _ = forge.retrain()
    assert status == 10, said
    assert "outcome: nothing to do" in said
    assert ": executed" not in said, "what the last run built is pulled"
    assert forge.branches() == [branch]

    forge.change("learning_rate: 1.0e-4", "learning_rate: 2.0e-4")
    status, said, _ = forge.retrain()
    assert status == 0, said
    assert len(forge.branches()) == 2
    assert len(list((forge.folder / "registry" / "tiny").glob("*.json"))) == 2


def test_refused(forge: Forge) -> None:
    forge.change("learning_rate: 1.0e-4", "learning_rate: 1.0e-3")
    status, said, clone = forge.retrain("tiny", "--report", "mine.md")
    assert status == 3, said
    assert "outcome: refused" in said
    report = (clone.root / "mine.md").read_text()
    assert report.startswith("# Retrain of `tiny`: refused\n")
    assert "articles: lost 0.001" in report
    assert forge.branches() == []
    assert not (forge.folder / "registry").exists()


def test_failed(forge: Forge) -> None:
    forge.change("batch_size: 16", "batch_size: 13")
    status, said, clone = forge.retrain()
    assert status == 1, said
    assert "the loss is not finite" in said
    assert (clone.root / "report.md").read_text().startswith("# Retrain of `tiny`: failed\n")
    assert forge.branches() == []


def test_a_lock_that_cannot_be_saved_is_no_release(forge: Forge) -> None:
    """A release's lineage must be on the remote before the release exists."""
    hook = forge.folder / "forge.git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no >&2; exit 1\n")
    hook.chmod(0o755)
    status, said, _ = forge.retrain()
    assert status == 1, said
    assert not (forge.folder / "registry").exists()


def test_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(CHECKOUT / "infra/ci/retrain.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "infra/ci/retrain.sh RECIPE" in done.stderr
