"""merge: how much of the tuning to keep. The best between base and tuned that the forgetting budget allows.

Reads the validation split, the *selection* halves, base and tuned model; writes `chosen/` (a model folder) and
`merge.json` with what every α that was tried gained and lost. Alone: `python -m tasks merge <recipe>`.

α = 0 is where tuning started (the frozen base, with a linear probe where it classifies), α = 1 the tuned model. Between
them the largest α within the budget is found first, then smaller ones are looked at on the validation split, because they
are often better; what wins was always measured on the benchmarks. How and why: `tasks/forgetting/way.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tasks import reports
from tasks.device import hold_device
from tasks.families import family
from tasks.files import folder_fingerprint
from tasks.forgetting.search import Ends, Search
from tasks.forgetting.way import BASE, choose
from tasks.models import pick_device
from tasks.paths import Paths
from tasks.recipe import Decide, Evaluate, Merge
from tasks.recipe import Suite as Margin
from tasks.sources import base_folder
from tasks.splits import read_splits

log = logging.getLogger(__name__)


def merge(
    section: Merge, settings: Evaluate, budget: Mapping[str, Margin], rule: Decide, *, paths: Paths
) -> None:
    """Choose α on the selection halves and write the chosen model; at worst it is the base, and that is said.

    Raises:
        StageError: a model or a benchmark cannot be read.
    """
    base = reports.read_report(paths.base, reports.Base)
    device = pick_device()
    with hold_device(device):
        schema, tables = read_splits(paths)
        folder = base_folder(base, paths.root)
        ends = Ends.load(family(schema.task), folder, paths.tuned, device, settings.precision)
        search = Search(section, settings, budget, rule, paths, base, ends, tables)
        outcomes = search.outcomes()
        chosen = choose(outcomes)
        flips, slices = search.flips(), search.slices()
        log.info("chosen: %s α = %g, %+.4f on validation", chosen.path, chosen.alpha, chosen.gain)
        model = search.model(chosen.path, chosen.alpha)
        model.save(paths.chosen)
        drift = list(search.drift(model))
    whole = reports.tuned_outcome(outcomes)
    report = reports.MergeReport(
        metric=search.metric,
        alpha=chosen.alpha,
        path=chosen.path,
        rescued=not whole.within_budget and (chosen.path, chosen.alpha) != BASE,
        outcomes=outcomes,
        flips=flips,
        slices=slices,
        drift=drift,
        model=folder_fingerprint(paths.chosen),
    )
    reports.write_report(paths.merge, report)
