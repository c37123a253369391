import functools

import pytest
import torch

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.engines.stacking.hooks import Unstackable, share, signature

LAYOUT = Layout.build([("w", (3,), "param")])


def params(seed):
    return Params(torch.randn(3, generator=torch.Generator().manual_seed(seed)), LAYOUT)


def make(scale, own, tag="same"):
    def hook(grad, at):
        assert tag
        return scale * grad + own

    return hook


def both(hooks, grads):
    """Call each hook by itself, and the shared one under vmap."""
    shared = share(hooks)
    alone = torch.stack([h(Params(g, LAYOUT), None).vector for h, g in zip(hooks, grads, strict=True)])
    one = torch.func.vmap(lambda rows, g: shared.bind(rows)(Params(g, LAYOUT), None).vector)
    return alone, one(shared.stacked, grads)


GRADS = torch.arange(9.0).view(3, 3)


@pytest.mark.parametrize(
    "hooks",
    [
        [make(2.0, params(k)) for k in range(3)],
        [make(float(k + 1), params(0)) for k in range(3)],
        [functools.partial(lambda extra, grad, at: grad - extra, params(k)) for k in range(3)],
        [(lambda grad, at, own=own: grad * own) for own in map(params, range(3))],
        [(lambda pair: lambda grad, at: grad + pair[0] - pair[1]["b"])((params(k), {"b": params(k + 5)})) for k in range(3)],
        [(lambda inner: lambda grad, at: inner(grad, at) * 2.0)(make(1.5, params(k))) for k in range(3)],
    ],
)
def test_a_shared_hook_does_for_each_client_what_its_own_did(hooks):
    alone, stacked = both(hooks, GRADS)
    torch.testing.assert_close(alone, stacked)
    assert not alone[0].equal(alone[1])


def test_what_is_equal_is_not_stacked():
    own = params(1)
    assert share([make(2.0, own) for _ in range(4)]).stacked == []


@pytest.mark.parametrize(
    ("hooks", "why"),
    [
        ([make(1.0, params(0), tag=f"client {k}") for k in range(2)], "'tag'.*str"),
        ([make(1.0, object()) for _ in range(2)], "'own'.*object"),
        ([make(1.0, torch.zeros(3)), make(1.0, torch.zeros(4))], "'own'.*shapes"),
        ([make(1.0, 3.0), make(1.0, params(1))], "'own'.*types"),
    ],
)
def test_what_cannot_be_stacked_is_named(hooks, why):
    with pytest.raises(Unstackable, match=why):
        share(hooks)


def test_signatures_tell_code_apart():
    assert signature(make(1.0, 2)) == signature(make(3.0, 4))
    assert signature(make(1.0, 2)) != signature(lambda grad, at: grad)
    assert signature(functools.partial(make, 1)) == signature(functools.partial(make, 2))
