"""Read the rows of all splits as one table, a batch at a time, so that a set larger than memory can be validated.

What no expectation can see in a conversation or an image is first written into columns of its own, so that it is
judged, counted and shown like everything else.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.measures.images import bombs_are_errors
from tasks.paths import Paths
from tasks.recipe import UNLABELLED
from tasks.reports import SplitSchema
from tasks.splits import COLUMNS, split_files
from tasks.tables import roles_alternate
from tasks.validation.rules import UNKNOWN, has

ROWS_A_BATCH = 50_000
BYTES_A_BATCH = 64 * 2**20
"""Of a batch, uncompressed, by the mean size of a row of its file: images are read few at a time."""

CountTokens = Callable[[pd.DataFrame], list[int | None]]


@dataclass(frozen=True)
class Rows:
    """All rows as one table: id, text, group, split, label (by name, where there are labels), and what the task adds."""

    files: Mapping[str, Path]
    labels: Sequence[str]
    schema: pa.Schema
    """Every raw column of any file, in order of appearance."""
    count: int
    count_tokens: CountTokens | None = None
    """Counts the tokens of rows, for the column `tokens`; None: it is not wanted."""

    def batches(self) -> Iterator[pd.DataFrame]:
        """Yield the rows in order, each batch with the same columns; one empty batch where there are none.

        Raises:
            DataError: a file holds what is no Parquet, or text that is no UTF-8.
        """
        if not self.count:
            yield self._derived("", self.schema.empty_table())
        for name, path in self.files.items():
            try:
                for batch in pq.ParquetFile(path, buffer_size=2**20).iter_batches(_rows_a_batch(path)):
                    batch.validate(full=True)
                    yield self._derived(name, pa.Table.from_batches([batch]))
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                raise DataError(
                    f"{path} cannot be read ({error}): run `prepare` again, from text in UTF-8."
                ) from None

    def columns(self) -> list[str]:
        """Return the columns of a batch."""
        return self._derived("", self.schema.empty_table()).columns.tolist()

    def _derived(self, split: str, table: pa.Table) -> pd.DataFrame:
        rows = table.to_pandas(ignore_metadata=True)
        for field in self.schema:
            if field.name not in rows:
                absent = [None] * len(rows)
                rows[field.name] = pa.array(absent, type=field.type).to_pandas()
        rows["split"] = pd.Series([split] * len(rows), index=rows.index, dtype="str")
        if self.labels and pa.types.is_list(self.schema.field("label").type):
            rows = rows.assign(**_of_label_lists(rows["label"], self.labels))
        elif self.labels:
            rows["label"] = _named(rows["label"], self.labels)
        if self.count_tokens:
            rows["tokens"] = pd.Series(self.count_tokens(rows), index=rows.index, dtype="float64")
        if "messages" in rows:
            rows = rows.assign(**of_conversations(rows["messages"])).drop(columns="messages")
        if "image" in rows:
            rows = rows.assign(**_of_images(rows["image"])).drop(columns="image")
        if "positive" in rows:
            rows["same_texts"] = _same_texts(rows)
        return rows


def open_rows(paths: Paths, schema: SplitSchema, count_tokens: CountTokens | None = None) -> Rows:
    """Open the split tables of a recipe; no row is read yet.

    Raises:
        StageError: a file is missing.
        DataError: a table is unreadable or has other columns or another number of rows than the schema says.
    """
    files = split_files(paths, schema)
    needed = (*COLUMNS, "label") if schema.labels else COLUMNS
    fields: dict[str, pa.Field] = {}
    problems = []
    for name, path in files.items():
        try:
            found = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            problems.append(f"{path} is no Parquet file: {error}")
            continue
        inside = found.schema_arrow
        if missing := [column for column in needed if column not in inside.names]:
            problems.append(f"{path} lacks the column(s) {', '.join(missing)}")
        elif found.metadata.num_rows != schema.rows[name]:
            problems.append(f"{path} has {found.metadata.num_rows} rows, the schema says {schema.rows[name]}")
        for field in inside:
            fields.setdefault(field.name, field)
    if problems:
        raise DataError("The splits cannot be used; run `prepare` again (`dvc repro`):", problems)
    return Rows(
        files, schema.labels, pa.schema(list(fields.values())), sum(schema.rows.values()), count_tokens
    )


def _rows_a_batch(path: Path) -> int:
    metadata = pq.ParquetFile(path).metadata
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(ROWS_A_BATCH, BYTES_A_BATCH * metadata.num_rows // max(size, 1)))


def _named(column: pd.Series, labels: Sequence[str]) -> pd.Series:
    """Return the labels of rows by name; null stays null (rows to be replayed have none, a target's may lack them)."""
    named: dict[int, str | None] = {**dict(enumerate(labels)), UNLABELLED: None}
    names = [
        None if pd.isna(label) else named.get(label, f"unknown label {label}") for label in column.tolist()
    ]
    return pd.Series(names, index=column.index, dtype="str")


def _of_label_lists(column: pd.Series, labels: Sequence[str]) -> dict[str, pd.Series]:
    """Return the columns that say a row's labels: as one text, whether it has each, and how many are not declared."""
    named, known = dict(enumerate(labels)), set(labels)
    lists = [
        None if row is None else [named.get(label, f"unknown label {label}") for label in row]
        for row in column
    ]
    texts: dict[str, list[str | None]] = {
        "label": [None if row is None else " + ".join(row) for row in lists]
    }
    for label in labels:
        texts[has(label)] = [None if row is None else "yes" if label in row else "no" for row in lists]
    unknown = [None if row is None else sum(label not in known for label in row) for row in lists]
    return {
        **{name: pd.Series(values, index=column.index, dtype="str") for name, values in texts.items()},
        UNKNOWN: pd.Series(unknown, index=column.index, dtype="float64"),
    }


def _same_texts(rows: pd.DataFrame) -> pd.Series:
    """Count of each row which of positive and negative say what its anchor says."""
    anchor = rows["text"].str.strip().str.casefold()
    others = [rows[name].str.strip().str.casefold() for name in ("positive", "negative") if name in rows]
    same = [(other == anchor).fillna(False).astype(int) for other in others]
    if len(others) == 2:  # a triplet teaches nothing when what to come near to is what to stay away from
        same.append((others[0] == others[1]).fillna(False).astype(int))
    return sum(same[1:], same[0])


def of_conversations(column: pd.Series) -> dict[str, list[Any]]:
    """Return what is to be judged of conversations (JSON): a list for each column, one entry a row."""
    names = ("turns", "known_roles", "roles_alternate", "ends_with_assistant", "empty_turns")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for text in column:
        messages = json.loads(text)
        roles = [message["role"] for message in messages]
        found["turns"].append(len(messages))
        found["known_roles"].append(set(roles) <= {"system", "user", "assistant", "tool"})
        found["roles_alternate"].append(roles_alternate(roles))
        found["ends_with_assistant"].append(bool(roles) and roles[-1] == "assistant")
        found["empty_turns"].append(sum(not message["content"].strip() for message in messages))
    return found


def _of_images(column: pd.Series) -> dict[str, pd.Series]:
    names = ("fault", "width", "height", "channels", "bits", "constant")
    measured = [_of_image(content) for content in column]
    return {
        name: pd.Series(
            [row[number] for row in measured],
            index=column.index,
            dtype="str" if name == "fault" else "bool" if name == "constant" else "int64",
        )
        for number, name in enumerate(names)
    }


def _of_image(content: bytes | None) -> tuple[str | None, int, int, int, int, bool]:
    """Return what is wrong with an image (or None), width, height, channels, bits a channel, whether it is of one shade.

    The size in the file's head is looked at before anything is decoded, so that a decompression bomb costs nothing.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        return "no content", 0, 0, 0, 0, False
    try:
        with bombs_are_errors(), Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if not width or not height:
                return f"it has {width} × {height} pixels", width, height, 0, 0, False
            image.load()
            extremes = image.getextrema()
            spans = extremes if isinstance(extremes[0], tuple) else (extremes,)
            deep = 1 if image.mode == "1" else 16 if image.mode.startswith("I;16") else 32
            bits = deep if image.mode[0] in "1IF" else 8
            constant = all(low == high for low, high in spans)
            return None, width, height, len(image.getbands()), bits, constant
    except UnidentifiedImageError:
        return "its format is not known", 0, 0, 0, 0, False
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"decompression bomb: {error}", 0, 0, 0, 0, False
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        return str(error) or type(error).__name__, 0, 0, 0, 0, False
