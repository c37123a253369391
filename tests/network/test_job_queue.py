"""Calls at a client's job queue: which are executed, which are answered from the cache, and what is counted."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from paceline.core.engine import Receipt
from paceline.core.errors import StoreError
from paceline.core.serialization import NETWORK
from paceline.network import protocol as p
from paceline.network.handshake import Answer, Welcome, reason_of
from paceline.network.job_queue import JobQueue


class Stub:
    """A runner that answers every call with how many it has executed."""

    at, member, waiting, number = None, True, False, 0

    def __init__(self, full=False):
        self.full, self.executed, self.counted = full, 0, []

    def join(self, welcome):
        self.at = welcome

    def closed(self):
        return []

    def received(self, seconds):
        pass

    def moved(self, run, size):
        if self.full:
            raise StoreError("the disk is full")
        self.counted.append((run, size))

    def call(self, head, message, rest):
        self.executed += 1
        return Answer.of(head["id"], Receipt(0, self.executed, bytes_up=5))

    def refused(self, number, error, told=False):
        return Answer.of(number, Receipt(0, dropped=reason_of(error)), hidden=not told)


def welcome(run):
    return Welcome(run, 1, 0, round=0, take=0, saved=0, kept=0, lost=(), plan={}, heartbeat=1.0)


def call(number, size=100, excess=False):
    head = {"id": number, "program": "method", "function": "train", "round": 1}
    message = SimpleNamespace(head=head, opening=SimpleNamespace(raw=size, size=size), parts=[None], began=0.0, ended=1.0)
    message.tree, message.close, message.excess = lambda number, limits: None, lambda: None, excess
    return message


def carried_out(runner, *steps):
    """Return what the queue sent as replies: (id, reason or None)."""
    sent = []

    def put(kind, head=None, *parts):
        if kind == p.REPLY:
            sent.append((head["id"], head["dropped"]))

    async def go():
        with ThreadPoolExecutor(1) as pool:
            queue = JobQueue(runner, pool, NETWORK, put, lambda event, facts: None, False, None)
            work = asyncio.ensure_future(queue.work())
            for step in steps:
                (queue.join if isinstance(step, Welcome) else queue.call)(step)
                await queue.finish(5.0)
            work.cancel()

    asyncio.run(go())
    return sent


def test_a_call_is_executed_once_and_counted_whenever_it_arrives():
    runner = Stub()
    assert carried_out(runner, welcome("a"), call(1), call(1), call(2)) == [(1, None)] * 2 + [(2, None)]
    assert runner.executed == 2
    assert runner.counted == [("a", 100), ("a", 105), ("a", 100)]


def test_an_answer_of_another_run_is_not_sent_again():
    runner = Stub()
    carried_out(runner, welcome("a"), call(1), welcome("b"), call(1))
    assert runner.executed == 2
    assert runner.counted == [("a", 100), ("b", 100)]


def test_a_call_that_cannot_be_counted_is_not_executed():
    runner = Stub(full=True)
    [(number, why)] = carried_out(runner, welcome("a"), call(1))
    assert (number, runner.executed) == (1, 0)
    assert "own log" in why


def test_a_call_above_the_limit_is_counted_and_refused_with_the_reason():
    runner, size = Stub(), NETWORK.size + 1
    [(_, why)] = carried_out(runner, welcome("a"), call(1, size, excess=True))
    assert f"the message of 'train' needs at least {size} bytes, but client.limit is {NETWORK.size}" in why
    assert (runner.executed, runner.counted) == (0, [("a", size)])
