"""Benchmarks of a language model, from the raw file to outcomes: halves, requests, and the harness's own answers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.errors import ConfigError, DataError, StageError
from tasks.families.causal_lm import CausalLM
from tasks.forgetting import likelihood as likelihood_module
from tasks.forgetting.halves import write_halves
from tasks.forgetting.slices import flip_slices
from tasks.forgetting.suites import Suite, read_suite
from tasks.recipe import (
    ChoiceBenchmark,
    Data,
    HarnessBenchmark,
    LastWordBenchmark,
    PerplexityBenchmark,
    SimilarityBenchmark,
    Table,
)
from tests.architectures import make_base
from tests.harness import harness_outcomes
from tests.tiny import WORDS

DATA = Data(source="path:x", train=Table(file="x.csv"), seed=7)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = CausalLM.load_base(make_base("llama", tmp_path_factory.mktemp("bases")), "cpu")
    return SimpleNamespace(model=model, max_length=64, embed=lambda texts: model.encode(texts))


def words(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    asked = [
        {"query": words(5, n), "choices": [words(2, n + 100), words(3, n + 200)], "gold": n % 2}
        for n in range(40)
    ]
    (folder / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    ended = [{"context": words(6, n), "continuation": words(1, n + 300)} for n in range(40)]
    (folder / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ended))
    (folder / "text.txt").write_text(words(1000, 1))
    return folder


def halves(benchmark: Any, raw: Path, folder: Path) -> tuple[Suite, Suite]:
    write_halves("known", benchmark, DATA, raw, folder)
    selection, report = (read_suite(folder / half / "known") for half in ("selection", "report"))
    assert not set(selection.examples["group"]) & set(report.examples["group"])
    return selection, report


def likelihood(model: CausalLM, context: str, continuation: str) -> float:
    """Return the log-likelihood of a continuation, by one plain forward pass."""
    import torch

    ids = model.tokenizer(context + continuation)["input_ids"]
    first = len(model.tokenizer(context)["input_ids"])
    with torch.inference_mode():
        logits = model.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(first, len(ids))))


def test_the_likeliest_choice_is_the_answer(subject: Any, raw: Path, tmp_path: Path) -> None:
    selection, report = halves(
        ChoiceBenchmark(kind="choices", file="arc.jsonl", prompt="{query} title"), raw, tmp_path
    )
    assert len(selection.examples) + len(report.examples) == 40
    assert selection.chance(subject) == 0.5
    for suite in (selection, report):
        expected = []
        for _, row in suite.examples.iterrows():
            scores = [
                likelihood(subject.model, f"{row['query']} title", f" {one}")
                for one in json.loads(row["choices"])
            ]
            expected.append(float(int(np.argmax(scores)) == row["gold"]))
        assert suite.measure(subject).tolist() == expected
    assert " → " in selection.extract(0)


def test_a_block_of_text_has_its_mean_log_likelihood(subject: Any, raw: Path, tmp_path: Path) -> None:
    benchmark = PerplexityBenchmark(kind="perplexity", file="text.txt", block_words=20, max_blocks=30)
    selection, report = halves(benchmark, raw, tmp_path)
    assert len(selection.examples) + len(report.examples) == 30
    found = selection.measure(subject)
    text = selection.examples["text"].iloc[0].lstrip()
    start = subject.model.tokenizer.bos_token
    assert found[0] == pytest.approx(likelihood(subject.model, start, f" {text}") / 20, abs=1e-4)
    assert (found < 0).all()


def test_a_language_model_that_knows_nothing_is_at_chance(raw: Path, tmp_path: Path) -> None:
    """One to which every token is as likely as any other: what it loses could not be told from nothing."""
    blank = CausalLM.load_base(make_base("llama", tmp_path / "bases"), "cpu")
    torch.nn.init.zeros_(blank.network.get_output_embeddings().weight)
    benchmark = PerplexityBenchmark(kind="perplexity", file="text.txt", block_words=20)
    selection, _ = halves(benchmark, raw, tmp_path)
    measured: Any = SimpleNamespace(model=blank, max_length=64)
    assert selection.measure(measured) == pytest.approx(selection.chance(measured), abs=1e-5)


def test_reference_text_may_be_a_field_of_json(raw: Path, tmp_path: Path) -> None:
    """Each text is a document: cut by itself, and never in both halves."""
    texts = [*(words(70, seed) for seed in range(20)), "too short", f"short {words(16, 99)}"]
    plain = PerplexityBenchmark(kind="perplexity", file="plain.txt", block_words=20)
    (raw / "list.json").write_text(json.dumps([{"body": text} for text in texts]))
    (raw / "lines.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    made = {}
    for file in ("list.json", "lines.jsonl"):
        parts = halves(plain.model_copy(update={"file": file, "field": "body"}), raw, tmp_path / file)
        made[file] = pd.concat([part.examples.assign(half=half) for half, part in enumerate(parts)])
    found = made["list.json"]
    assert found.equals(made["lines.jsonl"])
    assert len(found) == 20 * 3 + 1, "three blocks a document, its end left out, and the short one whole"
    assert found["group"].nunique() == 21
    assert (found.groupby("group")["half"].nunique() == 1).all()
    assert all(any(block.strip() in text for text in texts) for block in found["text"])
    (raw / "list.json").write_text('[{"body": "a"}, {"body": " "}]')
    with pytest.raises(DataError, match="object 2: 'body' is empty"):
        write_halves(
            "known", plain.model_copy(update={"file": "list.json", "field": "body"}), DATA, raw, tmp_path
        )
    with pytest.raises(DataError, match="no JSON list of objects with 'text'"):
        write_halves(
            "known", plain.model_copy(update={"file": "list.json", "field": "text"}), DATA, raw, tmp_path
        )


def test_a_last_word_is_right_when_it_is_the_likeliest(subject: Any, raw: Path, tmp_path: Path) -> None:
    selection, _ = halves(
        LastWordBenchmark(kind="last-word", file="lambada.jsonl", max_examples=30), raw, tmp_path
    )
    assert set(selection.measure(subject)) <= {0.0, 1.0}
    assert selection.extract(0).endswith(selection.examples["continuation"].iloc[0])


def test_of_equally_likely_tokens_the_first_is_the_likeliest_in_every_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(likelihood_module, "LOGITS_READ_AT_ONCE", 2 * 50)
    logits = torch.randint(0, 4, (7, 50), generator=torch.Generator().manual_seed(0)).float()
    at, target = torch.arange(7).repeat_interleave(50), torch.arange(50).repeat(7)
    found, likeliest = likelihood_module._read_off(logits, at, target)
    assert torch.equal(found, logits.log_softmax(-1).flatten())
    assert likeliest.sum() == 7
    assert torch.equal(likeliest, logits.argmax(-1).repeat_interleave(50) == target)


YAML = """\
task: known
dataset_path: json
dataset_kwargs: {data_files: {test: arc.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_task_of_the_harness_has_the_harness_s_outcomes(
    metric: Any, subject: Any, raw: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from tasks.forgetting.likelihood import Scorer

    (raw / "known.yaml").write_text(YAML)
    benchmark = HarnessBenchmark(kind="harness", harness_task="known", file="known.yaml", metric=metric)
    selection, report = halves(benchmark, raw, tmp_path)
    scorer = Scorer(subject.model.network, subject.model.tokenizer, 64, "cpu", 512)
    expected = harness_outcomes(raw / "known.yaml", scorer, metric)
    for suite in (selection, report):
        assert suite.info.metric == metric
        ours = dict(zip(suite.examples["query"], suite.measure(subject).tolist(), strict=True))
        assert ours == {query: expected[query] for query in ours}


def test_a_task_of_the_harness_that_generates_text_is_refused(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    generates = YAML.replace("multiple_choice", "generate_until").replace(
        "acc}, {metric: acc_norm", "exact_match"
    )
    (raw / "known.yaml").write_text(f"{generates}generation_kwargs: {{until: ['.']}}\n")
    benchmark = HarnessBenchmark(kind="harness", harness_task="known", file="known.yaml")
    with pytest.raises(
        ConfigError, match=r"is of type generate_until; only multiple_choice, loglikelihood can"
    ):
        write_halves("known", benchmark, DATA, raw, tmp_path)


def test_without_the_harness_its_tasks_are_refused_with_a_remedy(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    (raw / "known.yaml").write_text(YAML)
    benchmark = HarnessBenchmark(kind="harness", harness_task="known", file="known.yaml")
    with pytest.raises(ConfigError, match=r"need the extra `lm`: pip install 'retain\[lm\]'"):
        write_halves("known", benchmark, DATA, raw, tmp_path)


def test_an_unknown_task_of_the_harness_is_said(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (raw / "known.yaml").write_text(YAML)
    benchmark = HarnessBenchmark(kind="harness", harness_task="unknown", file="known.yaml")
    with pytest.raises(ConfigError, match=r"defines no task 'unknown'; there is known"):
        write_halves("known", benchmark, DATA, raw, tmp_path)


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ([[0]] * 9, "as the right one of 2 choices"),
        (["C"] * 9, "as the right one of 2 choices"),
        ([0] * 8 + [7], "names 7 as the right one of 2 choices"),
        ([0] * 8 + [-100], "names -100 as the right one of 2 choices"),
        ([7] * 9, "cannot be read: IndexError"),
    ],
)
def test_a_task_that_names_no_choice_as_right_is_refused(
    gold: list[Any], said: str, raw: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"query": f"{words(5, n)} {n}", "choices": ["good", "bad"], "gold": one} for n, one in enumerate(gold)
    ]
    (raw / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (raw / "known.yaml").write_text(YAML)
    benchmark = HarnessBenchmark(kind="harness", harness_task="known", file="known.yaml")
    with pytest.raises(DataError, match=said):
        write_halves("known", benchmark, DATA, raw, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "The task known has no examples"), ("no JSON", "The task known cannot be read: DatasetGeneration")],
)
def test_a_task_whose_file_holds_nothing_is_refused(
    content: str, said: str, raw: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    (raw / "arc.jsonl").write_text(content)
    (raw / "known.yaml").write_text(YAML)
    benchmark = HarnessBenchmark(kind="harness", harness_task="known", file="known.yaml")
    with pytest.raises(DataError, match=said):
        write_halves("known", benchmark, DATA, raw, tmp_path)


def test_a_task_is_found_by_its_name_in_the_harness(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    rows = [
        {
            "question": f"{words(5, n)} {n}",
            "choices": {"text": ["good", "bad"], "label": ["A", "B"]},
            "answerKey": "AB"[n % 2],
        }
        for n in range(12)
    ]
    table = datasets.Dataset.from_list(rows)
    hub = datasets.DatasetDict({"train": table, "validation": table, "test": table})
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: asked.append(path) or hub)
    benchmark = HarnessBenchmark(kind="harness", harness_task="arc_easy", metric="acc_norm")
    found = pd.concat([half.examples for half in halves(benchmark, raw, tmp_path)])
    assert asked == ["allenai/ai2_arc"]
    right = {f"Question: {row['question']}\nAnswer:": "AB".index(str(row["answerKey"])) for row in rows}
    assert dict(zip(found["query"], found["gold"], strict=True)) == right
    assert set(found["choices"]) == {'[" good", " bad"]'}


def test_a_group_of_tasks_is_no_task(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (raw / "known.yaml").write_text(YAML)
    (raw / "group.yaml").write_text("group: several\ntask: [known]\n")
    benchmark = HarnessBenchmark(kind="harness", harness_task="several", file="group.yaml")
    with pytest.raises(ConfigError, match="several is a group of tasks"):
        write_halves("known", benchmark, DATA, raw, tmp_path)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"choices": "yes"}, "choices is 'yes'; it is a list"),
        ({"choices": {"text": ["b", "c"], "label": ["0", "1"]}}, "it is a list"),
        ({"choices": ["b", ""]}, "1 of them empty"),
        ({"choices": ["b", "c", "c"], "gold": 2}, "the right choice, 'c', is there more than once"),
        ({"gold": 0.9}, "gold is 0.9; it is the index"),
        ({"gold": True}, "gold is True; it is the index"),
    ],
)
def test_choices_that_would_be_misread_are_refused_before_training(
    raw: Path, tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    rows = [{"query": f"a{number}", "choices": ["b", "c"], "gold": 0} for number in range(40)]
    (raw / "arc.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*rows, {**rows[0], **row}]))
    with pytest.raises(DataError, match=re.escape(why)):
        write_halves("known", ChoiceBenchmark(kind="choices", file="arc.jsonl"), DATA, raw, tmp_path)


def test_a_file_with_bad_rows_lists_them(raw: Path, tmp_path: Path) -> None:
    (raw / "arc.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 2}\n{"query": "a"}\n')
    why = r"line 1: ValueError: gold is 2; it is the index of one of 2.*\n.*line 2: ValueError: it lacks"
    with pytest.raises(DataError, match=why):
        write_halves("known", ChoiceBenchmark(kind="choices", file="arc.jsonl"), DATA, raw, tmp_path)


def test_an_encoder_has_no_likelihoods(raw: Path, tmp_path: Path) -> None:
    selection, _ = halves(LastWordBenchmark(kind="last-word", file="lambada.jsonl"), raw, tmp_path)
    with pytest.raises(StageError, match="only a language model has them"):
        selection.measure(SimpleNamespace(model=SimpleNamespace(), max_length=64))


def test_similarity_is_spearman_by_its_pseudo_values(subject: Any, raw: Path, tmp_path: Path) -> None:
    from scipy import stats

    rows = [{"text": words(4, n), "positive": words(4, n + 50), "score": (n * 7) % 11} for n in range(60)]
    (raw / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Table(file="sts.jsonl", format="jsonl", positive="positive", score="score", score_range=(0, 10))
    selection, _ = halves(SimilarityBenchmark(kind="similarity", table=table), raw, tmp_path)
    examples: pd.DataFrame = selection.examples
    first, second = (subject.embed(examples[name].tolist()) for name in ("text", "positive"))
    whole = stats.spearmanr((first * second).sum(axis=1), examples["score"]).statistic
    outcomes = selection.measure(subject)
    assert outcomes.mean() == pytest.approx(whole, abs=2 / len(examples))
    jackknife = outcomes.std(ddof=1) / np.sqrt(len(outcomes))
    assert jackknife == pytest.approx(1 / np.sqrt(len(outcomes)), rel=0.5)


ASKED: dict[str, Any] = {
    "choices": ChoiceBenchmark(kind="choices", file="rows.jsonl"),
    "last-word": LastWordBenchmark(kind="last-word", file="rows.jsonl"),
    "perplexity": PerplexityBenchmark(kind="perplexity", file="rows.txt", block_words=16),
}


def few(folder: Path, count: int) -> None:
    rows = [
        {
            "query": words(5, n),
            "choices": ["good", "bad"],
            "gold": 0,
            "subject": f"s{n % 2}",
            "context": words(6, n),
            "continuation": "fine",
        }
        for n in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.txt").write_text(words(16 * count, 1))


@pytest.mark.parametrize("kind", ASKED)
def test_a_benchmark_of_nothing_is_refused(kind: str, tmp_path: Path) -> None:
    few(tmp_path, 0)
    with pytest.raises(
        DataError, match="too few groups to split: 0 rows leave nothing for selection, report"
    ):
        write_halves("known", ASKED[kind], DATA, tmp_path, tmp_path / "halves")


@pytest.mark.parametrize("kind", ["choices", "last-word"])
def test_a_benchmark_of_five_is_measured_and_shows_where_it_flipped(
    kind: str, subject: Any, tmp_path: Path
) -> None:
    few(tmp_path, 5)
    selection, report = halves(ASKED[kind], tmp_path, tmp_path / "halves")
    assert len(selection.examples) + len(report.examples) == 5
    for suite in (selection, report):
        outcomes = suite.measure(subject)
        assert len(outcomes) == len(suite.examples)
        assert all(item.loss == 0 for item in flip_slices(suite, outcomes, outcomes))


def test_flips_are_counted_by_the_field_that_the_recipe_names(tmp_path: Path) -> None:
    few(tmp_path, 30)
    by_subject = ASKED["choices"].model_copy(update={"slice": "subject"})
    selection, _ = halves(by_subject, tmp_path, tmp_path / "halves")
    right, wrong = np.ones(len(selection.examples)), np.zeros(len(selection.examples))
    found = {item.slice: item.lost for item in flip_slices(selection, right, wrong)}
    assert found["subject s0"] + found["subject s1"] == len(selection.examples)
    with pytest.raises(DataError, match="KeyError: 'area'"):
        write_halves(
            "known", by_subject.model_copy(update={"slice": "area"}), DATA, tmp_path, tmp_path / "none"
        )
