"""The prompt generator against numbers computed by hand, and against torch's own attention."""

import pytest
import torch

from paceline.blocks.prompts import PromptGenerator
from paceline.core.params import Params

DESCRIPTOR = torch.tensor([[2.0, 0.0], [0.0, 0.0]])


def identities(made):
    weights = made.initial(torch.Generator().manual_seed(0))
    for name in ("query", "key", "value", "out", "basis"):
        weights[name].copy_(torch.eye(2))
    return weights


def test_the_prompts_of_identity_projections_are_the_attention():
    made = PromptGenerator(2, 2)
    wanted = torch.tensor([[0.804430, 0.195570], [0.5, 0.5]])
    torch.testing.assert_close(made(identities(made), DESCRIPTOR), wanted, atol=1e-6, rtol=0)


def test_the_gradients_move_prompts_along_the_change():
    made, change = PromptGenerator(2, 2), torch.tensor([[-0.1, 0.0], [0.0, -0.1]])
    weights = identities(made)
    slope, own = made.pull(weights, DESCRIPTOR, change)
    torch.testing.assert_close(slope["basis"], torch.tensor([[0.102692, 0.05], [-0.002692, 0.05]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(own, torch.tensor([[0.011124, -0.011124], [-0.017678, 0.017678]]), atol=1e-6, rtol=0)
    moved = weights.clone()
    moved["basis"].sub_(slope["basis"])
    apart = made(moved, DESCRIPTOR - own) - made(weights, DESCRIPTOR)
    assert float((apart * change).sum()) == pytest.approx(0.016223, abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_several_heads_are_those_of_torch(heads):
    made = PromptGenerator(3, 8, heads)
    weights, d = made.initial(torch.Generator().manual_seed(1)), torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(2))
    oracle = torch.nn.MultiheadAttention(8, heads, bias=False, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([weights[name].T for name in ("query", "key", "value")]))
        oracle.out_proj.weight.copy_(weights["out"].T)
        basis = weights["basis"].expand(5, 3, 8)
        wanted, _ = oracle(d, basis, basis)
    torch.testing.assert_close(made(weights, d), wanted, atol=1e-6, rtol=1e-5)


def test_a_vector_is_added_to_each_row_of_the_basis():
    made = PromptGenerator(3, 4, descriptor="vector")
    weights = made.initial(torch.Generator().manual_seed(0))
    d = made.describe(torch.Generator().manual_seed(1))
    assert d.shape == (1, 4)
    prompts = made(weights, torch.stack([d, d]))
    assert prompts.shape == (2, 3, 4)
    rows = prompts[0] - weights["basis"]
    torch.testing.assert_close(rows, rows[:1].expand(3, 4))


def test_initial_values_are_within_their_reach():
    made = PromptGenerator(6, 16, reach=0.3)
    weights = made.initial(torch.Generator().manual_seed(0))
    assert 0.27 < float(weights["basis"].abs().max()) <= 0.3
    assert 0.24 < float(weights["query"].abs().max()) <= 0.25
    assert float(made.describe(torch.Generator().manual_seed(0)).abs().max()) <= 0.3
    assert isinstance(weights, Params)
