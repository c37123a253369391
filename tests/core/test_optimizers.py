"""Optimizers: what may differ between clients of a stack, and what the settings mean."""

import dataclasses

import pytest
import torch

from paceline.core.optimizers import SGD, AdamW


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
