"""Blocks in which the global random generators are a run's."""

import random

import numpy as np
import pytest
import torch

from paceline.core.generators import GeneratorWatch, drawing, nested, reseed, reseed_nested

DRAWS = {
    "torch": lambda: torch.rand(()).item(),
    "normals": lambda: torch.randn(()).item(),
    "order": lambda: tuple(torch.randperm(9).tolist()),
    "python": random.random,
    "bits": lambda: random.getrandbits(40),
    "numpy": np.random.rand,
    "pairs": np.random.randn,
    "integers": lambda: int(np.random.randint(1 << 30)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_block_has_its_own_stream_and_the_one_outside_goes_on(draw):
    def outside(inside):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        first = draw()
        inside()
        return first, draw(), draw()

    def block(seed):
        with drawing(seed):
            return draw(), draw()

    assert outside(lambda: block(5)) == outside(lambda: None)
    assert block(5) == block(5) != block(6)


def test_an_error_ends_a_block_too():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), drawing(1):
        torch.rand(3) @ torch.rand(4)
    assert torch.get_rng_state().equal(state)
    reseed_nested(3)  # no block is open any more
    assert torch.get_rng_state().equal(state)


def test_a_nested_block_reseeds_and_restores_only_when_it_is_the_outermost():
    state = torch.get_rng_state()
    with nested(7):
        alone = torch.rand(())
    assert torch.get_rng_state().equal(state)
    with drawing(1):
        with nested(7):
            assert torch.rand(()).equal(alone)
        reseed_nested(7)
        assert torch.rand(()).equal(alone)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_still_notices_a_single_draw(draw):
    with drawing(2):
        assert not GeneratorWatch().advanced()
        reseed(9)
        still = GeneratorWatch()
        draw()
        assert still.advanced()
