"""The cross-entropy of stacked clients against that of torch."""

import pytest
import torch
import torch.nn.functional as F

from paceline.engines.stacking.losses import cross_entropies


@pytest.mark.parametrize("shape", [(3, 4, 10), (3, 4, 40), (2, 3, 5, 6)])
def test_values_and_gradients_are_those_of_torch(shape):
    generator = torch.Generator().manual_seed(0)
    outputs = (30 * torch.randn(shape, generator=generator)).requires_grad_()
    targets = torch.randint(0, shape[2], (*shape[:2], *shape[3:]), generator=generator)
    weights = torch.rand(shape[:2], generator=generator)
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    wanted = each.view(*shape[:2], -1).mean(2)
    found = cross_entropies(outputs, targets)
    assert found.shape == shape[:2]
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad((e * weights).sum(), outputs)[0] for e in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-6)


def test_a_small_loss_loses_no_digits():
    outputs = torch.tensor([[[1000.0, 985.0], [0.0, 12.0]]])
    found = cross_entropies(outputs, torch.tensor([[0, 1]]))
    assert torch.allclose(found, torch.tensor([[3.059e-7, 6.144e-6]]), rtol=0.25)
    assert bool((found > 0).all())


def test_targets_of_probabilities_go_to_torch():
    outputs, targets = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    wanted = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none").view(2, 3)
    assert torch.equal(cross_entropies(outputs, targets), wanted)
