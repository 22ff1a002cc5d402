"""Measure whether this data set can work: copies, leaks, labels, diversity, distance to its use.

Reads the split tables, their schema and `base.json`; writes `check.json`. It measures; `gate` judges.
Alone: `python -m tasks check <recipe>`.

What texts alone can tell is measured on every row. What needs the base model's embeddings is measured on a
stratified, seeded sample of at most `max_rows` a table, which the report states.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.embeddings import Encoder, embed, vectors_folder
from tasks.errors import DataError
from tasks.measures import contamination, diversity, duplicates, harm, images, labels, mismatch, tokens
from tasks.measures.reference import REFERENCE_TEXTS
from tasks.paths import Paths
from tasks.recipe import SPLITS, Check
from tasks.reports import Base, CheckReport, Measure, SplitSchema, read_report, write_report
from tasks.splits import read_splits, target_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SMALLEST_SAMPLE = 30
SMALLEST_GROUPS = 10
WORST = 5
TOKENIZED_ROWS = 20_000
"""Rows whose tokens are counted at most: a stratified sample beyond."""


@dataclass(frozen=True)
class Sample:
    """The rows of one table that are embedded, and their vectors (rows, dim)."""

    name: str
    rows: pd.DataFrame
    vectors: NDArray[np.float32]

    @property
    def groups(self) -> list[str]:
        return [str(group) for group in self.rows["group"]]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.rows["label"].to_numpy(dtype=np.int64)


def check(section: Check, max_length: int | None, *, paths: Paths) -> None:
    """Take every measure and write `check.json`.

    Raises: DataError: the training split is empty, a label is none of the declared ones, or an embedding is
    not finite.
    """
    schema, tables = read_splits(paths)
    tables = {name: table.assign(text=table["text"].fillna("")) for name, table in tables.items()}
    _must_be_usable(tables, len(schema.labels))
    log.info("Looking for copies and leaks in %d rows", sum(map(len, tables.values())))
    measures = [
        *_duplicates(tables["train"], section.near_duplicate_similarity),
        *(_leak(tables, split, section.near_duplicate_similarity) for split in ("test", "validation")),
        _group_leak(tables),
        *_contaminated(tables["train"], paths),
    ]
    if schema.labels:
        measures += [_conflicts(tables, schema.labels), *_balance(tables["train"], schema.labels)]
    if "image" not in tables["train"]:
        measures += [_wording(tables["train"]), *_tokens(tables["train"], schema, section, max_length, paths)]
    samples, reference = _embedded(section, schema, paths, tables)
    train, targets = samples[0], samples[1:]
    measures += _diversity(train, reference, section.seed)
    probe = None
    if schema.labels:
        log.info("Fitting probes on %d training rows", len(train.rows))
        if _enough(train):
            probe = labels.probe(train.vectors, train.labels, train.groups, section.seed)
        measures.append(_label_noise(train, probe, schema.labels))
    for target in targets:
        log.info("Comparing with target %s", target.name)
        measures += _mismatch(train, target, section)
        if schema.labels:
            measures.append(_expected_accuracy(train, target, probe, section.seed))
    report = CheckReport(
        splits=schema.fingerprint,
        rows=sum(schema.rows.values()),
        sampled_rows={sample.name: len(sample.rows) for sample in samples},
        measures=measures,
    )
    write_report(paths.check, report)
    for measure in measures:
        log.info(
            "%-32s %s", measure.name, "inconclusive" if measure.value is None else f"{measure.value:.4g}"
        )


def _must_be_usable(tables: dict[str, pd.DataFrame], classes: int) -> None:
    problems = [] if len(tables["train"]) else ["train: no rows"]
    for name in SPLITS if classes else ():
        outside = tables[name][~tables[name]["label"].between(0, classes - 1)]
        if len(outside):
            problems.append(
                f"{name}: {len(outside)} rows without a declared label, first {outside['id'].iloc[0]}"
            )
    if problems:
        raise DataError(
            "The splits cannot be measured; correct the raw data and run `prepare` again:", problems
        )


# --- texts: every row ----------------------------------------------------------------------------------


def _duplicates(train: pd.DataFrame, similarity: float) -> list[Measure]:
    if "image" in train:
        exact, near = _image_clusters(train["image"].tolist())
    else:
        texts = _forms(train)
        exact, near = duplicates.exact_clusters(texts), duplicates.near_clusters(texts, similarity)
    return [
        Measure(
            name="exact_duplicate_share",
            value=_redundant(exact),
            meaning="Share of training rows that repeat an earlier row, but for case, spacing and punctuation.",
            remedy="Remove the copies: they weigh rows more without adding any.",
            worst=_largest_clusters(train, exact),
        ),
        Measure(
            name="near_duplicate_share",
            value=_redundant(near),
            meaning="Share of training rows that could go if one row of each cluster of near-copies stayed "
            f"(Jaccard similarity of 5-character shingles ≥ {similarity}; exact copies included).",
            remedy="Keep one row a cluster, or look for the template that wrote them.",
            worst=_largest_clusters(train, near),
        ),
    ]


def _image_clusters(contents: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return images.exact_image_clusters(contents), images.near_image_clusters(contents)


def _forms(table: pd.DataFrame) -> list[str]:
    """Return what two rows have in common when one is a copy of the other: their texts, or an image's content."""
    if "image" in table:
        return [images.image_normal_form(content) for content in table["image"]]
    if "positive" in table:
        return (table["text"] + "\n" + table["positive"]).tolist()
    return table["text"].tolist()


def _redundant(clusters: NDArray[np.int64]) -> float:
    return 1 - len(np.unique(clusters)) / len(clusters)


def _largest_clusters(table: pd.DataFrame, clusters: NDArray[np.int64]) -> list[str]:
    roots, sizes = np.unique(clusters, return_counts=True)
    largest = sorted(zip((-sizes).tolist(), roots.tolist(), strict=True))[:WORST]
    worst = []
    for size, root in largest:
        if size < -1:
            ids = table["id"].to_numpy()[clusters == root]
            more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
            worst.append(f"{-size} rows ({', '.join(map(str, ids[:4]))}{more}): {_extract(table, root)}")
    return worst


def _leak(tables: dict[str, pd.DataFrame], split: str, similarity: float) -> Measure:
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
            f"{_name(table, row)} = train {_name(train, found[row])}: {_extract(table, row)}"
            for row in leaked[:WORST].tolist()
        ],
    )


def _contaminated(train: pd.DataFrame, paths: Paths) -> list[Measure]:
    """Look for each original benchmark's examples, of both halves, in the training rows."""
    import pandas as pd

    found = []
    for folder in sorted(path for path in paths.selection.iterdir() if path.is_dir()):
        halves = [
            pd.read_parquet(half / folder.name / "examples.parquet")
            for half in (paths.selection, paths.report_half)
        ]
        examples = pd.concat(halves, ignore_index=True)
        if "image" in examples:
            by = images.image_leaks(examples["image"].tolist(), train["image"].tolist())
        else:
            column = next(name for name in ("query", "context", "text") if name in examples)
            by = contamination.contamination(examples[column].tolist(), _forms(train)).by
            examples = examples.assign(text=examples[column])
        hit = np.flatnonzero(by >= 0)
        found.append(
            Measure(
                name=f"contaminated_{folder.name}_share",
                value=len(hit) / len(examples),
                meaning=f"Share of the {len(examples)} examples of benchmark {folder.name} that the training rows hold, "
                "whole or by an n-gram of words that identifies them: there it would be measured what was taught.",
                remedy=f"Remove these rows from the training data, or take other examples for {folder.name}.",
                worst=[
                    f"{_name(examples, row)} = train {_name(train, int(by[row]))}: {_extract(examples, row)}"
                    for row in hit[:WORST].tolist()
                ],
            )
        )
    return found


def _group_leak(tables: dict[str, pd.DataFrame]) -> Measure:
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


def _conflicts(tables: dict[str, pd.DataFrame], names: Sequence[str]) -> Measure:
    import pandas as pd

    rows = pd.concat([tables[split].assign(split=split) for split in SPLITS], ignore_index=True)
    forms = _forms(rows)
    conflict = duplicates.conflicts(forms, rows["label"].tolist())
    first = sorted(np.flatnonzero(conflict).tolist(), key=lambda row: duplicates.normalise(forms[row]))
    return Measure(
        name="conflicting_label_share",
        value=float(conflict.mean()),
        meaning="Share of rows whose text also occurs with another label (train, validation "
        "and test together).",
        remedy="Decide which label is right, or drop the text.",
        worst=[
            f"{rows['split'].iloc[row]} {_name(rows, row)} "
            f"[{names[rows['label'].iloc[row]]}]: {_extract(rows, row)}"
            for row in first[: 2 * WORST]
        ],
    )


def _balance(train: pd.DataFrame, names: Sequence[str]) -> list[Measure]:
    counts = diversity.class_counts(train["label"].tolist(), len(names))
    listed = ", ".join(
        f"{name} {count}" for name, count in list(zip(names, counts.tolist(), strict=True))[:20]
    )
    return [
        Measure(
            name="minority_class_share",
            value=int(counts.min()) / int(counts.sum()),
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


def _wording(train: pd.DataFrame) -> Measure:
    value, drawn = diversity.distinct_bigrams(train["text"].tolist())
    return Measure(
        name="distinct_2",
        value=round(value, 4) if drawn else None,
        meaning=f"Share of word pairs that differ, expected among {drawn} drawn from the training texts "
        "(a fixed number, so that longer sets compare)."
        if drawn
        else "Inconclusive: no text has two words.",
        remedy="Look for templates and repeated phrases; collect texts from more sources.",
    )


def _tokens(
    train: pd.DataFrame, schema: SplitSchema, section: Check, max_length: int | None, paths: Paths
) -> list[Measure]:
    """Audit what the model will read of the training rows, on a sample of them where there are very many."""
    rows = _sampled(train, TOKENIZED_ROWS, section.seed)
    tokenizer = _tokenizer(read_report(paths.base, Base), paths)
    length = max_length or tokenizer.model_max_length
    found = tokens.audit(rows, tokenizer, schema.task, length)
    of = f"{len(rows)} training rows"
    measures = [
        Measure(
            name="truncated_share",
            value=float(found.cut.mean()),
            meaning=f"Share of {of} that are longer than the {length} tokens that are read of them.",
            remedy="Raise finetune.max_length, or read long texts in windows (finetune.window_overlap).",
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
            value=round(float(found.tokens.sum() / max(found.words.sum(), 1)), 4),
            meaning=f"Fertility: tokens a word in {of}. Plain English has 1.2 to 1.5; much more says that the tokenizer "
            "was made for other texts.",
            remedy="Take a base whose tokenizer was made for texts like these.",
        ),
    ]
    return measures + (_supervision(rows, found, tokenizer, length) if schema.task == "causal-lm" else [])


def _supervision(rows: pd.DataFrame, found: tokens.Audit, tokenizer: Any, length: int) -> list[Measure]:
    contents = (rows["messages"] if "messages" in rows else rows["text"]).tolist()
    silent = found.supervised == 0
    shown = [*np.flatnonzero(silent)[:WORST].tolist(), *range(min(3, len(rows)))]
    views = [
        f"{_name(rows, row)}: {tokens.coloured(contents[row], tokenizer, 'causal-lm', length)}"
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
        ),
    ]


def _worst_rows(
    rows: pd.DataFrame, counts: NDArray[np.int64], bad: NDArray[np.bool_], unit: str
) -> list[str]:
    order = [row for row in np.argsort(-counts, kind="stable").tolist() if bad[row]]
    return [f"{_name(rows, row)} ({counts[row]} {unit}): {_extract(rows, row)}" for row in order[:WORST]]


# --- embeddings: a sample ------------------------------------------------------------------------------


def _embedded(
    section: Check, schema: SplitSchema, paths: Paths, tables: dict[str, pd.DataFrame]
) -> tuple[list[Sample], NDArray[np.float32] | None]:
    """Return the samples of train and of each target, and the vectors of the reference texts (none for images)."""
    base = read_report(paths.base, Base)
    what = "image" if "image" in tables["train"] else "text"
    names = ["train", *target_names(schema)]
    rows = {name: _sampled(tables[name], section.max_rows, section.seed) for name in names}
    contents = [content for name in names for content in rows[name][what]]
    reference = list(REFERENCE_TEXTS) if what == "text" else []
    folder = _vectors_folder(base, section.max_length)
    vectors = embed(
        [*contents, *reference], lambda: _encoder(base, schema, paths), folder, section.max_length
    )
    ends = np.cumsum([len(rows[name]) for name in names])
    parts = np.split(vectors, ends)
    samples = [Sample(name, rows[name], part) for name, part in zip(names, parts[:-1], strict=True)]
    return samples, parts[-1] if reference else None


def _vectors_folder(base: Base, max_length: int) -> Path:
    from tasks.models import pick_device

    return vectors_folder(base.fingerprint, max_length, device=pick_device(), precision="fp32")


def _encoder(base: Base, schema: SplitSchema, paths: Paths) -> Encoder:
    from tasks.families import family
    from tasks.sources import base_folder

    return family(schema.task).load_base(base_folder(base, paths.root))


def _tokenizer(base: Base, paths: Paths) -> Any:
    from tasks.models import load_tokenizer
    from tasks.sources import base_folder

    return load_tokenizer(base_folder(base, paths.root))


def _sampled(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most `most` rows with the table's shares of labels, in its order.

    Rows are ranked by a hash of seed, id and text, so that a table that grows keeps most of its sample (and
    its embeddings).
    """
    if len(table) <= most:
        return table.reset_index(drop=True)
    named = zip(table["id"], table["text"], strict=True)
    hashes = [
        hashlib.sha256(f"{seed}:{name}:{text}".encode("utf-8", "surrogatepass")).hexdigest()
        for name, text in named
    ]
    label = table["label"].to_numpy() if "label" in table else np.zeros(len(table), dtype=np.int64)
    order = np.argsort(np.array(hashes), kind="stable")
    rank_in_class = np.empty(len(table))
    for value in np.unique(label):
        mine = order[label[order] == value]
        rank_in_class[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    chosen = np.sort(order[np.argsort(rank_in_class[order], kind="stable")][:most])
    return table.iloc[chosen].reset_index(drop=True)


def _diversity(train: Sample, reference: NDArray[np.float32] | None, seed: int) -> list[Measure]:
    rows = len(train.rows)
    score = diversity.vendi(train.vectors)
    if reference is None:
        return [_vendi(rows, score, "It grows with the rows.")]
    size = min(rows, len(reference))
    found = diversity.effective_diversity(train.vectors, reference, seed) if _enough(train) else None
    return [
        _vendi(rows, score, "It grows with the rows: bound effective_diversity instead."),
        Measure(
            name="effective_diversity",
            value=round(found.value, 4) if found else None,
            interval=_rounded(found.interval) if found else None,
            meaning=f"Diversity (Vendi score) of {size} training rows over that of {size} "
            "sentences on unlike "
            "subjects: 1 is as varied. With MiniLM, product reviews reach 0.66, "
            "questions to one bank 0.36, one "
            "question in 153 wordings 0.08."
            if found
            else _too_small(train),
            remedy="Collect texts on more subjects and in more wordings; remove copies and templates.",
        ),
    ]


def _vendi(rows: int, score: float, advice: str) -> Measure:
    return Measure(
        name="vendi_score",
        value=round(score, 3),
        meaning=f"{rows} training rows are as varied as {score:.1f} rows that have nothing in common. {advice}",
        remedy="Collect rows that differ more; remove copies.",
    )


def _label_noise(train: Sample, probe: labels.ProbeOutcome | None, names: Sequence[str]) -> Measure:
    remedy = "Read the rows below and correct their labels."
    if probe is None:
        return _inconclusive("label_noise_share", _too_small(train) or "", remedy)
    column = np.searchsorted(probe.classes, train.labels)
    probabilities = harm.calibrated(probe.scores, column)
    found = labels.suspicious_labels(probe, train.labels, probabilities)
    accuracy = float(np.mean(probe.scores.argmax(axis=1) == column))
    worst = []
    for row in found[: 2 * WORST].tolist():
        guess = int(probe.classes[probe.scores[row].argmax()])
        worst.append(
            f"{_name(train.rows, row)} [{names[train.labels[row]]}, not "
            f"{names[guess]}?]: {_extract(train.rows, row)}"
        )
    return Measure(
        name="label_noise_share",
        value=round(len(found) / len(train.rows), 4),
        interval=_rounded(labels.wilson(len(found), len(train.rows))),
        meaning="Share of training rows whose label confident learning doubts, by a probe "
        "on the base model that "
        f"has not seen them. It is right on {accuracy:.0%}, and its own errors count in: an upper estimate.",
        remedy=remedy,
        worst=worst,
    )


def _mismatch(train: Sample, target: Sample, section: Check) -> list[Measure]:
    remedy = (
        "Add rows like the target's to the training data; different need not harm: see expected_accuracy."
    )
    names = f"mismatch_auc_{target.name}", f"mmd_{target.name}"
    if reason := _too_small(train) or _too_small(target):
        return [_inconclusive(name, reason, remedy) for name in names]
    pooled = mismatch.pool(train.vectors, target.vectors, train.groups, target.groups)
    area, scores = mismatch.classifier_test(pooled, section.permutations, section.seed)
    kernel = mismatch.kernel_test(pooled, section.permutations, section.seed)
    unlike = np.argsort(-scores[pooled.second], kind="stable")[:WORST].tolist()
    return [
        Measure(
            name=names[0],
            value=round(area.value, 4),
            interval=_rounded(area.interval),
            meaning=f"How well a classifier tells {target.name} from the training rows: 0.5 not "
            "at all, 1 always. " + _significance(area.p_value, section.permutations),
            remedy=remedy,
            worst=[f"{_name(target.rows, row)}: {_extract(target.rows, row)}" for row in unlike],
        ),
        Measure(
            name=names[1],
            value=round(kernel.value, 4),
            interval=_rounded(kernel.interval),
            meaning=f"Squared maximum mean discrepancy of {target.name} and the training rows: 0 "
            "is none, 2 the most. " + _significance(kernel.p_value, section.permutations),
            remedy=remedy,
        ),
    ]


def _expected_accuracy(
    train: Sample, target: Sample, probe: labels.ProbeOutcome | None, seed: int
) -> Measure:
    name = f"expected_accuracy_{target.name}"
    remedy = f"Label a few rows of {target.name} and measure; train on some of them."
    if probe is None or _too_small(target):
        return _inconclusive(name, _too_small(train) or _too_small(target) or "", remedy)
    scores = probe.scores_of(target.vectors)
    column = np.searchsorted(probe.classes, train.labels)
    found = harm.expected_accuracy(probe.scores, column, scores, train.groups, target.groups, seed)
    unsure = np.argsort(scores.max(axis=1), kind="stable")[:WORST].tolist()
    return Measure(
        name=name,
        value=round(found.accuracy, 4),
        interval=_rounded(found.interval),
        meaning=f"Accuracy to expect on {target.name} from a probe on the base model ({found.at_home:.2f} at "
        "home), estimated without labels from calibrated confidence. It promises too much: over 12 pairs of "
        "text domains the truth was 0.08 off on average, nearly always below. The interval is of sampling only.",
        remedy=remedy,
        worst=[f"{_name(target.rows, row)}: {_extract(target.rows, row)}" for row in unsure],
    )


# --- words ---------------------------------------------------------------------------------------------


def _enough(sample: Sample) -> bool:
    return _too_small(sample) is None


def _too_small(sample: Sample) -> str | None:
    """Return why nothing can be estimated from this sample, or None."""
    rows, groups = len(sample.rows), len(set(sample.groups))
    if rows < SMALLEST_SAMPLE:
        return f"Inconclusive: {sample.name} has {rows} rows, and fewer than {SMALLEST_SAMPLE} say nothing."
    if groups < SMALLEST_GROUPS:
        return (
            f"Inconclusive: {sample.name} has {groups} groups, and fewer than {SMALLEST_GROUPS} say nothing."
        )
    return None


def _inconclusive(name: str, reason: str, remedy: str) -> Measure:
    reason = (
        reason or "Inconclusive: the training rows have one label only, so there is nothing to tell apart."
    )
    return Measure(name=name, value=None, meaning=reason, remedy=remedy)


def _significance(p_value: float, permutations: int) -> str:
    verdict = "more than chance" if p_value <= 0.05 else "within chance"
    return f"The difference is {verdict} (p = {p_value:.3g}, {permutations} permutations)."


def _rounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Round as far as embeddings agree whatever the batches they were computed in."""
    return (round(interval[0], 4), round(interval[1], 4)) if interval else None


def _name(table: pd.DataFrame, row: int) -> str:
    return str(table["id"].iloc[row])


def _extract(table: pd.DataFrame, row: int) -> str:
    return _short(table["text"].iloc[row])


def _short(text: str) -> str:
    line = " ".join(text[:400].split())
    return line if len(line) <= 80 else line[:79] + "…"
