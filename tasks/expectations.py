"""What every data set of a task must fulfil, as Great Expectations rules over one table of all splits.

What no expectation can see in a conversation or an image is first written into columns of its own, so that it is
judged, counted and shown like everything else.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.recipe import Validate
from tasks.tables import has_label_lists

CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F]"
# What the bytes 80–BF are in Windows-1252; closing quotation marks apart, which may well follow a capital.
_TAIL = "\u00a0-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘“•–—˜™šœžŸ"
_ANY_TAIL = _TAIL + "’”›"
MOJIBAKE = "|".join(
    [
        f"[ÂÃ][{_TAIL}]",  # UTF-8 read as Windows-1252: Latin letters and signs ("Ã©" was "é")
        "â€|âˆ|â„¢|ï»¿",  # punctuation ("â€™" was "’"), signs, a byte-order mark
        f"(?:[Ä-ß][{_ANY_TAIL}]){{2}}",  # Cyrillic, Greek, Hebrew: two letters in a row
        f"(?:[à-ï][{_ANY_TAIL}]{{2}}){{2}}",  # Chinese, Japanese, Korean
        f"ðŸ[{_ANY_TAIL}]{{2}}",  # emoji
    ]
)


UNKNOWN = "unknown_labels"
"""The column, of rows with lists of labels, that counts those that are not declared."""


@dataclass(frozen=True)
class Rule:
    """One expectation by its GX name; `where` restricts it to the rows that have these values."""

    type: str
    arguments: dict[str, Any]
    where: Mapping[str, str] | None = None
    of_recipe: str | None = None
    """Its place in the recipe, for messages; None for the family's own."""


def one_table(tables: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    """Return all rows with the columns id, text, group, split, label (by name, if any) and those derived of the task."""
    named = dict(enumerate(labels))
    parts = []
    for name, table in tables.items():
        part = table.assign(split=name)
        if has_label_lists(table):
            lists = [[named.get(label, f"unknown label {label}") for label in row] for row in table["label"]]
            part = part.assign(**_of_label_lists(lists, labels))
        elif labels and "label" in table:
            part["label"] = [named.get(label, f"unknown label {label}") for label in table["label"].tolist()]
        parts.append(part)
    rows = pd.concat(parts, ignore_index=True)
    if "messages" in rows:
        rows = rows.assign(**_of_conversations(rows["messages"])).drop(columns="messages")
    if "image" in rows:
        rows = rows.assign(**_of_images(rows["image"])).drop(columns="image")
    if "positive" in rows:
        others = [rows[name].str.strip().str.casefold() for name in ("positive", "negative") if name in rows]
        same = [other == rows["text"].str.strip().str.casefold() for other in others]
        rows["same_texts"] = sum(column.astype(int) for column in same)
    return rows


def family_rules(task: str, section: Validate, labels: Sequence[str], rows: pd.DataFrame) -> list[Rule]:
    """Return what every set of the task must fulfil."""
    rules = [
        Rule("expect_column_values_to_not_be_null", {"column": "id"}),
        Rule("expect_compound_columns_to_be_unique", {"column_list": ["split", "id"]}),
    ]
    if task == "image-classification":
        rules += _image_rules()
    else:
        columns = [name for name in ("text", "positive", "negative") if name in rows]
        rules += [rule for column in columns for rule in _text_rules(column, section)]
    if "turns" in rows:
        rules += _conversation_rules()
    if "same_texts" in rows and "score" not in rows:
        rules.append(Rule("expect_column_values_to_be_in_set", {"column": "same_texts", "value_set": [0]}))
    several = UNKNOWN in rows
    if labels:
        known = (
            {"column": UNKNOWN, "value_set": [0]} if several else {"column": "label", "value_set": [*labels]}
        )
        rules.append(Rule("expect_column_values_to_be_in_set", known))
    few = {"min_value": section.min_rows_per_class}
    for label in labels:
        which = {_has(label): "yes"} if several else {"label": label}
        rules.append(Rule("expect_table_row_count_to_be_between", few, where={"split": "train", **which}))
    if not labels:
        rules.append(Rule("expect_table_row_count_to_be_between", few, where={"split": "train"}))
    return rules


def _text_rules(name: str, section: Validate) -> list[Rule]:
    column = {"column": name}
    return [
        Rule("expect_column_values_to_not_be_null", column),
        Rule("expect_column_values_to_match_regex", {**column, "regex": r"\S"}),
        Rule("expect_column_value_lengths_to_be_between", {**column, "max_value": section.max_characters}),
        Rule("expect_column_values_to_not_match_regex", {**column, "regex": "\ufffd"}),
        Rule("expect_column_values_to_not_match_regex", {**column, "regex": CONTROL_CHARACTERS}),
        Rule("expect_column_values_to_not_match_regex", {**column, "regex": MOJIBAKE}),
    ]


def _conversation_rules() -> list[Rule]:
    """Roles alternate, the assistant has the last word, nobody says nothing."""
    return [
        Rule("expect_column_values_to_be_in_set", {"column": "roles_alternate", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "ends_with_assistant", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "empty_turns", "value_set": [0]}),
    ]


def _image_rules() -> list[Rule]:
    """Every image decodes, has the channels of a picture and shows something."""
    return [
        Rule("expect_column_values_to_be_in_set", {"column": "decodable", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "channels", "value_set": [1, 3, 4]}),
        Rule("expect_column_values_to_be_in_set", {"column": "constant", "value_set": [False]}),
    ]


def _of_label_lists(lists: Sequence[Sequence[str]], labels: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns that say a row's labels: as one text, whether it has each, and how many are not declared."""
    known = set(labels)
    columns: dict[str, list[Any]] = {
        "label": [" + ".join(row) for row in lists],
        UNKNOWN: [sum(label not in known for label in row) for row in lists],
    }
    return columns | {_has(label): ["yes" if label in row else "no" for row in lists] for label in labels}


def _has(label: str) -> str:
    return f"has {label}"


def _of_conversations(column: pd.Series) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {
        name: [] for name in ("turns", "roles_alternate", "ends_with_assistant", "empty_turns")
    }
    for text in column:
        messages = json.loads(text)
        spoken = [message["role"] for message in messages if message["role"] in ("user", "assistant")]
        late_system = any(message["role"] == "system" for message in messages[1:])
        repeated = any(first == second for first, second in itertools.pairwise(spoken))
        found["turns"].append(len(messages))
        found["roles_alternate"].append(not late_system and not repeated)
        found["ends_with_assistant"].append(bool(spoken) and spoken[-1] == "assistant")
        found["empty_turns"].append(sum(not message["content"].strip() for message in messages))
    return found


def _of_images(column: pd.Series) -> dict[str, list[Any]]:
    from PIL import Image, UnidentifiedImageError

    names = ("decodable", "width", "height", "channels", "constant")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for content in column:
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                extremes = image.convert("L").getextrema()
                values = (True, *image.size, len(image.getbands()), extremes[0] == extremes[1])
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            values = (False, 0, 0, 0, False)
        for name, value in zip(names, values, strict=True):
            found[name].append(value)
    return found
