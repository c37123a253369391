import multiprocessing
import os

import numpy as np
import pytest
import torch

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.engines.pipes import pair


@pytest.fixture
def echo():
    """Return the end of a pipe whose child sends everything back."""
    context = multiprocessing.get_context("fork")
    end, ending = pair(context)

    def serve():
        other = ending.open()
        while True:
            message = other.receive()
            other.reuse()
            other.send(message)

    process = context.Process(target=serve, daemon=True)
    process.start()
    end.started()
    yield end, process
    process.kill()
    process.join()
    end.close()


def test_trees_come_back_with_their_bits(echo):
    end, _ = echo
    big = torch.randn(100_000)
    layout = Layout.build([("w", (100_000,), "param")])
    sent = {
        "big": big,
        "params": Params(big * 2, layout),
        "small": torch.tensor([1, 2]),
        "array": np.arange(9_000, dtype=np.uint64),
        "none": None,
    }
    for _ in range(3):  # pages are used again
        end.reuse()
        end.send(sent)
        got = end.receive()
        assert got["big"].equal(big)
        assert got["params"].vector.equal(big * 2)
        assert got["params"].layout == layout
        assert got["small"].tolist() == [1, 2]
        assert (got["array"] == sent["array"]).all()
        assert got["none"] is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.randn(40, 50).t(),
        torch.arange(5000) > 7,
        torch.randn(3000).bfloat16(),
        torch.tensor(4.5),
    ],
)
def test_odd_tensors_come_back(echo, tensor):
    end, _ = echo
    end.send(tensor)
    got = end.receive()
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    assert got.equal(tensor)


def test_what_was_received_is_the_receivers_own(echo):
    end, _ = echo
    end.send(torch.zeros(10_000))
    first = end.receive()
    end.reuse()
    end.send(torch.ones(10_000))
    end.receive()
    assert not first.any()
    first += 1  # and can be changed


def test_the_end_of_the_child_ends_the_pipe(echo):
    end, process = echo
    os.kill(process.pid, 9)
    with pytest.raises((EOFError, OSError)):
        end.receive()
