"""The two halves of an original benchmark: examples are split once, by a hash of their group.

What chooses (α, a checkpoint, a rate) sees the *selection* half only; the *report* half is for the verdict.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tasks import reports
from tasks.errors import DataError, first_of
from tasks.files import fingerprint
from tasks.forgetting.questions import read_question
from tasks.forgetting.sizes import METRICS
from tasks.forgetting.slices import SLICE
from tasks.recipe import (
    Benchmark,
    ChoiceBenchmark,
    Data,
    FeatureBenchmark,
    HarnessBenchmark,
    HeadBenchmark,
    LastWordBenchmark,
    PerplexityBenchmark,
    RetrievalBenchmark,
    SimilarityBenchmark,
    Table,
)
from tasks.splits import first_by_hash, hash_positions
from tasks.tables import indexed, read_table, read_text, table_fingerprint, write_table

log = logging.getLogger(__name__)

Parts = Mapping[str, pd.DataFrame]
FIT = "fit"
"""The part on which a probe is fitted."""
SHORTEST_BLOCK = 16
"""Words of a document below which it tells nothing."""


def write_halves(name: str, benchmark: Benchmark, data: Data, raw: Path, folder: Path) -> None:
    """Write `selection/<name>` and `report/<name>` below `folder`; a group is in one of them only.

    Raises:
        DataError: the benchmark cannot be read, or has too few groups to be split.
    """
    examples, extra = READERS[type(benchmark)](name, benchmark, data, raw)
    share = hash_positions(examples["group"], data.seed)
    # A probe's fitting part has taken the first third of the positions.
    middle = 2 / 3 if FIT in extra else 0.5
    halves = {"selection": examples[share < middle], "report": examples[share >= middle]}
    parts = {**halves, **extra}
    if empty := [part for part, rows in parts.items() if rows.empty]:
        raise DataError(
            f"benchmark {name}: too few groups to split: {sum(map(len, parts.values()))} rows leave nothing for "
            f"{', '.join(empty)}. Give it more rows, or another `data.seed`."
        )
    if FIT in extra and extra[FIT]["label"].nunique() < 2:
        raise DataError(f"benchmark {name}: its fitting part has one class only; give it rows of the others.")
    for half, rows in halves.items():
        _write_half(folder / half / name, name, benchmark, rows, extra, _labels(benchmark, data))
    log.info("benchmark %s: %s", name, ", ".join(f"{half} {len(rows)}" for half, rows in halves.items()))


def _write_half(
    folder: Path, name: str, benchmark: Benchmark, rows: pd.DataFrame, extra: Parts, labels: list[str]
) -> None:
    folder.mkdir(parents=True)
    tables = {"examples.parquet": rows, **{f"{part}.parquet": table for part, table in extra.items()}}
    for file, table in tables.items():
        write_table(table, folder / file)
    settings = benchmark.model_dump(
        mode="json",
        include={"neighbours", "prompt", "normalise", "metric", "harness_task", "shots", "slice"},
    )
    info = reports.BenchmarkInfo(
        name=name,
        kind=benchmark.kind,
        metric=METRICS.get(benchmark.kind) or settings["metric"],
        examples=len(rows),
        groups=int(rows["group"].nunique()),
        fingerprint=fingerprint([(file, _content(table)) for file, table in tables.items()]),
        settings=settings,
        labels=labels,
    )
    reports.write_report(folder / "benchmark.json", info)


def _content(table: pd.DataFrame) -> str:
    """Name what a model is asked: by what its answers are sliced is no part of that."""
    return table_fingerprint(table.drop(columns=SLICE, errors="ignore"))


def _labels(benchmark: Benchmark, data: Data) -> list[str]:
    if isinstance(benchmark, FeatureBenchmark):
        return benchmark.labels or data.labels
    return benchmark.labels if isinstance(benchmark, HeadBenchmark) else []


# --- rows with labels or scores ------------------------------------------------------------------------


def _features(name: str, benchmark: FeatureBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    rows = _rows(name, benchmark.table, benchmark.labels or data.labels, data, raw)
    position = hash_positions(rows["group"], data.seed)
    return rows[position >= 1 / 3], {FIT: rows[position < 1 / 3]}


def _head(name: str, benchmark: HeadBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    return _rows(name, benchmark.table, benchmark.labels, data, raw), {}


def _similarity(
    name: str, benchmark: SimilarityBenchmark, data: Data, raw: Path
) -> tuple[pd.DataFrame, Parts]:
    return _rows(name, benchmark.table, [], data, raw), {}


def _rows(name: str, table: Table, labels: list[str], data: Data, raw: Path) -> pd.DataFrame:
    rows, dropped = read_table(table, raw, labels)
    log.info("benchmark %s: %d rows dropped by rule", name, sum(dropped.values()))
    return first_by_hash(indexed(rows, labels), table.max_rows, data.seed)


# --- what a language model is asked --------------------------------------------------------------------


def _choices(name: str, benchmark: ChoiceBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    found, problems = [], []
    for number, row in _json_lines(name, raw / benchmark.file):
        try:
            question = read_question(row, benchmark.query, benchmark.choices, benchmark.gold)
            text = _words(row[benchmark.query])
            choices = json.dumps(question.choices, ensure_ascii=False)
            asked = {"query": text, "choices": choices, "gold": question.gold}
            found.append(asked | ({SLICE: _words(row[benchmark.slice])} if benchmark.slice else {}))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"line {number}: {type(error).__name__}: {error}")
    _refuse(name, raw / benchmark.file, problems)
    return _asked(found, "query", benchmark.max_examples, data), {}


def _last_words(name: str, benchmark: LastWordBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    found, problems = [], []
    for number, row in _json_lines(name, raw / benchmark.file):
        context, word = (_words(row.get(field)) for field in (benchmark.context, benchmark.continuation))
        if not context.strip() or not word.strip():
            problems.append(f"line {number}: {benchmark.context!r} or {benchmark.continuation!r} is empty")
        found.append({"context": context, "continuation": word})
    _refuse(name, raw / benchmark.file, problems)
    return _asked(found, "context", benchmark.max_examples, data), {}


def _texts(name: str, benchmark: PerplexityBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    """Cut reference text into blocks of words, whatever the tokenizer, so that every base has the same examples.

    No block crosses documents, and the blocks of one are a group: what a model forgot of it, it forgot in all of them.
    """
    file, size = _file(name, raw / benchmark.file), benchmark.block_words
    if benchmark.field is None:
        found = [{"text": block, "of": block} for block in _blocks(read_text(file), size)]
    else:
        documents = _documents(name, file, benchmark.field)
        long = [text for text in documents if len(text.split()) >= SHORTEST_BLOCK]
        if short := len(documents) - len(long):
            log.info("benchmark %s: %d text(s) of fewer than %d words left out", name, short, SHORTEST_BLOCK)
        found = [{"text": block, "of": text} for text in long for block in _blocks(text, size) or [text]]
    if benchmark.max_blocks and len(found) > benchmark.max_blocks:
        step = len(found) / benchmark.max_blocks
        found = [found[int(place * step)] for place in range(benchmark.max_blocks)]
    return _asked(found, "of", None, data).drop(columns="of", errors="ignore"), {}


def _blocks(text: str, size: int) -> list[str]:
    """Cut a text into blocks of `size` words; what is left at its end is too short to be one."""
    words = re.findall(r"\s*\S+", text)
    return ["".join(words[start : start + size]) for start in range(0, len(words) - size + 1, size)]


def _documents(name: str, file: Path, field: str) -> list[str]:
    """Return the texts of a JSON list of objects, or of JSON Lines."""
    if file.suffix == ".json":
        try:
            rows = list(enumerate(json.loads(read_text(file)), 1))
            texts = {number: _words(row[field]).strip() for number, row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"benchmark {name}: {file} is no JSON list of objects with {field!r} "
                f"({type(error).__name__}: {error})."
            ) from None
    else:
        texts = {number: _words(row.get(field)).strip() for number, row in _json_lines(name, file)}
    _refuse(
        name, file, [f"object {number}: {field!r} is empty" for number, text in texts.items() if not text]
    )
    return [*texts.values()]


def _harness(name: str, benchmark: HarnessBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    from tasks.forgetting.harness import task_examples

    file = _file(name, raw / benchmark.file) if benchmark.file else None
    found = task_examples(benchmark.harness_task, file, benchmark.shots)
    return _asked(found, "query", benchmark.max_examples, data), {}


def _asked(found: list[dict[str, Any]], key: str, most: int | None, data: Data) -> pd.DataFrame:
    """Return examples with an id and a group made of what they ask: equal questions stay together."""
    rows = pd.DataFrame(found)
    if rows.empty:
        return pd.DataFrame({"id": [], "group": []})
    names = [fingerprint([(_normal(str(text)), "")])[:16] for text in rows[key]]
    rows = rows.assign(id=[f"{number:06d}" for number in range(len(rows))], group=names)
    return first_by_hash(rows, most, data.seed)


def _json_lines(name: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows, problems = [], []
    for number, line in enumerate(read_text(_file(name, path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            rows.append((number, row))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    _refuse(name, path, problems)
    return rows


def _file(name: str, path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"benchmark {name}: no file {path}.")
    return path


def _refuse(name: str, path: Path, problems: list[str]) -> None:
    if problems:
        raise DataError(f"benchmark {name}: {path} cannot be used:", first_of(problems, 5))


# --- retrieval -----------------------------------------------------------------------------------------


def _retrieval(name: str, benchmark: RetrievalBenchmark, data: Data, raw: Path) -> tuple[pd.DataFrame, Parts]:
    """Return examples (id, query, document_id, group) and the corpus (id, text), without duplicates."""
    files = sorted(raw.glob(benchmark.file))
    if not files:
        raise DataError(f"benchmark {name}: no file {raw / benchmark.file}.")
    pairs = [pair for file in files for pair in _pairs(benchmark, file)]
    documents: dict[str, str] = {}
    queries: dict[str, tuple[str, str]] = {}
    ambiguous = empty = 0
    for query, document in pairs:
        query_key, document_key = _normal(query), _normal(document)
        if not query_key or not document_key:
            empty += 1
            continue
        documents.setdefault(document_key, document)
        ambiguous += query_key in queries
        queries.setdefault(query_key, (query, document_key))
    log.info(
        "benchmark %s: %d pairs, %d of them dropped as empty, %d queries with more than one answer (the first counts)",
        name,
        len(pairs),
        empty,
        ambiguous,
    )
    identifiers = {key: f"d{number:05d}" for number, key in enumerate(documents)}
    corpus = pd.DataFrame({"id": list(identifiers.values()), "text": list(documents.values())})
    examples = pd.DataFrame(
        [
            {
                "id": f"q{number:05d}",
                "query": query,
                "document_id": identifiers[key],
                "group": identifiers[key],
            }
            for number, (query, key) in enumerate(queries.values())
        ],
        columns=["id", "query", "document_id", "group"],
    )
    return examples, {"corpus": corpus}


def _pairs(benchmark: RetrievalBenchmark, file: Path) -> list[tuple[str, str]]:
    text = read_text(file)
    try:
        if benchmark.format == "conversations":
            dialogues = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["conversations"]
            return [(_words(turns[0]), _words(turns[1])) for turns in dialogues if len(turns) >= 2]
        rows: list[Any] = (
            json.loads(text)
            if benchmark.format == "json"
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
        return [(_words(row[benchmark.query]), _words(row[benchmark.document])) for row in rows]
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: it is not of the form {benchmark.format} with {benchmark.query!r} and {benchmark.document!r} "
            f"({type(error).__name__}: {error})."
        ) from None


def _words(value: object) -> str:
    return "" if value is None else str(value)


def _normal(text: str) -> str:
    """Normal form for equality: compatibility characters, case and white space folded."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


READERS: dict[type[Any], Callable[..., tuple[pd.DataFrame, Parts]]] = {
    RetrievalBenchmark: _retrieval,
    FeatureBenchmark: _features,
    SimilarityBenchmark: _similarity,
    HeadBenchmark: _head,
    ChoiceBenchmark: _choices,
    LastWordBenchmark: _last_words,
    PerplexityBenchmark: _texts,
    HarnessBenchmark: _harness,
}
