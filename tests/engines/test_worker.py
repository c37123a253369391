"""What one worker leaves behind for the next one in its process, and what it shows a protocol."""

from dataclasses import replace

import torch

from paceline.core.engine import Call, Each
from paceline.core.method import on_client
from paceline.core.process_state import process_state
from paceline.core.protocol import ProtocolContext
from paceline.engines.worker import Worker
from paceline.run import prepare


def test_a_worker_s_precision_does_not_reach_the_next_one(task, config):
    """A real client that stays for the next run works in one process."""
    setup = prepare(config(), task=task).fed.engine.setup
    with process_state():
        Worker(replace(setup, precision="tf32"))
        assert torch.get_float32_matmul_precision() == "high"
        Worker(setup)
        assert torch.get_float32_matmul_precision() == "highest"


class Wrapping:
    """A protocol that asks the method's function for its own client's sums, and counts its calls."""

    @on_client(each=True)
    def ask(self, me, message):
        assert isinstance(me, ProtocolContext)
        me.session.state = (me.session.state or 0) + 1
        inner = me.inner("its own stream", {})
        assert inner.seed != me.client.seed
        assert inner.memory is me.client.memory
        return {"id": inner.id, "calls": me.session.state, "sums": me.invoke(inner, "evaluate", message)}


def test_a_protocol_runs_the_method_s_functions_for_its_own_client(task, config):
    run = prepare(config(), task=task)
    worker = run.fed.engine.here
    worker.setup.programs["wrapping"] = Wrapping()
    worker.functions["wrapping"] = {"ask": Wrapping.ask.__client__}
    params = run.fed.init_params()

    def ask():
        call = Call("ask", params, (1, 4), 1, "s", Each(), "wrapping")
        return [receipt.value for receipt in worker.run(call)]

    assert [(v["id"], v["calls"]) for v in ask()] == [(1, 1), (4, 1)]
    replies = ask()
    assert [v["calls"] for v in replies] == [2, 2]
    assert [v["sums"]["count"] for v in replies] == [len(worker.samples(c)) for c in (1, 4)]
    worker.rollback()
    assert [v["calls"] for v in ask()] == [1, 1]
