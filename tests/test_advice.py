"""advice: what to change where a run may not ship, the surest first, and nothing that the recipe does already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tasks import reports
from tasks.advice import Against, Trained, advise
from tasks.recipe import Finetune, load_recipe, recipe_path
from tests.project import CHECKOUT

LOWER = "Lower finetune.learning_rate from 0.0005 to 0.0001, which lp-ft usually wants."
PROBE_FIRST = "Set finetune.method: lp-ft and finetune.learning_rate: 0.0001:"
REPLAY = "Set finetune.replay_share: 0.5 and finetune.distill: 1.0:"
GIVE = "Give rows of the original domain as data.replay; they need no labels"
FREEZE = "Set finetune.freeze_layers: 0.5:"
THIRD = "Lower finetune.learning_rate to a third (3e-05)."
HALF = "Set finetune.epochs: 2."
FINER = "Add values between 0 and the chosen one to merge.alphas."


def trained(recipe: str = "sentiment", **changes: Any) -> Trained:
    loaded = load_recipe(recipe_path(CHECKOUT, recipe))
    section = Finetune.model_validate(loaded.finetune.model_dump(mode="json") | changes)
    return Trained(loaded.task, loaded.data, section)


def verdict(answer: reports.Verdict, examples: int = 200, needed: int | None = None) -> reports.SuiteVerdict:
    return reports.SuiteVerdict(
        name="articles",
        metric="mrr",
        margin=0.03,
        base=0.6,
        candidate=0.57,
        loss=0.03,
        lower=0.01,
        upper=0.0421,
        p_value=0.5,
        test="",
        examples=examples,
        examples_needed=needed,
        verdict=answer,
        reason="",
    )


def searched(alpha: float, tuned_fits: bool = False, least: float = 0.1) -> reports.MergeReport:
    outcomes = [
        reports.AlphaOutcome(
            alpha=value, validation_score=0.8, gain=value, suites=[], within_budget=fits, blocked_by=[]
        )
        for value, fits in ((0.0, True), (least, tuned_fits), (1.0, tuned_fits))
    ]
    return reports.MergeReport(alpha=alpha, rescued=False, outcomes=outcomes, flips=[], model="c" * 64)


def told(
    suite: reports.SuiteVerdict,
    merged: reports.MergeReport,
    target: reports.Verdict = "PASS",
    champion: reports.Verdict | None = None,
    ledger: reports.Verdict = "PASS",
    given: Trained | None = None,
) -> list[str]:
    return advise(Against([suite], target, champion, ledger), merged, given or trained())


def advised(given: Trained, alpha: float = 0.5) -> list[str]:
    return told(verdict("FAIL"), searched(alpha), given=given)


def begins(advice: Sequence[str], *wanted: str) -> bool:
    """Say whether the lines of an advice begin so, and there are no others."""
    return len(advice) == len(wanted) and all(map(str.startswith, advice, wanted))


def test_a_rate_that_is_too_high_is_named_first_with_the_usual_one() -> None:
    assert begins(advised(trained(learning_rate=5e-4)), LOWER, GIVE, FINER)


def test_what_bound_the_features_best_comes_before_what_only_slows_training_down() -> None:
    assert begins(advised(trained(method="full")), PROBE_FIRST, GIVE, FINER)
    assert begins(advised(trained()), GIVE, FREEZE, FINER)


def test_rows_that_are_there_are_replayed() -> None:
    given = trained("medical-imaging", replay_share=0.0, distill=0.0)
    assert begins(advised(given), REPLAY, FREEZE, FINER)
    assert begins(advised(trained("medical-imaging", replay_share=0.5, distill=0.0)), REPLAY, FREEZE, FINER)


def test_what_a_recipe_does_already_is_not_proposed_again() -> None:
    given = trained("medical-imaging", freeze_layers=0.5, learning_rate=1e-4, epochs=4)
    assert begins(advised(given), THIRD, HALF, FINER)


def test_a_language_model_is_told_what_its_family_knows() -> None:
    advice = advised(trained("support-chat"))
    assert begins(advice, "Give rows of the original domain as data.replay, with", FREEZE, FINER)


def test_a_recipe_that_does_all_it_can_is_still_told_two_changes() -> None:
    lora = {"rank": 8, "alpha": 16.0}
    changes = {"replay_share": 0.5, "distill": 1.0, "epochs": 1}
    given = trained("support-chat", method="lora", lora=lora, learning_rate=1e-4, **changes)
    assert begins(advised(given, alpha=0.0), THIRD, "Set finetune.lora.rank: 4")
    given = trained("support-chat", freeze_layers=4, **changes)
    assert begins(
        advised(given, alpha=0.0), "Lower finetune.learning_rate to a third", "Set finetune.l2_sp: 0.1"
    )


def test_where_the_base_is_what_is_left_weaker_mixtures_are_proposed_unless_they_were_tried() -> None:
    weaker = "Add values below 0.3 to merge.alphas"
    assert begins(told(verdict("PASS"), searched(0.0, least=0.3), "FAIL"), GIVE, FREEZE, weaker)
    assert begins(
        advised(trained(epochs=1), alpha=0.0), GIVE, FREEZE, "Lower finetune.learning_rate to a third"
    )


def test_tuning_that_taught_nothing_asks_for_rows_and_for_more_training() -> None:
    advice = told(verdict("PASS"), searched(0.0, tuned_fits=True), "FAIL")
    assert begins(advice, "Add labelled rows: these taught", "Try a higher finetune.learning_rate")


def test_too_few_examples_ask_for_more_or_for_another_margin() -> None:
    advice = told(verdict("INCONCLUSIVE", 200, 330), searched(1.0))
    assert advice == [
        "Give benchmark articles about 330 report examples.",
        "Accept a margin of 0.043 in budget.articles.margin, if that loss is acceptable.",
        "Lower finetune.learning_rate to a third: that less is lost takes fewer examples to show.",
    ]


def test_enough_examples_that_settle_nothing_are_not_asked_for_again() -> None:
    """A model that lost nothing would have passed with these: it is the loss that stands in the way."""
    advice = told(verdict("INCONCLUSIVE", 488, 330), searched(1.0))
    assert begins(advice, GIVE, FREEZE, "Accept a margin of 0.043 in budget.articles.margin")


@pytest.mark.parametrize(("alpha", "said"), [(1.0, 1), (0.0, 0)])
def test_a_gain_that_is_not_shown_asks_for_rows_where_something_was_kept(alpha: float, said: int) -> None:
    advice = told(verdict("PASS"), searched(alpha), "INCONCLUSIVE")
    assert sum("the test split is too small" in line for line in advice) == said


def test_a_promise_that_the_test_split_breaks_asks_for_validation_rows_and_for_patience() -> None:
    advice = told(verdict("PASS"), searched(1.0), "FAIL")
    assert begins(
        advice,
        "Give validation more rows",
        "Lower finetune.learning_rate to a third, or set finetune.patience",
    )
    patient = told(verdict("PASS"), searched(1.0), "FAIL", given=trained(patience=1))
    assert "patience" not in patient[1]


def test_a_champion_that_is_better_is_where_to_begin_from() -> None:
    assert begins(
        told(verdict("PASS"), searched(1.0), champion="FAIL"), "Begin from the champion", "Add the rows that"
    )
    unsure = told(verdict("PASS"), searched(1.0), champion="INCONCLUSIVE")
    assert begins(unsure, "Give the test split more rows", "Accept a wider decide.champion_margin")


def test_a_ledger_that_does_not_hold_is_put_back_or_given_a_reason() -> None:
    assert begins(
        told(verdict("PASS"), searched(1.0), ledger="FAIL"), "Put the first base", "If they had to change"
    )


def test_a_benchmark_that_cannot_be_settled_is_replaced_or_only_shown() -> None:
    advice = told(verdict("INCONCLUSIVE", 200, None), searched(1.0))
    assert begins(advice, "Set budget.articles.informative: true, or put another", "Accept a margin of 0.043")
    blind = verdict("INCONCLUSIVE", 200, None).model_copy(update={"blind": True})
    advice = told(blind, searched(1.0))
    assert begins(advice, "Put a benchmark that the base is good at", "Set budget.articles.informative: true")


def test_more_examples_need_a_reason_where_there_are_releases() -> None:
    small = verdict("INCONCLUSIVE", 200, 700)
    for ledgered in (False, True):
        advice = advise(Against([small], "PASS", None, "PASS", ledgered=ledgered), searched(1.0), trained())
        (more,) = (line for line in advice if line.startswith("Give benchmark articles about 700"))
        assert ("register.rebase" in more) is ledgered


@pytest.mark.parametrize(("alpha", "target"), [(1.0, "INCONCLUSIVE"), (1.0, "FAIL"), (0.0, "FAIL")])
def test_where_nothing_can_be_gained_no_other_training_is_proposed(
    alpha: float, target: reports.Verdict
) -> None:
    reached = "the base reaches accuracy 1.000 on 120 rows"
    against = Against([verdict("PASS")], target, None, "PASS", reached)
    advice = advise(against, searched(alpha, tuned_fits=True), trained())
    assert begins(advice, f"There is nothing to gain on this test set: {reached}", "If it errs nowhere that")


def test_a_release_that_nothing_stands_against_needs_no_advice() -> None:
    assert told(verdict("PASS"), searched(1.0)) == []
