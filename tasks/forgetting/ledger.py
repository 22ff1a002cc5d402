"""The ledger: the first base and the benchmarks that the releases of one name are measured from, and whether they hold.

It is read from the releases in the registry. `pin` notes what it says, `decide` judges a candidate by it, and
`register` looks again before it publishes.
"""

from __future__ import annotations

from collections.abc import Collection

from tasks.registry import Registry
from tasks.reports import Asked, FirstBase, Ledger, Pin


def read_ledger(registry: Registry, name: str) -> Ledger | None:
    """Return what the newest release is measured from: the releases before it, back to where the ledger began.

    A benchmark, a setting or a margin is that of the first release which tells it: what begins to decide later is held
    from then on. None before the first release.

    Raises:
        RegistryError: the registry cannot be read.
    """
    found = None
    benchmarks: dict[str, str] = {}
    asked: dict[str, Asked] = {}
    margins: dict[str, float] = {}
    reasons: list[str] = []
    for version in reversed(registry.versions(name)):
        lineage = registry.resolve(name, version).lineage
        if "first_base" not in lineage:
            continue
        rebase = lineage.get("rebase")
        if found is None or not found.rebase:
            asked |= {suite: asked.get(suite, {}) | told for suite, told in lineage.get("asked", {}).items()}
            margins |= lineage.get("margins", {})
            benchmarks |= lineage.get("benchmarks", {})
            first_base = FirstBase.model_validate(lineage["first_base"])
            found = Ledger(
                version=version,
                first_base=first_base,
                benchmarks=benchmarks,
                asked=asked,
                margins=margins,
                rebase=rebase,
            )
        reasons += [rebase] if rebase else []
    return found.model_copy(update={"reasons": reasons}) if found else None


def moved(pin: Pin, ledger: Ledger, gating: Collection[str]) -> list[str]:
    """Say what differs between a candidate and the ledger: its first base, and the benchmarks that decide."""
    found = []
    if ledger.first_base.fingerprint != pin.first_base.fingerprint:
        found.append(
            f"the first base was {ledger.first_base.source} ({ledger.first_base.fingerprint[:12]}) and is "
            f"{pin.first_base.source} ({pin.first_base.fingerprint[:12]})"
        )
    for name, half in ledger.benchmarks.items():
        if name not in gating:
            found.append(f"benchmark {name} no longer decides")
        elif pin.benchmarks.get(name) != half:
            found.append(f"benchmark {name} has other examples")
        elif changed := asked_otherwise(ledger.asked.get(name, {}), pin.asked.get(name, {})):
            found.append(f"benchmark {name} is asked in another way ({changed})")
    return found


def asked_otherwise(before: Asked, now: Asked) -> str:
    """Say what differs in how a benchmark is asked; settings that one side does not know are no difference."""
    return ", ".join(
        f"{setting} was {before[setting]!r} and is {now[setting]!r}"
        for setting in sorted(before.keys() & now.keys())
        if before[setting] != now[setting]
    )
