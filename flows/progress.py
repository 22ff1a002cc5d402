"""Training's progress as a Prefect artifact: read from the lines that the stage prints, while it runs."""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Callable
from typing import Any

from tasks.stage_log import progress_of

SECONDS_BETWEEN_UPDATES = 5.0


def followed(
    say: Callable[[str], None], recipe: str, seconds: float = SECONDS_BETWEEN_UPDATES
) -> Callable[[str], None]:
    """Return `say`, which also moves a progress artifact of this task run when a line tells of training's progress.

    The artifact comes with the first such line: a stage that prints none has none.
    """
    context = contextvars.copy_context()  # lines come from a thread, which knows no task run
    artifact: Any = None
    updated = 0.0

    def follow(line: str) -> None:
        nonlocal artifact, updated
        say(line)
        found = progress_of(line)
        if found is None:
            return
        share, now = found, time.monotonic()
        if artifact is None:
            artifact = context.run(_create, share, recipe, line)
            say(f"progress: {_address(artifact)}")
        elif share >= 1 or now - updated >= seconds:
            context.run(_update, artifact, share, line)
        else:
            return
        updated = now

    return follow


def _create(share: float, recipe: str, line: str) -> Any:
    from prefect.artifacts import create_progress_artifact

    return create_progress_artifact(100 * share, key=f"{recipe}-progress", description=line)


def _update(artifact: Any, share: float, line: str) -> None:
    from prefect.artifacts import update_progress_artifact

    update_progress_artifact(artifact, 100 * share, description=line)


def _address(artifact: Any) -> str:
    """Return the artifact's page, or its number where no server with a UI is set."""
    url = os.environ.get("PREFECT_API_URL", "")
    return f"{url.removesuffix('/api')}/artifacts/artifact/{artifact}" if url else f"artifact {artifact}"
