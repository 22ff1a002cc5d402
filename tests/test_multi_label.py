"""Rows with any number of labels: read, judged, trained, measured in pairs, answered and proposed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import ValidationError

from flows.scaffold import Choice, scaffold
from tasks import reports
from tasks.__main__ import run_stage
from tasks.errors import DataError
from tasks.families import family, heads, load_model
from tasks.forgetting.bootstrap import macro_f1, micro_f1
from tasks.forgetting.kept import kept_measure
from tasks.paths import Paths
from tasks.recipe import Recipe, Table, load_recipe
from tasks.sources import base_folder, resolve_base
from tasks.stages import STAGES
from tasks.tables import indexed, read_table
from tasks.training.probe import fit_label_probes
from tasks.training.run import train_model
from tests.project import make_project

LABELS = ["late", "broken", "dear"]


def read(folder: Path, content: str, file: str, **table: object) -> pd.DataFrame:
    (folder / file).write_text(content)
    named = Table.model_validate({"file": file, **table})
    return read_table(named, folder, LABELS, multi_label=True)[0]


# --- rows ----------------------------------------------------------------------------------------------


def test_lists_and_separated_names_are_read_alike(tmp_path: Path) -> None:
    lists = [["broken", "late"], [], ["dear"]]
    rows = "".join(json.dumps({"text": f"row {n}", "label": row}) + "\n" for n, row in enumerate(lists))
    of_lists = read(tmp_path, rows, "d.jsonl", format="jsonl")
    separated = "text,label\nrow 0,broken | late\nrow 1,\nrow 2,dear\n"
    of_names = read(tmp_path, separated, "d.csv", label_separator="|")
    assert of_lists["label"].tolist() == of_names["label"].tolist() == [["late", "broken"], [], ["dear"]]
    assert indexed(of_lists, LABELS)["label"].tolist() == [[0, 1], [], [2]], "in the declared order"


def test_what_is_wrong_with_lists_is_said_at_once(tmp_path: Path) -> None:
    lists = [["late", "gone"], None, ["late", "late"], 3]
    rows = "".join(json.dumps({"text": f"row {n}", "label": row}) + "\n" for n, row in enumerate(lists))
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, "d.jsonl", format="jsonl")
    assert caught.value.problems == [
        "the labels are no list of texts, nor a text (an empty list says: none): 2 row(s), line 2, 4",
        "a label is not declared (gone); declared are late, broken, dear: 1 row(s), line 1",
        "a label is given twice: 1 row(s), line 3",
    ]


def test_a_recipe_says_what_does_not_fit(tmp_path: Path) -> None:
    document = yaml.safe_load((Path("recipes") / "legal-clauses.yaml").read_text())
    document["data"]["train"]["label_separator"] = "|"
    document["finetune"]["threshold"] = 0.3
    with pytest.raises(ValidationError, match=r"label_separator is read only .*; finetune\.threshold: only"):
        Recipe.model_validate(document)
    document["data"]["multi_label"] = True
    Recipe.model_validate(document)


# --- figures, against the libraries that define them ------------------------------------------------------


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Return logits and indicators of 60 rows and 4 labels; some rows have none."""
    draw = np.random.default_rng(3)
    truth = (draw.random((60, 4)) < 0.3).astype(np.float32)
    return (draw.normal(0, 1.5, (60, 4)) + 2 * truth - 1).astype(np.float32), truth


def test_the_outcome_is_the_example_based_f1(scored: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import f1_score

    logits, truth = scored
    found = heads.measured_lists(logits, truth, 0.4)
    said = (1 / (1 + np.exp(-logits)) >= 0.4).astype(int)
    assert (found.predictions == said).all()
    assert found.score == pytest.approx(f1_score(truth, said, average="samples", zero_division=1.0))
    each = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(truth))
    assert found.loss == pytest.approx(float(each), abs=1e-6)
    sure = heads.measured_lists(logits * 4, truth, 0.4)
    assert sure.loss > 1.5 * found.loss
    assert found.log_likelihood is not None
    assert sure.log_likelihood == pytest.approx(found.log_likelihood, abs=2e-3)
    assert -found.log_likelihood == pytest.approx(found.loss, abs=0.02), (
        "they are about as sure as they may be"
    )
    summed = heads.cross_entropy(torch.tensor(logits), truth, None)
    assert float(summed) == pytest.approx(found.losses.sum(), rel=1e-5)


def test_macro_and_micro_f1_are_those_of_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import f1_score

    logits, truth = scored
    said, weights = (logits > 0).astype(int), np.ones((1, len(truth)))
    for measure, average in ((macro_f1, "macro"), (micro_f1, "micro")):
        assert measure(truth.astype(int), said, 4, weights)[0] == pytest.approx(
            f1_score(truth, said, average=average)
        )


def test_balanced_weights_make_having_a_label_count_as_much_as_lacking_it(
    scored: tuple[np.ndarray, np.ndarray],
) -> None:
    _, truth = scored
    weights = heads.class_weights(truth, 4, "balanced")
    assert weights is not None
    have = torch.tensor(truth).sum(dim=0)
    assert torch.allclose(weights * have, len(truth) - have)
    logits = torch.zeros(len(truth), 4, requires_grad=True)
    heads.cross_entropy(logits, truth, weights).backward()
    assert torch.allclose(logits.grad.sum(dim=0), torch.zeros(4), atol=1e-5), "at even odds nothing pulls"


def test_probes_separate_what_can_be_separated_and_know_the_share_of_the_rest() -> None:
    draw = np.random.default_rng(5)
    features = draw.normal(size=(200, 6)).astype(np.float32)
    truth = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.zeros(200)], axis=1).astype(np.float32)
    head = fit_label_probes(features[:150], truth[:150], features[150:], truth[150:])
    scores = features[150:] @ head["weight"].numpy().T + head["bias"].numpy()
    assert ((scores > 0) == truth[150:]).mean() > 0.93
    assert np.allclose(1 / (1 + np.exp(-scores[:, 2])), 0.5 / 151, atol=1e-4), "no row has the third"


# --- the pipeline ------------------------------------------------------------------------------------------

PARTS = {"late": ["poor", "awful"], "broken": ["sad", "broke"], "dear": ["hate", "terrible"]}


def complaints(rows: int) -> Iterator[dict[str, object]]:
    """Yield rows whose words say their labels; every eighth has none."""
    for number in range(rows):
        given = [label for place, label in enumerate(LABELS) if number >> place & 1]
        words = " and ".join(PARTS[label][number // 8 % 2] for label in given) or "fine"
        yield {
            "text": f"the phone {number} was {words} after day {number // 3} of week {number % 11}",
            "label": given,
        }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Run every stage on a tiny model, in this process."""
    folder = tmp_path_factory.mktemp("several")
    project = make_project(folder / "project")
    document = yaml.safe_load(project.recipe().read_text())
    document["data"] |= {"labels": LABELS, "multi_label": True}
    document["data"]["train"] = {"file": "train.jsonl", "format": "jsonl"}
    document["data"]["source"]["train.jsonl"] = document["data"]["source"].pop("train.csv")
    document["finetune"] |= {"class_weights": "balanced"}
    project.recipe().write_text(yaml.safe_dump(document))
    raw = project.root / "data" / "raw" / "tiny"
    raw.mkdir(parents=True)
    (raw / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in complaints(200)))
    (raw / "articles.jsonl").write_text((folder / "project-data" / "articles.jsonl").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        patch.setenv("RETAIN_REGISTRY", str(folder / "registry"))
        for stage in STAGES:
            run_stage(stage, "tiny", project.root)
    return Paths(project.root, "tiny")


def test_the_rows_are_judged_by_label(ran: Paths) -> None:
    schema = reports.read_report(ran.schema, reports.SplitSchema)
    assert schema.multi_label
    found = reports.read_report(ran.validate, reports.ValidateReport)
    counted = [item for item in found.expectations if "where" in item.arguments]
    assert [item.arguments["where"] for item in counted] == [
        {"split": "train", f"has {label}": "yes"} for label in LABELS
    ]
    train = pd.read_parquet(ran.train)
    share = min(sum(place in row for row in train["label"]) for place in range(3)) / len(train)
    measures = {item.name: item for item in reports.read_report(ran.check, reports.CheckReport).measures}
    assert measures["minority_class_share"].value == pytest.approx(share)
    assert measures["conflicting_label_share"].value == 0
    assert measures["label_noise_share"].value is not None


def test_the_records_pair_base_and_candidate_and_their_means_are_the_report(ran: Paths) -> None:
    (test,) = reports.read_report(ran.evaluate, reports.EvaluateReport).targets
    records = pd.read_parquet(ran.records / "targets" / "test.parquet")
    assert test.metric == "example F1"
    assert test.examples == len(records) > 20
    assert test.candidate == pytest.approx(records["candidate"].mean())
    assert test.gain == pytest.approx((records["candidate"] - records["base"]).mean())
    assert test.gain_interval[0] <= test.gain <= test.gain_interval[1]
    assert test.micro_f1 is not None
    assert test.macro_f1 is not None
    metrics = json.loads(ran.metrics.read_text())
    assert metrics["task"]["test"]["micro_f1"] == pytest.approx(test.micro_f1, abs=1e-4)


def test_the_chosen_model_answers_with_lists(ran: Paths) -> None:
    model, table = load_model(ran.chosen, "cpu"), pd.read_parquet(ran.test)
    answers = model.answer(table["text"].tolist())
    said = np.array([[label in answer["labels"] for label in LABELS] for answer in answers])
    chances = np.array([[answer["probabilities"][label] for label in LABELS] for answer in answers])
    assert (said == (chances >= 0.5)).all()
    measured = model.measure(table)
    assert (measured.predictions == said).all()
    with pytest.MonkeyPatch.context() as patch:  # what evaluate kept is found again, whole
        patch.setenv("RETAIN_HOME", str(ran.root.parent / "store"))
        patch.setattr(model, "measure", None)
        assert (kept_measure(model, table).predictions == said).all()


# --- init --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_init_proposes_what_the_file_holds(tmp_path: Path, form: str) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "params.yaml").write_text("recipes: []\n")
    file, rows = tmp_path / f"complaints.{form}", list(complaints(80))
    if form == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["text", "label"])
            writer.writerows([[row["text"], ";".join(row["label"])] for row in rows])  # type: ignore[arg-type]
    choice = Choice(label_separator=";" if form == "csv" else None)
    recipe = load_recipe(scaffold(tmp_path, "complaints", file, "text-classification", choice=choice))
    assert recipe.data.multi_label
    assert recipe.data.labels == sorted(LABELS)
    assert recipe.data.train.label_separator == choice.label_separator
    frame, _ = read_table(recipe.data.train, tmp_path, recipe.data.labels, multi_label=True)
    assert frame["label"].map(len).tolist() == [len(row["label"]) for row in rows]  # type: ignore[arg-type]


# --- real weights ------------------------------------------------------------------------------------------

TOPICS = ("card", "transfer", "top_up", "cash", "payment", "exchange", "pin", "verify")


@pytest.mark.realdata
def test_a_real_encoder_learns_the_topics_of_questions(tmp_path: Path) -> None:
    data = Path(os.environ.get("RETAIN_TEST_DATA", "nowhere")) / "banking77" / "train.jsonl"
    if not data.is_file():
        pytest.skip("RETAIN_TEST_DATA has no banking77: see docs/datasets.md")
    rows = pd.read_json(data, lines=True).sample(220, random_state=7).reset_index(drop=True)
    rows["id"] = [f"r{number}" for number in range(len(rows))]
    rows["label"] = [[n for n, topic in enumerate(TOPICS) if topic in name] for name in rows["label"]]
    train, held = rows[:160], rows[160:]
    root = Path(__file__).parent.parent
    recipe = load_recipe(root / "recipes" / "support-intents.yaml")
    settings = {"method": "lp-ft", "loss": None, "learning_rate": 1e-4, "epochs": 1, "batch_size": 32}
    settings |= {"replay_share": 0.0, "distill": 0.0}
    section = recipe.finetune.model_copy(update=settings)
    base = base_folder(resolve_base(recipe.base, root), root)
    torch.manual_seed(section.seed)
    model = family("text-classification").begin(base, section, TOPICS, train, held, "cpu")
    assert model.network["head"].weight.abs().max().item() < 10, (
        "no unit of the base counts out of all proportion"
    )
    progress = train_model(model, section, train, held, tmp_path).progress
    assert max(row["loss"] for row in progress.history) < 0.3
    assert progress.best_score > model.start_score > 0.6
