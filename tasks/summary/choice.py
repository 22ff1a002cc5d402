"""What a summary says of `merge`: the mixtures that were tried, the one that was kept, and what the tuned model lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.reports import AlphaOutcome, MergeReport
from tasks.summary import charts
from tasks.summary.content import Picture, Row
from tasks.summary.drift import drift_drawings
from tasks.summary.reading import Reports
from tasks.summary.words import SHARES, change, listed, signed, spaced

PATHS = {"wise-ft": "all weights alike (WiSE-FT)", "lines": "depth-scaled (LiNeS)"}


def choice_sentence(merge: MergeReport) -> str:
    """Say in words what was chosen, and why."""
    chosen = next(
        (item for item in merge.outcomes if (item.path, item.alpha) == (merge.path, merge.alpha)), None
    )
    gain = f", {change(merge.metric, chosen.gain)} on validation" if chosen else ""
    way = f"α = {merge.alpha:g}" + (" with depth-scaled deltas (LiNeS)" if merge.path == "lines" else "")
    if merge.rescued:
        return (
            f"The tuned model alone forgot too much. Mixed with the base at {way}{gain}, "
            "it is the best that the forgetting budget allows."
        )
    if merge.kept_base:
        if any(item.within_budget for item in merge.outcomes if item.alpha > 0):
            return "No mix within the forgetting budget did better on validation than the base, so the base was kept."
        return "No mix of base and tuned model stayed within the forgetting budget, so the base was kept."
    return f"{way}{gain}: the best that the forgetting budget allows.{_beaten(merge)}"


def _beaten(merge: MergeReport) -> str:
    """Say why the tuned model was not taken, where it fits the budget as well."""
    if merge.alpha == 1 or not merge.tuned.within_budget:
        return ""
    seen = f"The tuned model alone fits it too ({change(merge.metric, merge.tuned.gain)})"
    if merge.tuned.log_likelihood_gain is None or merge.tuned.gain <= 0:
        return f" {seen}, and gains no more."
    return f" {seen}; under it the labels of validation are less likely."


def tried_rows(merge: MergeReport) -> tuple[Row, ...]:
    """Return a row for each mixture: path, α, what it gains, the losses on the selection halves, and whether it fits."""
    rows = []
    for outcome in merge.outcomes:
        losses = "; ".join(
            f"{suite.name} {suite.base:.3f} → {suite.candidate:.3f} ({signed(-suite.loss)})"
            for suite in outcome.suites
        )
        chosen = (outcome.path, outcome.alpha) == (merge.path, merge.alpha)
        cells = (
            PATHS.get(outcome.path, outcome.path),
            f"{outcome.alpha:g}",
            _gained(merge.metric, outcome),
            "not measured" if outcome.within_budget is None else losses,
            "chosen" if chosen else _fits(outcome),
        )
        rows.append(Row(cells, "pass" if chosen else "fail" if outcome.within_budget is False else ""))
    return tuple(rows)


def tried_sentence(merge: MergeReport) -> str:
    """Say in words what orders the mixtures that gain."""
    if merge.tuned.log_likelihood_gain is None:
        return "The greatest gain is the best, and of equals the smallest α."
    return (
        "Of mixtures that gain, the best is the one with the most nats: so much likelier than at α = 0 are the labels of "
        "validation, a row, each model being as sure as fits it best."
    )


def _gained(metric: str, outcome: AlphaOutcome) -> str:
    """Write what a mixture gains in the metric, and in what orders those that gain."""
    likelier = outcome.log_likelihood_gain
    return change(metric, outcome.gain) + (f", {signed(likelier)} nats" if likelier is not None else "")


def _fits(outcome: AlphaOutcome) -> str:
    if outcome.within_budget is None:
        return "no better"
    return "fits" if outcome.within_budget else f"too much lost, or too unsure: {listed(outcome.blocked_by)}"


def choice_pictures(reports: Reports) -> tuple[Picture, ...]:
    """Return what the mixtures on the straight way gain, and what they forget of each gating benchmark."""
    merge = reports.merge
    if not merge or len(merge.outcomes) < 2:
        return ()
    outcomes = [item for item in merge.outcomes if item.path == "wise-ft"]
    chosen = merge.alpha if merge.path == "wise-ft" else None
    gained = _gain_picture(outcomes, merge.metric, chosen)
    suites = reports.decision.suites if reports.decision else []
    margins = {suite.name: suite.margin for suite in suites if suite.margin}
    forgotten = _forgetting_picture(outcomes, margins, chosen)
    return (gained, forgotten) if forgotten else (gained,)


def _gain_picture(outcomes: Sequence[AlphaOutcome], metric: str, chosen: float | None) -> Picture:
    chart = charts.line_chart(
        [charts.Line("gain", [(item.alpha, item.gain) for item in outcomes])],
        y_label=f"{spaced(metric)} gained",
        x_label="α",
        percent=metric in SHARES,
        mark=chosen,
    )
    return Picture(chart, "What the tuning gains on the validation split as its weight grows.")


def _forgetting_picture(
    outcomes: Sequence[AlphaOutcome], margins: Mapping[str, float], chosen: float | None
) -> Picture | None:
    """Draw the losses as shares of their margins; None where no benchmark was asked of every measured mixture."""
    measured = [item for item in outcomes if item.within_budget is not None]
    lines = [
        charts.Line(name, [(item.alpha, _loss(item.suites, name) / margin) for item in measured])
        for name, margin in margins.items()
        if all(any(suite.name == name for suite in item.suites) for item in measured)
    ]
    if not lines:
        return None
    chart = charts.line_chart(
        lines,
        y_label="loss, as a share of what is allowed",
        x_label="α",
        percent=True,
        mark=chosen,
        limit=1.0,
        limit_label="allowed",
    )
    caption = "What it forgets meanwhile, on the selection halves of the benchmarks."
    if len(measured) < len(outcomes):
        caption += " A dot is a mixture that they were asked of."
    return Picture(chart, caption, tuple(line.name for line in lines))


def _loss(suites: Sequence[Any], name: str) -> float:
    return float(next(suite.loss for suite in suites if suite.name == name))


def flip_rows(merge: MergeReport) -> tuple[Row, ...]:
    """Return a row for each example that the tuned model lost."""
    return tuple(
        Row(
            (flip.suite, flip.id, flip.extract, f"{flip.base:.3f}", f"{flip.candidate:.3f}"),
            drawing=f'<img class="example" alt="" src="{escape(flip.picture)}">' if flip.picture else "",
        )
        for flip in merge.flips
    )


def drift_pictures(reports: Reports) -> tuple[Picture, ...]:
    """Draw how far the model moved."""
    drawings = drift_drawings(reports.merge.drift) if reports.merge else []
    return tuple(Picture(*drawing) for drawing in drawings)
