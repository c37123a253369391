"""How often a round waits for a GPU: a fixed number of times for each stack, whatever its steps and clients; counted on a pretended one."""

import dataclasses
from collections import Counter

import pytest
import torch

from paceline.core.placement import download, on_host, upload
from paceline.core.samples import ClientData
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays
from tests.conftest import make_task
from tests.pretend import PretendCuda

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def waits(method="fedavg", chunk=3, epochs=1, clients=12, **options):
    """Return the synchronisations of the second round, without an evaluation."""
    values = {"method": method, "options": {"epochs": epochs, **options}, "task": "blobs", "clients": clients, "cohort": clients}
    values |= {"rounds": 9, "eval_every": 9, "device": "cuda", "vectorize": "on" if chunk > 1 else "off", "chunk": chunk}
    with PretendCuda() as gpu:
        run = prepare(RunConfig.build(values), task=make_task(240))
        run.step()
        gpu.waits.clear()
        run.step()
    assert not gpu.faults
    return gpu.waits


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"batch_size": 7}])
def test_a_stack_waits_twice_and_a_round_once(options):
    """For the losses, which may have diverged, and for the range of the sum; then for the sum."""
    assert len(waits(chunk=6, **options)) == 2 * 2 + 1
    assert len(waits(chunk=3, epochs=3, **options)) == 4 * 2 + 1


@pytest.mark.parametrize("method", ["scaffold", "fedprox", "feddyn"])
def test_hooks_and_memories_do_not_add_to_it_with_steps_or_clients(method):
    few, many = waits(method, chunk=3, clients=6), waits(method, chunk=6, epochs=3)
    assert len(few) == len(many) <= 2 * 2 + 4


def test_one_by_one_each_client_waits_twice():
    assert len(waits(chunk=1, epochs=3)) == 12 * 2 + 1


def test_a_wait_that_is_planted_in_the_loop_is_counted(monkeypatch):
    from paceline.engines.stacking.stack import Stack

    advance = Stack.advance

    def waiting(self, step):
        advance(self, step)
        float(self.totals.sum())

    before = len(waits(chunk=6, epochs=2))
    monkeypatch.setattr(Stack, "advance", waiting)
    found = waits(chunk=6, epochs=2)
    assert len(found) == before + 2 * 2 * 2
    assert Counter(where.split("(")[-1] for where in found)["waiting)"] == 8


def test_downloads_wait_once_and_uploads_never():
    with PretendCuda() as gpu:
        here = [torch.arange(3.0), torch.ones(100_000)]
        there = [upload(tensor, "cuda") for tensor in here]
        assert all(tensor.is_cuda for tensor in there)
        assert upload(there[0], "cuda") is there[0]
        assert not gpu.waits
        back = on_host({"a": there[0], "b": [there[1]]})
        assert gpu.waits == [wait for wait in gpu.waits if wait.startswith("synchronize")]
        assert len(gpu.waits) == 1
        assert back["a"].equal(here[0])
        assert back["b"][0].equal(here[1])
        assert on_host(back) is back
        assert download([]) == []
        early = there[0].to("cpu", non_blocking=True)
        with pytest.raises(RuntimeError, match="synchronize first"):
            early.sum()


def test_rows_are_copied_to_the_device_when_they_are_used():
    with PretendCuda() as gpu:
        x, y = torch.arange(8.0).to("cuda"), torch.arange(8).to("cuda")
        data = ClientData(x, y, torch.tensor([5, 1, 2]), "cuda")
        assert len(data) == 3
        assert not data.known.is_cuda
        assert data.index.is_cuda
        assert data.index is data.index
        gpu.waits.clear()
        seen = [batch for batch, _ in data.epoch(2, torch.Generator().manual_seed(0))]
        assert [len(batch) for batch in seen] == [2, 1]
        assert not gpu.waits
        assert sorted(torch.cat(seen).tolist()) == [1.0, 2.0, 5.0]
    plain = ClientData(torch.arange(8.0), torch.arange(8), torch.tensor([5, 1]))
    assert plain.index is plain.known


def evaluated(task, gpu, evaluation="central", metrics=()):
    """Return the synchronisations of one evaluation, and the samples of its passes."""
    values = {"method": "fedavg", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 1, "device": "cuda", "vectorize": "off"}
    run = prepare(RunConfig.build(values | {"evaluation": evaluation, "metrics": metrics}), task=task)
    engine, passes = run.fed.engine, []
    engine.evaluate(engine.init_params())  # reads widths and targets once
    engine.here.model.module.register_forward_hook(lambda module, x, out: passes.append(len(out)))
    gpu.waits.clear()
    engine.evaluate(engine.init_params())
    return gpu.waits, passes


@pytest.mark.parametrize(("free", "passes"), [(1 << 30, [2000]), (16 * 4 * 16 * 900, [900, 900, 200]), (1, [8] * 250)])
def test_an_evaluation_on_a_gpu_takes_passes_as_large_as_its_memory_allows_and_waits_once(free, passes):
    with PretendCuda(free=free) as gpu:
        task = make_task(240)
        task = dataclasses.replace(task, test=Arrays(task.test.x.repeat(25, 1), task.test.y.repeat(25)))
        waits, found = evaluated(task, gpu)
    assert found == passes, "the widest layer has 16 outputs of 4 bytes"
    assert len(waits) == 1
    assert not gpu.faults


def test_targets_that_do_not_count_are_left_out_on_a_gpu_as_on_the_cpu():
    from paceline.core.evaluation import all_scored, evaluate
    from paceline.core.layout import Layout
    from paceline.core.params import Resident

    task = make_task(40)
    y = task.train.y.clone()
    y[::3] = -100
    sums = []
    for targets in (task.train.y, y, torch.full_like(y, -100)):
        for device in ("cpu", "cuda"):
            with PretendCuda() as gpu:
                module = task.build(0)
                model = Resident(module, Layout.of(module), device)
                data = ClientData(task.train.x.to(device), targets.to(device), torch.arange(40), device)
                assert all_scored(data.y) == (targets is task.train.y)
                sums.append(evaluate(model, task, data))
            assert not gpu.faults
    for one, other, count in zip(sums[::2], sums[1::2], (40, 26, 0), strict=True):
        assert one["count"] == other["count"] == count
        assert one["loss"] == pytest.approx(other["loss"])
        assert one["class_count"].equal(other["class_count"])
        assert one["class_correct"].equal(other["class_correct"])
