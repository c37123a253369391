"""What `paceline doctor` says of the machine."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from paceline.cli import machine
from paceline.cli.doctor import CHECKS, examine

Usage = namedtuple("Usage", "total used free")


def one(check, folder=Path()):
    (found,) = check(folder)
    return found


def test_all_of_it_is_looked_at_and_nothing_is_left_behind(tmp_path):
    assert set(machine.CHECKS) < set(CHECKS)
    found = {f.what: f for f in examine(tmp_path / "not" / "there")}
    for what in ("system", "memory", "disk of runs", "file locks", "open files", "clock", "proxy variables", "PostgreSQL"):
        assert found[what].found
    assert found["file locks"].state == "ok"
    assert all(f.cure for f in found.values() if f.state != "ok")
    assert list(tmp_path.iterdir()) == []


def test_another_system_is_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: None)
    reported = one(machine.system)
    assert reported.state == "warning"
    assert "workers by spawn" in reported.found


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 5e6))
    reported = next(machine.disk(tmp_path))
    assert (reported.what, reported.state) == ("disk of runs", "warning")
    assert "free some space" in reported.cure


@pytest.mark.parametrize("available", [1_000_000, 8_000_000])
def test_free_memory_counts_and_not_all_of_it(available, monkeypatch):
    files = {"/proc/meminfo": f"MemTotal: 64000000 kB\nMemAvailable: {available} kB\n"}

    def read(self, encoding):
        if str(self) in files:
            return files[str(self)]
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", read)
    assert one(machine.memory).state == ("ok" if available > 2_000_000 else "warning")
    files |= {"/sys/fs/cgroup/memory.max": "3000000000\n", "/sys/fs/cgroup/memory.current": "2700000000\n"}
    files["/sys/fs/cgroup/memory.stat"] = "anon 5\ninactive_file 200000000\n"
    reported = one(machine.memory)
    assert (reported.state, reported.found) == ("warning", "500 MB free of 3 GB")
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert one(machine.memory).state == ("ok" if available > 2_000_000 else "warning")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    real = sqlite3.connect
    monkeypatch.setattr(machine.sqlite3, "connect", lambda path, **named: real(f"file:{path}?nolock=1", uri=True, **named))
    reported = one(machine.locks, tmp_path)
    assert (reported.state, reported.found) == ("warning", "a second writer was not blocked")
    assert "server.state" in reported.cure


@pytest.mark.parametrize("soft", [256, 1024])
def test_few_open_files_are_named(soft, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 2048))
    reported = one(machine.open_files)
    assert reported.state == ("warning" if soft < 1024 else "ok")
    assert ("ulimit -n 2048" in reported.cure) == (soft < 1024)


@pytest.mark.parametrize("way", ["long ago", "behind the disk"])
def test_a_wrong_clock_is_named(tmp_path, monkeypatch, way):
    assert one(machine.clock, tmp_path).state == "ok"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: 86400.0 if way == "long ago" else real() - 100)
    reported = one(machine.clock, tmp_path)
    assert reported.state == "warning"
    assert ("1970" if way == "long ago" else "+100 s off") in reported.found


def test_proxies_are_named_without_their_passwords(monkeypatch):
    for name in list(os.environ):
        if name.lower() in machine._PROXIES:
            monkeypatch.delenv(name)
    assert one(machine.proxies).found == "none"
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:1")
    reported = one(machine.proxies)
    assert reported.found == "HTTPS_PROXY: not used by server and clients by default"
    assert "client.proxy" in reported.cure
    assert "secret" not in str(reported)


def test_a_driver_without_its_library_is_named(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda _: "3.2")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert one(machine.postgres).state == "warning"
    monkeypatch.setitem(sys.modules, "psycopg", sys)
    assert one(machine.postgres).found == "psycopg 3.2"
