"""What a recipe's `task` stands for: one module a family, each with a `Model` behind the same interface.

| task | module | rows | a model is |
|---|---|---|---|
| text-classification | `text_classification` | text, label | an encoder and a linear head |
| causal-lm | `causal_lm` | messages, or text | a language model and its tokenizer |
| sentence-embedding | `sentence_embedding` | text and label, or pairs | an encoder |
| image-classification | `image_classification` | image, label | a vision backbone and a linear head |
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StageError

if TYPE_CHECKING:
    from tasks.families.interface import Model

FAMILIES = {
    "text-classification": ("text_classification", "TextClassifier"),
    "causal-lm": ("causal_lm", "CausalLM"),
    "sentence-embedding": ("sentence_embedding", "SentenceEncoder"),
    "image-classification": ("image_classification", "ImageClassifier"),
}
DESCRIPTION = "task.json"
"""The file of a model folder that says what its model was tuned to do."""


def family(task: str) -> type[Model]:
    """Return the model class of a task.

    Raises:
        StageError: there is no such task.
    """
    if task not in FAMILIES:
        raise StageError(f"There is no task {task!r}; there are {', '.join(FAMILIES)}.")
    module, name = FAMILIES[task]
    found: type[Model] = getattr(importlib.import_module(f"tasks.families.{module}"), name)
    return found


def load_model(folder: Path, device: str | None = None, precision: str = "fp32") -> Model:
    """Load a tuned model, of whichever family its folder says it is.

    Raises:
        StageError: the folder is no tuned model, or a damaged one.
    """
    return family(str(read_description(folder)["task"])).load(folder, device, precision)


def read_description(folder: Path) -> dict[str, object]:
    """Read what a model folder says of its model.

    Raises:
        StageError: the file is missing or damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise StageError(f"{folder} has no {DESCRIPTION}: it is a base model, not a tuned one.")
    try:
        description: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        description["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{folder} is a damaged model: {DESCRIPTION}: {error}") from error
    return description
