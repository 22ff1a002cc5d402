"""What every data set of a task must fulfil, as Great Expectations rules over one table of all splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.recipe import Validate

CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F]"
# What the bytes 80–BF are in Windows-1252; closing quotation marks apart, which may well follow a capital.
_TAIL = "\u00a1-\u00bf€‚ƒ†‡ˆ‰Š‹ŒŽ‘˜™šœžŸ"
# These may follow a word in capitals that ends with Ã or Â, as Portuguese and Vietnamese ones do.
_MARKS = "„…“•–—"
_ANY_TAIL = _TAIL + _MARKS + "\u00a0’”›"
MOJIBAKE = "|".join(
    [
        f"[ÂÃ][{_TAIL}]",  # UTF-8 read as Windows-1252: Latin letters and signs ("Ã©" was "é")
        rf"(?<![^\W\d_])[ÂÃ][{_MARKS}]|[ÂÃ][{_MARKS}](?=[A-ZÀ-Þ])",  # capitals, at the beginning or within ("Ã–" was "Ö")
        "(?<![A-ZÀ-ÞĐ])[ÂÃ]\u00a0",  # "Ã " was "à"
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


def has(label: str) -> str:
    """Name the column, of rows with lists of labels, that says whether a row has this one."""
    return f"has {label}"


def family_rules(task: str, section: Validate, labels: Sequence[str], columns: Sequence[str]) -> list[Rule]:
    """Return what every set of the task must fulfil; `columns` are those that its rows have."""
    rules = [
        Rule("expect_column_values_to_not_be_null", {"column": "id"}),
        Rule("expect_compound_columns_to_be_unique", {"column_list": ["split", "id"]}),
    ]
    if task == "image-classification":
        rules += _image_rules(section)
    else:
        texts = [name for name in ("text", "positive", "negative") if name in columns]
        rules += [rule for column in texts for rule in _text_rules(column, section)]
    if section.max_tokens is not None:
        rules.append(
            Rule(
                "expect_column_values_to_be_between",
                {"column": "tokens", "min_value": 1, "max_value": section.max_tokens},
            )
        )
    if "turns" in columns:
        rules += _conversation_rules()
    if "same_texts" in columns and "score" not in columns:
        rules.append(Rule("expect_column_values_to_be_in_set", {"column": "same_texts", "value_set": [0]}))
    several = UNKNOWN in columns
    if labels:
        known = (
            {"column": UNKNOWN, "value_set": [0]} if several else {"column": "label", "value_set": [*labels]}
        )
        rules.append(Rule("expect_column_values_to_be_in_set", known))
    few = {"min_value": section.min_rows_per_class}
    for label in labels:
        which = {has(label): "yes"} if several else {"label": label}
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
    """Roles are known and alternate, the assistant has the last word, nobody says nothing."""
    return [
        Rule("expect_column_values_to_be_in_set", {"column": "known_roles", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "roles_alternate", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "ends_with_assistant", "value_set": [True]}),
        Rule("expect_column_values_to_be_in_set", {"column": "empty_turns", "value_set": [0]}),
    ]


def _image_rules(section: Validate) -> list[Rule]:
    """Every image decodes, is neither tiny nor huge, has the channels of a picture and shows something.

    Channels of more than 8 bits fail: what reads pictures for training would clip them.
    """
    sides = {"min_value": section.min_image_side, "max_value": section.max_image_side}
    sized = [
        Rule("expect_column_values_to_be_between", {"column": side, **sides}) for side in ("width", "height")
    ]
    return [
        Rule("expect_column_values_to_be_null", {"column": "fault"}),
        *sized,
        Rule("expect_column_values_to_be_in_set", {"column": "channels", "value_set": [1, 2, 3, 4]}),
        Rule("expect_column_values_to_be_in_set", {"column": "bits", "value_set": [1, 8]}),
        Rule("expect_column_values_to_be_in_set", {"column": "constant", "value_set": [False]}),
    ]
