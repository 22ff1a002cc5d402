"""Benchmarks of language models: one outcome an example, the same as the harness gives where both can be asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import ConfigError, DataError
from tasks.forgetting.likelihood import Likelihoods, Request, Scorer
from tasks.forgetting.lm_tasks import (
    Question,
    choice_outcomes,
    harness_outcomes,
    last_word_outcomes,
    perplexity_outcomes,
    read_questions,
)
from tests.tiny_lm import tiny_lm, tiny_tokenizer

ROWS = [
    {"query": "Is the battery good?", "choices": ["good", "not good at all", "bad"], "gold": 0},
    {"query": "What broke?", "choices": ["the phone", "the book"], "gold": 1},
    {"query": "Which day was it?", "choices": ["day one", "day two", "a week", "naïve"], "gold": 2},
    {"query": "What works?", "choices": ["sound", "the very great screen"], "gold": 0},
]


class Said:
    """A model that says what the test wants, and remembers what it was asked."""

    def __init__(
        self, sums: list[float], tokens: list[int] | None = None, greedy: list[bool] | None = None
    ) -> None:
        self.sums, self.tokens, self.greedy = sums, tokens or [1] * len(sums), greedy or [False] * len(sums)
        self.asked: list[Request] = []

    def log_likelihoods(self, requests: list[Request]) -> Likelihoods:
        self.asked = requests
        assert len(requests) == len(self.sums)
        return Likelihoods(
            np.array(self.sums),
            np.array(self.greedy),
            np.array(self.tokens),
            np.zeros(len(self.sums), dtype=bool),
        )


def said(*args: Any, **kwargs: Any) -> Any:
    return Said(*args, **kwargs)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_lm(), tiny_tokenizer(), max_length=100, device="cpu", tokens_a_batch=256)


def test_the_likeliest_choice_counts_by_sum_by_character_or_by_byte() -> None:
    questions = [Question("q", ("ab", "abcdefgh"), 1), Question("r", ("éééé", "abcde"), 0)]
    # By sum −2 beats −6; by character −2/2 loses to −6/8; by byte −5.0/8 beats −4.5/5, by character it does not.
    model = said([-2.0, -6.0, -5.0, -4.5])
    assert choice_outcomes(model, questions, metric="acc").tolist() == [0, 0]
    assert choice_outcomes(model, questions, metric="acc_norm").tolist() == [1, 0]
    assert choice_outcomes(model, questions, metric="acc_bytes").tolist() == [1, 1]
    assert model.asked[1] == Request("q\nAnswer:", " abcdefgh")


def test_among_equals_the_first_counts() -> None:
    questions = [Question("q", ("a", "b"), 1), Question("q", ("a", "b"), 0)]
    assert choice_outcomes(said([-1.0] * 4), questions).tolist() == [0, 1]


def test_a_prompt_without_a_query_and_an_unknown_metric_are_refused() -> None:
    question = [Question("q", ("a", "b"), 1)]
    with pytest.raises(ConfigError, match=r"needs a prompt with \{query\} in it \(it is 'Answer:'\)"):
        choice_outcomes(said([]), question, prompt="Answer:")
    metric: Any = "f1"
    with pytest.raises(ConfigError, match=r"metrics acc, acc_norm, acc_bytes \(it is 'f1'\)"):
        choice_outcomes(said([]), question, metric=metric)


def test_questions_are_read_by_their_fields_and_every_bad_row_is_named() -> None:
    good = {"q": "Who?", "options": json.dumps(["I", "you"]), "answer": "1"}
    assert read_questions([good], query="q", choices="options", gold="answer") == [
        Question("Who?", ("I", "you"), 1)
    ]
    rows = [
        ROWS[0],
        {"query": "q", "choices": ["a", "b"]},
        {"query": "q", "choices": ["a"], "gold": 0},
        {"query": "q", "choices": ["a", ""], "gold": 0},
        {"query": "q", "choices": ["a", "b"], "gold": 2},
        {"query": "q", "choices": ["a", "b"], "gold": "B"},
        {"query": "q", "choices": "no json", "gold": 0},
        {"query": "q", "choices": None, "gold": None},
    ]
    with pytest.raises(DataError, match="7 multiple-choice questions cannot be read") as raised:
        read_questions(rows)
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        f"row {row}" for row in range(1, 8)
    ]
    assert raised.value.problems[0] == "row 1: it lacks gold; it has query, choices"
    assert raised.value.problems[3] == "row 4: gold is 2; it is the index of one of 2 choices, from 0"
    assert raised.value.problems[5] == "row 6: choices is 'no json'; it is a list, or the JSON of one"


def test_last_words_count_when_greedy_or_by_log_likelihood() -> None:
    model = said([-1.0, -2.0], greedy=[True, False])
    passages = [("He said", "yes"), ("She said", "no")]
    assert last_word_outcomes(model, passages).tolist() == [1, 0]
    assert last_word_outcomes(model, passages, metric="log_likelihood").tolist() == [-1, -2]
    assert model.asked[0] == Request("He said", " yes")


def test_perplexity_is_a_mean_over_tokens_and_better_text_scores_higher(scorer: Scorer) -> None:
    model = said([-10.0, -9.0], tokens=[5, 3])
    assert perplexity_outcomes(model, ["one text", "two"]).tolist() == [-2, -3]
    assert model.asked[0] == Request("", "one text")
    texts = ["the screen works", "naïve"]
    found = perplexity_outcomes(scorer, texts)
    whole = scorer.log_likelihoods([Request("", text) for text in texts])
    np.testing.assert_allclose(found, whole.sums / whole.tokens)


# --- lm-evaluation-harness ------------------------------------------------------------------------------------

CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}, {metric: mcc}]
"""
ROLLING = """
task: tiny_text
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{query}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""
WORD = """
task: tiny_word
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{query}}"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]
"""
GENERATES = """
task: tiny_generates
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."]}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'retain[lm]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choices", CHOICES), ("text", ROLLING), ("word", WORD), ("generates", GENERATES)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_a_task_file_gives_what_the_same_questions_give(metric: Any, folder: Path, scorer: Scorer) -> None:
    found = harness_outcomes(folder / "choices.yaml", scorer, metric=metric)
    assert found.ids == [f"tiny_choices/{place}" for place in range(len(ROWS))]
    assert found.texts[1] == "What broke?\nAnswer:"
    assert found.metric == metric
    expected = choice_outcomes(scorer, read_questions(ROWS), metric=metric)
    assert found.outcomes.tolist() == expected.tolist()
    assert 0 < expected.sum() < len(ROWS)


def test_a_task_is_found_by_name_in_a_folder_and_limited(
    folder: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = harness_outcomes(
        "tiny_choices", scorer, metric="acc", include_path=folder, include_defaults=False, limit=2
    )
    assert found.ids == ["tiny_choices/0", "tiny_choices/1"]


def test_perplexities_become_log_likelihoods_the_higher_the_better(folder: Path, scorer: Scorer) -> None:
    sums = scorer.log_likelihoods([Request("", row["query"]) for row in ROWS]).sums
    words = np.array([len(row["query"].split()) for row in ROWS])
    found = harness_outcomes(folder / "text.yaml", scorer, metric="word_perplexity")
    assert found.metric == "log_likelihood"
    np.testing.assert_allclose(found.outcomes, sums / words, atol=1e-6)
    word = harness_outcomes(folder / "word.yaml", scorer, metric="perplexity")
    own = last_word_outcomes(
        scorer, [(row["query"], row["choices"][0]) for row in ROWS], metric="log_likelihood"
    )
    np.testing.assert_allclose(word.outcomes, own, atol=1e-6)


def test_texts_longer_than_the_model_reads_are_scored_window_by_window(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tasks.forgetting.lm_tasks import harness_model

    model, tokenizer = tiny_lm(), tiny_tokenizer()
    requests: list[Any] = [
        Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("the book was good " * 20, "week")
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, max_length=20).loglikelihood_rolling(requests)
    ours = harness_model(Scorer(model, tokenizer, 20, "cpu", 64)).loglikelihood_rolling(requests)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_what_the_harness_cannot_give_is_said(folder: Path, scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match=r"tiny_choices has no metric 'mrr', but acc, "):
        harness_outcomes(folder / "choices.yaml", scorer, metric="mrr")
    with pytest.raises(ConfigError, match="'mcc' is no number an example"):
        harness_outcomes(folder / "choices.yaml", scorer, metric="mcc")
    with pytest.raises(ConfigError, match=r"There is no task file .*missing\.yaml"):
        harness_outcomes(folder / "missing.yaml", scorer, metric="acc")
    with pytest.raises(ConfigError, match="knows no task 'tiny', among 4"):
        harness_outcomes("tiny", scorer, metric="acc", include_path=folder, include_defaults=False)
    with pytest.raises(ConfigError, match="tiny_generates: this task generates text, which is not measured"):
        harness_outcomes(folder / "generates.yaml", scorer, metric="exact_match")


def test_without_the_harness_its_tasks_are_refused_with_a_remedy(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"need the extra `lm`: pip install 'retain\[lm\]'"):
        harness_outcomes("arc_easy", scorer, metric="acc")
