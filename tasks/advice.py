"""What to change in a recipe whose run may not ship: the changes most likely to pass, the surest first.

A run that forgot is told how to train otherwise. The order is that of `make bench-forgetting` (docs/forgetting.md): what
there kept most of the gain for what it lost comes first, and what a recipe does already is not proposed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks import reports
from tasks.rates import USUAL_RATES
from tasks.recipe import Data, Finetune

MOST_ADVICE = 3
"""Changes that can be tried at once."""
SMALL_ALPHA = 0.1
"""Below it, little of the tuning is left."""
TRAIN_MORE = "Try a higher finetune.learning_rate (up to three times) or more finetune.epochs."
NEAR_USUAL = 1.5
"""Times the usual rate that is still about the usual one."""


@dataclass(frozen=True)
class Trained:
    """How the recipe trains."""

    task: str
    data: Data
    finetune: Finetune


@dataclass(frozen=True)
class Against:
    """What was judged: benchmarks, the task itself, the champion (None without one) and the ledger."""

    suites: Sequence[reports.SuiteVerdict]
    target: reports.Verdict
    champion: reports.Verdict | None
    ledger: reports.Verdict
    ceiling: str = ""
    """What the start reaches on the test split, where a model without an error could not show a gain over it."""
    ledgered: bool = False
    """Whether releases of this name have begun a ledger, which other examples of a benchmark would leave."""


def advise(against: Against, merged: reports.MergeReport, trained: Trained) -> list[str]:
    """Return two or three changes of the recipe; nothing where nothing stands against the release."""
    ceiling = [*_at_the_ceiling(against.ceiling)]
    tuning = ceiling or _on_tuning(against.suites, merged, trained)
    advice = [*tuning, *_on_benchmarks(against.suites, against.ledgered)]
    if not tuning and any(suite.examples_needed and suite.loss > 0 for suite in _unsettled(against.suites)):
        advice.append(
            "Lower finetune.learning_rate to a third: that less is lost takes fewer examples to show."
        )
    if not merged.kept_base:
        advice += [] if ceiling else _on_the_task(against.target, trained)
        advice += _on_the_champion(against.champion)
    if against.ledger == "FAIL":
        advice.append("Put the first base and the benchmarks back to what the ledger began with.")
        advice.append("If they had to change, say why in register.rebase: a new ledger begins there.")
    return advice[:MOST_ADVICE]


def _at_the_ceiling(reached: str) -> Iterator[str]:
    """Yield what to do where no training could show a gain."""
    if reached:
        yield (
            f"There is nothing to gain on this test set: {reached}, so that not even a model without an error could show "
            "that it is better. Give a larger or a harder one, with rows like those on which it errs in use."
        )
        yield "If it errs nowhere that matters, use it as it is: tuning can only make it forget."


def _on_tuning(
    suites: Sequence[reports.SuiteVerdict], merged: reports.MergeReport, trained: Trained
) -> list[str]:
    """Return how to train otherwise, where a model learned nothing, or forgot too much or as good as."""
    if _learned_nothing(merged):
        return [
            "Add labelled rows: these taught the model nothing that where it started does not know.",
            TRAIN_MORE,
        ]
    gentler = [*_forget_less(trained)]
    if merged.kept_base or any(suite.verdict == "FAIL" for suite in suites):
        finer = _finer_mixtures(merged)
        return gentler[: MOST_ADVICE - len(finer)] + finer
    return gentler[: MOST_ADVICE - 1] if any(_enough(suite) for suite in suites) else []


def _learned_nothing(merged: reports.MergeReport) -> bool:
    """Say whether mixtures fit the budget, and none gained anything."""
    return merged.kept_base and any(outcome.within_budget for outcome in merged.outcomes if outcome.alpha > 0)


def _enough(suite: reports.SuiteVerdict) -> bool:
    """Say whether a suite that did not settle it has the examples with which a model that lost nothing passes."""
    needed = suite.examples_needed
    return suite.verdict == "INCONCLUSIVE" and needed is not None and suite.examples >= needed


def _forget_less(trained: Trained) -> Iterator[str]:
    """Yield ways to train that forget less than the recipe's."""
    section, usual = trained.finetune, USUAL_RATES[trained.task]
    rate = section.learning_rate
    too_fast = rate > NEAR_USUAL * usual[section.method]
    if too_fast:
        yield (
            f"Lower finetune.learning_rate from {rate:g} to {usual[section.method]:g}, which {section.method} "
            "usually wants."
        )
    if section.method == "full" and "lp-ft" in usual:
        yield (
            f"Set finetune.method: lp-ft and finetune.learning_rate: {usual['lp-ft']:g}: a head that fits from the "
            "start pulls less at what is below it."
        )
    yield from _replay(trained)
    if not section.freeze_layers and section.method in ("full", "lp-ft"):
        yield "Set finetune.freeze_layers: 0.5: the early half of the layers stays as it is."
    if not too_fast:
        yield f"Lower finetune.learning_rate to a third ({rate / 3:.1g})."
    if section.epochs > 1:
        yield f"Set finetune.epochs: {section.epochs // 2}."
    if section.method == "lora" and section.lora is not None and section.lora.rank > 1:
        yield f"Set finetune.lora.rank: {section.lora.rank // 2}: what moves less forgets less."
    if section.method != "lora" and not section.l2_sp:
        yield "Set finetune.l2_sp: 0.1: weights are pulled back to the base's."


def _replay(trained: Trained) -> Iterator[str]:
    section, replay = trained.finetune, trained.data.replay
    if section.replay_share and section.distill:
        return
    how = "finetune.replay_share: 0.5 and finetune.distill: 1.0"
    if replay is not None:
        yield f"Set {how}: half of every batch is data.replay, held to what the base says of it."
    else:
        unlabelled = "; they need no labels (may_lack_labels)" if trained.data.labels else ""
        yield f"Give rows of the original domain as data.replay{unlabelled}, with {how}."


def _finer_mixtures(merged: reports.MergeReport) -> list[str]:
    """Return what to add to the mixtures that are tried, if anything."""
    if not merged.kept_base:
        return ["Add values between 0 and the chosen one to merge.alphas."]
    least = min(outcome.alpha for outcome in merged.outcomes if outcome.alpha > 0)
    if least > SMALL_ALPHA:
        return [f"Add values below {least:g} to merge.alphas: no weaker mixture with the base was tried."]
    return []


def _on_benchmarks(suites: Sequence[reports.SuiteVerdict], ledgered: bool) -> Iterator[str]:
    """Yield what would settle the benchmarks that are not settled."""
    anew = ", and say in register.rebase why its examples changed" if ledgered else ""
    for suite in _unsettled(suites):
        if suite.blind:
            yield f"Put a benchmark that the base is good at in the place of {suite.name}{anew}."
            yield f"Set budget.{suite.name}.informative: true, so that it is shown and decides nothing."
            continue
        if not suite.examples_needed:
            yield (
                f"Set budget.{suite.name}.informative: true, or put another benchmark in its place: no number of "
                "examples settles a margin that is so small beside how far its outcomes move."
            )
        elif not _enough(suite):
            yield f"Give benchmark {suite.name} about {suite.examples_needed} report examples{anew}."
        margin = math.ceil(suite.upper * 1000) / 1000
        if margin < 1:
            yield f"Accept a margin of {margin:g} in budget.{suite.name}.margin, if that loss is acceptable."


def _unsettled(suites: Sequence[reports.SuiteVerdict]) -> list[reports.SuiteVerdict]:
    return [suite for suite in suites if suite.verdict == "INCONCLUSIVE"]


def _on_the_task(target: reports.Verdict, trained: Trained) -> Iterator[str]:
    """Yield what would show a gain on the task itself."""
    if target == "INCONCLUSIVE":
        yield "Add labelled rows: the test split is too small, or the task too close to what the base knows."
        yield TRAIN_MORE
    if target == "FAIL":
        yield "Give validation more rows: it promised a gain that the test split does not show."
        patience = "" if trained.finetune.patience else ", or set finetune.patience"
        yield f"Lower finetune.learning_rate to a third{patience}, lest it learn its rows by heart."


def _on_the_champion(champion: reports.Verdict | None) -> Iterator[str]:
    """Yield what would show that a model is no worse than the champion."""
    if champion == "FAIL":
        yield "Begin from the champion (base: release:NAME@champion); forgetting is measured from the first base still."
        yield "Add the rows that the champion was trained on and these lack."
    if champion == "INCONCLUSIVE":
        yield "Give the test split more rows, as many as the reason names."
        yield "Accept a wider decide.champion_margin, if falling so far behind is acceptable."
