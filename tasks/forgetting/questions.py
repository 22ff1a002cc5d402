"""Multiple-choice questions, as they are read from rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import DataError, first_of


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
            questions.append(read_question(row, query, choices, gold))
        except ValueError as error:
            problems.append(f"row {place}: {error}")
    if problems:
        message = f"{len(problems)} multiple-choice questions cannot be read:"
        raise DataError(message, first_of(problems))
    return questions


def read_question(row: Mapping[str, Any], query: str, choices: str, gold: str) -> Question:
    """Read one multiple-choice question from a row; choices are a list, or the JSON of one.

    Raises:
        ValueError: the row lacks a field, has fewer than two choices, names none as right, or the right one twice.
    """
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
    if texts.count(texts[int(right)]) > 1:
        raise ValueError(f"the right choice, {texts[int(right)]!r}, is there more than once")
    return Question(str(row[query]), texts, int(right))
