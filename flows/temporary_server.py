"""Prefect's temporary server, which ends with the run that started it, and by nothing else.

A terminal's Ctrl-C, `timeout` and a service manager send their signal to every process of a run. Without its server the
flow could not note how it ended, and would hang. So the server heeds no such signal. Its standard input is a pipe from
the process that started it, which writes into it when Prefect wants the server to end. When that process is gone without
a word, the server ends too.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from prefect.server.api.server import SubprocessASGIServer

SHIELDED = (signal.SIGINT, signal.SIGTERM)
PARENT_WATCH_SECONDS = 1.0


class ServerProcess(subprocess.Popen[bytes]):
    """The server's process as Prefect holds it: to end it, Prefect calls `terminate`."""

    def terminate(self) -> None:
        """Tell the server to end."""
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended
                self.stdin.write(b"end")


def start_server() -> None:
    """Start the temporary server, where Prefect is told of no other."""
    from prefect.client.orchestration import get_client
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # the one instance that every client of this process shares
    server._run_uvicorn_command = lambda: _run(server)  # type: ignore[method-assign]
    get_client(sync_client=True)


def _run(server: SubprocessASGIServer) -> subprocess.Popen[bytes]:
    from prefect.settings import get_current_settings

    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    # The mask is inherited: not even a signal that comes while the server's Python starts can end it. Here it keeps
    # pydantic, which writes the settings, from making an error of its own of Ctrl-C.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        process = ServerProcess(
            [sys.executable, "-m", __name__, str(os.getpid()), str(server.port)],
            env={**os.environ, **marks, **settings},
            stdin=subprocess.PIPE,
            bufsize=0,
        )
        # Should Ctrl-C come before Prefect knows of it; else it has ended by then.
        atexit.register(process.kill)
        return process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Serve for the process, and on the port, that the command line names."""
    import uvicorn

    parent, port = map(int, sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    app = "prefect.server.api.server:create_app"
    server = uvicorn.Server(
        uvicorn.Config(app, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")
    )
    threading.Thread(target=_end_with, args=(parent, server), name="end-with-parent", daemon=True).start()
    server.run()
    # As a signal ends uvicorn: its threads have nothing left to do, and waiting for them takes seconds.
    os._exit(0)


def _end_with(parent: int, server: uvicorn.Server) -> None:
    """Let the server end once its parent says so, or is gone: what that forked may hold the pipe open."""
    while os.getppid() == parent:
        told, _, _ = select.select([sys.stdin], [], [], PARENT_WATCH_SECONDS)
        if told:
            break
    server.should_exit = True


if __name__ == "__main__":
    main()
