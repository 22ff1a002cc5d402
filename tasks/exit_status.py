"""How a process of `tasks/` ends: an expected error has its own status and says its message, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tasks.errors import PipelineError
from tasks.files import system_says

INTERRUPTED = 130
"""What a shell makes of Ctrl-C."""


def exit_status(what: str, work: Callable[[], object]) -> int:
    """Do the work and return its exit status; say after the name of `what` was done why it did not succeed."""
    try:
        work()
    except PipelineError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if not (said := system_says(error)):
            raise
        print(f"{what}: {said}", file=sys.stderr)
        return PipelineError.exit_code
    except KeyboardInterrupt:
        print(f"{what}: interrupted; nothing half-written is kept, run it again to go on", file=sys.stderr)
        return INTERRUPTED
    return 0
