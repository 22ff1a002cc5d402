"""Training's curves for TensorBoard, on request: `RETAIN_TENSORBOARD` names the folder that it is pointed at.

A setting of the machine and not of the recipe: watching does not change what comes of it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError

SETTING = "RETAIN_TENSORBOARD"
TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "validation_loss": "validation/loss",
    "validation_score": "validation/score",
}
"""Columns of the history, and the names of their curves."""


def open_board(recipe: str) -> Board | None:
    """Return where the curves of this recipe go, or None where the setting asks for none.

    Raises:
        ConfigError: the package is missing.
    """
    folder = os.environ.get(SETTING, "")
    if not folder:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            f"{SETTING} is set, but TensorBoard is not installed: pip install 'retain[tensorboard]'."
        )
    return Board(Path(folder).expanduser() / recipe)


class Board:
    """The event files of one training; it goes on with the curves of one that was stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Open the file: what a stopped run drew after `step` is drawn anew."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def draw(self, row: Mapping[str, float | int | None]) -> None:
        """Add what a row of the history has."""
        for column, tag in TAGS.items():
            if (value := row.get(column)) is not None:
                self._writer.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Write what has not been written yet."""
        if self._writer is not None:
            self._writer.close()
