import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.deploy.client.client import make_node
from paceline.deploy.settings import ClientConfig, DataConfig
from paceline.engines.accelerators import check_device


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that says what torch would say with so many GPUs."""

    def see(count, built=True):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: count > 0)

    return see


@pytest.mark.parametrize(
    ("name", "count", "built", "reported"),
    [
        ("cuda", 0, False, "torch was built without CUDA; use cpu, or install a CUDA build"),
        ("cuda:0", 0, True, "no CUDA device is visible; use cpu"),
        ("cuda:7", 1, True, "only cuda:0 exists"),
        ("cuda:2", 2, True, "cuda:0 to cuda:1 exist"),
        ("mps", 0, False, "torch was built without MPS"),
        ("mps", 0, True, "no MPS device is visible"),
        ("gpu", 1, True, "'gpu' is not a torch device; write cpu, cuda"),
        ("cuda:x", 1, True, "not a torch device"),
        ("", 1, True, "not a torch device"),
        ("meta", 1, True, "use cpu, cuda"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_with_what_to_do(gpus, name, count, built, reported):
    gpus(count, built)
    with pytest.raises(ConfigError, match=reported):
        check_device(name, "--device")


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cuda", "cuda:1", "mps"])
def test_a_device_that_is_there_is_taken(gpus, name):
    gpus(2)
    check_device(name, "--device")


def test_elsewhere_only_the_name_is_looked_at(gpus):
    gpus(0, False)
    check_device("cuda:7", "--device", here=False)
    with pytest.raises(ConfigError, match="not a torch device"):
        check_device("gpu", "--device", here=False)


def test_a_run_is_refused_before_its_data_are_loaded(config, gpus, monkeypatch):
    from importlib import import_module

    run, assembly = import_module("paceline.run"), import_module("paceline.assembly")

    gpus(0, False)
    monkeypatch.setattr(assembly, "load_task", lambda *_, **__: pytest.fail("data were loaded first"))
    with pytest.raises(ConfigError, match=r"device: device 'cuda' is not available"):
        run.prepare(config(device="cuda"))


def test_a_client_is_refused_when_it_starts(gpus):
    gpus(0, False)
    with pytest.raises(ConfigError, match=r"data.device: device 'cuda:0' is not available: torch was built without CUDA"):
        make_node(ClientConfig(data=DataConfig(device="cuda:0")), journal=None)
