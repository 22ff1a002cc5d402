"""Verify that the data has been cleared: the splits at hand are the ones the passport names."""

from __future__ import annotations

from tasks.errors import StageError
from tasks.paths import Paths
from tasks.reports import Passport, SplitSchema, read_report
from tasks.splits import split_files, splits_fingerprint


def verify_passport(paths: Paths) -> None:
    """Return when `passport.json` clears exactly the split files that lie there.

    Raises:
        StageError: there is no passport, it is for other splits, or the files are not those of their schema.
    """
    if not paths.passport.is_file():
        raise StageError(
            f"{paths.passport} is missing: the data has not been cleared. Run `gate` (`dvc repro`); "
            f"when it refuses, {paths.gate} says why."
        )
    passport, schema = read_report(paths.passport, Passport), read_report(paths.schema, SplitSchema)
    found = splits_fingerprint(split_files(paths, schema))
    problems = []
    if found != schema.fingerprint:
        problems.append(f"the files hash to {found[:12]}, {paths.schema} says {schema.fingerprint[:12]}")
    if passport.splits != found:
        problems.append(f"the passport clears {passport.splits[:12]}, the files hash to {found[:12]}")
    if problems:
        raise StageError(
            "The passport is not for these splits; run prepare to gate again (`dvc repro`):", problems
        )
