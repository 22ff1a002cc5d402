"""How an expected error ends a Prefect run: in a state of its own name, with its message, without a traceback."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.states import Failed, State

from tasks.errors import PipelineError, Preempted, Refused, StageError
from tasks.files import system_says
from tasks.stops import Stopped, Terminated

P = ParamSpec("P")
T = TypeVar("T")


def _says_more(record: logging.LogRecord) -> bool:
    """Tell whether a line of the log is more than Prefect's word on a state that it logs again as it ends."""
    return record.exc_info != (None, None, None) or not record.getMessage().startswith("Task run failed with")


logging.getLogger("prefect.task_runs").addFilter(_says_more)


ENDED = re.compile(r"Finished in state (Refused|Preempted|Failed)\(")


@contextmanager
def reason_left_to_the_end() -> Iterator[None]:
    """Keep from the terminal how task and flow failed: the command line says it, once, as its last word.

    The logs and states that Prefect's UI shows stay as they are.
    """
    consoles = [
        handler for handler in logging.getLogger().handlers if isinstance(handler, PrefectConsoleHandler)
    ]
    for console in consoles:
        console.addFilter(_is_no_end)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(_is_no_end)


def _is_no_end(record: logging.LogRecord) -> bool:
    return not ENDED.match(record.getMessage())


def state_name(error: PipelineError) -> str:
    """Return the name of the state that an error ends in: Refused, Preempted or Failed."""
    for kind in (Refused, Preempted):
        if isinstance(error, kind):
            return kind.__name__
    return "Failed"


def _failed(error: PipelineError) -> State[Any]:
    return Failed(name=state_name(error), message=str(error), data=error)


def ends_in_state(function: Callable[P, T]) -> Callable[P, T | State[Any]]:
    """Make an expected error of a flow's or task's function its final state; bugs keep their traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | State[Any]:
        try:
            return function(*args, **kwargs)
        except PipelineError as error:
            return _failed(error)
        except Terminated:
            return _failed(Stopped())
        except Exception as error:
            if not (said := system_says(error)):
                raise
            return _failed(StageError(said))

    # Prefect makes the run form from the annotations, and would look their names up in this module.
    signature = inspect.signature(function, eval_str=True)
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: value.annotation for name, value in signature.parameters.items()}
    return wrapper


def stops_the_flow(called: Task[P, Any]) -> Callable[P, Any]:
    """Make a task raise its error in the flow that calls it; a state that a task returns would pass for a value."""

    @functools.wraps(called.fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        state: State[Any] = called(*args, return_state=True, **kwargs)
        return state.data if state.is_completed() else state.result(raise_on_failure=True)

    return wrapper


def may_go_on(task: Any, run: Any, state: State[Any]) -> bool:
    """Say whether a failed stage is worth another try: only one that was preempted by itself, and has saved its work."""
    return state.name == Preempted.__name__ and not isinstance(state.data, Stopped)
