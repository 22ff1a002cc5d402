"""Benchmarks of causal language models: one outcome an example, higher is better.

| benchmark | outcome of an example |
|---|---|
| multiple choice, `acc` | 1 if the right choice has the highest log-likelihood |
| multiple choice, `acc_norm`, `acc_bytes` | the same, each divided by the choice's characters, or UTF-8 bytes |
| last word | 1 if the word is what the model would say greedily |
| perplexity | mean log-likelihood, in nats a token, of a text |

Metrics are named and computed as in lm-evaluation-harness 0.4.13 (`ConfigurableTask.process_results`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, DataError, first_of
from tasks.forgetting.likelihood import Request, Scorer

Outcomes = NDArray[np.float64]
ChoiceMetric = Literal["acc", "acc_norm", "acc_bytes"]

CHOICE_LENGTH = {
    "acc": lambda _: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""What a choice's log-likelihood is divided by."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question."""

    query: str
    choices: tuple[str, ...]
    gold: int
    """Which choice is right, from 0."""


def read_questions(
    rows: Iterable[Mapping[str, Any]], *, query: str = "query", choices: str = "choices", gold: str = "gold"
) -> list[Question]:
    """Read multiple-choice questions from rows; choices are a list, or the JSON of one.

    Raises:
        DataError: rows that lack a field, have fewer than two choices, or name no choice as right; every one at once.
    """
    questions, problems = [], []
    for place, row in enumerate(rows):
        try:
            questions.append(_question(row, query, choices, gold))
        except ValueError as error:
            problems.append(f"row {place}: {error}")
    _refuse(problems, "multiple-choice questions cannot be read:")
    return questions


def choice_outcomes(
    scorer: Scorer,
    questions: Sequence[Question],
    *,
    prompt: str = "{query}\nAnswer:",
    delimiter: str = " ",
    metric: ChoiceMetric = "acc",
) -> Outcomes:
    """Return 1 where the right choice is the likeliest, else 0, `(questions,)`; among equals the first counts.

    Args:
        scorer: the model.
        questions: what to ask.
        prompt: what comes before a choice; `{query}` is the question.
        delimiter: between prompt and choice.
        metric: `acc`, or with log-likelihoods divided by characters (`acc_norm`) or bytes (`acc_bytes`).

    Raises:
        ConfigError: the prompt has no `{query}`, or the metric is unknown.
        DataError: a choice that cannot be scored.
    """
    if "{query}" not in prompt or metric not in CHOICE_LENGTH:
        raise ConfigError(
            f"Multiple choice needs a prompt with {{query}} in it (it is {prompt!r}) and one of the metrics "
            f"{', '.join(CHOICE_LENGTH)} (it is {metric!r})."
        )
    requests = [
        Request(prompt.replace("{query}", question.query), delimiter + choice)
        for question in questions
        for choice in question.choices
    ]
    sums = scorer.log_likelihoods(requests).sums
    outcomes, start = np.zeros(len(questions)), 0
    for place, question in enumerate(questions):
        lengths = np.array([CHOICE_LENGTH[metric](choice) for choice in question.choices], dtype=np.float64)
        own = sums[start : start + len(lengths)]
        outcomes[place] = float(np.argmax(own / lengths) == question.gold)
        start += len(lengths)
    return outcomes


def last_word_outcomes(
    scorer: Scorer, passages: Sequence[tuple[str, str]], *, delimiter: str = " "
) -> Outcomes:
    """Return 1 where each token of the word that ends a passage is the likeliest, else 0, `(passages,)`.

    Passages are contexts and last words (Paperno et al. 2016).
    """
    found = scorer.log_likelihoods([Request(context, delimiter + word) for context, word in passages])
    return found.greedy.astype(np.float64)


def perplexity_outcomes(scorer: Scorer, texts: Sequence[str]) -> Outcomes:
    """Return the mean log-likelihood of each text, in nats a token, `(texts,)`; its perplexity is exp(-outcome).

    Each text is read by itself after the prefix token, and every token of it is predicted.

    Raises:
        DataError: a text that is empty, or has more tokens than the model reads: make smaller blocks.
    """
    found = scorer.log_likelihoods([Request("", text) for text in texts])
    outcomes: Outcomes = found.sums / found.tokens
    return outcomes


def _question(row: Mapping[str, Any], query: str, choices: str, gold: str) -> Question:
    if missing := [name for name in (query, choices, gold) if name not in row]:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(map(str, row))}")
    try:
        given = json.loads(row[choices]) if isinstance(row[choices], str) else row[choices]
    except ValueError:
        given = None
    if not isinstance(given, (list, tuple, np.ndarray)):
        raise ValueError(f"{choices} is {row[choices]!r}; it is a list, or the JSON of one")
    texts = tuple(str(choice) for choice in given)
    if len(texts) < 2 or not all(texts):
        raise ValueError(
            f"{choices} has {len(texts)} choices, {sum(not text for text in texts)} of them empty"
        )
    right = str(row[gold]).removesuffix(".0")
    if not right.isdecimal() or int(right) >= len(texts):
        raise ValueError(f"{gold} is {row[gold]!r}; it is the index of one of {len(texts)} choices, from 0")
    return Question(str(row[query]), texts, int(right))


def _refuse(problems: Sequence[str], message: str) -> None:
    if problems:
        raise DataError(f"{len(problems)} {message}", first_of(problems))
