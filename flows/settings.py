"""What Prefect must be told before it is imported. Whatever the environment already says stands."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from flows.console import find_root
from tasks.errors import ConfigError

DEFAULTS = {
    # A busy machine needs longer than the 20 s that Prefect allows its embedded server.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Nothing is reported to anyone.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}


def prefect_defaults(start: Path | None = None) -> None:
    """Set Prefect's environment where it is unset: no telemetry, patience, and a home in this repository.

    A server that `retain serve` has running here is used, so that its UI shows runs from the command line too.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_HOME" in os.environ or "PREFECT_PROFILES_PATH" in os.environ:
        return
    try:
        home = prefect_home(find_root(start))
    except ConfigError:
        return  # imported outside a repository, for its documentation say: nothing will run
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes one level, and its server dies without it
    os.environ["PREFECT_HOME"] = str(home)
    if "PREFECT_API_URL" not in os.environ and (url := running_server(home)):
        os.environ["PREFECT_API_URL"] = url


def prefect_home(root: Path) -> Path:
    """Return where Prefect keeps its database here."""
    return Path(os.environ.get("PREFECT_HOME") or root / ".retain" / "prefect")


def server_note(home: Path) -> Path:
    """Return the file in which `retain serve` notes its server's address while it runs."""
    return home / "server.json"


def running_server(home: Path) -> str | None:
    """Return the API address of the server that `retain serve` runs here, if it answers."""
    try:
        url = str(json.loads(server_note(home).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):
        return None
    place = urlsplit(url)
    try:
        with socket.create_connection((place.hostname or "", place.port or 80), timeout=0.5):
            return url
    except OSError:
        return None
