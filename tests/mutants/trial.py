"""Try mutants in forked children: of a session of pytest that has collected all tests, or of a process with only the libraries.

The first is quick: nothing is imported or collected again, and the mutant's functions replace the loaded ones. The second is for
what runs on import, such as defaults of fields, and for tests that compute something while they are collected.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mutants.mutations import Mutant
from tests.mutants.swap import changed_functions, live_functions, swap

__all__ = ["Outcome", "Trial", "WarmSession", "cold", "preload"]

PATIENCE, LEAST_SECONDS = 4, 6
"""A test may take this many times its CPU seconds, and at least that many seconds, before it counts as a timeout."""
LEAST_WALL_SECONDS = 60.0
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
OPTIONS = ("-q", "-o", "addopts=", "--assert=plain", "--tb=native", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov")


class Trial(NamedTuple):
    """A mutant, the names of the tests to run, and the seconds that each takes without a mutation."""

    mutant: Mutant
    tests: list[str]
    seconds: list[float]


class Outcome(NamedTuple):
    """The result of a trial.

    Args:
        result: ``survived``, ``killed`` or ``timeout``.
        killer: the failed test, empty if there is none.
        warm: whether the functions of a loaded process were replaced.
        cpu: CPU seconds of the tests.
        imported: modules of other projects that the tests imported: worth importing before the next fork.
    """

    result: str
    killer: str = ""
    warm: bool = False
    cpu: float = 0.0
    imported: tuple[str, ...] = ()


def preload(names: Iterable[str]) -> None:
    """Import what the tests need from other projects, with one thread: a child of a process with threads may hang.

    Args:
        names: modules, such as those that children reported before.
    """
    import torch

    torch.set_num_threads(1)
    _import(names)
    assert not any(name == "paceline" or name.startswith("paceline.") for name in sys.modules)


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _libraries() -> set[str]:
    """Return the loaded modules of other projects."""
    loaded = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    return {name for name, file in loaded.items() if file.startswith(LIBRARIES) and "_inductor" not in name}


class WarmSession:
    """A plugin of pytest that tries mutants in place of running the collected tests.

    Args:
        tree: source tree of the session.
        trials: the trials; those that need a new import are skipped.
        done: called with each mutant and its outcome.
    """

    def __init__(self, tree: Path, trials: Iterable[Trial], done: Callable[[Mutant, Outcome], None]) -> None:
        self._tree, self._trials, self._done = tree, trials, done

    def run(self, folders: Sequence[str]) -> None:
        """Collect the tests of some folders, and try the mutants. Does not return to a usable process: fork first."""
        _enter(self._tree)
        pytest.main([*OPTIONS, "-m", "not slow", f"--basetemp={self._tree / 'tmp'}", *folders], plugins=[self])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork a child for each mutant."""
        items = {item.nodeid: item for item in session.items}
        source = str(self._tree / "src")
        live = live_functions(lambda file: file.startswith(source))
        gc.collect()
        gc.freeze()
        for mutant, tests, seconds in self._trials:
            path = self._tree / "src" / mutant.module
            pairs = changed_functions(path.read_text(), mutant.code, str(path))
            chosen = [(items[test], s) for test, s in zip(tests, seconds, strict=True) if test in items]
            if not pairs or not chosen:
                continue

            def child(pairs=pairs, chosen=chosen) -> str | None:  # type: ignore[no-untyped-def]
                return _first_failure(chosen) if swap(pairs, live) else None

            with _written(path, mutant.code):
                outcome = _forked(child, LEAST_WALL_SECONDS + 10 * sum(seconds))
            if outcome is not None:
                _import(outcome.imported)
                self._done(mutant, outcome._replace(warm=True))
        return True


def cold(trial: Trial, tree: Path) -> Outcome:
    """Try a mutant with everything of Paceline imported anew; it survives if there are no tests."""
    if not trial.tests:
        return Outcome("survived")

    def child() -> str | None:
        failures: list[str] = []

        class Failures:
            def pytest_runtest_protocol(self, item: pytest.Item) -> None:
                _limit_cpu(seconds.get(item.nodeid, 0.0))

            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                failures.extend([report.nodeid] if report.failed else [])

        _enter(tree)
        seconds = dict(zip(trial.tests, trial.seconds, strict=True))
        code = pytest.main([*OPTIONS, "-x", f"--basetemp={tree / 'tmp'}", *trial.tests], plugins=[Failures()])
        return "" if code == 0 else (failures or ["collection"])[0]

    with _written(tree / "src" / trial.mutant.module, trial.mutant.code):
        outcome = _forked(child, LEAST_WALL_SECONDS + 10 * sum(trial.seconds))
    assert outcome is not None
    return outcome


def _first_failure(chosen: list[tuple[pytest.Item, float]]) -> str:
    from _pytest.runner import runtestprotocol

    for place, (item, seconds) in enumerate(chosen):
        _limit_cpu(seconds)
        following = chosen[place + 1][0] if place + 1 < len(chosen) else None
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return ""


def _forked(child: Callable[[], str | None], wall_seconds: float) -> Outcome | None:
    """Run a function in a forked child; it returns the failed test, ``""`` or, where nothing could be tried, ``None``."""
    gets, puts = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(gets)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            before = _libraries()
            failed = child()
            os.write(puts, json.dumps([failed or "", sorted(_libraries() - before)[:500]]).encode())
            code = 3 if failed is None else 0
        finally:
            os._exit(code)
    os.close(puts)
    text = ""
    ends = os.pidfd_open(process)
    ready, _, _ = select.select([ends], [], [], wall_seconds)
    if not ready:
        os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what a broken test left behind
    os.set_blocking(gets, False)
    with contextlib.suppress(BlockingIOError):
        text = os.read(gets, 1 << 16).decode()
    for descriptor in (gets, ends):
        os.close(descriptor)
    cpu, code = usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)
    if not ready or code == -signal.SIGXCPU:
        return Outcome("timeout", cpu=cpu)
    killer, imported = json.loads(text) if text else ("crash", [])
    if code == 3:
        return None
    return Outcome("killed" if killer else "survived", killer, cpu=cpu, imported=tuple(imported))


def _limit_cpu(seconds: float) -> None:
    """Let this process be killed after some seconds of CPU time for one test, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + max(LEAST_SECONDS, PATIENCE * seconds)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


@contextlib.contextmanager
def _written(path: Path, code: str) -> Iterator[None]:
    """Hold a mutant in its file, for what is imported later and for other processes."""
    original = path.read_text()
    path.write_text(code)
    try:
        yield
    finally:
        path.write_text(original)


def _enter(tree: Path) -> None:
    """Import Paceline and the tests from a source tree."""
    os.chdir(tree)
    sys.path[:] = [str(tree / "src"), str(tree), *(p for p in sys.path if "paceline" not in p and p not in ("", str(tree)))]
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(tree / "src"), PYTHONDONTWRITEBYTECODE="1")
