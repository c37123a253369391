"""A PostgreSQL server of the tests' own: in a temporary folder, on a unix socket, to be stopped and started."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["Postgres"]


def _tool(name: str) -> str | None:
    """Return where a tool of PostgreSQL is; Debian keeps them out of the path."""
    return shutil.which(name) or next((str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))[::-1]), None)


class Postgres:
    """One server; skips the test that wants it where PostgreSQL or its driver is not installed."""

    def __init__(self) -> None:
        pytest.importorskip("psycopg", reason="psycopg is not installed; pip install 'paceline[postgres]'")
        initdb, control = _tool("initdb"), _tool("pg_ctl")
        if initdb is None or control is None:
            pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
        self._names = (f"d{n}" for n in itertools.count())
        self.place = Path(tempfile.mkdtemp(prefix="pl-pg-", dir="/tmp"))  # short: it becomes part of a socket's name
        self._as: list[str] = []
        if os.geteuid() == 0:  # which PostgreSQL refuses
            user = next((u for u in ("postgres", "nobody") if _known(u)), None)
            if user is None or shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and there is nobody else here")
            shutil.chown(self.place, user)
            self._as = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
        made = self._run(initdb, "-D", str(self.place / "d"), "-U", "u", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        if made.returncode:
            pytest.skip(f"no database could be made: {made.stderr[-300:]}")
        self._control = [control, "-w", "-D", str(self.place / "d"), "-l", str(self.place / "log")]
        self.start()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._as, *words], capture_output=True, text=True, check=False, cwd=self.place)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        done = self._run(*self._control, "-o", f"-k {self.place} -c listen_addresses='' -c fsync=off", "start")
        assert done.returncode == 0, done.stdout + done.stderr + (self.place / "log").read_text()[-500:]

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` ends all connections in order, ``immediate`` is a crash."""
        done = self._run(*self._control, "-m", mode, "stop")
        assert done.returncode == 0, done.stdout + done.stderr

    def database(self) -> str:
        """Make a database and return its URL."""
        import psycopg

        name = next(self._names)
        with psycopg.connect(f"host={self.place} user=u dbname=postgres", autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        return f"postgresql://u@/{name}?host={self.place}"

    def close(self) -> None:
        self._run(*self._control, "-m", "immediate", "stop")
        shutil.rmtree(self.place, ignore_errors=True)


def _known(user: str) -> bool:
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False
