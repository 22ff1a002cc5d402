"""Benchmarks of language models: one outcome an example, the same as the harness gives where both can be asked."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import ConfigError, DataError
from tasks.forgetting.harness import task_examples
from tasks.forgetting.likelihood import Likelihoods, Request, Scorer, TokenRequest, encode_requests
from tasks.forgetting.lm_tasks import (
    choice_outcomes,
    last_word_outcomes,
    perplexity_outcomes,
)
from tasks.forgetting.questions import Question, read_questions
from tests.harness import harness_model, harness_outcomes, harness_samples
from tests.tiny_lm import tiny_lm, tiny_tokenizer

ROWS = [
    {
        "query": "Is the battery good?",
        "choices": ["good", "not good at all", "bad"],
        "gold": 0,
        "word": "was",
    },
    {"query": "What broke?", "choices": ["the phone", "the book"], "gold": 1, "word": "it"},
    {
        "query": "Which day was it?",
        "choices": ["day one", "day two", "a week", "naïve"],
        "gold": 2,
        "word": "day",
    },
    {"query": "What works?", "choices": ["sound", "the very great screen"], "gold": 0, "word": "not"},
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


def test_last_words_count_when_greedy() -> None:
    model = said([-1.0, -2.0], greedy=[True, False])
    passages = [("He said", "yes"), ("She said", "no")]
    assert last_word_outcomes(model, passages).tolist() == [1, 0]
    assert model.asked[0] == Request("He said", " yes")


def test_perplexity_is_a_mean_over_tokens_and_better_text_scores_higher(scorer: Scorer) -> None:
    texts = ["the screen works", "naïve"]
    found = perplexity_outcomes(scorer, texts)
    whole = scorer.log_likelihoods([Request("", text) for text in texts])
    np.testing.assert_allclose(found, whole.sums / whole.tokens)


def test_a_text_that_is_longer_than_the_model_reads_is_read_in_windows(scorer: Scorer) -> None:
    text, size = "the screen works and the sound is very great", 4
    ((context, ids),) = encode_requests(scorer.tokenizer, [Request("", text)], scorer.prefix)
    assert len(ids) > 2 * size
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    before = [context, *([piece[-1]] for piece in pieces)]
    windows = [TokenRequest(last, piece) for last, piece in zip(before, pieces, strict=False)]
    short = dataclasses.replace(scorer, max_length=size)
    found = perplexity_outcomes(short, [text, "the book"])
    assert found[0] == pytest.approx(scorer.score(windows).sums.sum() / len(ids), rel=1e-5)
    assert found[1] == pytest.approx(perplexity_outcomes(scorer, ["the book"])[0], rel=1e-5)
    with pytest.raises(DataError, match="no token"):
        perplexity_outcomes(short, [text, ""])


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
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""
WORD = """
task: tiny_word
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{query}}"
doc_to_target: " {{word}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'retain[lm]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choices", CHOICES), ("word", WORD)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_questions_count_as_the_harness_counts_them(metric: Any, folder: Path, scorer: Scorer) -> None:
    expected = harness_outcomes(folder / "choices.yaml", scorer, metric)
    found = choice_outcomes(scorer, read_questions(ROWS), metric=metric)
    assert found.tolist() == [expected[f"{row['query']}\nAnswer:"] for row in ROWS]
    assert 0 < found.sum() < len(ROWS)


def test_last_words_count_as_the_harness_counts_them(folder: Path, scorer: Scorer) -> None:
    expected = harness_outcomes(folder / "word.yaml", scorer, "acc")
    found = last_word_outcomes(scorer, [(row["query"], row["word"]) for row in ROWS])
    assert found.tolist() == [expected[row["query"]] for row in ROWS]
    assert 0 < found.sum() < len(ROWS)


@pytest.mark.parametrize("where", ["asked", "task"])
@pytest.mark.parametrize(("name", "task"), [("choices", "tiny_choices"), ("word", "tiny_word")])
def test_few_shot_examples_are_those_that_the_harness_draws(
    name: str, task: str, where: str, folder: Path, scorer: Scorer
) -> None:
    """Whether the recipe says how many they are, or the task's own file."""
    file, shots = folder / f"{name}.yaml", 2 if where == "asked" else None
    if shots is None:
        file.write_text(f"{file.read_text()}num_fewshot: 2\n")
    first, second = (task_examples(task, file, shots) for _ in range(2))
    assert first == second
    assert all(row["query"].count("\n\n") == 2 for row in first), "there are two before the question"
    expected = harness_samples(file, harness_model(scorer), shots)
    assert [row["query"] for row in first] == [sample["arguments"][0][0] for sample in expected]


def test_what_a_task_draws_by_itself_is_drawn_alike_every_time(folder: Path) -> None:
    (folder / "drawn.py").write_text(
        "import random\n\n\ndef ask(row):\n    return f'{row[\"query\"]} {random.random()}'\n"
    )
    drawn = CHOICES.replace('"{{query}}\\nAnswer:"', "!function drawn.ask")
    (folder / "choices.yaml").write_text(drawn)
    state = random.getstate()
    first, second = (task_examples("tiny_choices", folder / "choices.yaml") for _ in range(2))
    assert first == second
    assert len({row["query"].split()[-1] for row in first}) == len(ROWS), "it draws"
    assert random.getstate() == state, "and what others draw stays"
