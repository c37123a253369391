"""Optimizers: what may differ between clients of a stack, and what the settings mean."""

import dataclasses

import pytest
import torch

from paceline.core.optimizers import SGD, AdamW, Parts, PartSGD


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
def test_parts_step_as_parameter_groups_of_torch(stacked):
    parts = [torch.nn.Parameter(torch.tensor(values)) for values in ([1.0, -2.0], [3.0], [0.5, 0.1, -1.0])]
    groups = [{"params": [p], "lr": lr, "momentum": m} for p, lr, m in zip(parts, (0.1, 0.4, 0.05), (0.9, 0.0, 0.5), strict=True)]
    theirs = torch.optim.SGD(groups, weight_decay=0.01)
    ours = PartSGD(0.1, weight_decay=0.01, parts=((2, 1.0, 0.9), (1, 4.0, 0.0), (3, 0.5, 0.5)))
    assert not ours.plain
    weights = torch.cat([p.detach() for p in parts]).repeat(2, 1) if stacked else torch.cat([p.detach() for p in parts])
    state = ours.state(weights)
    for step in range(3):
        gradient = torch.sin(torch.arange(6.0) + step)
        for p, g in zip(parts, gradient.split([2, 1, 3]), strict=True):
            p.grad = g.clone()
        theirs.step()
        weights = weights - ours.lr * ours.direction(step, gradient.expand_as(weights), weights, state)
    torch.testing.assert_close(weights, torch.cat([p.detach() for p in parts]).expand_as(weights))


@pytest.mark.parametrize("stacked", [False, True])
def test_parts_have_rates_and_states_of_their_own(stacked):
    """An oracle: torch's own optimizers, one for each part; the second moves in every second step."""
    generator = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(5, generator=generator), torch.randn(5, 5, generator=generator)
    one, two = (torch.nn.Parameter(part.clone()) for part in (start[:3], start[3:]))
    others = [torch.optim.SGD([one], 0.2, momentum=0.9), torch.optim.AdamW([two], 1e-2, weight_decay=0.5)]
    head, tail = SGD(0.2, momentum=0.9), AdamW(1e-2, weight_decay=0.5)
    rule = Parts(0.2, head=head, tail=tail, count=3, every=2)
    weights = start.expand(2, 5).clone() if stacked else start.clone()
    state = rule.state(weights)
    for step, slope in enumerate(slopes):
        along = rule.direction(step, slope.expand(weights.shape), weights, state)
        weights -= rule.lr * along
        one.grad, two.grad = slope[:3].clone(), slope[3:].clone()
        others[0].step()
        if step % 2 == 0:
            others[1].step()
        torch.testing.assert_close(weights, torch.cat([one, two]).detach().expand(weights.shape))


def test_a_part_without_a_rate_stays():
    for rule in (Parts(0.1, tail=SGD(0.0), count=1), Parts(0.0, tail=SGD(0.1), count=1)):
        along = rule.direction(0, torch.ones(2), torch.ones(2), rule.state(torch.ones(2)))
        assert along[1] == 0
    settings = [Parts(), Parts(count=1), Parts(every=2), Parts(tail=AdamW())]
    assert len({rule.rule for rule in settings}) == len(settings)
