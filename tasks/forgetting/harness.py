"""Tasks of lm-evaluation-harness as examples: what it would ask a model is written down once, by `prepare`.

From there on the harness is not needed: the same requests are scored by the project's own engine, on base and candidate
alike, and the examples are split and hashed like those of any other benchmark. Tasks that score log-likelihoods can be
used (`multiple_choice`, `loglikelihood`); those that generate text cannot.

What a task draws (few-shot examples, the order of choices) is drawn with the seeds of the harness's command
line, so that the same requests are written down every time.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigError, DataError

USABLE = ("multiple_choice", "loglikelihood")
NO_CHOICE = -1
"""`gold` of an example that has one continuation, which the model would say or not."""
SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234
"""As the harness's command line seeds them where it is not told to do otherwise (`lm_eval run --seed`)."""


def task_examples(name: str, file: Path | None, shots: int | None = None) -> list[dict[str, Any]]:
    """Return what a task asks: `query`, `choices` (JSON of continuations), `lengths` (JSON, characters) and `gold`.

    `file` is a task YAML, whose data files are looked up beside it; None takes the harness's own task `name`.

    Raises:
        ConfigError: lm-eval is missing, or there is no such task, or one that generates text.
        DataError: the task's data cannot be had.
    """
    try:
        from datasets.exceptions import DatasetsError
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(
            "benchmarks of kind `harness` need the extra `lm`: pip install 'retain[lm]'."
        ) from None
    folder = file.resolve().parent if file else None
    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    if name in manager.all_groups:
        raise ConfigError(
            f"{name} is a group of tasks; name one of them, or give each a benchmark of its own."
        )
    if name not in manager.all_tasks:
        where = f"{file} defines" if file else "lm-evaluation-harness knows"
        raise ConfigError(f"{where} no task {name!r}; there is {', '.join(sorted(manager.all_tasks)[:8])}.")
    with contextlib.chdir(folder) if folder else contextlib.nullcontext(), _seeded():
        try:
            task: Any = manager.load(name)["tasks"][name]
            kind = task.OUTPUT_TYPE
            if kind not in USABLE:
                raise ConfigError(f"The task {name} is of type {kind}; only {', '.join(USABLE)} can be used.")
            if shots is not None:
                task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # its sampler has none of its own
            task.build_all_requests(limit=None, rank=0, world_size=1)
        except StopIteration:  # the harness looks at the first document before it counts them
            raise DataError(f"The task {name} has no examples.") from None
        except (OSError, ValueError, LookupError, TypeError, DatasetsError) as error:
            raise DataError(f"The task {name} cannot be read: {type(error).__name__}: {error}") from error
    return [_example(task, instances, kind) for instances in _by_document(task)]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed the generators that tasks draw from, and leave them afterwards as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def _by_document(task: Any) -> list[list[Any]]:
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    return [sorted(found[number], key=lambda instance: instance.idx) for number in sorted(found)]


def _example(task: Any, instances: list[Any], kind: str) -> dict[str, Any]:
    contexts = {instance.args[0] for instance in instances}
    continuations = [str(instance.args[1]) for instance in instances]
    if kind == "loglikelihood":
        gold, lengths = NO_CHOICE, [len(text) for text in continuations]
    elif len(contexts) > 1:
        raise ConfigError(
            "a task whose contexts differ by choice cannot be used: its choices share no question"
        )
    else:
        document = instances[0].doc
        choices = [str(choice) for choice in task.doc_to_choice(document)]
        gold = _gold(task.doc_to_target(document), choices)
        # As the harness divides: by the choice alone, without what stands between it and the question.
        lengths, continuations = [len(choice) for choice in choices], continuations[: len(choices)]
    return {
        "query": str(instances[0].args[0]),
        "choices": json.dumps(continuations, ensure_ascii=False),
        "lengths": json.dumps(lengths),
        "gold": gold,
    }


def _gold(answer: object, choices: Sequence[str]) -> int:
    """Return the place of the right choice, which tasks name by its text or by its place.

    Raises:
        DataError: it is none of the choices, or several are right.
    """
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    place = str(answer)
    if not place.isdecimal() or int(place) >= len(choices):
        raise DataError(
            f"The task names {answer!r} as the right one of {len(choices)} choices; it is one of them, or its place "
            "from 0. Tasks with several right choices cannot be used."
        )
    return int(place)
