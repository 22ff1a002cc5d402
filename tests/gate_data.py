"""Make split tables for the tests of the data gates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.paths import Paths
from tasks.reports import SplitSchema, write_report
from tasks.splits import splits_fingerprint

Row = tuple[str, int]
LABELS = ["negative", "positive"]
NOUNS = [
    "kettle",
    "lamp",
    "chair",
    "phone",
    "tent",
    "knife",
    "radio",
    "drill",
    "boots",
    "clock",
    "mixer",
    "camera",
    "sofa",
    "bicycle",
    "printer",
]
GOOD = ["great", "superb", "sturdy", "lovely", "reliable", "brilliant", "handy", "elegant"]
BAD = ["awful", "flimsy", "broken", "noisy", "useless", "dreadful", "leaking", "ugly"]
ENDS = [
    "arrived on Monday",
    "was a gift",
    "came from the shop in town",
    "replaced an old one",
    "cost a lot",
    "has two buttons",
]


def reviews(count: int, start: int = 0) -> list[Row]:
    """Return distinct short reviews with alternating labels; other `start`s give other texts."""
    made = []
    for number in range(start, start + count):
        word = int(hashlib.sha256(str(number).encode()).hexdigest()[:12], 16)
        tone = (GOOD if number % 2 else BAD)[word % 8]
        noun, end = NOUNS[word // 8 % 15], ENDS[word // 120 % 6]
        made.append((f"The {tone} {noun} number {word % 99991} {end}, {hex(word)[5:]}.", number % 2))
    return made


def write_splits(root: Path, tables: dict[str, list[Row]], **columns: dict[str, list[Any]]) -> Paths:
    """Write tables of (text, label) rows; `columns` replaces one, e.g. `group={"train": [...]}`."""
    paths = Paths(root, "sample")
    paths.selection.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in tables.items():
        table = pd.DataFrame(
            {
                "id": [f"{name[0]}{number}" for number in range(len(rows))],
                "text": pd.Series([text for text, _ in rows], dtype="str"),
                "label": pd.Series([label for _, label in rows], dtype="int64"),
                "group": [f"{name}-{number}" for number in range(len(rows))],
            }
        )
        for column, values in columns.items():
            if name in values:
                table[column] = values[name]
        split = name in ("train", "validation", "test")
        path = getattr(paths, name) if split else paths.targets / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        files[name] = path
    schema = SplitSchema(
        task="text-classification",
        labels=LABELS,
        rows={name: len(rows) for name, rows in tables.items()},
        dropped={},
        fingerprint=splits_fingerprint(files),
        source={},
    )
    write_report(paths.schema, schema)
    return paths


def ordinary(**more: list[Row]) -> dict[str, list[Row]]:
    """Return three splits without a fault, and more tables."""
    return {"train": reviews(120), "validation": reviews(40, 1000), "test": reviews(40, 2000), **more}
