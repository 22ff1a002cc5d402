"""Read a raw file as rows of id, text, label and group, and say everything that is wrong with it at once."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.errors import ConfigError, DataError, first_of
from tasks.files import fingerprint
from tasks.recipe import IMAGE_SUFFIXES, UNLABELLED, Table

SHOWN = 5
COLUMNS = ("id", "text", "label", "group", "messages", "positive", "negative", "score", "image")
ROLES = ("system", "user", "assistant", "tool")
LONGEST_FIELD = 2**31 - 1
"""Characters: the library's own limit, 131072, is less than a contract has."""
ENCODING_MARKS = {  # that of UTF-32 begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_table(
    table: Table,
    folder: Path,
    labels: list[str],
    task: str = "text-classification",
    multi_label: bool = False,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Read `table` from `folder`.

    Returns:
        A frame with the string columns id, text, group and, where there are `labels`, label (with `multi_label` a list
        of them, in their declared order), in file order; what the task adds: `messages` (JSON), `positive`,
        `negative`, `score` (0…1) or `image` (the file's bytes). And how many rows were dropped, by reason.

    Raises:
        DataError: the file or its rows cannot be used; every problem is listed, with line numbers.
        ConfigError: the group pattern is wrong.
    """
    path = folder / table.file
    problems: list[str] = []
    dropped: dict[str, int] = {}
    frame = _by_role(table, _needed_columns(table, labels), path, dropped)
    frame = _contents(table, frame, folder, problems)
    if "id" not in frame:
        frame["id"] = frame["line"]
    for role in ("id", "group", *(() if multi_label else ("label",))):
        if role in frame:
            frame[role] = frame[role].astype("string")
    frame["group"] = _groups(table, frame, problems)
    _report(
        problems,
        frame,
        frame["id"].duplicated(keep=False) | _blank(frame["id"]),
        "the id is missing or repeated",
    )
    if multi_label:
        frame = _with_label_lists(table, frame, labels, problems)
    elif labels:
        frame = _labelled(table, frame, labels, problems, dropped)
    if problems:
        raise DataError(f"{path} cannot be used:", problems)
    return frame.drop(columns="line").astype(_types(frame)).reset_index(drop=True), dropped


def _by_role(table: Table, needed: Mapping[str, str], path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    """Return the wanted rows of the file as they are: a column for each role, and `line`, where each row begins."""
    rows = _read_rows(table, path)
    columns = [str(column) for column in rows if column != "_line"]
    if rows.empty and not columns:
        raise DataError(f"{path} has no rows.")
    rows = _with_label_column(table, rows, needed)
    wanted = [
        *((column, role) for role, column in needed.items()),
        *((name, "where") for name in table.where),
    ]
    if missing := [f"{column!r} (for {role})" for column, role in wanted if column not in rows]:
        raise DataError(f"{path}: no column {', '.join(missing)}. Columns here: {', '.join(columns)}.")
    rows = _kept(table, rows, dropped)
    if rows.empty:
        raise DataError(f"{path} has no rows{' where ' + str(table.where) if table.where else ''}.")
    return pd.DataFrame({role: rows[column] for role, column in needed.items()}).assign(line=rows["_line"])


def _with_label_column(table: Table, rows: pd.DataFrame, needed: Mapping[str, str]) -> pd.DataFrame:
    """Return rows with an empty label column where there is none and none has to be."""
    if not table.may_lack_labels or needed.get("label", "") in rows or "label" not in needed:
        return rows
    return rows.assign(**{needed["label"]: None})


def _needed_columns(table: Table, labels: list[str]) -> dict[str, str]:
    """Return the columns that must be there, by what they are for."""
    content: dict[str, str | None] = {"text": table.text}
    if table.image:
        content = {"image": table.image}
    elif table.messages:
        content = {"messages": table.messages}
    elif table.prompt:
        content = {"prompt": table.prompt, "completion": table.completion}
    pairs = {"positive": table.positive, "negative": table.negative, "score": table.score}
    label = {"label": table.sign_of or table.label} if labels else {}
    roles = {**content, **pairs, **label, "id": table.id, "group": table.group}
    return {role: column for role, column in roles.items() if column}


def _kept(table: Table, rows: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    for column, value in table.where.items():
        kept = rows[column].astype("string") == value
        dropped[f"{column} is not {value}"] = int((~kept.fillna(False)).sum())
        rows = rows[kept.fillna(False)]
    return rows


def _contents(table: Table, frame: pd.DataFrame, folder: Path, problems: list[str]) -> pd.DataFrame:
    """Bring what the rows hold into its one form; the column `text` says it to people, whatever it is."""
    if table.image:
        inside = table.file if table.format == "image-folder" else table.image_folder
        return _images(frame, folder / inside, problems)
    if table.prompt:
        frame = _as_conversations(frame, problems)
    if table.messages or table.prompt:
        return _conversations(frame, problems)
    for role in ("text", "positive", "negative"):
        if role in frame:
            frame[role] = frame[role].astype("string").str.strip()
            what = "the text is empty" if role == "text" else f"the {role} is empty"
            _report(problems, frame, _blank(frame[role]), what)
    if "score" in frame:
        low, high = table.score_range
        scores = (pd.to_numeric(frame["score"], errors="coerce").astype("float64") - low) / (high - low)
        _report(problems, frame, ~scores.between(0, 1), f"the score is no number from {low:g} to {high:g}")
        frame["score"] = scores
    return frame


def _images(frame: pd.DataFrame, folder: Path, problems: list[str]) -> pd.DataFrame:
    names = frame["image"].astype("string")
    paths = [folder / str(name) for name in names]
    outside = pd.Series([".." in path.parts for path in paths], index=frame.index)
    _report(problems, frame, outside, f"the image is outside {folder}")
    absent = pd.Series([not path.is_file() for path in paths], index=frame.index) & ~outside
    _report(problems, frame, absent, f"there is no such image in {folder}")
    usable = ~(absent | outside)
    content = [path.read_bytes() if use else b"" for path, use in zip(paths, usable, strict=True)]
    return frame.assign(image=pd.Series(content, index=frame.index, dtype=object), text=names)


def _as_conversations(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Return the frame with a prompt and its completion as the two turns of a conversation."""
    for role in ("prompt", "completion"):
        frame[role] = frame[role].astype("string").str.strip()
        _report(problems, frame, _blank(frame[role]), f"the {role} is empty")
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(frame["prompt"].fillna(""), frame["completion"].fillna(""), strict=True)
    ]
    return frame.drop(columns=["prompt", "completion"]).assign(messages=pd.Series(turns, index=frame.index))


def _conversations(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    found = [_conversation(value) for value in frame["messages"]]
    bad = pd.Series([isinstance(item, str) for item in found], index=frame.index)
    reasons = sorted({item for item in found if isinstance(item, str)})
    _report(problems, frame, bad, f"the conversation cannot be read ({'; '.join(reasons[:SHOWN])})")
    turns = [[] if isinstance(item, str) else item for item in found]
    return frame.assign(
        messages=[json.dumps(item, ensure_ascii=False) for item in turns],
        text=[transcript(item) for item in turns],
    )


def _conversation(value: object) -> list[dict[str, str]] | str:
    """Return a conversation's messages, or what is wrong with it."""
    try:
        turns: Any = json.loads(value) if isinstance(value, str) else value
        if turns is None or isinstance(turns, float | int | dict) or not len(turns):
            return "no list of messages"
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    except ValueError:
        return "no JSON"
    except (KeyError, TypeError):
        return "a message without role and content"
    if wrong := sorted({str(turn["role"]) for turn in messages} - set(ROLES)):
        return f"role {', '.join(wrong)}, known are {', '.join(ROLES)}"
    if not all(isinstance(turn["content"], str) for turn in messages):
        return "content that is no text"
    if not any(turn["role"] == "assistant" for turn in messages):
        return "no turn of the assistant to learn from"
    return messages


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as people read it, a turn a line."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def roles_alternate(roles: Sequence[str]) -> bool:
    """Say whether neither user nor assistant speaks twice running, and only the first message may be a system's.

    What a tool answers stands between two turns of the assistant.
    """
    repeated = any(one == two and one in ("user", "assistant") for one, two in itertools.pairwise(roles))
    return "system" not in roles[1:] and not repeated


def said(messages: Sequence[Mapping[str, str]], own: Collection[str] = ()) -> list[str]:
    """Return what users and the assistant say, turn by turn, and those system messages that are a row's `own`."""
    return [
        message["content"] for message in messages if message["role"] != "system" or message["content"] in own
    ]


def _labelled(
    table: Table, frame: pd.DataFrame, labels: list[str], problems: list[str], dropped: dict[str, int]
) -> pd.DataFrame:
    if table.sign_of:
        frame, by_sign = _labels_from_sign(table, frame, problems)
        dropped |= by_sign
    else:
        frame["label"] = frame["label"].str.strip()
    empty = _blank(frame["label"])
    if table.may_lack_labels:
        frame["label"] = frame["label"].mask(empty, "")
    else:
        _report(problems, frame, empty, "the label is empty")
    unknown = ~frame["label"].isin(labels) & ~empty
    values = ", ".join(sorted(set(frame.loc[unknown, "label"]))[:SHOWN])
    _report(
        problems, frame, unknown, f"the label is not declared ({values}); declared are {', '.join(labels)}"
    )
    return frame


def _with_label_lists(
    table: Table, frame: pd.DataFrame, labels: list[str], problems: list[str]
) -> pd.DataFrame:
    """Return the frame with each row's labels as a list in their declared order; a row may have none of them."""
    found = [_label_list(value, table.label_separator) for value in frame["label"]]
    unread = pd.Series([row is None for row in found], index=frame.index)
    _report(problems, frame, unread, "the labels are no list of texts, nor a text (an empty list says: none)")
    lists = [row or [] for row in found]
    known = set(labels)
    unknown = pd.Series([not known.issuperset(row) for row in lists], index=frame.index)
    values = ", ".join(sorted({label for row in lists for label in row} - known)[:SHOWN])
    what = f"a label is not declared ({values}); declared are {', '.join(labels)}"
    _report(problems, frame, unknown, what)
    repeated = pd.Series([len(set(row)) < len(row) for row in lists], index=frame.index)
    _report(problems, frame, repeated, "a label is given twice")
    place = {label: number for number, label in enumerate(labels)}
    ordered = [sorted(row, key=lambda label: place.get(label, 0)) for row in lists]
    return frame.assign(label=pd.Series(ordered, index=frame.index, dtype=object))


def _label_list(value: object, separator: str | None) -> list[str] | None:
    """Return the labels of one cell; a text is one label, or several between separators; None if it is neither."""
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
        return [part.strip() for part in parts if part.strip()]
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        return None
    return [item.strip() for item in items]


def _types(frame: pd.DataFrame) -> dict[str, type]:
    kept = {"line", "score", "image", *(["label"] if has_label_lists(frame) else [])}
    return {str(column): str for column in frame if column not in kept}


def _groups(table: Table, frame: pd.DataFrame, problems: list[str]) -> pd.Series:
    """Return what must not be split: the group column, cut by the pattern; each row by itself where there is none."""
    if not table.group:
        return frame["id"]
    if not table.group_pattern:
        _report(problems, frame, _blank(frame["group"]), "the group is empty")
        return frame["group"]
    found = frame["group"].str.extract(_group_pattern(table.group_pattern), expand=False)
    found = found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found
    _report(
        problems,
        frame,
        _blank(found),
        f"{table.group!r} does not match group_pattern {table.group_pattern!r}",
    )
    return found.astype("string")


def _group_pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"group_pattern {text!r} is no regular expression: {error}.") from None
    if not pattern.groups:
        raise ConfigError(f"group_pattern {text!r} has no (…): put parentheses around what is the group.")
    return pattern


def _blank(values: pd.Series) -> pd.Series:
    return values.isna() | (values.str.strip() == "").fillna(False)


def _labels_from_sign(
    table: Table, frame: pd.DataFrame, problems: list[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    values = pd.to_numeric(frame["label"], errors="coerce").astype("float64")
    wrong = values.isna() & ~(_blank(frame["label"]) & table.may_lack_labels)
    _report(problems, frame, wrong, f"{table.sign_of!r} is no number")
    kept = values.isna() | ((values.abs() >= table.drop_below) & (values != 0))
    frame = frame[kept].copy()
    signs = values[kept].map(lambda value: "positive" if value > 0 else "negative", na_action="ignore")
    frame["label"] = signs.astype("string")
    if frame.empty:
        problems.append(f"every row has |{table.sign_of}| below {table.drop_below}: lower drop_below")
    return frame, {f"|{table.sign_of}| < {table.drop_below:g}": int((~kept).sum())}


def _report(problems: list[str], frame: pd.DataFrame, bad: pd.Series, what: str) -> None:
    lines = frame.loc[bad.fillna(True).astype(bool), "line"].tolist()
    if lines:
        shown = ", ".join(map(str, lines[:SHOWN])) + (", …" if len(lines) > SHOWN else "")
        problems.append(f"{what}: {len(lines)} row(s), line {shown}")


def _read_rows(table: Table, path: Path) -> pd.DataFrame:
    """Read the file as it is; the column `_line` is where each row begins."""
    if table.format == "image-folder":
        return _read_image_folder(path)
    if not path.is_file():
        near = ", ".join(sorted(other.name for other in path.parent.glob("*"))) or "nothing"
        raise DataError(f"There is no {path}. In that folder: {near}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    if table.format in ("parquet", "arrow"):
        return _read_columnar(table, path)
    text = read_text(path)
    rows = _read_jsonl(text, path) if table.format == "jsonl" else _read_delimited(table, text, path)
    return rows


def read_text(path: Path) -> str:
    """Read a file as UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is binary, or another encoding; the message says which and how to convert it.
    """
    content = path.read_bytes()
    for mark, name in ENCODING_MARKS.items():
        if content.startswith(mark):
            raise DataError(f"{path} is {name}; convert it: iconv -f {name} -t UTF-8 {path.name} > utf8.csv")
    if b"\x00" in content:
        raise DataError(
            f"{path} is binary (a NUL byte at offset {content.index(0)}); text in UTF-8 is needed."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: byte {content[error.start]:#04x} is not valid UTF-8. If the file is Latin-1: "
            f"iconv -f LATIN1 -t UTF-8 {path.name} > utf8.csv"
        ) from None


def _read_delimited(table: Table, text: str, path: Path) -> pd.DataFrame:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if table.format == "tsv" else ",",
        quoting=csv.QUOTE_MINIMAL if table.quoting else csv.QUOTE_NONE,
        strict=table.quoting,
    )
    header, rows, lines, ragged, start = table.header, [], [], [], 1
    try:
        for row in reader:
            here, start = start, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                continue
            if len(row) != len(header):
                ragged.append(f"line {here}: {len(row)} fields, {len(header)} expected")
                continue
            rows.append(row)
            lines.append(here)
    except csv.Error as error:
        raise DataError(
            f"{path}, row from line {start} on: {error}. For raw text set `quoting: false`."
        ) from None
    if ragged:
        raise DataError(f"{path} has {len(ragged)} ragged row(s):", first_of(ragged, SHOWN))
    repeated = sorted({name for name in header or [] if (header or []).count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the column name(s) {', '.join(repeated)} are repeated.")
    frame = pd.DataFrame(rows, columns=header or [], dtype="string")
    return frame.assign(_line=lines)


def _read_jsonl(text: str, path: Path) -> pd.DataFrame:
    rows, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 ends no line of JSON
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            rows.append({**row, "_line": number})
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DataError(f"{path} is not JSON Lines:", first_of(problems, SHOWN))
    return pd.DataFrame(rows)


def _read_image_folder(path: Path) -> pd.DataFrame:
    """List the images in a folder of one folder a label: `image` (path below it), `label`."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}, with a folder of images for each label.")
    files = sorted(file for file in path.glob("*/**/*") if file.suffix.lower() in IMAGE_SUFFIXES)
    names = [file.relative_to(path) for file in files]
    if not names:
        known = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{path} has no images ({known}) in folders named like their labels.")
    return pd.DataFrame(
        {
            "image": [name.as_posix() for name in names],
            "label": [name.parts[0] for name in names],
            "_line": range(1, len(names) + 1),
        }
    )


def _read_columnar(table: Table, path: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        frame = pd.read_parquet(path) if table.format == "parquet" else pd.read_feather(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no readable {table.format} file: {error}") from None
    return frame.assign(_line=range(1, len(frame) + 1))


def indexed(rows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return rows in the canonical order of columns, labels (or lists of them) as indices into the declared ones.

    `UNLABELLED` stands where a target's or a replayed row has no label.
    """
    if labels:
        index = {label: number for number, label in enumerate(labels)} | {"": UNLABELLED}
        if has_label_lists(rows):
            lists = [[index[label] for label in row] for row in rows["label"]]
            rows = rows.assign(label=pd.Series(lists, index=rows.index, dtype=object))
        else:
            rows = rows.assign(label=rows["label"].map(index).astype("int64"))
    return rows[[column for column in COLUMNS if column in rows]]


def has_label_lists(rows: pd.DataFrame) -> bool:
    """Tell whether each row has a list of labels, rather than one."""
    return "label" in rows and len(rows) > 0 and not isinstance(rows["label"].iloc[0], str | int | np.integer)


def unlabelled(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell which canonical rows have no label, as those of a target may, `(rows,)`; an empty list of labels is one."""
    if "label" not in rows or has_label_lists(rows):
        return np.zeros(len(rows), dtype=bool)
    return rows["label"].to_numpy() == UNLABELLED


def label_places(rows: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places of rows and labels of canonical rows, one pair for each label that a row has."""
    lists = [np.atleast_1d(labels).astype(np.int64) for labels in rows["label"]]
    owners = np.repeat(np.arange(len(lists)), [len(labels) for labels in lists])
    return owners, np.concatenate([np.zeros(0, dtype=np.int64), *lists])


def label_codes(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Return a number a row that equals another's when their labels do: a list of labels counts whole, `(rows,)`."""
    if "label" not in rows:
        return np.zeros(len(rows), dtype=np.int64)
    if not has_label_lists(rows):
        return rows["label"].to_numpy(np.int64, copy=True)
    codes, _ = pd.factorize(
        rows["label"].map(lambda labels: tuple(int(label) for label in labels)), sort=False
    )
    return codes.astype(np.int64)


def indicators(rows: pd.DataFrame, classes: int) -> NDArray[np.int64]:
    """Return which labels each row has, `(rows, classes)`, of canonical rows with lists of labels."""
    found = np.zeros((len(rows), classes), dtype=np.int64)
    for row, labels in enumerate(rows["label"]):
        found[row, [int(label) for label in labels]] = 1
    return found


def write_table(rows: pd.DataFrame, path: Path) -> None:
    """Write Parquet with the same bytes for the same rows: no index, no library metadata of pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(rows.reset_index(drop=True), preserve_index=False).replace_schema_metadata(
        None
    )
    pq.write_table(table, path, compression="zstd", version="2.6", store_schema=False)


def table_fingerprint(rows: pd.DataFrame) -> str:
    """Name a table by its columns and their values, in order: a file's bytes depend on the library that wrote it too."""
    columns = {
        str(column): fingerprint(
            [(f"{place:09d}", repr(value)) for place, value in enumerate(rows[column].tolist())]
        )
        for column in rows
    }
    return fingerprint(columns.items())
