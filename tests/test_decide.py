"""decide: when a model may ship, and what it says when not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import reports
from tasks.decide import _judge_by_error, decide
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.recipe import Decide, Register, Suite, load_recipe, recipe_path
from tasks.tables import write_table
from tests.project import CHECKOUT

SENTIMENT = load_recipe(recipe_path(CHECKOUT, "sentiment"))
RULE = Decide(confidence=0.95, power=0.8, champion_margin=0.02, bootstrap_draws=1000, seed=7)
BUDGET = {"retrieval": Suite(margin=0.03), "probe": Suite(informative=True)}
MODEL = "c" * 64
ASKED: reports.Asked = {
    "kind": "choices",
    "metric": "accuracy",
    "prompt": "{query}",
    "normalise": False,
    "max_length": 128,
}


class Case:
    """Reports and records of one candidate, as `merge`, `pin` and `evaluate` write them."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root, "case")
        self.tuned_gain, self.tuned_loss = 0.1, 0.0
        self.metric = "accuracy"
        self.alpha, self.champion, self.champion_model, self.evaluated = 1.0, None, None, MODEL
        self.chance = {"retrieval": 0.01, "probe": 0.5}
        self.ledger: reports.Ledger | None = None
        self.rebase: str | None = None
        self.start = "the frozen base with a linear probe"
        self.attempts: dict[str, int] = {"retrieval": 1, "probe": 1}
        self.counted = MODEL
        self.guesses, self.worth = 0.0, 400.0
        self.halves = {"retrieval": "r" * 64, "probe": "p" * 64}
        self.asked: dict[str, reports.Asked] = {"retrieval": dict(ASKED), "probe": {"kind": "probe"}}
        rng = np.random.default_rng(0)
        known = rng.choice([1.0, 0.5, 0.25, 0.1], size=400)
        self.suites = {
            "retrieval": self.records(known, known),
            "probe": self.records([1.0] * 80 + [0.0] * 20, [1.0] * 70 + [0.0] * 30),
        }
        base = (rng.random(600) < 0.8).astype(float)
        candidate = np.where(rng.random(600) < 0.4, 1.0, base)
        self.test = self.records(base, candidate)

    @staticmethod
    def records(base: object, candidate: object, champion: object = None) -> pd.DataFrame:
        table = pd.DataFrame({"base": base, "candidate": candidate}, dtype=float)
        if champion is not None:
            table["champion"] = champion
        ids = [f"e{row}" for row in range(len(table))]
        return table.assign(id=ids, group=ids)

    def write(self) -> Paths:
        for name, table in self.suites.items():
            write_table(table, self.paths.records / "suites" / f"{name}.parquet")
        write_table(self.test, self.paths.records / "targets" / "test.parquet")
        first = reports.FirstBase(source="path:base", fingerprint="b" * 64)
        reports.write_report(
            self.paths.pin,
            reports.Pin(
                registry_name="case",
                champion=self.champion,
                champion_model=self.champion_model,
                candidate_model=self.counted,
                first_base=first,
                ledger=self.ledger,
                attempts=self.attempts,
                benchmarks=self.halves,
                asked=self.asked,
            ),
        )
        base = reports.AlphaOutcome(
            alpha=0.0, validation_score=0.8, gain=0.0, suites=[], within_budget=True, blocked_by=[]
        )
        reports.write_report(
            self.paths.merge,
            reports.MergeReport(
                alpha=self.alpha, rescued=False, outcomes=[base, self.tuned()], flips=[], model=MODEL
            ),
        )
        reports.write_report(self.paths.evaluate, self.report())
        return self.paths

    def tuned(self) -> reports.AlphaOutcome:
        """Return what α = 1 came to: it lost `tuned_loss` on the selection half of retrieval."""
        outcomes = [
            reports.SuiteOutcome(
                name=name,
                metric="mrr",
                examples=400,
                base=0.65,
                candidate=0.65 - self.tuned_loss,
                loss=self.tuned_loss,
                standard_error=0.01,
                p_guessing=self.guesses,
                independent=self.worth,
            )
            for name in self.suites
        ]
        fits = self.tuned_loss < 0.005
        return reports.AlphaOutcome(
            alpha=1.0,
            validation_score=0.8 + self.tuned_gain,
            gain=self.tuned_gain,
            suites=outcomes,
            within_budget=fits,
            blocked_by=[] if fits else ["retrieval"],
        )

    def report(self) -> reports.EvaluateReport:
        suites = [
            reports.SuiteOutcome(
                name=name,
                metric="mrr",
                examples=len(table),
                base=table["base"].mean(),
                candidate=table["candidate"].mean(),
                loss=(table["base"] - table["candidate"]).mean(),
                standard_error=0.0,
                chance=self.chance[name],
                p_guessing=0.0,
                independent=len(table),
            )
            for name, table in self.suites.items()
        ]
        base, candidate = self.test["base"].mean(), self.test["candidate"].mean()
        test = reports.TargetOutcome(
            name="test",
            metric=self.metric,
            examples=len(self.test),
            base=base,
            candidate=candidate,
            champion=self.test["champion"].mean() if "champion" in self.test else None,
            gain=candidate - base,
            gain_interval=(-1, 1),
            macro_f1=candidate,
        )
        return reports.EvaluateReport(
            start=self.start,
            base_model="b" * 64,
            candidate_model=self.evaluated,
            champion=self.champion,
            targets=[test],
            suites=suites,
        )

    def judge(self, budget: dict[str, Suite] | None = None) -> None:
        """Decide on what is written."""
        register = Register(name="case", rebase=self.rebase)
        sections = (SENTIMENT.task, SENTIMENT.data, SENTIMENT.finetune)
        decide(RULE, budget or BUDGET, register, *sections, paths=self.paths)

    def decide(self, budget: dict[str, Suite] | None = None) -> reports.DecideReport:
        paths = self.write()
        self.judge(budget)
        return reports.read_report(paths.decision, reports.DecideReport)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_model_that_gained_and_lost_nothing_passes(case: Case) -> None:
    decision = case.decide()
    assert decision.verdict == "PASS"
    assert decision.advice == []
    assert decision.model == MODEL
    assert "the margin is 0.03" in decision.suites[0].reason


def test_what_was_forgotten_is_named_with_its_size_and_how_sure(case: Case) -> None:
    known = case.suites["retrieval"]["base"]
    case.suites["retrieval"] = case.records(known, known * 0.6)
    decision = case.decide()
    assert decision.verdict == "FAIL"
    retrieval = decision.suites[0]
    assert retrieval.verdict == "FAIL"
    assert retrieval.lower > 0.03
    assert decision.reasons[0].startswith("retrieval: mrr 0.")
    assert "with 95% confidence, the margin is 0.03" in decision.reasons[0]
    assert "as data.replay" in decision.advice[0]


def test_advice_is_no_longer_than_what_can_be_tried_at_once(case: Case) -> None:
    known = case.suites["retrieval"]["base"]
    case.suites["retrieval"] = case.records(known, known * 0.6)
    case.suites["probe"] = case.records([1.0] * 50 + [0.0] * 10, [1.0] * 50 + [0.0] * 10)
    decision = case.decide({"retrieval": Suite(margin=0.03), "probe": Suite(margin=0.03)})
    assert [suite.verdict for suite in decision.suites] == ["FAIL", "INCONCLUSIVE"]
    assert len(decision.advice) == 3
    assert "as data.replay" in decision.advice[0]


def test_too_few_examples_are_inconclusive_and_it_says_how_many_would_do(case: Case) -> None:
    known = case.suites["retrieval"]["base"][:60]
    case.suites["retrieval"] = case.records(known, known)
    decision = case.decide()
    assert decision.verdict == "INCONCLUSIVE"
    needed = decision.suites[0].examples_needed
    assert needed is not None
    assert needed > 100
    assert f"about {needed} examples" in decision.reasons[0]
    assert "here are 60" in decision.reasons[0]
    assert any("retrieval" in line for line in decision.advice)


def test_one_bad_suite_is_enough_and_an_informative_one_is_not(case: Case) -> None:
    assert case.decide().verdict == "PASS"  # the probe lost a tenth
    decision = case.decide({"retrieval": Suite(margin=0.03), "probe": Suite(margin=0.02)})
    assert decision.verdict != "PASS"
    assert decision.reasons[0].startswith("probe:")


def test_a_base_at_chance_cannot_show_forgetting(case: Case) -> None:
    case.chance["retrieval"] = 0.6
    decision = case.decide()
    assert decision.verdict == "INCONCLUSIVE"
    assert "no forgetting can be seen" in decision.reasons[0]
    assert decision.suites[0].examples_needed is None


def test_zero_to_zero_does_not_pass(case: Case) -> None:
    case.suites["retrieval"] = case.records(np.zeros(400), np.zeros(400))
    assert case.decide().verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("after", [0.5, 0.49])
def test_a_metric_that_never_varies_does_not_pass(case: Case, after: float) -> None:
    case.suites["retrieval"] = case.records(np.full(400, 0.5), np.full(400, after))
    decision = case.decide()
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.suites[0].reason == (
        f"mrr is 0.500 for each of 400 examples by the base, {after:.3f} by this model: what never varies does not "
        "measure them. Look at the benchmark"
    )
    assert decision.suites[0].blind


def test_a_benchmark_without_an_error_passes_and_its_loss_is_bounded(case: Case) -> None:
    case.suites["retrieval"] = case.records(np.ones(400), np.ones(400))
    decision = case.decide()
    assert decision.verdict == "PASS"
    assert 0.005 < decision.suites[0].upper < 0.03


def test_what_is_informative_says_on_how_many_examples(case: Case) -> None:
    case.suites["probe"] = case.records([1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0])
    probe = case.decide().suites[1]
    assert probe.verdict == "PASS"
    assert "on 5 examples); informative" in probe.reason
    assert probe.upper - probe.lower > 0.8, "five examples say little"


def test_five_examples_do_not_decide(case: Case) -> None:
    case.suites["retrieval"] = case.records(np.ones(5), np.ones(5))
    assert case.decide().verdict == "INCONCLUSIVE"


def test_no_gain_is_no_release(case: Case) -> None:
    case.test = case.records(case.test["base"], case.test["base"])
    decision = case.decide()
    assert (decision.verdict, decision.target_verdict) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert "no gain over the frozen base" in decision.reasons[0]


def test_a_task_that_got_worse_fails(case: Case) -> None:
    case.test = case.records(case.test["candidate"], case.test["base"])
    assert case.decide().target_verdict == "FAIL"


def test_the_base_itself_is_no_release(case: Case) -> None:
    case.alpha, case.tuned_loss = 0.0, 0.4
    decision = case.decide()
    assert decision.target_verdict == "FAIL"
    assert "fits the forgetting budget: what is left is the base itself" in decision.reasons[0]
    assert "as data.replay" in decision.advice[0]
    assert decision.advice[2] == (
        "Add values below 1 to merge.alphas: no weaker mixture with the base was tried."
    )


def test_where_nothing_was_kept_it_says_what_the_tuned_model_forgot_and_how_sure(case: Case) -> None:
    case.alpha, case.tuned_loss = 0.0, 0.4
    decision = case.decide()
    assert decision.reasons[1] == (
        "retrieval, as tuned: mrr 0.650 → 0.250 on 400 selection examples, lost +0.400 (+0.384 to +0.416 with 95% "
        "confidence a side); the margin is 0.03"
    )
    assert len(decision.reasons) == 2, "an informative benchmark is no reason"
    retrieval, probe = decision.tuned_suites
    assert (retrieval.verdict, retrieval.margin, probe.margin) == ("FAIL", 0.03, None)
    assert [suite.loss for suite in decision.suites] == [0.0, pytest.approx(0.1)], (
        "the release rule looks as ever"
    )


def test_a_tuned_model_that_may_have_forgotten_is_not_said_to_have(case: Case) -> None:
    case.alpha, case.tuned_loss = 0.0, 0.03
    assert case.decide().tuned_suites[0].verdict == "INCONCLUSIVE"
    case.alpha = 1.0
    assert case.decide().tuned_suites == []


def test_that_a_tuned_model_forgot_is_claimed_with_holms_correction(case: Case) -> None:
    case.alpha, case.tuned_loss = 0.0, 0.0475  # one and three quarters of a standard error above the margin
    assert case.decide().tuned_suites[0].verdict == "FAIL"
    both = case.decide({"retrieval": Suite(margin=0.03), "probe": Suite(margin=0.03)})
    assert [suite.verdict for suite in both.tuned_suites] == ["INCONCLUSIVE", "INCONCLUSIVE"]


@pytest.mark.parametrize("why", ["guesses", "worth"])
def test_a_tuned_model_is_not_said_to_have_kept_what_was_not_shown(case: Case, why: str) -> None:
    case.alpha, case.tuned_gain = 0.0, -0.014
    assert case.decide().tuned_suites[0].verdict == "PASS"
    setattr(case, why, {"guesses": 0.3, "worth": 5.0}[why])
    assert case.decide().tuned_suites[0].verdict == "INCONCLUSIVE"


def test_attempts_of_another_candidate_or_of_none_are_refused(case: Case) -> None:
    case.counted = "o" * 64
    with pytest.raises(StageError) as caught:
        case.decide()
    assert caught.value.problems == [
        "pin.json counted the attempts of another model than evaluate.json measured"
    ]
    case.counted, case.attempts = MODEL, {"probe": 1}
    with pytest.raises(StageError) as caught:
        case.decide()
    assert caught.value.problems == ["pin.json has no retrieval, which the budget names"]


def test_reports_of_releases_made_before_can_be_read_and_show_nothing_that_was_not_asked() -> None:
    said = {"name": "a", "metric": "mrr", "examples": 400, "base": 0.6, "candidate": 0.6, "loss": 0.0}
    outcome = reports.SuiteOutcome.model_validate(said | {"standard_error": 0.001})
    first = {"source": "path:base", "fingerprint": "b" * 64}
    pin = reports.Pin.model_validate(
        {"registry_name": "case", "champion": None, "champion_model": None, "first_base": first}
    )
    assert pin.candidate_model == ""
    assert _judge_by_error(outcome, 0.03, RULE, failed=False).verdict == "INCONCLUSIVE"


def test_where_the_examples_would_do_it_says_that_the_loss_is_too_much(case: Case) -> None:
    base = case.suites["retrieval"]["base"].to_numpy()
    case.suites["retrieval"] = case.records(base, base - 0.029 - 0.05 * (np.arange(400) % 2 - 0.5))
    (reason, *_) = case.decide().reasons
    assert reason.endswith(
        "the margin is 0.03: these 400 examples would do for a model that lost nothing: what was lost is too much"
    )


def test_tuning_that_taught_nothing_is_told_from_tuning_that_forgot(case: Case) -> None:
    case.alpha, case.tuned_gain = 0.0, -0.014
    decision = case.decide()
    assert "tuning gained nothing on validation (-0.014 at α = 1" in decision.reasons[0]
    assert "Add labelled rows" in decision.advice[0]


def test_the_champion_must_not_be_better(case: Case) -> None:
    case.champion, case.champion_model = 3, "d" * 64
    case.test = case.records(case.test["base"], case.test["candidate"], np.ones(600))
    decision = case.decide()
    assert decision.champion_verdict == "FAIL"
    assert "against version 3" in decision.reasons[0]


def test_an_equal_champion_is_no_obstacle(case: Case) -> None:
    case.champion, case.champion_model = 3, "d" * 64
    case.test = case.records(case.test["base"], case.test["candidate"], case.test["candidate"])
    assert case.decide().champion_verdict == "PASS"


def test_the_champion_itself_passes(case: Case) -> None:
    case.champion, case.champion_model = 3, MODEL
    assert case.decide().verdict == "PASS"


@pytest.mark.parametrize("model", ["base", "candidate"])
def test_missing_outcomes_are_an_error(case: Case, model: str) -> None:
    whole = case.suites["retrieval"].copy()
    case.suites["retrieval"].loc[3, model] = np.nan
    with pytest.raises(StageError, match=r"lacks outcomes of 1 examples, \['e3'\]"):
        case.decide()
    case.suites["retrieval"] = whole.drop(columns=model)
    paths = case.paths
    write_table(case.suites["retrieval"], paths.records / "suites" / "retrieval.parquet")
    with pytest.raises(StageError, match=f"has no column {model}: run `evaluate` again"):
        case.judge()
    (paths.records / "suites" / "retrieval.parquet").unlink()
    with pytest.raises(StageError, match=r"cannot be read .* run `evaluate` again"):
        case.judge()


def test_records_that_lack_examples_are_an_error(case: Case) -> None:
    paths = case.write()
    write_table(case.suites["retrieval"].iloc[:200], paths.records / "suites" / "retrieval.parquet")
    with pytest.raises(StageError, match="retrieval: records of 200 examples, 400 were measured"):
        case.judge()
    case.write()
    write_table(case.test.iloc[:300], paths.records / "targets" / "test.parquet")
    with pytest.raises(StageError, match="test: records of 300 examples, 600 were measured"):
        case.judge()


def test_reports_of_different_models_are_an_error(case: Case) -> None:
    case.evaluated = "e" * 64
    with pytest.raises(StageError, match="another model than merge"):
        case.decide()


def test_a_budget_without_a_measurement_is_an_error(case: Case) -> None:
    with pytest.raises(StageError, match="has no other"):
        case.decide({**BUDGET, "other": Suite(margin=0.1)})


def test_same_records_give_the_same_bytes(case: Case) -> None:
    case.decide()
    first = case.paths.decision.read_bytes()
    case.decide()
    assert case.paths.decision.read_bytes() == first


def _champion_is_better(case: Case) -> None:
    case.champion, case.champion_model = 3, "d" * 64
    case.test = case.records(case.test["base"], case.test["candidate"], np.ones(600))


def _champion_is_as_good_but_unlike(case: Case) -> None:
    case.champion, case.champion_model = 3, "d" * 64
    case.test = case.records(case.test["base"], case.test["candidate"], np.roll(case.test["candidate"], 1))


def _lost_a_little(case: Case) -> None:
    known = case.suites["retrieval"]["base"]
    case.suites["retrieval"] = case.records(known, known.where(known.index % 20 > 0, known - 0.1)).iloc[:90]


WAYS_NOT_TO_PASS: dict[str, Callable[[Case], object]] = {
    "forgot": lambda case: case.suites["retrieval"].update(case.suites["retrieval"]["candidate"] * 0.6),
    "too few examples": _lost_a_little,
    "base at chance": lambda case: case.chance.update(retrieval=0.6),
    "gained nothing": lambda case: case.test.update(case.test["base"].rename("candidate")),
    "got worse": lambda case: setattr(case, "test", case.records(case.test["candidate"], case.test["base"])),
    "champion is better": _champion_is_better,
    "champion may be better": _champion_is_as_good_but_unlike,
    "other examples": lambda case: setattr(case, "ledger", ledger(benchmarks={"retrieval": "x" * 64})),
    "base was kept": lambda case: vars(case).update(alpha=0.0, tuned_loss=0.4),
    "nothing was learned": lambda case: vars(case).update(alpha=0.0, tuned_gain=-0.01),
}


@pytest.mark.parametrize("way", WAYS_NOT_TO_PASS)
def test_whatever_stood_against_a_release_two_or_three_changes_are_named(case: Case, way: str) -> None:
    WAYS_NOT_TO_PASS[way](case)
    decision = case.decide()
    assert decision.verdict != "PASS"
    assert 2 <= len(decision.advice) <= 3, decision.advice
    assert len(set(decision.advice)) == len(decision.advice)


@pytest.mark.parametrize(("errors", "alpha"), [(0, 1.0), (2, 1.0), (0, 0.0)])
def test_a_base_that_errs_as_good_as_never_leaves_nothing_to_gain(
    case: Case, errors: int, alpha: float
) -> None:
    base = [0.0] * errors + [1.0] * (200 - errors)
    vars(case).update(alpha=alpha, tuned_gain=0.0, test=case.records(base, base))
    advice = case.decide().advice
    assert advice[0].startswith(
        f"There is nothing to gain on this test set: {case.start} reaches accuracy {1 - errors / 200:.3f} on 200 rows"
    )
    assert "learning_rate" not in " ".join(advice)


def test_a_base_that_errs_a_little_leaves_something_to_gain(case: Case) -> None:
    base = [0.0] * 8 + [1.0] * 192
    case.test = case.records(base, base)
    assert "learning_rate" in " ".join(case.decide().advice)
    case.test = case.records([1.0] * 8 + base[8:], [1.0] * 200)
    case.metric = "log_likelihood"
    assert "nothing to gain" not in " ".join(case.decide().advice), "there is no best there"


def ledger(**changes: object) -> reports.Ledger:
    """Return the ledger of releases that began as the case's candidate does, but for what is changed."""
    values: dict[str, object] = {
        "version": 3,
        "first_base": reports.FirstBase(source="path:base", fingerprint="b" * 64),
        "benchmarks": {"retrieval": "r" * 64},
        "asked": {"retrieval": ASKED},
        "rebase": None,
    }
    return reports.Ledger.model_validate(values | changes)


def test_a_lineage_that_goes_on_as_it_began_has_nothing_to_say(case: Case) -> None:
    case.ledger = ledger()
    decision = case.decide()
    assert (decision.verdict, decision.ledger_reason, decision.rebase) == ("PASS", "", None)


def test_a_release_that_does_not_say_how_it_was_asked_is_followed_as_before(case: Case) -> None:
    case.ledger = ledger(asked={})
    assert case.decide().verdict == "PASS"
    case.ledger = ledger(asked={"retrieval": {"kind": "choices", "of_another_version": 1}})
    assert case.decide().verdict == "PASS"


OTHER_BASE = {"first_base": reports.FirstBase(source="path:old", fingerprint="a" * 64)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (OTHER_BASE, "the first base was path:old (aaaaaaaaaaaa) and is path:base (bbbbbbbbbbbb)"),
        ({"benchmarks": {"retrieval": "x" * 64}}, "benchmark retrieval has other examples"),
        (
            {"asked": {"retrieval": ASKED | {"normalise": True}}},
            "benchmark retrieval is asked in another way (normalise was True and is False)",
        ),
        (
            {"asked": {"retrieval": ASKED | {"max_length": 64}}},
            "benchmark retrieval is asked in another way (max_length was 64 and is 128)",
        ),
        (
            {"asked": {"retrieval": {"kind": "harness"}}},
            "benchmark retrieval is asked in another way (kind was 'harness' and is 'choices')",
        ),
        ({"benchmarks": {"probe": "p" * 64}}, "benchmark probe no longer decides"),
        ({"benchmarks": {"gone": "x" * 64}}, "benchmark gone no longer decides"),
    ],
)
def test_another_first_base_or_benchmark_needs_a_reason(
    case: Case, changes: dict[str, object], said: str
) -> None:
    case.ledger = ledger(**changes)
    decision = case.decide()
    assert (decision.verdict, decision.ledger_verdict) == ("FAIL", "FAIL")
    assert f"{said} since version 3 of case" in decision.reasons[0]
    assert "register.rebase" in decision.reasons[0]
    case.rebase = "the vendor withdrew the old base"
    decision = case.decide()
    assert (decision.verdict, decision.rebase) == ("PASS", case.rebase)
    assert decision.ledger_reason.endswith(f"begun anew: {case.rebase}")


def test_the_reason_of_an_earlier_change_does_not_serve_twice(case: Case) -> None:
    case.rebase = "the vendor withdrew the old base"
    case.ledger = ledger(**OTHER_BASE, rebase="a later one", reasons=["a later one", case.rebase])
    decision = case.decide()
    assert decision.verdict == "FAIL"
    assert "give one for this" in decision.reasons[0]


def test_a_reason_that_is_not_needed_begins_no_ledger(case: Case) -> None:
    case.ledger, case.rebase = ledger(), "the vendor withdrew the old base"
    assert case.decide().rebase is None


def test_a_margin_wider_than_the_ledger_began_with_is_said_and_not_refused(case: Case) -> None:
    case.ledger = ledger(margins={"retrieval": 0.01})
    decision = case.decide()
    assert (decision.verdict, decision.ledger_reason) == ("PASS", "")
    assert decision.widened.startswith(
        "Margins are wider than the releases of case began with (version 3): retrieval 0.03, was 0.01. "
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"margins": {"retrieval": 0.03}},
        {"margins": {"retrieval": 0.05}},
        {"margins": {}},
        {"margins": {"retrieval": 0.01}, "asked": {"retrieval": ASKED | {"metric": "log_likelihood"}}},
    ],
    ids=["the same", "narrower", "not told", "in another unit"],
)
def test_a_margin_that_is_not_wider_has_nothing_to_say(case: Case, changes: dict[str, object]) -> None:
    case.ledger = ledger(**changes)
    assert case.decide().widened == ""


def test_attempts_are_counted_and_what_they_spend_is_said(case: Case) -> None:
    first = case.decide()
    assert (first.attempts, first.suites[0].attempt, first.suites[0].alpha_spent) == (
        "",
        1,
        pytest.approx(0.05),
    )
    case.attempts = {"retrieval": 4, "probe": 9}
    fourth = case.decide()
    assert (fourth.verdict, fourth.suites[0].upper) == (first.verdict, first.suites[0].upper)
    assert fourth.suites[0].alpha_spent == pytest.approx(0.2)
    assert "Attempt 4 on these report halves (retrieval 4)" in fourth.attempts
    assert "up to 20%" in fourth.attempts
    assert "stricter" not in fourth.attempts


def test_many_attempts_on_one_half_make_the_rule_stricter(case: Case) -> None:
    base = case.suites["retrieval"]["base"].to_numpy()
    lost = np.where(np.arange(len(base)) % 40 == 0, base - 0.5, base)  # 0.0125 a row
    case.suites["retrieval"] = case.records(base, lost)
    uppers = {}
    for attempt in (1, 4, 8, 16):
        case.attempts = {"retrieval": attempt, "probe": 1}
        uppers[attempt] = case.decide().suites[0].upper
    assert uppers[1] == uppers[4] < uppers[8] < uppers[16]
    decision = case.decide()
    assert "judged at 0.31%" in decision.attempts
    assert "the margin is 0.03" in decision.suites[0].reason
    assert decision.suites[0].alpha_spent == pytest.approx(
        0.05 * (4 + 16 * sum(1 / k**2 for k in range(5, 17)))
    )
