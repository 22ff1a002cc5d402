"""The protocol of the registry, over any storage that can create a key once and swap one atomically."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from tasks.errors import RegistryError
from tasks.files import sha256_of
from tasks.recipe import NAME_PATTERN
from tasks.registry.manifest import Alias, Attempt, Manifest, Move, content_digest
from tasks.reports import FileRecord, Report

GRACE_SECONDS = 7 * 24 * 3600.0
"""Age from which an unreferenced blob is garbage. Publishers renew what they use at half of it."""
ALLOWED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".yaml", ".csv", ".parquet")
"""Endings of files that a release may hold: none of them runs code when it is loaded."""
VERSION = re.compile(r"models/([^/]+)/versions/(\d+)\.json$", re.ASCII)
NUMBER = re.compile(r"[0-9]{1,9}")
TRIES = 50
"""Times that a version number is tried for, while others take it."""


@dataclass(frozen=True)
class Stored:
    """A key as the storage lists it."""

    key: str
    size: int
    age_seconds: float


class Storage(Protocol):
    """What a registry stands on. Keys are `/`-separated and relative to its root."""

    place: str
    """For messages."""

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return content and the tag that `swap` wants; None when there is no such key."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a key that does not exist; False when it does. Of two who try at once, one succeeds."""

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        """Replace a key whose tag is still `tag`; False when it has changed."""

    def stat(self, key: str) -> Stored | None:
        """Return size and age; None when there is no such key."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every key below a prefix, in order."""

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        """Write a file whole or not at all, and verify what was written."""

    def get_file(self, key: str, path: Path) -> None:
        """Read a key into a file; RegistryError when there is none."""

    def delete_older(self, key: str, seconds: float) -> bool:
        """Remove a key if it is older than so many seconds now, and say whether that was so."""


@dataclass(frozen=True)
class Published:
    """A version that is there now, and whether this call made it."""

    version: int
    created: bool


class Registry:
    """Releases by name and version."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    # --- reading

    def names(self) -> list[str]:
        """Return the names of all releases, in order."""
        found = (VERSION.match(stored.key) for stored in self.storage.list("models/"))
        return sorted({match[1] for match in found if match})

    def versions(self, name: str) -> list[int]:
        """Return the versions of a release, oldest first; empty when there is no such release."""
        _check_name(name)
        found = (VERSION.match(stored.key) for stored in self.storage.list(f"models/{name}/versions/"))
        return sorted(int(match[2]) for match in found if match)

    def resolve(self, name: str, reference: str | int) -> Manifest:
        """Return the manifest of a version number or an alias.

        Raises:
            RegistryError: there is none; the message lists what there is.
        """
        reference = str(reference)
        version = int(reference) if NUMBER.fullmatch(reference) else self._aliased(name, reference).version
        read = self.storage.read(_version_key(name, version))
        if read is None:
            known = ", ".join(map(str, self.versions(name))) or "none"
            raise RegistryError(
                f"{self.storage.place} has no version {version} of {name!r}. Versions: {known}.{self._names_hint(name)}"
            )
        return _parse(Manifest, read[0], f"{self.storage.place}/{_version_key(name, version)}")

    def manifests(self) -> Iterator[Manifest]:
        """Yield the manifest of every version, by name and number.

        Raises:
            RegistryError: one cannot be read.
        """
        for name in self.names():
            for version in self.versions(name):
                yield self.resolve(name, version)

    def alias(self, name: str, alias: str) -> Alias | None:
        """Return where an alias points; None when it was never set.

        Raises:
            RegistryError: the alias is not one that can exist.
        """
        read = self._read_alias(name, alias)
        return read[0] if read else None

    def read_report(self, name: str, version: int, report: str) -> bytes:
        """Return the content of one report of a version, verified.

        Raises:
            RegistryError: there is no such report, or its content is damaged.
        """
        manifest = self.resolve(name, version)
        if report not in manifest.reports:
            known = ", ".join(sorted(manifest.reports)) or "none"
            raise RegistryError(f"Version {version} of {name!r} has no report {report!r}. Reports: {known}.")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report"
            self._get_verified(manifest.reports[report], path)
            return path.read_bytes()

    def download_reports(self, name: str, version: int, prefix: str, folder: Path) -> list[str]:
        """Copy what a version carries under names that begin with `prefix` to `folder`, by the rest of their names.

        Verified one by one; return the rests, none where nothing begins so.

        Raises:
            RegistryError: there is no such version, or a file is missing or damaged.
        """
        manifest = self.resolve(name, version)
        found = {
            key.removeprefix(prefix): file for key, file in manifest.reports.items() if key.startswith(prefix)
        }
        for path, file in found.items():
            target = inside(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._get_verified(file, target)
        return sorted(found)

    def download(self, name: str, version: int, folder: Path) -> Manifest:
        """Copy a version's model folder to `folder`, whole and verified or not at all; return its manifest.

        Raises:
            RegistryError: there is no such version, or a file is missing or damaged; all of them are named.
        """
        if folder.exists():
            raise RegistryError(f"{folder} exists already: give a folder that does not.")
        manifest = self.resolve(name, version)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        problems = []
        try:
            for file in manifest.files:
                target = inside(aside, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._get_verified(file, target)
                except RegistryError as error:
                    problems.append(f"{file.path}: {error}")
            if problems:
                raise RegistryError(
                    f"Version {version} of {name!r} cannot be used; nothing was kept:", problems
                )
            aside.chmod(0o755)
            try:
                aside.rename(folder)
            except OSError as error:
                raise RegistryError(f"{folder} cannot be put in place: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return manifest

    # --- writing

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any],
        reports: Mapping[str, Path],
        run_id: str,
        git_commit: str = "",
    ) -> Published:
        """Make a version of a model folder: its files first, its manifest last.

        Content that is a version already is not published again. Version numbers are claimed by creating the
        manifest; who loses reads again.

        Raises:
            RegistryError: the folder holds what must not be released, or the storage fails. No version exists then.
        """
        _check_name(name)
        _check_json({"metrics": metrics, "lineage": lineage})
        _check_reports(reports)
        files = {path: _record(path, path.relative_to(folder).as_posix()) for path in _model_files(folder)}
        report_files = {key: _record(path, path.name) for key, path in sorted(reports.items())}
        blobs = [*files.items(), *((reports[key], record) for key, record in report_files.items())]
        digest = content_digest(name, [*files.values()], report_files, dict(metrics), dict(lineage))
        versions = self.versions(name)
        if (known := self._with_content(name, versions, digest)) is not None:
            self._put_missing(blobs)
            return Published(known, created=False)
        for path, record in blobs:
            self._put_blob(path, record)
        manifest = Manifest(
            name=name,
            version=1,  # until one is claimed
            files=[*files.values()],
            reports=report_files,
            metrics=dict(metrics),
            lineage=dict(lineage),
            digest=digest,
            git_commit=git_commit,
            run_id=run_id,
            created_at=_now(),
        )
        published = self._claim(manifest, seen=max(versions, default=0))
        self._put_missing(blobs)  # a collector that read the manifests before ours may have taken one
        return published

    def move_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        expected: int | None,
        reason: str,
        run_id: str = "",
        rollback: bool = False,
    ) -> Alias:
        """Point an alias at a version, if it still points at `expected` (None: nowhere).

        Raises:
            RegistryError: there is no such version, or someone else has moved the alias; the message says to where.
        """
        self.resolve(name, version)
        read = self._read_alias(name, alias)
        current = read[0] if read else None
        if (current.version if current else None) != expected:
            raise _moved(name, alias, expected, current)
        move = Move(version=version, rollback=rollback, reason=reason, run_id=run_id, at=_now())
        history = [*(current.history if current else []), move]
        made = Alias(name=name, alias=alias, version=version, history=history)
        key, content = _alias_key(name, alias), _bytes(made)
        done = self.storage.swap(key, content, read[1]) if read else self.storage.create(key, content)
        if not done:
            raise _moved(name, alias, expected, self.alias(name, alias))
        return made

    def rollback(
        self, name: str, alias: str = "champion", *, reason: str = "rollback", run_id: str = ""
    ) -> Alias:
        """Point an alias at the version that it named before.

        Raises:
            RegistryError: there is no such alias, it has no past, or someone moved it meanwhile.
        """
        current = self._aliased(name, alias)
        if current.previous is None:
            raise RegistryError(
                f"{alias} of {name!r} has always been version {current.version}: nothing to go back to."
            )
        return self.move_alias(
            name,
            alias,
            current.previous,
            expected=current.version,
            reason=reason,
            run_id=run_id,
            rollback=True,
        )

    def collect_garbage(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> list[Stored]:
        """Remove blobs that no version refers to and that are older than the grace period; return them.

        A grace period below `GRACE_SECONDS` is safe only while nobody publishes.

        Raises:
            RegistryError: a manifest cannot be read: then nothing is removed.
        """
        referenced = {
            file.sha256
            for manifest in self.manifests()
            for file in (*manifest.files, *manifest.reports.values())
        }
        garbage = [
            stored
            for stored in self.storage.list("blobs/")
            if stored.key.rsplit("/", 1)[-1] not in referenced and stored.age_seconds > grace_seconds
        ]
        # The list may be old by now: a publisher may have renewed a blob, and be about to name it.
        return [
            stored for stored in garbage if dry_run or self.storage.delete_older(stored.key, grace_seconds)
        ]

    def count_attempt(self, name: str, half: str, model: str) -> int:
        """Return which attempt on a report half a candidate is, 1 for the first; a candidate keeps its number.

        Raises:
            RegistryError: the count cannot be read or written: then nothing may be measured on the half.
        """
        for _ in range(TRIES):
            known = self.attempts(name, half)
            if model in known:
                return known.index(model) + 1
            made = Attempt(half=half, number=len(known) + 1, model=model, at=_now())
            if self.storage.create(_attempt_key(name, half, made.number), _bytes(made)):
                return made.number
        raise RegistryError(f"{name!r}: {TRIES} attempts were counted by others meanwhile; try again.")

    def attempts(self, name: str, half: str) -> list[str]:
        """Return the fingerprints of the candidates that were measured on a report half, the first one first."""
        found = []
        for stored in self.storage.list(_attempts_prefix(name, half)):
            if stored.key.endswith(".json") and (read := self.storage.read(stored.key)) is not None:
                found.append(_parse(Attempt, read[0], f"{self.storage.place}/{stored.key}"))
        return [attempt.model for attempt in sorted(found, key=lambda attempt: attempt.number)]

    # --- steps of the above

    def _claim(self, manifest: Manifest, *, seen: int) -> Published:
        """Create the manifest under the next number; of the versions up to `seen`, none has its content."""
        for _ in range(TRIES):
            newer = [version for version in self.versions(manifest.name) if version > seen]
            if (known := self._with_content(manifest.name, newer, manifest.digest)) is not None:
                return Published(known, created=False)
            seen = max(newer, default=seen)
            claimed = manifest.model_copy(update={"version": seen + 1})
            if self.storage.create(_version_key(manifest.name, seen + 1), _bytes(claimed)):
                return Published(seen + 1, created=True)
        raise RegistryError(f"{manifest.name!r}: {TRIES} version numbers were taken by others; try again.")

    def _with_content(self, name: str, versions: Sequence[int], digest: str) -> int | None:
        """Return the newest of these versions with this digest."""
        for version in reversed(versions):
            if self.resolve(name, version).digest == digest:
                return version
        return None

    def _put_blob(self, path: Path, record: FileRecord) -> None:
        key = _blob_key(record.sha256)
        stored = self.storage.stat(key)
        # A collector may be about to take an old blob that nothing refers to yet: writing it again makes it young.
        if stored and stored.size == record.size and stored.age_seconds < GRACE_SECONDS / 2:
            return
        self.storage.put_file(key, path, record.sha256)

    def _put_missing(self, blobs: Iterable[tuple[Path, FileRecord]]) -> None:
        for path, record in blobs:
            if self.storage.stat(_blob_key(record.sha256)) is None:
                self.storage.put_file(_blob_key(record.sha256), path, record.sha256)

    def _get_verified(self, file: FileRecord, path: Path) -> None:
        key = _blob_key(file.sha256)
        self.storage.get_file(key, path)
        if path.stat().st_size != file.size or sha256_of(path) != file.sha256:
            raise RegistryError(
                f"the content of {self.storage.place}/{key} is not what its name says: the store is damaged. Restore "
                "that file from a backup, or publish the same model again after deleting it."
            )

    def _read_alias(self, name: str, alias: str) -> tuple[Alias, str] | None:
        _check_name(name)
        _check_alias(alias)
        read = self.storage.read(_alias_key(name, alias))
        if read is None:
            return None
        return _parse(Alias, read[0], f"{self.storage.place}/{_alias_key(name, alias)}"), read[1]

    def _aliased(self, name: str, alias: str) -> Alias:
        found = self.alias(name, alias)
        if found is None:
            known = sorted(
                Path(stored.key).stem
                for stored in self.storage.list(f"models/{name}/aliases/")
                if stored.key.endswith(".json")
            )
            raise RegistryError(
                f"{self.storage.place} has no alias {alias!r} of {name!r}. Aliases: {', '.join(known) or 'none'}."
                f"{self._names_hint(name)}"
            )
        return found

    def _names_hint(self, name: str) -> str:
        names = self.names()
        return "" if name in names else f" Releases here: {', '.join(names) or 'none'}."


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder, in order.

    Raises:
        RegistryError: it is no folder, is empty, or holds links or files that could run code when loaded.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder} is no folder: there is no model to publish.")
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    problems = [f"{path}: a link; releases hold files" for path in paths if path.is_symlink()]
    problems += [
        f"{path}: only {', '.join(ALLOWED)} may be released; pickle runs code when it is loaded"
        for path in paths
        if not path.is_symlink() and path.suffix not in ALLOWED
    ]
    if not any(path.suffix == ".safetensors" for path in paths):
        problems.append("there are no weights (*.safetensors)")
    if problems:
        raise RegistryError(f"{folder} cannot be published:", problems)
    return paths


def _check_json(documents: Mapping[str, Mapping[str, Any]]) -> None:
    problems = []
    for what, document in documents.items():
        try:
            same = json.loads(json.dumps(document, allow_nan=False)) == document
        except (TypeError, ValueError) as error:
            problems.append(f"{what}: {error}")
        else:
            if not same:
                problems.append(f"{what}: keys must be text, and sequences lists")
    if problems:
        raise RegistryError("A manifest holds JSON only; this would not come back as it is:", problems)


def _check_reports(reports: Mapping[str, Path]) -> None:
    if missing := [f"{name}: {path}" for name, path in sorted(reports.items()) if not path.is_file()]:
        raise RegistryError("These reports are no files:", missing)


def _record(path: Path, name: str) -> FileRecord:
    return FileRecord(path=name, sha256=sha256_of(path), size=path.stat().st_size)


def inside(folder: Path, path: str) -> Path:
    """Return where a file that a manifest names lies in `folder`.

    Raises:
        RegistryError: it would lie elsewhere.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise RegistryError(f"a manifest names {path!r}, which is outside its folder: it is not trusted.")
    return folder / path


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise RegistryError(f"{name!r} is no release name: use lower-case letters, digits and hyphens.")


def _check_alias(alias: str) -> None:
    if alias == "latest":
        raise RegistryError(
            "`latest` is not a thing: the newest version may be one that nobody promoted. Name a version number, or an "
            "alias such as champion."
        )
    if alias.isdecimal() or not NAME_PATTERN.fullmatch(alias):
        raise RegistryError(
            f"{alias!r} is no alias: use lower-case letters, digits and hyphens, a letter first."
        )


def _moved(name: str, alias: str, expected: int | None, current: Alias | None) -> RegistryError:
    def words(version: int | None) -> str:
        return "nothing" if version is None else f"version {version}"

    by = f", moved by {current.history[-1].run_id or 'someone'}" if current else ""
    return RegistryError(
        f"{alias} of {name!r} was expected to be {words(expected)}, but is "
        f"{words(current.version if current else None)}{by}. Look at it (`retain releases {name}`) and decide again."
    )


def _parse(kind: type[Any], content: bytes, place: str) -> Any:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RegistryError(f"{place} is no {kind.__name__} of this version of Retain: {error}") from None


def _bytes(document: Report) -> bytes:
    return (document.model_dump_json(indent=2) + "\n").encode()


def _version_key(name: str, version: int) -> str:
    _check_name(name)
    return f"models/{name}/versions/{version:06d}.json"


def _attempts_prefix(name: str, half: str) -> str:
    _check_name(name)
    return f"models/{name}/attempts/{half[:16]}/"


def _attempt_key(name: str, half: str, number: int) -> str:
    return f"{_attempts_prefix(name, half)}{number:06d}.json"


def _alias_key(name: str, alias: str) -> str:
    return f"models/{name}/aliases/{alias}.json"


def _blob_key(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
