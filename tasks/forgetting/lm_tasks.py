"""Benchmarks of causal language models: one outcome an example, higher is better.

| benchmark | outcome of an example |
|---|---|
| multiple choice, `acc` | 1 if the right choice has the highest log-likelihood |
| multiple choice, `acc_norm`, `acc_bytes` | the same, each divided by the choice's characters, or UTF-8 bytes |
| last word | 1 if the word is what the model would say greedily, or its log-likelihood in nats |
| perplexity | mean log-likelihood, in nats a token, of a text |
| a task of lm-evaluation-harness | its own metric |

Metrics are named and computed as in lm-evaluation-harness 0.4.13 (`ConfigurableTask.process_results`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, DataError
from tasks.forgetting.likelihood import Request, Scorer, TokenRequest

Outcomes = NDArray[np.float64]
ChoiceMetric = Literal["acc", "acc_norm", "acc_bytes"]

CHOICE_LENGTH = {
    "acc": lambda _: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""What a choice's log-likelihood is divided by."""
LOG_LIKELIHOOD_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics of the harness whose examples are log-likelihoods, or pairs of one and what it is divided by."""
SHOWN = 20
"""Problems that an error lists."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question."""

    query: str
    choices: tuple[str, ...]
    gold: int
    """Which choice is right, from 0."""


def read_questions(
    rows: Iterable[Mapping[str, Any]], *, query: str = "query", choices: str = "choices", gold: str = "gold"
) -> list[Question]:
    """Read multiple-choice questions from rows; choices are a list, or the JSON of one.

    Raises:
        DataError: rows that lack a field, have fewer than two choices, or name no choice as right; every one at once.
    """
    questions, problems = [], []
    for place, row in enumerate(rows):
        try:
            questions.append(_question(row, query, choices, gold))
        except ValueError as error:
            problems.append(f"row {place}: {error}")
    _refuse(problems, "multiple-choice questions cannot be read:")
    return questions


def choice_outcomes(
    scorer: Scorer,
    questions: Sequence[Question],
    *,
    prompt: str = "{query}\nAnswer:",
    delimiter: str = " ",
    metric: ChoiceMetric = "acc",
) -> Outcomes:
    """Return 1 where the right choice is the likeliest, else 0, `(questions,)`; among equals the first counts.

    Args:
        scorer: the model.
        questions: what to ask.
        prompt: what comes before a choice; `{query}` is the question.
        delimiter: between prompt and choice.
        metric: `acc`, or with log-likelihoods divided by characters (`acc_norm`) or bytes (`acc_bytes`).

    Raises:
        ConfigError: the prompt has no `{query}`, or the metric is unknown.
        DataError: a choice that cannot be scored.
    """
    if "{query}" not in prompt or metric not in CHOICE_LENGTH:
        raise ConfigError(
            f"Multiple choice needs a prompt with {{query}} in it (it is {prompt!r}) and one of the metrics "
            f"{', '.join(CHOICE_LENGTH)} (it is {metric!r})."
        )
    requests = [
        Request(prompt.replace("{query}", question.query), delimiter + choice)
        for question in questions
        for choice in question.choices
    ]
    sums = scorer.log_likelihoods(requests).sums
    outcomes, start = np.zeros(len(questions)), 0
    for place, question in enumerate(questions):
        lengths = np.array([CHOICE_LENGTH[metric](choice) for choice in question.choices], dtype=np.float64)
        own = sums[start : start + len(lengths)]
        outcomes[place] = float(np.argmax(own / lengths) == question.gold)
        start += len(lengths)
    return outcomes


def last_word_outcomes(
    scorer: Scorer,
    passages: Sequence[tuple[str, str]],
    *,
    delimiter: str = " ",
    metric: Literal["acc", "log_likelihood"] = "acc",
) -> Outcomes:
    """Return what a model makes of the last word of each passage (Paperno et al. 2016), `(passages,)`.

    Args:
        scorer: the model.
        passages: contexts and the words that end them.
        delimiter: between context and word.
        metric: `acc` is 1 where each token of the word is the likeliest, else 0; `log_likelihood` is in nats.
    """
    found = scorer.log_likelihoods([Request(context, delimiter + word) for context, word in passages])
    return found.greedy.astype(np.float64) if metric == "acc" else found.sums


def perplexity_outcomes(scorer: Scorer, texts: Sequence[str]) -> Outcomes:
    """Return the mean log-likelihood of each text, in nats a token, `(texts,)`; its perplexity is exp(-outcome).

    Each text is read by itself after the prefix token, and every token of it is predicted.

    Raises:
        DataError: a text that is empty, or has more tokens than the model reads: make smaller blocks.
    """
    found = scorer.log_likelihoods([Request("", text) for text in texts])
    outcomes: Outcomes = found.sums / found.tokens
    return outcomes


# --- lm-evaluation-harness ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HarnessOutcomes:
    """What a task of lm-evaluation-harness said of each example."""

    metric: str
    """The metric of the outcomes; log-likelihoods in nats where the harness has a perplexity."""
    ids: list[str]
    """`<task>/<number of the document>`, `(examples,)`."""
    texts: list[str]
    """The context of each example's first request, `(examples,)`."""
    outcomes: Outcomes
    """Higher is better, `(examples,)`."""


def harness_outcomes(
    task: str | Path,
    scorer: Scorer,
    *,
    metric: str,
    include_path: Path | None = None,
    include_defaults: bool = True,
    limit: int | None = None,
    shots: int | None = None,
) -> HarnessOutcomes:
    """Run a task of lm-evaluation-harness with this project's engine, and return one outcome a document.

    Args:
        task: name of a task or group, or a task YAML; relative data files of a YAML are looked up beside it.
        scorer: the model.
        metric: which of the task's metrics counts.
        include_path: folder of more task YAMLs.
        include_defaults: whether the harness's own tasks can be named (they are indexed at each call).
        limit: the first so many documents of each task; all when None.
        shots: examples in the context; as the task says when None.

    Raises:
        ConfigError: lm-eval is not installed, there is no such task or metric, or the task generates text.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(
            "Tasks of lm-evaluation-harness need the extra `lm`: pip install 'retain[lm]'."
        ) from None
    file = Path(task).resolve() if _is_yaml(task) else None
    if file is not None and not file.is_file():
        raise ConfigError(f"There is no task file {task}.")
    manager = TaskManager(
        include_path=str(include_path.resolve()) if include_path else None,
        include_defaults=include_defaults and file is None,
    )
    known = manager.all_tasks
    if file is None and str(task) not in known:
        raise ConfigError(f"lm-evaluation-harness knows no task {task!r}, among {len(known)}.")
    with contextlib.chdir(file.parent) if file else contextlib.nullcontext(), _quiet():
        results = simple_evaluate(
            model=harness_model(scorer),
            tasks=[str(file or task)],
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    return _outcomes(results, str(task), metric)


def harness_model(scorer: Scorer) -> Any:
    """Return a model of lm-evaluation-harness (`lm_eval.api.model.LM`) that scores with this project's engine."""
    from lm_eval.api.model import LM

    class Engine(LM):  # type: ignore[misc]
        """Scores; generates nothing."""

        tokenizer_name = ""

        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            found = scorer.log_likelihoods([Request(*request.args) for request in requests])
            return list(zip(found.sums.tolist(), found.greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            return _rolling(scorer, [request.args[0] for request in requests])

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            names = sorted({str(request.task_name) for request in requests})
            raise ConfigError(
                f"{', '.join(names)}: this task generates text, which is not measured here. Take one that scores "
                "likelihoods (output_type: multiple_choice, loglikelihood or loglikelihood_rolling)."
            )

    return Engine()


def _rolling(scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """Return the log-likelihood of whole texts, window by window where they are longer than the model reads."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    windows, owners = [], []
    for place, text in enumerate(texts):
        tokens = scorer.tokenizer(text, verbose=False)["input_ids"]
        for window in get_rolling_token_windows(tokens, scorer.prefix, scorer.max_length, 1):
            windows.append(TokenRequest(*make_disjoint_window(window)))
            owners.append(place)
    sums = np.zeros(len(texts))
    np.add.at(sums, owners, scorer.score(windows).sums)
    return [float(value) for value in sums]


def _outcomes(results: Mapping[str, Any], task: str, metric: str) -> HarnessOutcomes:
    ids, texts, values, problems = [], [], [], []
    for name, samples in sorted(results["samples"].items()):
        lower = results["higher_is_better"].get(name, {}).get(metric) is False
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            if metric not in sample:
                problems.append(f"{name} has no metric {metric!r}, but {', '.join(sample['metrics'])}")
                break
            ids.append(f"{name}/{sample['doc_id']}")
            texts.append(str(sample["arguments"][0][0]))
            values.append((sample[metric], lower))
    if len(set(ids)) < len(ids):
        problems.append("it filters answers in more than one way, and an example has one outcome only")
    problems += [
        f"{metric!r} is no number an example" for value, _ in values[:1] if not _is_outcome(value, metric)
    ]
    if problems or not values:
        raise ConfigError(f"The task {task} gives no outcomes:", problems or ["it has no documents"])
    likelihoods = metric in LOG_LIKELIHOOD_METRICS
    return HarnessOutcomes(
        metric="log_likelihood" if likelihoods else metric,
        ids=ids,
        texts=texts,
        outcomes=np.array([_outcome(value, metric, lower=lower) for value, lower in values]),
    )


def _is_outcome(value: Any, metric: str) -> bool:
    return isinstance(value, (int, float)) or (metric in LOG_LIKELIHOOD_METRICS and len(value) == 2)


def _outcome(value: Any, metric: str, *, lower: bool) -> float:
    if metric in LOG_LIKELIHOOD_METRICS:
        # The harness turns log-likelihoods into a perplexity when it has them all; an example's is higher the better.
        return float(value[0] / value[1]) if isinstance(value, Sequence) else float(value)
    return -float(value) if lower else float(value)


def _is_yaml(task: str | Path) -> bool:
    return isinstance(task, Path) or task.endswith((".yaml", ".yml"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's progress bars, one for each step, out of the stage's log."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _question(row: Mapping[str, Any], query: str, choices: str, gold: str) -> Question:
    if missing := [name for name in (query, choices, gold) if name not in row]:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(map(str, row))}")
    try:
        given = json.loads(row[choices]) if isinstance(row[choices], str) else row[choices]
    except ValueError:
        given = None
    if not isinstance(given, (list, tuple, np.ndarray)):
        raise ValueError(f"{choices} is {row[choices]!r}; it is a list, or the JSON of one")
    texts = tuple(str(choice) for choice in given)
    if len(texts) < 2 or not all(texts):
        raise ValueError(
            f"{choices} has {len(texts)} choices, {sum(not text for text in texts)} of them empty"
        )
    right = str(row[gold]).removesuffix(".0")
    if not right.isdecimal() or int(right) >= len(texts):
        raise ValueError(f"{gold} is {row[gold]!r}; it is the index of one of {len(texts)} choices, from 0")
    return Question(str(row[query]), texts, int(right))


def _refuse(problems: Sequence[str], message: str) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError(f"{len(problems)} {message}", [*problems[:SHOWN], *more])
