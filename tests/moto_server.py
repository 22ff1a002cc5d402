"""moto's S3 server, whose conditional writes are atomic: `python -m tests.moto_server -H 127.0.0.1 -p PORT`.

moto looks whether a key is there, and writes it, in two steps, and serves each request in a thread of its own: of two
writers at once both may win, which S3 does not allow.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_one_at_a_time = threading.Lock()
_put_object = S3Response.put_object


def put_object(self: S3Response) -> Any:
    """Look and write in one step."""
    with _one_at_a_time:
        return _put_object(self)


if __name__ == "__main__":
    S3Response.put_object = put_object
    main()
