"""Parts of learnt augmentation against numbers computed by hand."""

import pytest
import torch
from torch import nn

from paceline.blocks.policies import curriculum, explored, mixed, remapped, without_replacement


def test_the_curriculum():
    found = [curriculum(epoch, 40) for epoch in (0, 1, 10, 20, 40, 80, 120)]
    assert found == pytest.approx([0.01, 0.035, 0.2549, 0.4721, 0.7716, 0.974, 1.0], abs=5e-5)


def test_the_mixed_picture_has_its_value_and_a_gradient_of_one_in_each_pixel():
    versions, x = torch.rand(2, 3, 1, 4, 5), torch.rand(2, 1, 4, 5)
    levels, logs = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3).log_softmax(1)
    out = mixed(x, versions, levels, logs)
    torch.testing.assert_close(out, torch.einsum("bj,bjchw->bchw", logs.exp(), versions), atol=1e-6, rtol=0)
    out.sum().backward()
    torch.testing.assert_close(levels.grad, logs.exp() * 20)


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.w - x


@pytest.mark.parametrize("first", [False, True])
def test_the_hypergradient_of_a_quadratic(first):
    """w' = w - 2 eta (w - x) and the outer loss (w' - v)^2, so that its derivative in x is 4 eta (w' - v)."""
    model, x, v, eta = Scalar(), torch.tensor(0.2, requires_grad=True), torch.tensor(-0.4), 0.1
    loss = explored(model, x, torch.zeros(()), (v, torch.zeros(())), eta, first, loss=lambda out, _: out**2)
    moved = 0.7 - 2 * eta * 0.5
    if not first:
        assert float(loss) == pytest.approx((moved + 0.4) ** 2)
    loss.backward()
    assert float(x.grad) == pytest.approx(4 * eta * (moved + 0.4), rel=1e-3 if first else 1e-6)
    assert model.w.grad is None


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_both_orders_agree_and_leave_the_model_as_it_is():
    """An oracle: the loss after a step of torch's own SGD on pictures that are moved a little."""
    x, y, held = torch.randn(12, 6), torch.arange(12) % 3, (torch.randn(9, 6), torch.arange(9) % 3)
    along, slopes = torch.randn(12, 6), []
    for first in (False, True):
        model, leaf = net(), x.clone().requires_grad_()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        explored(model, leaf, y, held, 0.3, first).backward()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        slopes.append(float((leaf.grad * along).sum()))
    ends = []
    for sign in (1, -1):
        model = net().double()
        nn.functional.cross_entropy(model(x.double() + sign * 1e-4 * along), y).backward()
        torch.optim.SGD(model.parameters(), 0.3).step()
        ends.append(float(nn.functional.cross_entropy(model(held[0].double()), held[1])))
    wanted = (ends[0] - ends[1]) / 2e-4
    assert slopes[0] == pytest.approx(wanted, rel=1e-2)
    assert slopes[1] == pytest.approx(wanted, rel=0.1)


def test_operations_are_drawn_without_replacement_by_their_probabilities():
    p = torch.tensor([0.6, 0.3, 0.1])
    which = without_replacement(p.log().expand(60000, 3), torch.rand(60000, 3, generator=torch.Generator().manual_seed(0)), 2)
    assert (which[:, 0] != which[:, 1]).all()
    first = which[:, 0].bincount() / 60000
    torch.testing.assert_close(first, p, atol=0.01, rtol=0)
    after = which[which[:, 0] == 0][:, 1].bincount(minlength=3).float()
    assert float(after[1] / after.sum()) == pytest.approx(0.75, abs=0.01)


def test_pixels_are_taken_from_their_sources():
    x = torch.arange(12.0).view(1, 2, 2, 3)
    source = torch.tensor([[5.0, -1.0, 0.0], [1.0, 2.0, 3.0]]).view(1, 1, 2, 3)
    assert remapped(x, source).flatten().tolist() == [5, 0, 0, 1, 2, 3, 11, 0, 6, 7, 8, 9]
