"""Benchmarks of causal language models: one outcome an example, higher is better.

| benchmark | outcome of an example |
|---|---|
| multiple choice, `acc` | 1 if the right choice has the highest log-likelihood |
| multiple choice, `acc_norm`, `acc_bytes` | the same, each divided by the choice's characters, or UTF-8 bytes |
| last word | 1 if the word is what the model would say greedily |
| perplexity | mean log-likelihood, in nats a token, of a text |

Metrics are named and computed as in lm-evaluation-harness 0.4.13 (`ConfigurableTask.process_results`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.forgetting.likelihood import Request, Scorer, TokenRequest, encode_requests
from tasks.forgetting.questions import Question

Outcomes = NDArray[np.float64]
ChoiceMetric = Literal["acc", "acc_norm", "acc_bytes"]

CHOICE_LENGTH = {
    "acc": lambda _: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""What a choice's log-likelihood is divided by."""


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
    scorer: Scorer, passages: Sequence[tuple[str, str]], *, delimiter: str = " "
) -> Outcomes:
    """Return 1 where each token of the word that ends a passage is the likeliest, else 0, `(passages,)`.

    Passages are contexts and last words (Paperno et al. 2016).
    """
    found = scorer.log_likelihoods([Request(context, delimiter + word) for context, word in passages])
    return found.greedy.astype(np.float64)


def perplexity_outcomes(scorer: Scorer, texts: Sequence[str]) -> Outcomes:
    """Return the mean log-likelihood of each text, in nats a token, `(texts,)`; its perplexity is exp(-outcome).

    Each text is read by itself after the prefix token, and every token of it is predicted. One of more tokens than the
    model reads is cut into windows that do not overlap, each after the last token of the one before, as the harness
    cuts a document (`get_rolling_token_windows` with one token of context).

    Raises:
        DataError: a text without a token.
    """
    requests = encode_requests(scorer.tokenizer, [Request("", text) for text in texts], scorer.prefix)
    windows = [_windows(request, scorer.max_length) for request in requests]
    found = scorer.score([window for of_text in windows for window in of_text])
    owner = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in windows])
    sums, tokens = (np.bincount(owner, values, len(texts)) for values in (found.sums, found.tokens))
    outcomes: Outcomes = sums / tokens
    return outcomes


def _windows(request: TokenRequest, size: int) -> list[TokenRequest]:
    """Cut the continuation into windows of `size` tokens, the last one shorter."""
    context, ids = request
    return [
        TokenRequest(ids[start - 1 : start] or context, ids[start : start + size])
        for start in range(0, max(len(ids), 1), size)
    ]
