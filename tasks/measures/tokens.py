"""What a model will read of the rows: what is cut, what it does not know, and which tokens carry loss.

A set whose tokens carry no loss trains without a word and teaches nothing; so does one whose turns never end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.tables import roles_alternate, said

UNSUPERVISED = -100
SHOWN_TOKENS = 400


@dataclass(frozen=True)
class Audit:
    """One entry a row, `(rows,)`."""

    tokens: NDArray[np.int64]
    """Tokens, nothing cut."""
    plain: NDArray[np.int64]
    """Tokens of what the row says: without what begins and ends it, a chat template's words, and system messages."""
    words: NDArray[np.int64]
    """Words of what the row says."""
    cut: NDArray[np.bool_]
    """Whether the row is longer than what is read of it."""
    unknown: NDArray[np.int64]
    """Tokens that stand for what the tokenizer does not know."""
    supervised: NDArray[np.int64]
    """Tokens that carry loss, of those that are read; for what is no language model, all that are read."""
    ends: NDArray[np.bool_]
    """Whether every turn of the assistant that is read whole ends with a token that carries loss and ends a turn."""
    doubled: NDArray[np.bool_]
    """Whether the row begins with two beginning-of-text tokens."""
    in_order: NDArray[np.bool_]
    """Whether a conversation's system message comes first, users and assistant alternate, and the assistant has the last
    word; what is no conversation is in order."""


def audit(table: pd.DataFrame, tokenizer: Any, task: str, max_length: int) -> Audit:
    """Tokenize rows as training does, and count.

    Raises:
        DataError: the tokenizer has no chat template, or it cannot be told what the assistant says in it.
    """
    contents = _contents(table)
    talks = [_messages(content, task) for content in contents]
    rows = [_row(content, talk, tokenizer, task) for content, talk in zip(contents, talks, strict=True)]
    begin = tokenizer.bos_token_id
    unknown = _unknown(tokenizer)
    ending = _ending(tokenizer)
    texts = [[content] if talk is None else said(talk) for content, talk in zip(contents, talks, strict=True)]
    return Audit(
        tokens=np.array([len(ids) for ids, _ in rows], dtype=np.int64),
        plain=_plain_tokens(talks, rows, tokenizer),
        words=np.array([sum(len(re.findall(r"\w+", text)) for text in one) for one in texts], dtype=np.int64),
        cut=np.array([len(ids) > max_length for ids, _ in rows], dtype=bool),
        unknown=np.array(
            [ids.count(unknown) if unknown is not None else 0 for ids, _ in rows], dtype=np.int64
        ),
        supervised=np.array(
            [sum(label != UNSUPERVISED for label in labels[:max_length]) for _, labels in rows],
            dtype=np.int64,
        ),
        ends=np.array(
            [_turns_end(labels[:max_length], len(labels) > max_length, ending) for _, labels in rows]
        ),
        doubled=np.array([begin is not None and ids[:2] == [begin, begin] for ids, _ in rows], dtype=bool),
        in_order=np.array([_in_order(talk) for talk in talks], dtype=bool),
    )


def coloured(content: str, tokenizer: Any, task: str, max_length: int) -> str:
    """Return a row as the model reads it, with what carries loss between ⟦ and ⟧, and ✂ where it is cut."""
    ids, labels = _row(content, _messages(content, task), tokenizer, task)
    parts, inside = [], False
    for token, label in list(zip(ids, labels, strict=True))[: min(max_length, SHOWN_TOKENS)]:
        if (label != UNSUPERVISED) != inside:
            parts.append("⟧" if inside else "⟦")
            inside = not inside
        parts.append(tokenizer.decode([token]))
    parts += ["⟧"] if inside else []
    parts += ["✂"] if len(ids) > max_length else []
    return " ".join("".join(parts).split())


def _contents(table: pd.DataFrame) -> list[str]:
    return (table["messages"] if "messages" in table else table["text"]).tolist()


def _row(
    content: str, messages: list[dict[str, str]] | None, tokenizer: Any, task: str
) -> tuple[list[int], list[int]]:
    """Return a row's tokens and labels, nothing cut; `messages` are those of a conversation."""
    from tasks.families.chat import tokenize_chat, tokenize_text

    whole = 1 << 30
    if task != "causal-lm":
        ids = list(tokenizer(content, truncation=False, verbose=False)["input_ids"])
        return ids, ids
    read = (
        tokenize_text(tokenizer, content, whole)
        if messages is None
        else tokenize_chat(tokenizer, messages, whole)
    )
    return read.ids, read.labels


def _messages(content: str, task: str) -> list[dict[str, str]] | None:
    """Return a conversation's messages; None for plain text."""
    if task != "causal-lm" or not content.startswith("["):
        return None
    try:
        messages = json.loads(content)
    except ValueError:
        return None
    talk = isinstance(messages, list) and all(isinstance(turn, dict) and "role" in turn for turn in messages)
    return messages if talk else None


def _plain_tokens(
    talks: Sequence[list[dict[str, str]] | None], rows: Sequence[tuple[list[int], list[int]]], tokenizer: Any
) -> NDArray[np.int64]:
    """Return how many tokens what each row says has by itself, (rows,); of plain text, those that are no special ones."""
    special = set(tokenizer.all_special_ids) - {_unknown(tokenizer)}
    turns = [text for talk in talks if talk is not None for text in said(talk)]
    found = iter(tokenizer(turns, add_special_tokens=False, verbose=False)["input_ids"] if turns else [])
    return np.array(
        [
            sum(token not in special for token in ids)
            if talk is None
            else sum(len(next(found)) for _ in said(talk))
            for talk, (ids, _) in zip(talks, rows, strict=True)
        ],
        dtype=np.int64,
    )


def _in_order(messages: list[dict[str, str]] | None) -> bool:
    if messages is None:
        return True
    roles = [turn["role"] for turn in messages]
    return roles[-1:] == ["assistant"] and roles_alternate(roles)


def _unknown(tokenizer: Any) -> int | None:
    """Return the token for what is not known; None where it is one that also begins or ends a text (GPT-2)."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _ending(tokenizer: Any) -> set[int]:
    """Return the tokens that end a turn: the tokenizer's own, and what its template writes after a turn."""
    from tasks.families.chat import render

    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = render(tokenizer, turn).rstrip()
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        ends.add(ids[-1])
    return ends


def _turns_end(labels: Sequence[int], cut: bool, ending: set[int]) -> bool:
    """Say whether each run of tokens that carry loss ends with an end-of-turn token; one that is cut need not."""
    spans: list[list[int]] = []
    previous = UNSUPERVISED
    for label in labels:
        if label != UNSUPERVISED:
            spans.append([label]) if previous == UNSUPERVISED else spans[-1].append(label)
        previous = label
    if cut and spans and labels[-1] != UNSUPERVISED:
        spans = spans[:-1]
    return all(span[-1] in ending for span in spans)
