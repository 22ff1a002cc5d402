"""Show what a recipe would train, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tasks.families import family
from tasks.recipe import LABELLED, Recipe
from tasks.sources import base_folder, resolve_base
from tasks.training.adapters import add_adapters
from tasks.training.layers import Layer, describe_layers
from tasks.training.probe import fresh_head


def preview_layers(recipe: Recipe, root: Path) -> list[Layer]:
    """Return the layers of the recipe's base with its head: which train, and at which peak rate.

    Adapters are among them where the recipe trains some; nothing is quantised, which changes no count.

    Raises:
        ConfigError: more layers are frozen than there are, or `finetune.lora` does not fit the base.
        DataError: the base model cannot be had.
    """
    folder = base_folder(resolve_base(recipe.base, root), root)
    embedder = family(recipe.task).load_base(folder, "cpu")
    if recipe.finetune.lora is not None:
        unrounded = {**recipe.finetune.lora.model_dump(), "quantise": False}
        add_adapters(embedder.backbone, **unrounded, seed=recipe.finetune.seed)
    network: Any = embedder.backbone
    if recipe.task in LABELLED:
        head = fresh_head(embedder.dimensions, len(recipe.data.labels), recipe.finetune.seed)  # type: ignore[attr-defined]
        network = nn.ModuleDict({"encoder": embedder.backbone, "head": head})
    return describe_layers(network, recipe.finetune)
