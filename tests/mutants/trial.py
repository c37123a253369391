"""Run tests on a mutant in a forked child, so that the heavy libraries are imported once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutations import Mutant

__all__ = ["preload", "run_tests", "tried"]

LEAST_SECONDS = 20.0


def preload() -> None:
    """Import what the tests need from other projects, with one thread: a child of a process with threads may hang."""
    import cryptography.hazmat.primitives.asymmetric.x25519
    import hypothesis
    import msgpack
    import numpy
    import pydantic
    import pytest
    import rich
    import torch

    torch.set_num_threads(1)
    assert not any(name == "paceline" or name.startswith("paceline.") for name in sys.modules)
    del cryptography, hypothesis, msgpack, numpy, pydantic, pytest, rich


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> str:
    """Return ``survived``, ``killed`` or ``timeout`` for the tests in a source tree."""
    child = os.fork()
    if child == 0:
        _child(tree, tests)
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def _child(tree: Path, tests: Sequence[str]) -> None:
    import pytest

    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    os.chdir(tree)
    sys.path[:] = [str(tree / "src"), str(tree), *(p for p in sys.path if "paceline" not in p and p not in ("", str(tree)))]
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(tree / "src"), PYTHONDONTWRITEBYTECODE="1")
    code = 1
    try:
        code = int(pytest.main(["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", *tests]))
    finally:
        os._exit(code)


def tried(mutant: Mutant, tree: Path, tests: Sequence[str], seconds: float) -> str:
    """Return the outcome of one mutant: ``survived`` if no test executes it."""
    if not tests:
        return "survived"
    path = tree / "src" / mutant.module
    original = path.read_text()
    try:
        path.write_text(mutant.code)
        return run_tests(tree, tests, LEAST_SECONDS + 5 * seconds)
    finally:
        path.write_text(original)
