"""What this machine has, and what would keep a run from working: each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import PipelineError
from tasks.paths import registry_root, store

Level = Literal["ok", "warn", "bad"]

BREAKS = {
    "fastapi": ((0, 154), "Prefect 3.8's server dies at start", "pip install 'fastapi<0.154'"),
    "sqlalchemy": ((2, 1), "Prefect 3.8's scheduler never fires", "pip install 'sqlalchemy<2.1'"),
}
NEEDED = (
    "prefect", "dvc", "great-expectations", "torch", "transformers", "safetensors", "pydantic", "pandas",
)  # fmt: skip
FREE_BAD, FREE_WARN = 1, 5
"""Free disk in GiB: a run of the demo writes about 0.5."""
TORCH_PROBE = (
    "import torch; print(torch.__version__, torch.get_num_threads(), torch.cuda.is_available(), sep='|');"
    "[print(torch.cuda.get_device_name(i), round(torch.cuda.get_device_properties(i).total_memory / 2**30),"
    " torch.cuda.get_device_capability(i)[0], sep='|') for i in range(torch.cuda.device_count())]"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Yield what was found, cheapest first; `root` is the repository."""
    checks: tuple[Callable[[Path], Iterator[Finding]], ...] = (
        _python, _versions, _disk, _git, _dvc, _recipes, _registry, _prefect, _torch,
    )  # fmt: skip
    for check in checks:
        yield from check(root)


def _python(root: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", "Python", f"{version}, {os.cpu_count()} cores")


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the libraries that the pipeline stands on; None for one that is missing."""
    versions: dict[str, str | None] = {}
    for name in (*NEEDED, *BREAKS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _versions(root: Path) -> Iterator[Finding]:
    yield from judge_versions(installed_versions())


def judge_versions(versions: Mapping[str, str | None]) -> Iterator[Finding]:
    """Judge library versions against those known to break."""
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        remedy = "run `make .venv/.installed`, or pip install 'retain[pipeline]'"
        yield Finding("bad", "libraries", f"not installed: {', '.join(missing)}", remedy)
    for name, (first_bad, harm, remedy) in BREAKS.items():
        version = versions.get(name)
        if version and _release(version) >= first_bad:
            yield Finding("bad", name, f"{version}: {harm}", remedy)
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("ok", "libraries", present)


def _release(version: str) -> tuple[int, ...]:
    from packaging.version import Version

    return Version(version).release[:2]


def _disk(root: Path) -> Iterator[Finding]:
    for subject, path in (("disk, repository", root), ("disk, store", store())):
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        yield judge_disk(subject, existing, shutil.disk_usage(existing).free / 2**30)
        if not os.access(existing, os.W_OK):
            remedy = "change its owner, or set RETAIN_HOME to a folder that you may write"
            yield Finding("bad", subject, f"{existing} cannot be written", remedy)


def judge_disk(subject: str, path: Path, free: float) -> Finding:
    """Judge free disk space, in GiB."""
    text = f"{free:.1f} GiB free at {path}"
    remedy = "free some space: `retain clean --dry-run` and `dvc gc --workspace` show what can go"
    if free < FREE_BAD:
        return Finding("bad", subject, text, remedy)
    return Finding("warn", subject, text, remedy) if free < FREE_WARN else Finding("ok", subject, text)


def _git(root: Path) -> Iterator[Finding]:
    if not shutil.which("git"):
        yield Finding("bad", "git", "not found", "apt-get install git")
        return
    if _run("git", "-C", str(root), "rev-parse", "--verify", "HEAD") is None:
        remedy = "git init && git add -A && git commit: runs with --set and lineage need a commit"
        yield Finding("warn", "git", f"{root} has no commit", remedy)
        return
    changed = (
        _run("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") or ""
    ).splitlines()
    if changed:
        remedy = "commit them before a run with --set, which works on a commit"
        yield Finding("warn", "git", f"{len(changed)} uncommitted change(s)", remedy)
    else:
        yield Finding("ok", "git", (_run("git", "--version") or "").strip().removeprefix("git version "))


def _dvc(root: Path) -> Iterator[Finding]:
    if not (root / ".dvc").is_dir():
        yield Finding("bad", "DVC", f"{root} is no DVC repository", "dvc init")
        return
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError as error:
        yield Finding("bad", "DVC", f"cannot be imported: {error}", "run `make .venv/.installed`")
        return
    try:
        with Repo(str(root)) as repo:
            config = repo.config
    except DvcException as error:
        yield Finding("bad", "DVC", str(error), "correct .dvc/config")
        return
    yield from judge_cache(str(config["cache"].get("type", "")), os.geteuid() == 0)
    name = config["core"].get("remote")
    if not name:
        remedy = "dvc remote add --default NAME /a/folder (or s3://bucket/path)"
        yield Finding("warn", "DVC remote", "none: results stay on this machine", remedy)
    else:
        yield judge_remote(name, str(config["remote"].get(name, {}).get("url", "")))


def judge_cache(types: str, is_root: bool) -> Iterator[Finding]:
    """Judge DVC's cache type: as root, a hard link can be written through and corrupts the cache silently."""
    if is_root and "hardlink" in types:
        remedy = "dvc config cache.type reflink,copy"
        yield Finding(
            "bad", "DVC cache", f"type {types} as root: overwriting a file corrupts the cache", remedy
        )


def judge_remote(name: str, url: str) -> Finding:
    """Judge DVC's default remote, without using the network."""
    if not url:
        return Finding("bad", "DVC remote", f"{name} has no url", f"dvc remote modify {name} url …")
    if url.startswith("s3://"):
        if importlib.util.find_spec("dvc_s3") is None:
            return Finding("bad", "DVC remote", f"{url} needs dvc-s3", "pip install 'retain[s3]'")
        return Finding("ok", "DVC remote", f"{name} → {url} (not contacted: try `dvc status --cloud`)")
    if "://" in url:
        return Finding("ok", "DVC remote", f"{name} → {url} (not contacted: try `dvc status --cloud`)")
    folder = next(parent for parent in (Path(url), *Path(url).parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        return Finding(
            "bad", "DVC remote", f"{url} cannot be written", "change its owner or the remote's url"
        )
    return Finding("ok", "DVC remote", f"{name} → {url}")


def _recipes(root: Path) -> Iterator[Finding]:
    from tasks.recipe import load_recipe

    paths = sorted((root / "recipes").glob("*.yaml"))
    good = []
    for path in paths:
        try:
            load_recipe(path)
            good.append(path.stem)
        except PipelineError as error:
            yield Finding("bad", f"recipe {path.stem}", str(error), "see docs/recipes.md")
    if not paths:
        yield Finding("warn", "recipes", "none", "retain init NAME DATAFILE")
    elif good:
        yield Finding("ok", "recipes", ", ".join(good))


def _registry(root: Path) -> Iterator[Finding]:
    try:
        location = registry_root(root)
    except PipelineError as error:
        yield Finding("bad", "registry", error.message, "set RETAIN_REGISTRY to one of these")
        return
    if location.startswith("s3://"):
        if importlib.util.find_spec("boto3") is None:
            yield Finding("bad", "registry", f"{location} needs boto3", "pip install 'retain[s3]'")
        else:
            yield Finding("ok", "registry", f"{location} (not contacted: try `retain releases`)")
        return
    folder = next(parent for parent in (Path(location), *Path(location).parents) if parent.exists())
    if os.access(folder, os.W_OK):
        yield Finding("ok", "registry", location)
    else:
        yield Finding(
            "bad", "registry", f"{location} cannot be written", "set RETAIN_REGISTRY to one that can"
        )


def _prefect(root: Path) -> Iterator[Finding]:
    from flows.settings import prefect_defaults

    prefect_defaults(root)
    try:
        from prefect.settings import get_current_settings
    except ImportError as error:
        yield Finding("bad", "Prefect", f"cannot be imported: {error}", "run `make .venv/.installed`")
        return
    url = get_current_settings().api.url
    if not url:
        yield Finding(
            "ok", "Prefect server", "none set: each run starts its own (`make serve` for schedules)"
        )
    else:
        yield judge_server(str(url))


def judge_server(url: str) -> Finding:
    """Ask a Prefect server whether it is well."""
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            healthy = answer.status == 200
    except (OSError, ValueError) as error:
        remedy = "start it with `make serve`, or unset PREFECT_API_URL"
        return Finding("bad", "Prefect server", f"{url} does not answer: {error}", remedy)
    if healthy:
        return Finding("ok", "Prefect server", url)
    return Finding("bad", "Prefect server", f"{url} is not healthy", "look into its log")


def _torch(root: Path) -> Iterator[Finding]:
    output = _run(sys.executable, "-c", TORCH_PROBE, seconds=180)
    if output is None:
        yield Finding("bad", "torch", "cannot be imported", "run `make .venv/.installed`")
    else:
        yield from judge_torch(output)


def judge_torch(output: str) -> Iterator[Finding]:
    """Read what `TORCH_PROBE` printed: a line on torch, then one a GPU."""
    first, *devices = output.strip().splitlines()
    version, threads, _ = first.split("|")
    yield Finding("ok", "torch", f"{version}, {threads} thread(s)")
    if not devices:
        text = "no GPU: training runs on the CPU, which is enough for small models"
        yield Finding("ok", "CUDA", text)
    for line in devices:
        name, memory, generation = line.split("|")
        bf16 = "bf16" if int(generation) >= 8 else "no native bf16: use precision: fp32"
        yield Finding("ok", "CUDA", f"{name}, {memory} GiB, {bf16}")


def _run(*command: str, seconds: float = 20) -> str | None:
    """Return what a command prints; None when it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
