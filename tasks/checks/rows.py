"""What the rows alone tell, every one of them: copies, leaks, conflicts, balance, wording."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.checks.words import WORST, extract, row_name
from tasks.errors import DataError
from tasks.measures import contamination, diversity, duplicates, images, truncation
from tasks.paths import Paths
from tasks.recipe import REPLAY, SPLITS
from tasks.reports import Measure
from tasks.tables import label_codes, label_places

if TYPE_CHECKING:
    import pandas as pd

SIDES = " ↔ "
"""Between the sides of a pair; a symbol, which normalising leaves as it is."""


def undecodable(name: str, table: pd.DataFrame) -> list[str]:
    """Return what is wrong with each image of a table that cannot be decoded; nothing for texts."""
    problems = []
    for row, content in enumerate(table.get("image", ())):
        try:
            images.image_normal_form(content)
        except DataError as error:
            problems.append(f"{name}: {row_name(table, row)} ({table['text'].iloc[row]}): {error}")
    return problems


def copies(train: pd.DataFrame, similarity: float) -> list[Measure]:
    if "image" in train:
        exact, near = _image_clusters(train["image"].tolist())
        equal, nearly = "pixel by pixel", "by perceptual hash and pixels"
    else:
        texts = _forms(train)
        exact, near = duplicates.exact_clusters(texts), duplicates.near_clusters(texts, similarity)
        equal = "but for case, spacing and punctuation"
        nearly = f"Jaccard similarity of 5-character shingles ≥ {similarity}"
    return [
        Measure(
            name="exact_duplicate_share",
            value=redundant(exact),
            meaning=f"Share of training rows that repeat an earlier row, {equal}.",
            remedy="Remove the copies: they weigh rows more without adding any.",
            worst=largest_clusters(train, exact),
        ),
        Measure(
            name="near_duplicate_share",
            value=redundant(near),
            meaning="Share of training rows that could go if one row of each cluster of near-copies stayed "
            f"({nearly}; exact copies included).",
            remedy="Keep one row a cluster, or look for the template that wrote them.",
            worst=largest_clusters(train, near),
        ),
        Measure(
            name="effective_sample_share",
            value=round(diversity.effective_sample_size(near) / len(near), 6),
            meaning=f"Effective sample size over {len(near)} training rows, when near-copies say one thing together: 1 "
            "has no copies; a cluster that holds a tenth of the rows costs far more than as many pairs.",
            remedy="Keep one row a cluster of near-copies, the largest clusters first.",
            worst=largest_clusters(train, near),
        ),
    ]


def _image_clusters(contents: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return images.exact_image_clusters(contents), images.near_image_clusters(contents)


def _forms(table: pd.DataFrame) -> list[str]:
    """Return what two rows have in common when one is a copy of the other: their texts, or an image's content."""
    if "image" in table:
        return [images.image_normal_form(content) for content in table["image"]]
    if "positive" in table:
        # In either order a pair is the same pair; what a triplet sets against it is part of the row.
        others = table["negative"] if "negative" in table else [None] * len(table)
        rows = zip(table["text"], table["positive"], others, strict=True)
        return [_pair(text, positive, other) for text, positive, other in rows]
    return table["text"].tolist()


def _pair(text: str, positive: str, other: str | None) -> str:
    sides = sorted(map(duplicates.normalise, (text, positive)))
    return SIDES.join([*sides, duplicates.normalise(other)] if isinstance(other, str) else sides)


def redundant(clusters: NDArray[np.int64]) -> float:
    return 1 - len(np.unique(clusters)) / len(clusters)


def largest_clusters(table: pd.DataFrame, clusters: NDArray[np.int64]) -> list[str]:
    roots, sizes = np.unique(clusters, return_counts=True)
    largest = sorted(zip((-sizes).tolist(), roots.tolist(), strict=True))[:WORST]
    worst = []
    for size, root in largest:
        if size < -1:
            ids = table["id"].to_numpy()[clusters == root]
            more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
            worst.append(f"{-size} rows ({', '.join(map(str, ids[:4]))}{more}): {extract(table, root)}")
    return worst


def leak(tables: dict[str, pd.DataFrame], split: str, similarity: float) -> Measure:
    table, train = tables[split], tables["train"]
    if "image" in table:
        found = images.image_leaks(table["image"].tolist(), train["image"].tolist())
    else:
        found = duplicates.leaks(_forms(table), _forms(train), similarity)
    leaked = np.flatnonzero(found >= 0)
    return Measure(
        name=f"leaked_{split}_share",
        value=len(leaked) / len(table) if len(table) else None,
        meaning=f"Share of {split} rows that equal or nearly equal a training row: they measure memory."
        if len(table)
        else f"Inconclusive: {split} has no rows.",
        remedy=f"Remove these rows from train or {split}, or give copies one group "
        "(`group`), to keep them together.",
        worst=[
            f"{row_name(table, row)} = train {row_name(train, found[row])}: {extract(table, row)}"
            for row in leaked[:WORST].tolist()
        ],
    )


def contaminated(tables: Mapping[str, pd.DataFrame], paths: Paths) -> list[Measure]:
    """Look for each original benchmark's examples, of both halves, in what is trained on: `train` and `replay`."""
    import pandas as pd

    learned = [tables[name].assign(id=_told(name, tables)) for name in ("train", REPLAY) if name in tables]
    rows = pd.concat(learned, ignore_index=True)
    return [_contamination(name, examples, rows) for name, examples in _benchmarks(paths)]


def _told(name: str, tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return the rows' ids, with the table's name where there are several."""
    ids = tables[name]["id"].astype(str)
    return ids if REPLAY not in tables else f"{name} " + ids


def original_examples(paths: Paths) -> pd.DataFrame:
    """Return what the original benchmarks ask (id, text, group, and `image` of images), of their selection halves."""
    import pandas as pd

    columns = ["id", "text", "image", "group"]
    parts = [
        examples.assign(id=name + " " + examples["id"].astype(str))[[c for c in columns if c in examples]]
        for name, examples in _benchmarks(paths, report=False)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _benchmarks(paths: Paths, report: bool = True) -> Iterator[tuple[str, pd.DataFrame]]:
    import pandas as pd

    for folder in sorted(path for path in paths.selection.iterdir() if path.is_dir()):
        halves = [paths.selection, *([paths.report_half] if report else [])]
        read = [pd.read_parquet(half / folder.name / "examples.parquet") for half in halves]
        examples = pd.concat(read, ignore_index=True)
        if "image" not in examples:
            column = next(name for name in ("query", "context", "text") if name in examples)
            examples = examples.assign(text=examples[column])
        if "document_id" in examples:
            corpus = pd.concat([pd.read_parquet(half / folder.name / "corpus.parquet") for half in halves])
            documents = corpus.drop_duplicates("id").set_index("id")["text"]
            examples = examples.assign(positive=examples["document_id"].map(documents))
        yield folder.name, examples


def _passages(table: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Return what could be a benchmark's text: rows, sides of pairs, turns of conversations; and which row each is of."""
    texts, rows = table["text"].tolist(), list(range(len(table)))
    for side in ("positive", "negative"):
        if side in table:
            texts += table[side].tolist()
            rows += list(range(len(table)))
    if "messages" in table:
        for row, messages in enumerate(table["messages"]):
            # Replayed rows may be plain texts, which have no turns.
            said = [turn["content"] for turn in json.loads(messages)] if isinstance(messages, str) else []
            texts += said
            rows += [row] * len(said)
    return texts, np.array(rows, dtype=np.int64)


def _held(
    texts: pd.Series, passages: list[str], of_row: NDArray[np.int64], *, short: bool = True
) -> NDArray[np.int64]:
    """Return the training row that holds each text, or -1, `(texts,)`; equal texts are looked for once.

    `short`: whether texts of fewer words than an n-gram, which are compared as a whole, count.
    """
    import pandas as pd

    codes, distinct = pd.factorize(texts)
    found = contamination.contamination(distinct.tolist(), passages)
    by = np.where(found.short, -1, found.by) if not short else found.by
    return (np.where(by >= 0, of_row[by], -1) if len(of_row) else by)[codes]


def _contamination(name: str, examples: pd.DataFrame, train: pd.DataFrame) -> Measure:
    if "image" in examples:
        by = images.image_leaks(examples["image"].tolist(), train["image"].tolist())
    else:
        passages = _passages(train)
        by = _held(examples["text"], *passages)
        if "positive" in examples:  # a document to be found, say: a short one («yes») identifies no example
            by = np.where(by >= 0, by, _held(examples["positive"], *passages, short=False))
    how = (
        "the same or nearly" if "image" in examples else "whole or by an n-gram of words that identifies them"
    )
    hit = np.flatnonzero(by >= 0)
    return Measure(
        name=f"contaminated_{name}_share",
        value=len(hit) / len(examples),
        meaning=f"Share of the {len(examples)} examples of benchmark {name} that the training rows hold, "
        f"{how}: there it would be measured what was taught.",
        remedy=f"Remove these rows from the training data, or take other examples for {name}.",
        worst=[
            f"{row_name(examples, row)} = train {row_name(train, int(by[row]))}: {extract(examples, row)}"
            for row in hit[:WORST].tolist()
        ],
    )


def group_leak(tables: dict[str, pd.DataFrame]) -> Measure:
    seen = set(tables["train"]["group"].astype(str))
    shared, rows, worst = 0, 0, []
    for split in ("validation", "test"):
        groups = tables[split]["group"].astype(str)
        inside = groups.isin(seen)
        rows, shared = rows + len(groups), shared + int(inside.sum())
        worst += [f"{split}: group {group}" for group in groups[inside].drop_duplicates().tolist()[:WORST]]
        seen |= set(groups)
    return Measure(
        name="group_leak_share",
        value=shared / rows if rows else None,
        meaning="Share of validation and test rows whose group is also in an earlier split."
        if rows
        else "Inconclusive: validation and test have no rows.",
        remedy="Split by group: name the column of what must not be split (`group`).",
        worst=worst[:WORST],
    )


def conflicts(tables: dict[str, pd.DataFrame], names: Sequence[str]) -> Measure:
    import pandas as pd

    rows = pd.concat([tables[split].assign(split=split) for split in SPLITS], ignore_index=True)
    forms = _forms(rows)
    conflict = duplicates.conflicts(forms, label_codes(rows).tolist())
    first = sorted(np.flatnonzero(conflict).tolist(), key=lambda row: duplicates.normalise(forms[row]))
    return Measure(
        name="conflicting_label_share",
        value=float(conflict.mean()),
        meaning="Share of rows that also occur with another label (train, validation and test together).",
        remedy="Decide which label is right, or drop the text.",
        worst=[
            f"{rows['split'].iloc[row]} {row_name(rows, row)} "
            f"[{_named(rows['label'].iloc[row], names)}]: {extract(rows, row)}"
            for row in first[: 2 * WORST]
        ],
    )


def _named(label: Any, names: Sequence[str]) -> str:
    return " + ".join(names[one] for one in np.atleast_1d(label).astype(int)) or "no label"


def balance(train: pd.DataFrame, names: Sequence[str]) -> list[Measure]:
    counts = diversity.class_counts(label_places(train)[1].tolist(), len(names))
    rarest = sorted(zip(counts.tolist(), names, strict=True))[:20]
    listed = ", ".join(f"{name} {count}" for count, name in rarest) + (", …" if len(names) > 20 else "")
    return [
        Measure(
            name="minority_class_share",
            value=int(counts.min()) / len(train),
            meaning=f"Share of training rows of the rarest of {len(names)} labels ({listed}).",
            remedy=f"Collect rows labelled {names[int(counts.argmin())]}, or leave that label out.",
        ),
        Measure(
            name="class_entropy",
            value=round(diversity.class_entropy(counts), 6),
            meaning="Entropy of the labels over its maximum: 1 is balanced, 0 is one label only.",
            remedy="Collect rows of the rare labels.",
        ),
    ]


def cut_off(train: pd.DataFrame) -> Measure:
    """Say how many rows were cut before they came here."""
    passages, row = _passages(train)
    turns = np.arange(len(row)) >= len(train)
    cut = np.zeros(len(train), dtype=bool)
    for part in (~turns, turns):
        texts = [passages[place] for place in np.flatnonzero(part).tolist()]
        cut[row[part][truncation.cut_texts(texts)]] = True
    return Measure(
        name="cut_off_share",
        value=float(cut.mean()),
        meaning="Share of training rows with a text that ends where many others end, at exactly the longest length there "
        "is: cut by an export or a column's width before they came here.",
        remedy="Export the whole texts, or remove what was cut.",
        worst=[
            f"{row_name(train, place)}, {len(train['text'].iloc[place])} characters: …{train['text'].iloc[place][-60:]}"
            for place in np.flatnonzero(cut)[:WORST].tolist()
        ],
    )


def wording(train: pd.DataFrame) -> Measure:
    texts = train["text"].tolist()
    value, drawn = diversity.distinct_bigrams(texts)
    return Measure(
        name="distinct_2",
        value=round(value, 4) if drawn else None,
        meaning=f"Share of word pairs that differ, expected among {drawn} drawn from the training texts "
        "(a fixed number, so that longer sets compare)."
        if drawn
        else "Inconclusive: no text has two words.",
        remedy="Look for templates and repeated phrases; collect texts from more sources.",
        worst=[
            f"{count} times: {first} {second}"
            for (first, second), count in diversity.common_bigrams(texts, WORST)
        ],
    )
