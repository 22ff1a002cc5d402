"""What a run may be given: a recipe of this repository, and changes to its common knobs.

Prefect makes the run form, and refuses wrong values at submission, from these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flows.console import find_root
from tasks.errors import ConfigError
from tasks.recipe import Method, Name


class RecipesHere:
    """Lists the recipes in the schema of a recipe name, as they are when the flow is deployed: a drop-down."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        try:
            names = sorted(path.stem for path in (find_root() / "recipes").glob("*.yaml"))
        except ConfigError:  # imported outside a repository
            return schema
        return {**schema, "enum": names} if names else schema


RecipeName = Annotated[Name, RecipesHere()]


class Changes(BaseModel):
    """Knobs of the section `finetune`, for this run only; what is left empty stays as the recipe says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Method | None = None
    """`full`: all layers (a new head starts fresh); `lp-ft`: linear probe, then all layers; `probe`: the head only;
    `norms`, `biases`: only those, and the head; `lora`: low-rank adapters, and the head."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the deepest layer."""
    force_learning_rate: bool | None = None
    """Accept a rate more than ten times above the usual one for this method."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows that make one optimizer step, whatever the device."""
    freeze_layers: Annotated[int, Field(ge=0)] | None = None
    """How many of the earliest layers stay as they are (embeddings count as layer 0); for a share, see `fields`."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Longest sequence in tokens; longer texts are truncated, and counted."""
    seed: int | None = None
    """Seeds the head, the order of the rows and dropout."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the recipe, for example `merge.alphas`: [0, 1]."""

    def by_field(self) -> dict[str, Any]:
        """Return the changes by their place in the recipe, for example `finetune.epochs`: 1."""
        knobs = self.model_dump(exclude={"fields"}, exclude_none=True)
        return {**{f"finetune.{name}": value for name, value in knobs.items()}, **self.fields}


def changes_of(fields: Mapping[str, Any]) -> Changes | None:
    """Return changes by field as `Changes`, or None where there are none.

    The recipe model judges the values, so that every way in gives the same message.
    """
    return Changes(fields=dict(fields)) if fields else None
