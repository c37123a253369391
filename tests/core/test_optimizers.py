"""Optimizers: what may differ between clients of a stack, and what the settings mean."""

import dataclasses

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.core.optimizers import SGD, AdamW, OptimizerPart, Parts


def test_the_rule_leaves_out_what_may_differ_between_clients():
    falling, half = (lambda step, steps: 1 - step / steps), (lambda step, steps: 0.5)
    assert SGD(0.1, momentum=0.9, schedule=falling).rule == SGD(0.2, momentum=0.9, schedule=half).rule
    settings = [SGD(), SGD(momentum=0.9), SGD(weight_decay=0.9), AdamW(), AdamW(eps=0.9), AdamW(betas=(0.9, 0.99))]
    assert len({optimizer.rule for optimizer in settings}) == len(settings)


def test_only_sgd_without_momentum_decay_and_schedule_is_plain():
    assert SGD(0.1).plain
    others = [SGD(momentum=0.9), SGD(weight_decay=0.1), SGD(schedule=lambda step, steps: 1.0), AdamW()]
    assert not any(optimizer.plain for optimizer in others)


def test_weight_decay_is_coupled_in_sgd_and_decoupled_in_adamw():
    weights, gradient = torch.tensor([2.0, -4.0]), torch.tensor([0.5, 0.5])
    sgd, adamw = SGD(momentum=0.5, weight_decay=0.1), AdamW(weight_decay=0.1, eps=0.0)
    state = sgd.state(weights)
    torch.testing.assert_close(sgd.direction(0, gradient, weights, state), torch.tensor([0.7, 0.1]))
    torch.testing.assert_close(state[0], torch.tensor([0.7, 0.1]))  # the velocity holds the decay
    torch.testing.assert_close(adamw.direction(0, gradient, weights, adamw.state(weights)), torch.tensor([1.2, 0.6]))


def test_settings_cannot_be_changed_and_mean_what_they_do_in_torch_by_place():
    assert SGD(0.1, 0.9) == SGD(lr=0.1, momentum=0.9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SGD().lr = 0.1


@pytest.mark.parametrize("stacked", [False, True])
def test_parts_step_as_optimizers_of_torch_on_the_same_slices(stacked):
    """The first part has the rate of the whole, and the third moves in every second step."""
    generator = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(9, generator=generator), torch.randn(5, 9, generator=generator)
    parts = [torch.nn.Parameter(part.clone()) for part in start.split([2, 1, 2, 4])]
    theirs = [
        torch.optim.SGD(parts[:1], 0.1, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD(parts[1:2], 0.4, weight_decay=0.5),
        torch.optim.AdamW(parts[2:3], 1e-2, weight_decay=0.5),
        torch.optim.SGD(parts[3:], 0.05, momentum=0.5),
    ]
    ours = Parts(
        0.1,
        parts=(
            OptimizerPart(2, SGD(momentum=0.9, weight_decay=0.01)),
            OptimizerPart(1, SGD(0.4, weight_decay=0.5)),
            OptimizerPart(2, AdamW(1e-2, weight_decay=0.5), every=2),
            OptimizerPart(4, SGD(0.05, momentum=0.5)),
        ),
    )
    assert not ours.plain
    weights = start.repeat(2, 1) if stacked else start.clone()
    state = ours.state(weights)
    for step, slope in enumerate(slopes):
        weights -= ours.lr * ours.direction(step, slope.expand(weights.shape), weights, state)
        for part, gradient in zip(parts, slope.split([2, 1, 2, 4]), strict=True):
            part.grad = gradient.clone()
        for number, rule in enumerate(theirs):
            if number != 2 or step % 2 == 0:
                rule.step()
    torch.testing.assert_close(weights, torch.cat(parts).detach().expand(weights.shape))


def test_a_part_without_a_rate_stays():
    def two(lr, tail):
        return Parts(lr, parts=(OptimizerPart(1, SGD()), OptimizerPart(1, tail)))

    for rule in (two(0.1, SGD(0.0)), two(0.0, SGD(0.1))):
        along = rule.direction(0, torch.ones(2), torch.ones(2), rule.state(torch.ones(2)))
        assert along[1] == 0
    with pytest.raises(ConfigError, match="need lr"):
        two(None, SGD(0.1))
    assert two(None, SGD()).direction(0, torch.ones(2), torch.ones(2), []).tolist() == [1.0, 1.0]
    one = OptimizerPart(1, SGD())
    settings = [Parts(), Parts(parts=(one,)), Parts(parts=(one._replace(every=2),)), Parts(parts=(OptimizerPart(1, AdamW()),))]
    assert len({rule.rule for rule in settings}) == len(settings)
