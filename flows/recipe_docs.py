"""Write docs/recipes.md from the recipe model: `python -m flows.recipe_docs`.

A test holds the two in step.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.files import write_text
from tasks.recipe import Recipe
from tasks.stages import STAGES

INTRODUCTION = """# Recipes

<!-- Made by `python -m flows.recipe_docs` from tasks/recipe.py: edit the strings there, not this file. -->

A recipe is one YAML file, `recipes/<name>.yaml`, that says everything about one fine-tune. `retain init`
proposes one for a data file; `recipes/sentiment.yaml` is a complete example. It is closed: an unknown field is
an error, and every error is reported at once. A field without a default must be given.

Each stage reads its own sections and nothing else, so a change reruns only what depends on it:

| stage | reads these sections |
|---|---|
"""


def recipe_docs() -> str:
    """Return docs/recipes.md as text."""
    stages = "".join(
        f"| `{stage}` | {', '.join(f'`{section}`' for section in sections)} |\n"
        for stage, sections in STAGES.items()
    )
    parts = [INTRODUCTION, stages, "\n## The file\n\n", _table(Recipe)]
    for model, places in _sections().items():
        heading = " · ".join(f"`{place}`" for place in dict.fromkeys(places)) + _which_kind(model)
        parts.append(f"\n## {heading}\n\n{_purpose(model)}\n\n{_table(model)}")
    return "".join(parts)


def _sections() -> dict[type[BaseModel], list[str]]:
    """Return every model below Recipe, in reading order, with the places where it stands."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(model: type[BaseModel], place: str) -> None:
        for name, field in model.model_fields.items():
            here = f"{place}.{field.alias or name}".lstrip(".")
            for inner, suffix in _models_in(field.annotation):
                found.setdefault(inner, []).append(f"{here}{suffix}")
                if len(found[inner]) == 1:
                    visit(inner, f"{here}{suffix}")

    visit(Recipe, "")
    return found


def _models_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, suffix
        return
    ending = {dict: ".<name>", list: "[]"}.get(get_origin(annotation), "")  # type: ignore[arg-type]
    for argument in get_args(annotation):
        yield from _models_in(argument, suffix + ending)


def _which_kind(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    return f" of kind {_kind(kind.annotation)}" if kind else ""


def _purpose(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel]) -> str:
    lines = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "**required**" if field.is_required() else f"`{_default(field)}`"
        kind = _kind(field.annotation) + _limits(field)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    words = {None: "none", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return str(list(value) if isinstance(value, tuple) else value).replace("\n", "\\n")


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for item in arguments[1:] for limit in _limit(item)]
        return _kind(arguments[0]) + (f" {', '.join(limits)}" if limits else "")
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        kinds = [_kind(item) for item in arguments if item is not type(None)]
        return " \\| ".join(dict.fromkeys(kinds))
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(dict.fromkeys(_kind(item) for item in arguments))}"
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"name → {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", typing.Any: "any"}
    return words.get(annotation, str(annotation))


def _limits(field: FieldInfo) -> str:
    limits = [limit for item in field.metadata for limit in _limit(item)]
    return f" {', '.join(limits)}" if limits else ""


def _limit(item: Any) -> Iterator[str]:
    for metadata in getattr(item, "metadata", None) or [item]:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("min_length", "length ≥")):
            if (bound := getattr(metadata, name, None)) is not None:
                yield f"{sign} {bound}"


def main() -> None:
    """Write docs/recipes.md of the repository of the working folder."""
    path = Path("docs/recipes.md")
    if not path.parent.is_dir():
        sys.exit("run this in the root of the repository")
    write_text(path, recipe_docs())


if __name__ == "__main__":
    main()
