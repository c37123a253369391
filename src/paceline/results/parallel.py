"""Several runs at the same time, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from paceline.core.errors import EngineError, PacelineError, by_name
from paceline.core.processes import NAME, UNGUARDED, begin, start, start_method, unguarded
from paceline.core.wording import as_commands, for_commands

__all__ = ["Job", "run_jobs"]

Job = Callable[[Callable[[dict[str, Any], int], None]], Any]
"""Carries out a run in its folder; calls its argument after each round."""


def run_jobs(jobs: Sequence[Job], workers: int, tick: Callable[[int, dict[str, Any]], None]) -> dict[int, PacelineError]:
    """Carry out jobs in processes, several at a time; return the errors of those that failed.

    When this process is interrupted, the children end at once; their runs can be resumed from their last checkpoints.

    Args:
        jobs: the jobs.
        workers: processes at a time.
        tick: called with a job's number and record after each of its rounds.

    Raises:
        EngineError: a job cannot be sent to a process.
    """
    waiting = list(range(len(jobs)))[::-1]
    failed: dict[int, PacelineError] = {}
    busy: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                number = waiting.pop()
                pipe, process = _start(jobs[number])
                busy[pipe] = (number, process)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                number, process = busy[ready]
                try:
                    kind, *rest = json.loads(ready.recv_bytes())
                except EOFError:
                    kind, rest = "died", []
                if kind == "round":
                    tick(number, rest[0])
                    continue
                del busy[ready]
                process.join()
                ready.close()
                if kind == "died":
                    code = process.exitcode
                    failed[number] = EngineError(unguarded() if code == UNGUARDED else f"its process ended with exit code {code}")
                elif kind == "error":
                    failed[number] = by_name(*rest)
    finally:
        for pipe, (_, process) in busy.items():
            process.kill()
            process.join()
            pipe.close()
    return failed


def _start(job: Job) -> tuple[Connection, Any]:
    context: Any = multiprocessing.get_context(start_method())
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, there, for_commands()), name=f"{NAME} run", daemon=True)
    try:
        start(process, script=True)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EngineError(
            f"this run cannot be sent to another process ({error}); name task and method, define them at the top of a module, or use "
            "one worker"
        ) from error
    there.close()
    return here, process


def _child(job: Job, pipe: Connection, commands: bool) -> None:
    begin()

    def send(*values: Any) -> None:
        with suppress(OSError):
            pipe.send_bytes(json.dumps(values, default=str).encode())

    with as_commands(commands):
        try:
            job(lambda record, _: send("round", record))
            send("done")
        except PacelineError as error:
            send("error", type(error).__name__, str(error))
        except Exception as error:
            send("error", "PacelineError", f"{type(error).__name__}: {error}")
