"""What other systems lack is taken away before Paceline is imported: it imports all the same, and runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import asyncio, ctypes, errno, importlib, json, multiprocessing, multiprocessing.context, os, pkgutil, signal, socket, sqlite3, sys, types
import cryptography.x509, grpc, matplotlib.pyplot, numpy, prometheus_client, safetensors.torch
import sqlalchemy, structlog, torch, typer, zstandard
import torch.distributions

for module, names in {LACKS}.items():
    for name in names:
        delattr(sys.modules[module], name)
if {WINDOWS}:
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0, locking=lambda *_: None)
sys.platform = "win32" if {WINDOWS} else "darwin"
multiprocessing.context._concrete_contexts = {{"spawn": multiprocessing.context._concrete_contexts["spawn"]}}
multiprocessing.get_all_start_methods = lambda: ["spawn"]

class Missing:
    def __init__(self, *_): raise OSError("no such library")
ctypes.CDLL = Missing

def refuse(*_): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse

import paceline
failed = {{}}
for found in pkgutil.walk_packages(paceline.__path__, "paceline."):
    try:
        importlib.import_module(found.name)
    except Exception as error:
        failed[found.name] = repr(error)

from paceline.cli.doctor import examine
from pathlib import Path
from paceline.run import RunConfig, run
from paceline.store import RunFolder
examine(Path("."))
settings = {{"method": "scaffold", "task": "digits", "model": "logreg", "clients": 3, "cohort": 3, "rounds": 1, "workers": {WORKERS}}}
told = run(RunConfig.build(settings), folder=RunFolder.create(".", "here"))
print(json.dumps([failed, told.rounds]))
"""
MACOS = {"os": ["memfd_create", "sched_getaffinity"]}
WINDOWS = {
    "os": [*MACOS["os"], "fork", "getuid", "geteuid", "setpgrp", "getpgrp", "killpg", "sysconf", "fchmod", "chown"],
    "signal": ["SIGHUP", "SIGKILL", "SIGUSR1", "SIGCHLD", "pthread_sigmask", "pthread_kill"],
    "socket": ["AF_UNIX", "SO_REUSEPORT"],
    "errno": ["EDQUOT"],
    "multiprocessing.context": ["ForkContext", "ForkProcess", "ForkServerContext", "ForkServerProcess"],
}


@pytest.mark.parametrize(
    ("lacks", "workers"), [pytest.param(MACOS, 2, id="macOS", marks=pytest.mark.slow), pytest.param(WINDOWS, 1, id="Windows")]
)
def test_everything_is_imported_and_a_run_ends_where_the_system_lacks_much(lacks, workers, tmp_path):
    pytest.importorskip("grpc")
    code = CODE.format(LACKS=lacks, WORKERS=workers, WINDOWS=lacks is WINDOWS)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [{}, 1]
