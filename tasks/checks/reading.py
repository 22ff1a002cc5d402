"""What the model will read of the rows: tokens cut, unknown, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.checks.sample import sampled, too_few
from tasks.checks.words import WORST, extract, inconclusive, row_name
from tasks.measures import tokens
from tasks.reports import Measure

if TYPE_CHECKING:
    import pandas as pd

TOKENIZED_ROWS = 20_000
"""Rows whose tokens are counted at most: a stratified sample beyond."""


def reading(
    tables: Mapping[str, pd.DataFrame],
    targets: Sequence[str],
    tokenizer: Any,
    task: str,
    length: int,
    seed: int,
) -> list[Measure]:
    """Audit what the model will read of the training rows and of each target, on a sample where there are many."""
    rows = _read_texts(sampled(tables["train"], TOKENIZED_ROWS, seed))
    found = tokens.audit(rows, tokenizer, task, length)
    measures = [
        *_read_of(rows, found, length),
        *(_supervision(rows, found, tokenizer, length) if task == "causal-lm" else []),
    ]
    for name in targets:
        some = sampled(tables[name], TOKENIZED_ROWS, seed)
        there = _read_there(name, tokens.audit(_read_texts(some), tokenizer, task, length), found)
        few = too_few(name, len(some), some["group"].tolist() if "group" in some else some["id"].tolist())
        measures += [inconclusive(one.name, few, one.remedy) for one in there] if few else there
    return measures


def _read_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each text that is read by itself: of pairs and triplets every side."""
    import pandas as pd

    sides = [name for name in ("positive", "negative") if name in rows]
    if not sides:
        return rows
    others = [rows.assign(text=rows[side], id=rows["id"].astype(str) + f" ({side})") for side in sides]
    return pd.concat([rows, *others], ignore_index=True).drop(columns=sides)


def _read_of(rows: pd.DataFrame, found: tokens.Audit, length: int) -> list[Measure]:
    of = f"{len(rows)} training texts"
    words = np.maximum(found.words, 1)
    short, long = np.quantile(words, [0.1, 0.9])
    return [
        Measure(
            name="truncated_share",
            value=float(found.cut.mean()),
            meaning=f"Share of {of} that are longer than the {length} tokens that are read at once: cut there, or "
            "read in windows where finetune.window_overlap says so.",
            remedy="Raise finetune.max_length, if the base reads more, or read long texts in windows "
            "(finetune.window_overlap).",
            worst=_worst_rows(rows, found.tokens, found.cut, "tokens"),
        ),
        Measure(
            name="unknown_token_share",
            value=float(found.unknown.sum() / max(found.tokens.sum(), 1)),
            meaning=f"Share of the tokens of {of} that the base's tokenizer does not know.",
            remedy="Take a base whose tokenizer knows this language and its signs.",
            worst=_worst_rows(rows, found.unknown, found.unknown > 0, "unknown"),
        ),
        Measure(
            name="tokens_per_word",
            value=round(float(found.plain.sum() / max(found.words.sum(), 1)), 4),
            meaning=f"Fertility: tokens a word in {of}, special tokens apart. Plain English has 1.1 to 1.5; much more "
            "says that the tokenizer was made for other texts.",
            remedy="Take a base whose tokenizer was made for texts like these.",
            worst=_most(rows, found.plain / words, "tokens a word"),
        ),
        Measure(
            name="length_spread",
            value=round(float(long / short), 4),
            meaning=f"How much longer the long {of} are than the short ones: the 90th percentile of their words "
            f"({long:.0f}) over the 10th ({short:.0f}). 1 is a template.",
            remedy="Collect texts of the lengths that the model will meet.",
            worst=_most(rows, words, "words"),
        ),
    ]


def _read_there(name: str, there: tokens.Audit, home: tokens.Audit) -> list[Measure]:
    """Compare the tokens of a target with those of the training rows."""

    def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
        return float(part.sum() / max(int(whole.sum()), 1))

    fertility = ratio(there.plain, there.words), ratio(home.plain, home.words)
    unknown = ratio(there.unknown, there.tokens), ratio(home.unknown, home.tokens)
    length = float(np.mean(there.tokens)), float(np.mean(home.tokens))
    return [
        Measure(
            name=f"tokens_per_word_{name}",
            value=round(fertility[0], 4),
            meaning=f"Fertility: tokens a word in {name}; the training rows have {fertility[1]:.2f}. Much more says that "
            "the tokenizer was not made for these texts.",
            remedy="Take a base whose tokenizer was made for texts like these.",
        ),
        Measure(
            name=f"unknown_token_share_{name}",
            value=unknown[0],
            meaning=f"Share of the tokens of {name} that the base's tokenizer does not know; of the training rows "
            f"{unknown[1]:.2%}.",
            remedy="Take a base whose tokenizer knows this language and its signs.",
        ),
        Measure(
            name=f"length_ratio_{name}",
            value=round(length[0] / max(length[1], 1e-9), 4),
            meaning=f"Mean length of {name} ({length[0]:.0f} tokens) over that of the training rows ({length[1]:.0f}).",
            remedy="Train on texts as long as those the model will meet.",
        ),
    ]


def _supervision(rows: pd.DataFrame, found: tokens.Audit, tokenizer: Any, length: int) -> list[Measure]:
    contents = (rows["messages"] if "messages" in rows else rows["text"]).tolist()
    silent = found.supervised == 0
    shown = [*np.flatnonzero(silent)[:WORST].tolist(), *range(min(3, len(rows)))]
    views = [
        f"{row_name(rows, row)}: {tokens.coloured(contents[row], tokenizer, 'causal-lm', length)}"
        for row in shown
    ]
    return [
        Measure(
            name="unsupervised_share",
            value=float(silent.mean()),
            meaning="Share of training rows of which no token that is read carries loss: nothing is learned from them. "
            "Shown is what the model reads; what carries loss stands between ⟦ and ⟧.",
            remedy="Raise finetune.max_length, shorten what comes before the assistant's first turn, or remove the rows.",
            worst=views,
        ),
        Measure(
            name="unended_turn_share",
            value=float((~found.ends).mean()),
            meaning="Share of training rows in which a turn of the assistant does not end with an end-of-turn token that "
            "carries loss: a model that learns from them does not learn to stop.",
            remedy="Put the end-of-turn token into the chat template's assistant turns.",
            worst=_worst_rows(rows, found.tokens, ~found.ends, "tokens"),
        ),
        Measure(
            name="doubled_start_share",
            value=float(found.doubled.mean()),
            meaning="Share of training rows that begin with two beginning-of-text tokens.",
            remedy="Take the token out of the chat template, or stop the tokenizer from adding it.",
            worst=_worst_rows(rows, found.tokens, found.doubled, "tokens"),
        ),
        *(_roles(rows, found) if "messages" in rows else []),
    ]


def _roles(rows: pd.DataFrame, found: tokens.Audit) -> list[Measure]:
    return [
        Measure(
            name="disordered_roles_share",
            value=float((~found.in_order).mean()),
            meaning="Share of training rows in which a system message comes late, one role speaks twice in a row, or the "
            "assistant does not have the last word.",
            remedy="Join the turns of one speaker, put the system message first, and cut what follows the assistant.",
            worst=_worst_rows(rows, found.tokens, ~found.in_order, "tokens"),
        )
    ]


def _most(rows: pd.DataFrame, figures: NDArray[np.floating], unit: str) -> list[str]:
    order = np.argsort(-figures, kind="stable")[:WORST].tolist()
    return [f"{row_name(rows, row)} ({figures[row]:.4g} {unit}): {extract(rows, row)}" for row in order]


def _worst_rows(
    rows: pd.DataFrame, counts: NDArray[np.int64], bad: NDArray[np.bool_], unit: str
) -> list[str]:
    order = [row for row in np.argsort(-counts, kind="stable").tolist() if bad[row]]
    return [f"{row_name(rows, row)} ({counts[row]} {unit}): {extract(rows, row)}" for row in order[:WORST]]
