"""Failed TLS handshakes: gRPC's core refuses those streams itself and reports them only on file descriptor 2.

While a server runs, the core's output there is read line by line: a refused handshake becomes a log event and a metric,
everything else is passed on. Python's own stderr is not affected.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from paceline.deploy.server.events import Notes

__all__ = ["core_log"]


@contextmanager
def core_log(notes: Notes) -> Iterator[None]:
    """Context manager: capture what code other than Python writes to file descriptor 2."""
    kept = os.dup(2)
    reading, writing = os.pipe()
    before = sys.stderr
    before.flush()
    sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1)
    os.dup2(writing, 2)
    os.close(writing)
    thread = threading.Thread(target=_pass_on, args=(os.fdopen(reading, errors="replace"), kept, notes), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(kept, 2)  # closes the pipe's last writer, which ends its reader
        thread.join(2.0)
        sys.stderr.flush()
        sys.stderr = before
        os.close(kept)


def _pass_on(lines: IO[str], kept: int, notes: Notes) -> None:
    with lines:
        for line in lines:
            if "andshake" in line:
                why = line.strip().rpartition("] ")[2]
                notes.event("refused", None, {"reason": "handshake", "why": why[:300], "from": ""})
            else:
                os.write(kept, line.encode())
