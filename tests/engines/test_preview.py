"""The server knows what replies will look like before it asks: for every method whose replies are summed."""

import pytest

from paceline.aggregation.secure.arithmetic import SecureArithmetic
from paceline.aggregation.secure.codec import Codec
from paceline.core.method import client_functions, on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, prepare
from tests.methods.test_every_method import SMALL

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


class Odd(FedAvg):
    @on_client
    def train(self, client, message):
        if client.num_samples < 3:
            raise ValueError("I need three samples")
        delta = client.sgd(message, **self.local(client)).params - message
        return Update(delta=delta, weight=1)


def test_a_function_without_a_preview_runs_all_the_same(task):
    """Then most vectors decide what all are made of."""
    config = {"method": f"{__name__}:Odd", "clients": 6, "cohort": 6, "rounds": 1, "aggregation": "secure"}
    prepared = prepare(RunConfig.build(config), task=task)
    assert prepared.fed.engine.preview("train", prepared.fed.init_params()) is None
    assert prepared.go().rounds == 1


def test_a_preview_trains_nothing_and_leaves_no_trace(task):
    prepared = prepare(RunConfig.build({"method": "scaffold", "clients": 4, "cohort": 4, "rounds": 1}), task=task)
    engine, state = prepared.fed.engine, prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    reply = engine.preview("train", (state.params, state.control))
    assert float(reply.delta.vector.abs().max()) == 0.0
    assert engine.here.memories == {}
    assert engine.here.sessions == {}
