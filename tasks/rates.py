"""The peak learning rate that fine-tuning wants, by task and method: a tenth or less of what pretraining used."""

from __future__ import annotations

from collections.abc import Mapping

TOO_HIGH = 10
"""Times the usual rate that a recipe may ask for without saying so."""
CLASSIFIERS = {"full": 1e-4, "lp-ft": 1e-4, "probe": 1.0, "norms": 1e-3, "biases": 1e-3, "lora": 1e-3}

USUAL_RATES: Mapping[str, Mapping[str, float]] = {
    "text-classification": CLASSIFIERS,
    "image-classification": {**CLASSIFIERS, "full": 3e-4, "lp-ft": 3e-4, "norms": 3e-3, "biases": 3e-3},
    "causal-lm": {"full": 2e-5, "norms": 2e-4, "biases": 2e-4, "lora": 2e-4},
    "sentence-embedding": {"full": 5e-5, "norms": 5e-4, "biases": 5e-4, "lora": 5e-4},
}
"""A task's methods are its keys. A rate more than ten times above is refused unless it is forced."""
