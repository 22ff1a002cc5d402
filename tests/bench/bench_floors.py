"""The floors: what a linear model on words, or on pixels, reaches on the test sets of the recipes. `make bench-floors`.

Reads the data sets in the folder that `RETAIN_DATA` names, by the recipes' own tables; writes `benchmarks/floors.json`.
A tuned model that is not above its floor was not worth tuning.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.forgetting.bootstrap import group_weights, interval, macro_f1
from tasks.measures.labels import wilson
from tasks.recipe import load_recipe, recipe_path
from tasks.tables import read_table
from tests.bench.figures import ROOT, Figure, publish

FOLDERS = {
    "support-intents": "banking77",
    "legal-clauses": "cuad_clauses",
    "medical-imaging": "pneumoniamnist",
}
DRAWS, SEED = 2000, 7


def main() -> None:
    """Fit a linear model on each recipe's training rows, and say what it reaches on its test rows."""
    data = Path(os.environ.get("RETAIN_DATA", ""))
    missing = [folder for folder in FOLDERS.values() if not (data / folder).is_dir()]
    if missing:
        sys.exit(f"RETAIN_DATA names no folder with {', '.join(missing)}: see docs/datasets.md")
    figures = [figure for name, folder in FOLDERS.items() for figure in floor(name, data / folder)]
    publish("floors", figures, ["scikit-learn", "numpy"])


def floor(name: str, folder: Path) -> list[Figure]:
    """Return accuracy and macro-F1 of the floor of one recipe."""
    recipe = load_recipe(recipe_path(ROOT, name))
    data = recipe.data
    if data.test is None:
        raise ValueError(f"{name} has no test set of its own")
    train, test = (
        read_table(table, folder, data.labels, recipe.task)[0] for table in (data.train, data.test)
    )
    said = of_images(train, test) if "image" in train else of_texts(train, test)
    truth = test["label"].map(data.labels.index).to_numpy()
    guessed = pd.Series(said).map(data.labels.index).to_numpy()
    weights = group_weights(test["group"].tolist(), DRAWS, SEED)
    scores = macro_f1(truth, guessed, len(data.labels), weights)
    hits, rows = int((truth == guessed).sum()), len(test)
    return [
        Figure(f"{name}, accuracy", hits / rows, "share", rows, interval=wilson(hits, rows)),
        Figure(f"{name}, macro-F1", float(scores[0]), "share", rows, interval=interval(scores, 0.95)),
    ]


def of_texts(train: pd.DataFrame, test: pd.DataFrame) -> NDArray[np.str_]:
    """Return the labels that a linear support vector machine on words and pairs of words gives."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LinearSVC(random_state=SEED)).fit(train["text"], train["label"])
    return np.asarray(model.predict(test["text"]))


def of_images(train: pd.DataFrame, test: pd.DataFrame) -> NDArray[np.str_]:
    """Return the labels that logistic regression on pixels gives; its regularisation is chosen by five folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    strengths = {"C": [0.001, 0.01, 0.1, 1.0]}
    model = GridSearchCV(LogisticRegression(max_iter=3000), strengths, cv=5)
    return np.asarray(model.fit(pixels(train), train["label"]).predict(pixels(test)))


def pixels(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the grey values of images, 0 to 1, `(rows, pixels)`."""
    from PIL import Image

    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(image)).convert("L"), dtype=float).ravel() / 255
            for image in rows["image"]
        ]
    )


if __name__ == "__main__":
    main()
