"""Checks of `paceline doctor` for the machine: system, memory, disks, locks, limits, clock, environment."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paceline.cli.show import bytes_text
from paceline.core.errors import install_command

__all__ = ["CHECKS", "Finding", "nearest_folder", "writable"]

LEAST_MEMORY, LEAST_DISK, LEAST_FILES = 2e9, 1e9, 1024
"""Thresholds of a warning: bytes of memory, bytes of disk, open files."""

_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
_RELEASED = datetime(2025, 1, 1, tzinfo=UTC)
_SKEW = 5.0


@dataclass(frozen=True)
class Finding:
    """Result of one check: `state` is ok, warning or missing; a missing one fails the command."""

    what: str
    state: str
    found: str
    cure: str = ""


def _judge(what: str, good: bool, found: str, cure: str) -> Finding:
    return Finding(what, "ok" if good else "warning", found, "" if good else cure)


def system(folder: Path) -> Iterator[Finding]:
    """Report the operating system, and how worker processes are started."""
    from paceline.core.processes import start_method

    found = f"{platform.system()} {platform.release()}, workers by {start_method()}"
    yield _judge("system", sys.platform == "linux", found, "only Linux is tested; README.md describes other systems")


def cores(folder: Path) -> Iterator[Finding]:
    """Report the number of cores available to this process."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor cores", "ok", str(count))


def memory(folder: Path) -> Iterator[Finding]:
    """Report total and, if known, free memory, within the limit of a container."""
    total = free = None
    with suppress(AttributeError, ValueError, OSError):
        total = free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text(encoding="ascii"))
        total = min(limit, total or limit)
        used = float((group / "memory.current").read_text(encoding="ascii"))
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            used -= float(line.split()[1]) if line.startswith("inactive_file ") else 0.0  # reclaimable page cache
        free = min(limit - used, free or limit)
    if total is None or free is None:
        yield Finding("memory", "ok", "not reported by this system")
        return
    found, cure = (
        f"{bytes_text(free)} free of {bytes_text(total)}",
        f"large tasks need {bytes_text(LEAST_MEMORY)}; use fewer --workers",
    )
    yield _judge("memory", free >= LEAST_MEMORY, found, cure)


def disk(folder: Path) -> Iterator[Finding]:
    """Report free disk space for runs, and for temporary files if on another disk."""
    places = {"disk of runs": nearest_folder(folder), "disk of temporary files": Path(tempfile.gettempdir())}
    seen = set()
    for what, place in places.items():
        try:
            device, free = place.stat().st_dev, shutil.disk_usage(place).free
        except OSError as error:
            yield Finding(what, "warning", f"{place}: {error.strerror}", "check its mount and permissions")
            continue
        if device not in seen:
            yield _judge(what, free >= LEAST_DISK, f"{bytes_text(free)} free", f"free some space, {bytes_text(LEAST_DISK)} or more")
        seen.add(device)


def locks(folder: Path) -> Iterator[Finding]:
    """Test whether file locks work in the folder of runs, as required by the server's database."""
    cure = "store the database elsewhere: server.state = a path on a local disk, or PostgreSQL"
    try:
        with tempfile.TemporaryDirectory(dir=nearest_folder(folder), prefix=".paceline-", ignore_cleanup_errors=True) as made:
            found = "" if _locked(Path(made) / "lock.db") else "a second writer was not blocked"
    except (OSError, sqlite3.Error) as error:
        found = str(error)
    yield _judge("file locks", not found, found or "working", cure)


def _locked(path: Path) -> bool:
    """Return whether a second writer is blocked while a first one writes."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as one:
        one.execute("CREATE TABLE held (n)")
        one.execute("BEGIN EXCLUSIVE")
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as two:
            try:
                two.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                return True
    return False


def open_files(folder: Path) -> Iterator[Finding]:
    """Report the limit on open files: a server needs one for each client."""
    try:
        import resource
    except ImportError:
        yield Finding("open files", "ok", "no limit of this kind here")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = soft == resource.RLIM_INFINITY
    found = "no limit" if endless else str(soft)
    most = "4096" if hard == resource.RLIM_INFINITY else str(min(hard, 4096))
    cure = f"a server needs one for each client: ulimit -n {most}, or LimitNOFILE="
    yield _judge("open files", endless or soft >= LEAST_FILES, found, cure)


def clock(folder: Path) -> Iterator[Finding]:
    """Compare the clock with the date of this release, and with that of the disk, which may be on another machine."""
    now, cure = time.time(), "set the clock (NTP): certificates and policies depend on it"
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if now < _RELEASED.timestamp():
        yield Finding("clock", "warning", f"{shown}, before this release", cure)
        return
    skew = 0.0
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=nearest_folder(folder), prefix=".paceline-") as file:
        skew = os.fstat(file.fileno()).st_mtime - time.time()
    yield _judge("clock", abs(skew) <= _SKEW, shown if abs(skew) <= _SKEW else f"{shown}; the disk's is {skew:+.0f} s off", cure)


def proxies(folder: Path) -> Iterator[Finding]:
    """Report proxy variables, which a federation ignores by default."""
    there = sorted(name for name in os.environ if name.lower() in _PROXIES and os.environ[name])
    if there:  # values may hold passwords
        cure = "set client.proxy if a client reaches its server only through a proxy; pip and npm use these variables"
        yield Finding("proxy variables", "ok", f"{', '.join(there)}: not used by server and clients by default", cure)
    else:
        yield Finding("proxy variables", "ok", "none")


def postgres(folder: Path) -> Iterator[Finding]:
    """Report whether a server can store its state in PostgreSQL; the driver may lack its library."""
    try:
        found = version("psycopg")
    except PackageNotFoundError:
        cure = f"{install_command('postgres')} if server.state is a URL"
        yield Finding("PostgreSQL", "ok", "no driver: server state is stored in SQLite", cure)
        return
    try:
        __import__("psycopg")
        yield Finding("PostgreSQL", "ok", f"psycopg {found}")
    except ImportError as error:
        yield Finding("PostgreSQL", "warning", f"psycopg {found}: {str(error).splitlines()[0]}", install_command("postgres"))


def nearest_folder(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    there = folder.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    return there


def writable(what: str, folder: Path) -> Finding:
    """Return a finding on whether a folder is writable or can be created."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.NamedTemporaryFile(dir=there):
            return Finding(what, "ok", str(folder))
    except OSError as error:
        return Finding(what, "missing", f"{folder}: {error.strerror}", "choose a folder that you may write to")


CHECKS = (system, cores, memory, disk, locks, open_files, clock, proxies, postgres)
"""The checks; each takes the folder of runs and yields findings."""
