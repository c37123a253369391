"""Samples of a server as those of a client: their random streams, and the benchmark."""

import pytest
import torch
import torch.nn.functional as F

from paceline.blocks.server_data import as_client, benchmark_client, server_score
from paceline.core.optimizers import SGD
from paceline.core.random import derive
from paceline.run import RunConfig, prepare
from tests.conftest import make_task


def prepared():
    return prepare(RunConfig.build({"task": "own", "clients": 3, "cohort": 3, "rounds": 1}), task=make_task())


def test_samples_of_a_server_have_a_stream_for_each_round_and_name():
    run = prepared()
    start, ends = run.fed.init_params(), []
    for round, name in ((1, "a"), (1, "a"), (1, "b"), (2, "a")):
        run.fed.round = round
        server = as_client(run.fed, run.task.test.x, run.task.test.y, name)
        ends.append(server.sgd(start, optimizer=SGD(0.5), steps=2, batch_size=8, alone=True).params.vector)
    assert [torch.equal(ends[0], end) for end in ends] == [True, True, False, False]


def test_a_benchmark_is_a_fixed_part_of_the_test_samples():
    run = prepared()
    start, test = run.fed.init_params(), run.task.test
    few, whole = benchmark_client(run.fed, 20), benchmark_client(run.fed, 1000)
    assert (few.num_samples, len(few.test), len(whole.test)) == (0, 20, len(test))
    assert {tuple(row) for row in few.test.x.tolist()} < {tuple(row) for row in test.x.tolist()}
    run.fed.round = 7
    assert torch.equal(benchmark_client(run.fed, 20).test.x, few.test.x)
    scores = run.task.build(derive(0, "init"))(few.test.x).detach()
    accuracy, loss = server_score(few, start)
    assert accuracy == float((scores.argmax(1) == few.test.y).double().mean())
    assert loss == pytest.approx(float(F.cross_entropy(scores, few.test.y)))
