"""Measure whether this data set can work: copies, leaks, labels, diversity, distance to its use.

Reads the split tables, their schema and `base.json`; writes `check.json`. It measures; `gate` judges.
Alone: `python -m tasks check <recipe>`.

What texts alone can tell is measured on every row. What needs the base model's embeddings is measured on a
stratified, seeded sample of at most `max_rows` a table, which the report states.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.checks import labels, pairs, reading, rows, surprise, targets, variety
from tasks.checks.sample import Sample, enough, sampled, sampled_target, too_small
from tasks.checks.variety import Reference
from tasks.device import hold_device
from tasks.embeddings import Encoder, embed, vectors_folder
from tasks.errors import DataError
from tasks.measures.harm import study
from tasks.measures.labels import probe as fit_probe
from tasks.measures.reference import REFERENCE_TEXTS
from tasks.paths import Paths
from tasks.recipe import ORIGINAL, SPLITS, Check
from tasks.reports import Base, CheckReport, Measure, SplitSchema, read_report, write_report
from tasks.splits import read_splits, target_names
from tasks.tables import label_places, said

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

log = logging.getLogger(__name__)

SHARED = 0.05
"""Share of the conversations from which on a system message is an instruction that says nothing of its row."""


@dataclass(frozen=True)
class Embedded:
    """What is embedded: samples of train, of each target, of the original benchmarks; and the reference texts."""

    train: Sample
    targets: Sequence[Sample]
    original: Sample
    reference: Reference
    """What variety is held against: texts on unlike subjects; for images, those that the base is measured on."""


def check(section: Check, max_length: int | None, *, paths: Paths) -> None:
    """Take every measure and write `check.json`.

    Raises: DataError: the training split is empty, a label is none of the declared ones, or an embedding is
    not finite.
    """
    schema, tables = read_splits(paths)
    own = _own_instructions(tables.values())
    tables = {name: _spoken(table, own) for name, table in tables.items()}
    _must_be_usable(tables, len(schema.labels))
    log.info("Looking for copies and leaks in %d rows", sum(map(len, tables.values())))
    measures = list(_of_rows(section, schema, tables, paths))
    if "image" not in tables["train"]:
        tokenizer = _tokenizer(read_report(paths.base, Base), paths)
        length = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
        measures += reading.reading(
            tables, target_names(schema), tokenizer, schema.task, length, section.seed
        )
    model = cache(lambda: _encoder(read_report(paths.base, Base), schema, paths))
    tables = {**tables, ORIGINAL: rows.original_examples(paths)}
    with _device():
        embedded = _embedded(section, schema, paths, tables, model)
        measures += _of_embeddings(section, schema, embedded)
        if schema.task == "causal-lm":
            measures += _of_likelihoods(section, schema, paths, tables, model)
    samples = [embedded.train, *embedded.targets, embedded.original]
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


def _device() -> AbstractContextManager[None]:
    from tasks.models import pick_device

    return hold_device(pick_device())


def _own_instructions(tables: Iterable[pd.DataFrame]) -> set[str]:
    """Return the system messages that fewer than one row in twenty has: they are what a row is about, as a mail is."""
    conversations = [json.loads(talk) for table in tables for talk in _conversations(table)]
    heard = Counter(
        turn["content"] for messages in conversations for turn in messages if turn["role"] == "system"
    )
    return {content for content, rows in heard.items() if rows < SHARED * len(conversations)}


def _conversations(table: pd.DataFrame) -> list[str]:
    return [talk for talk in table["messages"] if isinstance(talk, str)] if "messages" in table else []


def _spoken(table: pd.DataFrame, own: Collection[str]) -> pd.DataFrame:
    """Return a table whose text is what its rows say: of conversations the turns, and `own` system messages.

    Roles and a system message that many rows share would make unlike conversations alike.
    """
    texts: list[str] = table["text"].fillna("").tolist()
    if "messages" in table:
        rows = zip(table["messages"], texts, strict=True)
        texts = [
            "\n".join(said(json.loads(talk), own)) if isinstance(talk, str) else text for talk, text in rows
        ]
    return table.assign(text=texts)


def _must_be_usable(tables: dict[str, pd.DataFrame], classes: int) -> None:
    problems = [] if len(tables["train"]) else ["train: no rows"]
    for name in SPLITS if classes else ():
        owners, given = label_places(tables[name])
        outside = tables[name].iloc[np.unique(owners[(given < 0) | (given >= classes)])]
        if len(outside):
            problems.append(
                f"{name}: {len(outside)} rows without a declared label, first {outside['id'].iloc[0]}"
            )
    for name, table in tables.items():
        problems += rows.undecodable(name, table)
    if problems:
        raise DataError(
            "The splits cannot be measured; correct the raw data and run `prepare` again:", problems
        )


def _of_rows(
    section: Check, schema: SplitSchema, tables: dict[str, pd.DataFrame], paths: Paths
) -> Iterator[Measure]:
    """Take what every row tells."""
    similarity = section.near_duplicate_similarity
    yield from rows.copies(tables["train"], similarity)
    yield from (rows.leak(tables, name, similarity) for name in ("test", "validation", *target_names(schema)))
    yield rows.group_leak(tables)
    yield from rows.contaminated(tables, paths)
    if schema.labels:
        yield rows.conflicts(tables, schema.labels)
        yield from rows.balance(tables["train"], schema.labels)
    if "positive" in tables["train"]:
        yield from pairs.pairs(tables)
    if "image" not in tables["train"]:
        yield rows.wording(tables["train"])
        yield rows.cut_off(tables["train"])


def _of_embeddings(section: Check, schema: SplitSchema, embedded: Embedded) -> Iterator[Measure]:
    """Take what the base model's embeddings of the samples tell."""
    train, reference = embedded.train, embedded.reference
    yield from variety.variety(train, reference, section.seed)
    yield variety.reworded(train, reference, section.semantic_similarity)
    yield variety.coverage(train, reference)
    if schema.labels:
        yield variety.variety_by_class(train, reference, schema.labels, section.seed)
    yield from targets.distance(train, embedded.original, section)
    probe = home = None
    if schema.labels:
        log.info("Fitting probes on %d training rows", len(train.rows))
    if schema.multi_label:
        yield labels.noise_of_label_lists(train, schema.labels, section.seed)
    elif schema.labels:
        if enough(train):
            probe = fit_probe(train.vectors, train.labels, train.groups, section.seed)
        if probe and embedded.targets:
            home = study(train.vectors, probe, train.labels, train.groups, section.seed)
        yield labels.label_noise(train, probe, schema.labels)
    for target in embedded.targets:
        log.info("Comparing with target %s", target.name)
        yield from targets.distance(train, target, section)
        yield from targets.distance(target, embedded.original, section)
        yield targets.covered(train, target)
        if schema.labels:
            yield targets.label_shift(train, target, probe, schema.labels, section.seed)
            yield targets.expected_accuracy(train, target, home)


def _of_likelihoods(
    section: Check,
    schema: SplitSchema,
    paths: Paths,
    tables: dict[str, pd.DataFrame],
    model: Callable[[], Any],
) -> list[Measure]:
    """Take what the base, a language model, makes of the rows; kept by content as embeddings are."""
    log.info("Asking the base how likely the rows are")
    base, length = read_report(paths.base, Base), section.max_length

    def losses(table: pd.DataFrame) -> NDArray[np.float32]:
        column = "messages" if "messages" in table else "text"
        folder = _vectors_folder(base, length, f"nats-{column}")
        found = embed(table[column].tolist(), lambda: surprise.Likelihoods(model(), column), folder, length)
        return found.reshape(len(table), 2)

    names = ["train", *target_names(schema), ORIGINAL]
    return surprise.surprise({name: tables[name] for name in names}, losses, length, section.seed)


# --- embeddings: a sample ------------------------------------------------------------------------------


def _embedded(
    section: Check,
    schema: SplitSchema,
    paths: Paths,
    tables: dict[str, pd.DataFrame],
    model: Callable[[], Encoder],
) -> Embedded:
    """Sample the tables and embed what they hold, every distinct content once."""
    base = read_report(paths.base, Base)
    what = "image" if "image" in tables["train"] else "text"
    names = ["train", *target_names(schema), ORIGINAL]
    draw = {name: sampled_target for name in target_names(schema)}
    chosen = {name: draw.get(name, sampled)(tables[name], section.max_rows, section.seed) for name in names}
    sides = [side for side in (what, "positive") if side in tables["train"]]
    reference = list(REFERENCE_TEXTS) if what == "text" else []
    contents = [
        content
        for side in sides
        for name in names
        # What has one side only, such as a benchmark's texts, is held against pairs as a pair of equals.
        for content in chosen[name][side if side in chosen[name] else what]
    ]
    folder = _vectors_folder(base, section.max_length)
    vectors = embed([*reference, *contents], model, folder, section.max_length)
    of_reference, of_rows = vectors[: len(reference)], vectors[len(reference) :]
    parts = np.split(_joined(of_rows, len(sides)), np.cumsum([len(chosen[name]) for name in names])[:-1])
    train, *others, original = [
        Sample(name, chosen[name], part) for name, part in zip(names, parts, strict=True)
    ]
    return Embedded(train, others, original, _reference(original, of_reference, len(sides)))


def _joined(vectors: NDArray[np.float32], sides: int) -> NDArray[np.float32]:
    """Return one vector a row of its sides': the cosine of two rows is then the mean of those of their sides."""
    return np.concatenate(np.split(vectors, sides), axis=1) if sides > 1 else vectors


def _reference(original: Sample, texts: NDArray[np.float32], sides: int) -> Reference:
    if len(texts):
        return Reference(
            _joined(np.concatenate([texts] * sides), sides), "sentences on unlike subjects", None
        )
    return Reference(original.vectors, "images that the base is measured on", too_small(original))


def _vectors_folder(base: Base, max_length: int, kind: str = "mean") -> Path:
    from tasks.models import pick_device

    return vectors_folder(base.fingerprint, max_length, device=pick_device(), precision="fp32", kind=kind)


def _encoder(base: Base, schema: SplitSchema, paths: Paths) -> Encoder:
    from tasks.families import family
    from tasks.sources import base_folder

    return family(schema.task).load_base(base_folder(base, paths.root))


def _tokenizer(base: Base, paths: Paths) -> Any:
    """Return the base's tokenizer, which knows how much the base reads."""
    from tasks.models import load_tokenizer, text_limit
    from tasks.sources import base_folder

    folder = base_folder(base, paths.root)
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = text_limit(folder, tokenizer)
    return tokenizer
