"""The server knows what replies will look like before it asks: for every method whose replies are summed."""

import math
from functools import partial

import pytest
import torch

from paceline.aggregation.secure.arithmetic import SecureArithmetic
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig
from paceline.core.client import Client, Memory
from paceline.core.method import client_functions, on_client
from paceline.core.update import Update
from paceline.engines.preview import stand_ins
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, prepare
from tests.methods.test_every_method import SMALL
from tests.tasks.test_kinds import KINDS

SUM_ONLY = [m for m in method_names() if not any(f.each for f in client_functions(find_method(m)).values())]


@pytest.mark.parametrize("name", SUM_ONLY)
def test_previews_have_the_shape_of_real_replies(task, monkeypatch, name):
    seen = []
    real = SecureArithmetic.sum

    def spy(self, fed, request):
        reply = fed.engine.preview(request.function, request.message)
        summed = real(self, fed, request)
        shape = None if reply is None else Codec(self.config, len(request.cohort), request.declared.limits).shape(reply)
        seen.append((request, shape))
        return summed

    shapes = []
    decode = Codec.decode

    def note(self, shape, opened, survivors):
        shapes.append(shape)
        return decode(self, shape, opened, survivors)

    monkeypatch.setattr(SecureArithmetic, "sum", spy)
    monkeypatch.setattr(Codec, "decode", note)
    config = {"method": name, "options": SMALL.get(name, {}), "clients": 6, "cohort": 6, "rounds": 2, "partition": "dirichlet:0.5"}
    prepare(RunConfig.build({**config, "aggregation": "secure-arithmetic", "secure": {"gamma": 0.0}}), task=task).go()
    assert seen
    for (request, previewed), shape in zip(seen, shapes, strict=True):
        if not request.declared.collects:
            assert previewed is not None, f"{name}.{request.function} has no preview"
        if previewed is not None:
            assert repr(previewed) == repr(shape), f"{name}.{request.function}"


class Strict(FedAvg):
    @on_client
    def train(self, client, message):
        if not message.vector.isfinite().all():
            raise ValueError("the model is broken")
        return super().train(client, message)


class Odd(FedAvg):
    @on_client
    def train(self, client, message):
        if client.num_samples in (2, 64):
            raise ValueError("not so few samples")
        delta = client.sgd(message, **self.local(client)).params - message
        return Update(delta=delta, weight=1)


def test_a_function_without_a_preview_runs_all_the_same(task):
    """Then most vectors decide what all are made of."""
    config = {"method": f"{__name__}:Odd", "clients": 6, "cohort": 6, "rounds": 1, "aggregation": "secure"}
    prepared = prepare(RunConfig.build(config), task=task)
    assert prepared.fed.engine.preview("train", prepared.fed.init_params()) is None
    assert prepared.go().rounds == 1


@pytest.mark.parametrize("kind", KINDS)
def test_previews_need_no_sample_of_any_kind_of_task(kind, monkeypatch):
    """Real clients compute them, so that a shape, or the lack of one, says nothing of their data."""
    prepared = prepare(RunConfig.build({"method": "fedavg", "clients": 4, "cohort": 4, "rounds": 1}), task=KINDS[kind]())
    worker, params = prepared.fed.engine.here, prepared.fed.init_params()
    codec = Codec(SecureConfig(), 4)
    for function, message in (("train", params), ("evaluate", params), ("evaluate_clients", (False, params))):
        me = Client(0, 1, int, worker.model, worker.setup.task, partial(worker.samples, 0), Memory(), central=worker.test)
        real = codec.shape(worker.invoke(me, function, message))
        with monkeypatch.context() as unread:
            unread.setattr(worker, "samples", None)
            unread.setattr(worker, "test", None)
            assert codec.shape(worker.preview(function, message, 0)) == real


def test_samples_of_a_preview_have_no_value_of_the_worker_s(task):
    prepared = prepare(RunConfig.build({"method": "fedavg", "clients": 4, "cohort": 4, "rounds": 1}), task=task)
    worker = prepared.fed.engine.here
    x, y = stand_ins(worker, 3)
    assert (x.shape, x.dtype, y.tolist()) == ((3, *worker.x.shape[1:]), worker.x.dtype, [0, 1, 0])
    worker.x, worker.y = worker.x * float("nan"), worker.y * 0 + 3
    again = stand_ins(worker, 3)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)


def test_a_message_with_which_the_function_fails_has_a_preview(task):
    prepared = prepare(RunConfig.build({"method": f"{__name__}:Strict", "clients": 4, "cohort": 4, "rounds": 1}), task=task)
    params = prepared.fed.init_params()
    reply = prepared.fed.engine.preview("train", params + math.inf)
    assert reply.delta.layout == params.layout


def test_work_started_before_is_previewed_in_its_shape_alone(task):
    prepared = prepare(RunConfig.build({"method": "afacd", "clients": 4, "cohort": 4, "rounds": 1}), task=task)
    worker, params = prepared.fed.engine.here, prepared.fed.init_params()
    assert worker.preview("give", None, 0) is None
    reply = worker.preview("give", None, 0, {"gradient": params * math.nan, "way": 1.0, "statistics": torch.full((3,), math.inf)})
    assert reply.gradient.vector.tolist() == [0.0] * params.layout.size
    assert reply.statistics.tolist() == [0.0] * 3


def test_a_preview_trains_nothing_and_leaves_no_trace(task):
    prepared = prepare(RunConfig.build({"method": "scaffold", "clients": 4, "cohort": 4, "rounds": 1}), task=task)
    engine, state = prepared.fed.engine, prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    reply = engine.preview("train", (state.params, state.control))
    assert float(reply.delta.vector.abs().max()) == 0.0
    assert engine.here.memories == {}
    assert engine.here.sessions == {}
