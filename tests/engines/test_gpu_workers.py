"""Workers on GPUs: which one each uses, new processes in place of forked ones, and sums that leave a GPU as copies."""

import pickle
from functools import partial

import pytest
import torch

from paceline.aggregation.fixed_point import FixedPoint, merge
from paceline.core.update import Update
from paceline.engines import local
from paceline.engines.accelerators import device_of, worker_start
from paceline.engines.pipes import thaw
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.pretend import PretendCuda, pretended

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    ("name", "count", "devices"),
    [
        ("cuda", 1, ["cuda:0"] * 4),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ("cuda", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:1", 2, ["cuda:1"] * 4),
        ("cpu", 2, ["cpu"] * 4),
    ],
)
def test_gpus_are_assigned_in_turn(name, count, devices):
    with PretendCuda(count):
        assert [device_of(name, worker) for worker in range(4)] == devices


def test_processes_are_forked_only_where_no_gpu_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # other tests may have used a real one
    assert worker_start("cpu") == "fork"
    monkeypatch.undo()
    assert worker_start("cuda") == worker_start("cuda:1") == "spawn"
    with PretendCuda():
        assert worker_start("cpu") == "spawn"


class Started:
    """Stands for a worker process; holds what it was started with."""

    def __init__(self, made, source, number, method, device):
        made.append((number, method, device, thaw(*source)))

    def ready(self):
        return None

    def kill(self):
        return None


def config(**changes):
    values = {"method": "fedavg", "task": "blobs", "clients": 6, "cohort": 6, "rounds": 2, "vectorize": "on", "chunk": 2}
    return RunConfig.build(values | changes)


def test_a_run_starts_its_workers_on_the_gpus(monkeypatch):
    started = []
    monkeypatch.setattr(local, "_Process", partial(Started, started))
    with PretendCuda(2):
        prepare(config(device="cuda", workers=3), task=make_task())
    assert [made[:3] for made in started] == [(0, "spawn", "cuda:0"), (1, "spawn", "cuda:1"), (2, "spawn", "cuda:0")]
    assert not started[0][3].task.train.x.is_cuda


def test_sums_of_several_gpus_are_those_of_one():
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))

    def summed(device, clients):
        sink = FixedPoint(6).open()
        for client in clients:
            moved = values[client].to(device)
            sink.add(client, Update(delta=moved, count=torch.tensor([client]).to(device), weight=1.0 + client), int)
        return sink.partial()

    wanted = summed("cpu", range(6)).values()
    with pretended(2):
        parts = [pickle.dumps(summed(f"cuda:{k}", range(3 * k, 3 * k + 3))) for k in range(2)]
        found = merge([pickle.loads(part) for part in parts]).values()
        assert not any(tensor.is_cuda for tensor in found[0])
    assert all(torch.equal(a, b) for a, b in zip(wanted[0] + wanted[2], found[0] + found[2], strict=True))
    assert wanted[1] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_spawned_workers_end_with_the_bits_of_one(method, monkeypatch):
    one = prepare(config(method=method), task=make_task()).go()
    monkeypatch.setattr(local, "worker_start", lambda device: "spawn")
    assert prepare(config(method=method, workers=2), task=make_task()).go().model_sha256 == one.model_sha256


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_workers_on_a_real_gpu_end_with_the_bits_of_one():
    runs = [prepare(config(method="scaffold", workers=workers, device="cuda"), task=make_task()).go() for workers in (1, 2)]
    assert runs[0].model_sha256 == runs[1].model_sha256
