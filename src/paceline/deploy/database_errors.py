"""Mapping of database driver errors to Paceline's errors, with advice for the user."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

from paceline.core.errors import DiskFullError, StoreError, StoreUnavailableError

__all__ = ["named"]

_POSTGRES_FULL = ("53100",)
_POSTGRES_AWAY = ("08", "57P", "53300", "40001", "40P01", "25006")
"""Prefixes of codes of temporary errors: lost connections, starts and stops, too many connections, deadlocks, a standby."""
_NO_ENTRY = re.compile("authentication failed|no pg_hba|(role|database) .* does not exist|no password supplied|permission denied")
"""Messages of permanent errors: waiting does not help."""


def named(error: Exception, where: str, lost: bool = False) -> StoreError:
    """Return the Paceline error for a database driver's error, with its location and advice.

    Args:
        error: the driver's error.
        where: name of the database.
        lost: whether the connection has become unusable.
    """
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "") or ""
        if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _full(where)):
            return DiskFullError(f"no disk space for {where}; committed rows are intact: free some space, then continue")
        if name.startswith("SQLITE_BUSY"):
            return StoreError(f"{where} has been locked by another process for too long; end that process, then try again")
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return StoreError(f"{where} is damaged or not a database ({text}); restore it from a backup")
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            return StoreError(f"{where} cannot be opened for writing ({text}); check the folder's owner and permissions")
        return StoreError(f"{where}: {text}")
    if getattr(error, "sqlstate", None) in _POSTGRES_FULL:
        return DiskFullError(f"no disk space on the database server of {where}; committed rows are intact: free some space there")
    code = getattr(error, "sqlstate", None) or ""
    failed = not code and any(kind.__name__ == "OperationalError" for kind in type(error).__mro__)
    if (lost or failed or code.startswith(_POSTGRES_AWAY)) and not _NO_ENTRY.search(text):
        return StoreUnavailableError(f"{where} does not respond: {text}")
    return StoreError(f"{where}: {text}")


def _full(where: str) -> bool:
    """Return whether the disk is full; some writes (of the shared index) then fail as plain I/O errors."""
    try:
        return shutil.disk_usage(Path(where).parent).free < 64 << 10
    except OSError:
        return False
