"""pin: the champion that this candidate is compared with, resolved once. The only stage that looks outside.

Reads `base.json`, `merge.json` and the registry's alias `champion`; writes `pin.json`. It runs when there is a new
candidate, so that a fresh clone, which has none, has nothing to do; `register` refuses when the champion has moved
since. Alone: `python -m tasks pin <recipe>`.
"""

from __future__ import annotations

import logging

from tasks import reports
from tasks.paths import Paths, registry_root
from tasks.registry import open_registry

log = logging.getLogger(__name__)


def pin(name: str, *, paths: Paths) -> None:
    """Write which version of the release `name` is the champion now, and where the lineage began.

    Raises:
        RegistryError: the registry cannot be read.
    """
    base = reports.read_report(paths.base, reports.Base)
    registry = open_registry(registry_root(paths.root))
    champion = registry.alias(name, "champion")
    model = registry.resolve(name, str(champion.version)).model_fingerprint if champion else None
    log.info("champion of %s: %s", name, f"version {champion.version}" if champion else "none yet")
    report = reports.Pin(
        registry_name=name,
        champion=champion.version if champion else None,
        champion_model=model,
        first_base=base.first_base,
    )
    reports.write_report(paths.pin, report)
