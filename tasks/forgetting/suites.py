"""Original benchmarks, measured: one outcome an example, the same examples for every model.

| kind | outcome of an example | metric |
|---|---|---|
| retrieval | 1 / rank of its document among all, by cosine; equals count as ahead | `mrr` |
| probe | 1 if a logistic regression on the fitting part's features is right | `accuracy` |
| knn | 1 if the nearest of the fitting part vote for its label, by cosine | `accuracy` |
| head | 1 if the base's original head is right | `accuracy` |
| similarity | its jackknife pseudo-value of Spearman's correlation of cosine and score | `spearman` |
| choices | 1 if the right choice is the likeliest | `accuracy` |
| last-word | 1 if the last word is what the model would say | `accuracy` |
| masked-lm | mean log-likelihood a masked token of a block, by the original head, in nats | `log_likelihood` |
| perplexity | mean log-likelihood a token of a block, in nats | `log_likelihood` |
| harness | the task's own metric | as the recipe says |

All are zero-shot or fit on their own part, so nothing here depends on what the model was tuned for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.errors import StageError
from tasks.forgetting.bootstrap import spearman_terms
from tasks.measures.images import thumbnail
from tasks.progress_lines import ProgressLines
from tasks.reports import BenchmarkInfo, read_report

if TYPE_CHECKING:
    from tasks.forgetting.likelihood import Scorer


Vectors = NDArray[np.float32]

PROBE_STRENGTH = 0.1
"""Inverse regularisation of the probe, over standardised features."""
EXTRACT = 160
"""Characters of an example that a report shows."""
EXTRAS = {"retrieval": "corpus", "probe": "fit", "knn": "fit"}
TOKENS_A_BATCH = {"cpu": 2048, "cuda": 65_536}
"""Tokens of a forward pass over requests."""
ASKED = ("image", "text", "query", "context")
"""Columns of examples that hold what a model is asked, the first that is there: an image's `text` names its file."""
EMBEDDING = ("retrieval", "probe", "knn", "similarity")
"""Kinds that ask a model for vectors only, which are kept by text."""
OF_THE_HEAD = ("head", "masked-lm")
"""Kinds that ask the head that the base was published with."""


class Measurable(Protocol):
    """A model under measurement."""

    model: Any
    """The model, for the kinds that ask it for more than vectors."""

    @property
    def max_length(self) -> int:
        """Most tokens of a benchmark's text that it reads."""
        ...

    def embed(self, contents: Sequence[str | bytes]) -> Vectors:
        """Return unit vectors, (rows, dim)."""
        ...


@dataclass(frozen=True)
class Suite:
    """One half of one benchmark, in memory."""

    info: BenchmarkInfo
    examples: pd.DataFrame
    """`id`, `group`, and what the kind asks."""
    other: pd.DataFrame
    """The corpus (`id`, `text`) or the fitting part (`text`, `label`); empty for other kinds."""

    @property
    def name(self) -> str:
        """The benchmark's name in the recipe."""
        return self.info.name

    def chance(self, subject: Measurable) -> float:
        """Return what guessing scores; of text, each token of the model's vocabulary as likely as any other."""
        kind = self.info.kind
        if kind == "retrieval":
            documents = len(self.other)
            return float((1 / np.arange(1, documents + 1)).sum() / documents)
        if kind in ("probe", "knn", "head"):
            return float(self.examples["label"].value_counts(normalize=True).max())
        if kind in ("choices", "harness"):
            choices = self.examples["choices"].map(lambda row: len(json.loads(row)))
            return float((1 / choices[choices > 1]).sum() / len(choices))
        if kind in ("perplexity", "masked-lm"):
            network = subject.model.network if kind == "perplexity" else _encoder(subject).original
            return -math.log(network.config.get_text_config().vocab_size)
        return 0.0

    def measure(self, subject: Measurable) -> NDArray[np.float64]:
        """Return the outcome of each example, `(examples,)`, in the order of `examples`.

        Raises:
            StageError: the fitting part cannot fit, or the model cannot be asked this.
        """
        return MEASURES[self.info.kind](self, subject)

    @property
    def asked(self) -> str:
        """Return the column that holds what a model is asked."""
        return next(name for name in ASKED if name in self.examples)

    def extract(self, row: int) -> str:
        """Show one example in a line."""
        example = self.examples.iloc[row]
        if self.info.kind == "retrieval":
            document = self.other.set_index("id").loc[example["document_id"], "text"]
            return f"{_short(str(example['query']), EXTRACT // 2)} → {_short(str(document), EXTRACT // 2)}"
        if self.info.kind == "similarity":
            return f"{_short(str(example['text']), EXTRACT // 2)} ~ {_short(str(example['positive']), EXTRACT // 2)}"
        if self.asked == "image":  # its picture is shown, and its id names the file
            return self._label(row)
        said = example[self.asked]
        if self.info.kind == "last-word":
            return f"{_short(str(said)[-EXTRACT:], EXTRACT)} → {example['continuation']}"
        if self.info.kind in ("choices", "harness") and int(example["gold"]) >= 0:
            right = json.loads(example["choices"])[int(example["gold"])]
            return f"{_short(str(said), EXTRACT // 2)} → {_short(right, EXTRACT // 2)}"
        label = self._label(row)
        return _short(str(said), EXTRACT) + (f" → {label}" if label else "")

    def picture(self, row: int) -> str | None:
        """Show an example that is an image, as a `data:` address; None where it is a text."""
        return thumbnail(self.examples["image"].iloc[row]) if self.asked == "image" else None

    def _label(self, row: int) -> str:
        """Return the name of an example's label; nothing where it has none."""
        labels = self.info.labels
        return labels[int(self.examples["label"].iloc[row])] if labels and "label" in self.examples else ""


def read_suites(half: Path, names: Sequence[str]) -> list[Suite]:
    """Read the named benchmarks of a half (`selection/` or `report/`).

    Raises:
        StageError: one is missing or cannot be read.
    """
    return [read_suite(half / name) for name in names]


def read_suite(folder: Path) -> Suite:
    """Read one benchmark of a half."""
    info = read_report(folder / "benchmark.json", BenchmarkInfo)
    other = EXTRAS.get(info.kind)
    try:
        examples = pd.read_parquet(folder / "examples.parquet")
        return Suite(
            info, examples, pd.read_parquet(folder / f"{other}.parquet") if other else pd.DataFrame()
        )
    except (OSError, ValueError) as error:
        raise StageError(f"{folder}: the benchmark cannot be read ({error}): run `prepare` again.") from None


def _reciprocal_ranks(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    documents = subject.embed(suite.other["text"].tolist())
    queries = subject.embed(suite.examples["query"].tolist())
    place = {identifier: row for row, identifier in enumerate(suite.other["id"])}
    wanted = np.array([place[identifier] for identifier in suite.examples["document_id"]])
    similarity = queries @ documents.T
    own = similarity[np.arange(len(queries)), wanted]
    # A model that maps everything to one point must not win by the order of the rows: equals count as ahead.
    ranks = (similarity >= own[:, None]).sum(axis=1)
    return 1.0 / ranks


def _probe(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    fit, features = _fitting_part(suite, subject)
    mean, scale = fit.mean(axis=0), fit.std(axis=0) + 1e-6
    model = LogisticRegression(C=PROBE_STRENGTH, max_iter=2000).fit(
        (fit - mean) / scale, suite.other["label"]
    )
    return (model.predict((features - mean) / scale) == suite.examples["label"]).to_numpy(np.float64)


def _neighbours(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from sklearn.neighbors import KNeighborsClassifier

    fit, features = _fitting_part(suite, subject)
    voters = min(int(suite.info.settings["neighbours"] or 1), len(fit))
    model = KNeighborsClassifier(voters, metric="cosine", algorithm="brute").fit(fit, suite.other["label"])
    return (model.predict(features) == suite.examples["label"]).to_numpy(np.float64)


def _fitting_part(suite: Suite, subject: Measurable) -> tuple[Vectors, Vectors]:
    if suite.other["label"].nunique() < 2:
        raise StageError(f"benchmark {suite.name}: its fitting part has one class only; give it more rows.")
    fitted, asked = (part[suite.asked].tolist() for part in (suite.other, suite.examples))
    return subject.embed(fitted), subject.embed(asked)


def _original_head(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    asked = suite.examples[suite.asked].tolist()
    if suite.asked == "image":
        logits = subject.model.original_logits(asked)
    else:
        logits = _encoder(subject).original_logits(asked, max_length=subject.max_length)
    if len(suite.info.labels) not in (0, logits.shape[1]):
        raise StageError(
            f"benchmark {suite.name} names {len(suite.info.labels)} labels, the base's original head tells "
            f"{logits.shape[1]} apart: give them in the order of its outputs."
        )
    return (logits.argmax(axis=1) == suite.examples["label"]).to_numpy(np.float64)


def _behind_masks(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    found: NDArray[np.float64] = _encoder(subject).masked_log_likelihoods(
        suite.examples["text"].tolist(),
        max_length=subject.max_length,
        progress=ProgressLines(suite.name, "masked texts"),
    )
    return found


def _encoder(subject: Measurable) -> Any:
    """Return the text encoder of a model, or the model where it is a bare one."""
    return getattr(subject.model, "encoder", subject.model)


def _similarity(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    first, second = (subject.embed(suite.examples[name].tolist()) for name in ("text", "positive"))
    return spearman_terms((first * second).sum(axis=1), suite.examples["score"].to_numpy(np.float64))


def _short(text: str, characters: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def _choices(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from tasks.forgetting.lm_tasks import choice_outcomes
    from tasks.forgetting.questions import read_questions

    metric: Any = "acc_bytes" if suite.info.settings["normalise"] else "acc"
    rows: list[Any] = suite.examples.to_dict("records")
    questions = read_questions(rows)
    prompt = str(suite.info.settings["prompt"])
    return choice_outcomes(_scorer(suite, subject), questions, prompt=prompt, metric=metric)


def _last_words(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from tasks.forgetting.lm_tasks import last_word_outcomes

    passages = zip(suite.examples["context"], suite.examples["continuation"].str.lstrip(), strict=True)
    return last_word_outcomes(_scorer(suite, subject), list(passages))


def _perplexity(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from tasks.forgetting.lm_tasks import perplexity_outcomes

    return perplexity_outcomes(_scorer(suite, subject), suite.examples["text"].tolist())


def _harness(suite: Suite, subject: Measurable) -> NDArray[np.float64]:
    from tasks.forgetting.harness import NO_CHOICE
    from tasks.forgetting.likelihood import Request

    rows = [json.loads(choices) for choices in suite.examples["choices"]]
    asked = zip(suite.examples["query"], rows, strict=True)
    found = _scorer(suite, subject).log_likelihoods(
        [Request(query, continuation) for query, continuations in asked for continuation in continuations]
    )
    outcomes, start = np.zeros(len(rows)), 0
    lengths = suite.examples["lengths"].map(json.loads).tolist()
    for place, (row, gold) in enumerate(zip(rows, suite.examples["gold"].tolist(), strict=True)):
        own = found.sums[start : start + len(row)]
        if suite.info.settings["metric"] == "acc_norm":
            own = own / np.array(lengths[place], dtype=np.float64)
        outcomes[place] = float(found.greedy[start] if gold == NO_CHOICE else own.argmax() == gold)
        start += len(row)
    return outcomes


def _scorer(suite: Suite, subject: Measurable) -> Scorer:
    from tasks.forgetting.likelihood import Scorer

    model = subject.model
    if not hasattr(model, "tokenizer"):
        raise StageError(f"benchmark {suite.name} asks for likelihoods: only a language model has them.")
    tokens = TOKENS_A_BATCH[model.device.partition(":")[0]]
    return Scorer(
        model.network,
        model.tokenizer,
        subject.max_length,
        model.device,
        tokens,
        None,
        ProgressLines(suite.name, "requests"),
    )


MEASURES = {
    "retrieval": _reciprocal_ranks,
    "probe": _probe,
    "knn": _neighbours,
    "head": _original_head,
    "masked-lm": _behind_masks,
    "similarity": _similarity,
    "choices": _choices,
    "last-word": _last_words,
    "perplexity": _perplexity,
    "harness": _harness,
}
