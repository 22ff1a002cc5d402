"""Read a data file once and say what its columns hold: the ground on which a recipe is proposed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.recipe import IMAGE_SUFFIXES

FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
IMAGE_FOLDER = "image-folder"
MOST_LABELS = 500
"""More distinct values than this make no label set."""


@dataclass
class Column:
    """What was seen of one column."""

    filled: int = 0
    characters: int = 0
    longest: int = 0
    most_tokens: int = 0
    """Tokens that the longest value may have: see `estimated_tokens`."""
    values: Counter[str] = field(default_factory=Counter)
    many: bool = False
    """It has more than `MOST_LABELS` distinct values, and they are no longer counted."""
    first: str = ""
    """The first value that is filled."""
    least: float = float("inf")
    greatest: float = float("-inf")
    numbers: int = 0
    """How many values are numbers, between `least` and `greatest`."""
    conversations: int = 0
    """How many values are lists of messages with a role and content."""
    lists: int = 0
    """How many values are lists of texts (an empty one too), or texts with the separator that was named."""
    items: Counter[str] = field(default_factory=Counter)
    """How many values list each text; no more of them than `MOST_LABELS` + 1."""

    @property
    def may_name_rows(self) -> bool:
        """Tell whether no value was seen twice, as far as they were counted."""
        return self.filled > 0 and (self.many or len(self.values) == self.filled)

    @property
    def is_numeric(self) -> bool:
        """Tell whether every value is a number."""
        return 0 < self.filled == self.numbers

    @property
    def mean_characters(self) -> float:
        """Characters of a value, on average."""
        return self.characters / max(self.filled, 1)

    def add(self, value: object, separator: str | None = None) -> None:
        """Count one cell; `separator` is what stands between several texts in one."""
        listed = _as_list(value, separator)
        if listed is not None:
            self.lists += 1
            if len(self.items) <= MOST_LABELS:
                self.items.update(set(listed))
        text = "" if value is None else str(value)
        if not text.strip():
            return
        self.first = self.first or text
        self.filled += 1
        self.characters += len(text)
        self.longest = max(self.longest, len(text))
        self.most_tokens = max(self.most_tokens, estimated_tokens(text))
        self.conversations += _is_conversation(value)
        if (number := as_number(text)) is not None:
            self.numbers += 1
            self.least, self.greatest = min(self.least, number), max(self.greatest, number)
        if not self.many:
            self.values[text] += 1
            self.many = len(self.values) > MOST_LABELS


@dataclass(frozen=True)
class Survey:
    """What was seen of one data file."""

    file: Path
    format: str
    columns: Mapping[str, Column]
    rows: int


def survey(file: Path, names: Sequence[str] = (), separator: str | None = None) -> Survey:
    """Read a data file once, or list a folder of images.

    `names` are the columns of a file without a header line, `separator` is what stands between labels in one cell.

    Raises:
        DataError: it is missing, empty, binary, not UTF-8, or its rows have differing columns.
    """
    kind = _format(file)
    columns: dict[str, Column] = {}
    rows = 0
    for row in _image_rows(file) if kind == IMAGE_FOLDER else _rows(file, kind, names):
        rows += 1
        for key, value in row.items():
            columns.setdefault(key, Column()).add(value, separator)
    if not rows:
        raise DataError(f"{file} holds no rows below its header line.")
    return Survey(file, kind, columns, rows)


def estimated_tokens(text: str) -> int:
    """Return how many tokens a text may have: one for four characters, and one for each byte that UTF-8 adds to them."""
    return len(text) // 4 + len(text.encode("utf-8", "surrogatepass")) - len(text)


def as_number(text: str) -> float | None:
    """Return the number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def shortened(values: Iterable[str]) -> str:
    """Return values in quotation marks, cut to one line."""
    text = ", ".join(repr(value) for value in values)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _as_list(value: object, separator: str | None) -> list[str] | None:
    if isinstance(value, str) and separator:
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [item.strip() for item in value]
    return None


def _is_conversation(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def _format(file: Path) -> str:
    if file.is_dir():
        return IMAGE_FOLDER
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    if file.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{file}: its name should end in one of {known}, which tells how to read it.")
    _check_encoding(file)
    return FORMATS[file.suffix.lower()]


def _check_encoding(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(1 << 16)
    if not start:
        raise DataError(f"{file} is empty.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 {file.name}`.")
    if b"\0" in start:
        raise DataError(f"{file} is binary, no text table.")


def _image_rows(folder: Path) -> Iterator[dict[str, str]]:
    found = [path for path in sorted(folder.glob("*/**/*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}) in folders named like their labels."
        )
    for path in found:
        name = path.relative_to(folder)
        yield {"image": name.as_posix(), "label": name.parts[0]}


def _rows(file: Path, kind: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if kind == "jsonl":
                yield from _json_rows(file, opened)
            else:
                yield from _table_rows(file, opened, "\t" if kind == "tsv" else ",", names)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}): convert it first, with iconv.") from None
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as a table: {error}.") from None


def _table_rows(
    file: Path, opened: Iterable[str], delimiter: str, names: Sequence[str]
) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 28)
    reader = csv.reader(opened, delimiter=delimiter)
    header = list(names) or next(reader, [])
    if not names:
        _check_header(file, header)
    ragged = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            ragged.append(f"line {reader.line_num}: {len(row)} columns")
            if len(ragged) == 5:
                break
            continue
        yield dict(zip(header, row, strict=True))
    if ragged:
        raise DataError(f"{file} has {len(header)} columns, but not everywhere:", ragged)


def _check_header(file: Path, header: Sequence[str]) -> None:
    if len(header) < 2:
        raise DataError(f"{file} has one column only ({shortened(header)}): is another separator used?")
    suspicious = [
        cell for cell in header if not cell.strip() or len(cell) > 60 or as_number(cell) is not None
    ]
    if suspicious or len(set(header)) != len(header):
        raise DataError(
            f"{file}: the first line names no columns ({shortened(header)}). "
            "If the file has no header line, give the names: --columns text,label"
        )


def _json_rows(file: Path, opened: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(opened, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: no JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a JSON object is needed, not a {type(row).__name__}.")
        yield row
