"""What was measured is kept in the machine's store, so that no run measures it again: a file a model and benchmark.

A file is named by all that its figures depend on: weights, tokenizer or preprocessing, examples and settings, device
class, arithmetic, and the versions of the libraries and of stage `evaluate`. So base and candidate are always compared
under the same ones.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.embeddings import vectors_folder
from tasks.errors import StageError
from tasks.families.interface import Measured, Model
from tasks.files import atomic_path, fingerprint
from tasks.models import tensors_fingerprint
from tasks.paths import store
from tasks.stages import version_of
from tasks.tables import table_fingerprint

log = logging.getLogger(__name__)

MEASURED = [field.name for field in fields(Measured)]
SHOWN = 5
"""Examples that an error names."""

Arrays = Mapping[str, NDArray[Any]]


def kept(path: Path, rows: int, measure: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that are kept under `path`, `(rows, …)` each; measure and keep them where there are none.

    A damaged file is measured again, with a warning.
    """
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            if not found or any(values.shape[:1] != (rows,) for values in found.values()):
                raise ValueError(f"it does not hold {rows} rows")
            return found
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): measured again", path, error)
    measured = measure()
    with atomic_path(path) as aside, aside.open("wb") as written:
        np.savez(written, **dict(measured))  # type: ignore[arg-type]
    return measured


def outcomes_path(model: str, max_length: int, device: str, precision: str, *what: str) -> Path:
    """Return where the outcomes of a model are kept; `what` names examples and settings."""
    setting = vectors_folder(model, max_length, device=device, precision=precision)
    named = fingerprint(
        [(str(place), part) for place, part in enumerate((str(version_of("evaluate")), *what))]
    )
    return store() / "outcomes" / setting.relative_to(store() / "embeddings") / f"{named[:32]}.npz"


def kept_measure(model: Model, rows: pd.DataFrame) -> Measured:
    """Measure a model on rows of its task, or return what was measured of it before."""
    path = outcomes_path(
        tensors_fingerprint(model.state),
        0,
        model.device,
        model.precision,
        model.task,
        model.reading,
        model.description,
        table_fingerprint(rows),
    )

    def measure() -> Arrays:
        found = model.measure(rows)
        # A classifier whose scores are no numbers still answers something: its losses tell.
        for figures in (found.outcomes, found.losses):
            must_be_finite(figures, rows["id"].astype(str).tolist(), f"the task ({model.metric})")
        arrays = {name: getattr(found, name) for name in MEASURED}
        return {name: values for name, values in arrays.items() if values is not None}

    found = kept(path, len(rows), measure)
    return Measured(**{name: found.get(name) for name in MEASURED})  # type: ignore[arg-type]


def must_be_finite(outcomes: NDArray[np.float64], ids: list[str], what: str) -> None:
    """Refuse outcomes that are no numbers.

    Raises:
        StageError: it says how many there are, and of which examples.
    """
    bad = np.flatnonzero(~np.isfinite(outcomes))
    if len(bad):
        named = ", ".join(ids[place] for place in bad[:SHOWN])
        raise StageError(
            f"{what}: the model gives no number for {len(bad)} of {len(outcomes)} examples, {named} among them. Did the "
            "training diverge, or does half precision overflow (evaluate.precision)?"
        )
