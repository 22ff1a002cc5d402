"""Show what a recipe would train, before anything is trained."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tasks.models import load_encoder
from tasks.recipe import Recipe
from tasks.sources import base_folder, resolve_base
from tasks.training.layers import Layer, describe_layers
from tasks.training.probe import fresh_head


def preview_layers(recipe: Recipe, root: Path) -> list[Layer]:
    """Return the layers of the recipe's base with its head: which train, and at which peak rate.

    Raises:
        ConfigError: more layers are frozen than there are.
        DataError: the base model cannot be had.
    """
    encoder = load_encoder(base_folder(resolve_base(recipe.base, root), root), "cpu")
    head = fresh_head(encoder.model.config.hidden_size, len(recipe.data.labels), recipe.finetune.seed)
    return describe_layers(nn.ModuleDict({"encoder": encoder.model, "head": head}), recipe.finetune)
