"""The registry of releases: immutable versions, aliases that move, content that is verified.

    <root>/blobs/sha256/ab/abcdef…                    files by content, written once
    <root>/models/<name>/versions/000012.json         the manifest; written last, and never over another
    <root>/models/<name>/aliases/<alias>.json         champion, challenger, …: moved by compare-and-swap
    <root>/models/<name>/attempts/<half>/000003.json  the third candidate that was measured on a report half

A version exists when its manifest exists, and then it is whole.
"""

from __future__ import annotations

from pathlib import Path

from tasks.registry.manifest import Alias, Manifest
from tasks.registry.protocol import Published, Registry

__all__ = ["Alias", "Manifest", "Published", "Registry", "open_registry"]


def open_registry(location: str) -> Registry:
    """Open the registry at a folder or at `s3://bucket/prefix`; an empty place is an empty registry.

    S3 takes endpoint, region and credentials from where boto3 looks for them (`AWS_ENDPOINT_URL_S3`, …).

    Raises:
        RegistryError: the place cannot be used.
    """
    if location.startswith("s3://"):
        from tasks.registry.s3 import S3Storage

        return Registry(S3Storage(location))
    from tasks.registry.local import LocalStorage

    return Registry(LocalStorage(Path(location).expanduser()))
