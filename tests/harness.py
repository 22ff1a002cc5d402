"""lm-evaluation-harness itself, asking this project's engine: what our benchmarks are held against."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tasks.forgetting.likelihood import Request, Scorer


def harness_model(scorer: Scorer) -> Any:
    """Return a model of lm-evaluation-harness (`lm_eval.api.model.LM`) that scores continuations with our engine."""
    from lm_eval.api.model import LM

    class Engine(LM):  # type: ignore[misc]
        """Scores continuations, and nothing else."""

        tokenizer_name = ""

        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            found = scorer.log_likelihoods([Request(*request.args) for request in requests])
            return list(zip(found.sums.tolist(), found.greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            raise NotImplementedError

    return Engine()


def harness_outcomes(file: Path, scorer: Scorer, metric: str) -> dict[str, float]:
    """Run a task file, whose data lie beside it, and return the metric of each document by its first context."""
    samples = harness_samples(file, harness_model(scorer))
    return {str(sample["arguments"][0][0]): float(sample[metric]) for sample in samples}


def harness_samples(file: Path, model: Any, shots: int | None = None) -> list[dict[str, Any]]:
    """Ask a model of the harness a task file, whose data lie beside it; return what is logged of each document."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with contextlib.chdir(file.parent):
        results = simple_evaluate(
            model=model,
            tasks=[str(file)],
            num_fewshot=shots,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
    samples: list[dict[str, Any]]
    (samples,) = results["samples"].values()
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))
