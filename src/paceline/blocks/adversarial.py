"""Adversarial examples: FGSM and PGD within a ball around the inputs, and losses of adversarial training.

    x' = clip(P(x + u))  and then  x' <- clip(P(x' + a * direction(grad_x loss(f(x'), y))))     for PGD
    direction(g) = sign(g),  P the box of radius rho               (norm "inf")
    direction(g) = g / (|g|_2 + 1e-12),  P the ball of radius rho  (norm "2")

A radius is in units of brightness from 0 to 1 where the task's schema describes pictures, whose inputs are standardised, and in units of
the inputs otherwise. All functions are pure, so that an engine can stack them; random starts are drawn beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.brightness import Brightness
from paceline.core.client import ClientData
from paceline.core.params import Params, Resident

__all__ = ["InputAttack", "InputBall", "attacked", "evaluating", "input_gradient", "random_start", "trades"]

Norm = Literal["inf", "2"]
InputGradient = Callable[[Tensor], Tensor]
"""Gradient of the summed loss with respect to a batch of inputs [B, ...], of the same shape."""


@dataclass(frozen=True)
class InputBall:
    """The perturbations that an adversary may make.

    Args:
        radius: rho, in units of brightness, or of the inputs if `unit` is 1.
        unit: size of a unit of brightness in the inputs: 1 / deviation of each channel, shape [C, 1, 1], or 1.
        low, high: inputs of brightness 0 and 1, of the same shape, or infinite.
        norm: ``inf`` or ``2``.
    """

    radius: float
    unit: Tensor | float = 1.0
    low: Tensor | float = -torch.inf
    high: Tensor | float = torch.inf
    norm: Norm = "inf"

    @staticmethod
    def of(problem: Any, radius: float, norm: Norm = "inf", device: torch.device | str = "cpu") -> InputBall:
        """Return the ball for a task, whose schema states how pictures were standardised."""
        light = Brightness.of(problem, device)
        if not light.known:
            return InputBall(radius, norm=norm)
        low, high = (light.inputs(torch.tensor(value, device=device)) for value in (0.0, 1.0))
        return InputBall(radius, 1 / light.deviation, low, high, norm)

    def clip(self, x: Tensor) -> Tensor:
        """Return inputs within the range of brightness."""
        return x if isinstance(self.low, float) else torch.minimum(torch.maximum(x, self.low), torch.as_tensor(self.high))

    def project(self, delta: Tensor) -> Tensor:
        """Return the nearest perturbations within the radius, shape [B, ...]."""
        if self.norm == "inf":
            return delta.clamp(-self.radius, self.radius)
        return delta * (self.radius / _length(delta).clamp(min=1e-12)).clamp(max=1.0)

    def ascent(self, gradient: Tensor) -> Tensor:
        """Return the direction of steepest ascent in this norm, of length 1."""
        return gradient.sign() if self.norm == "inf" else gradient / (_length(gradient) + 1e-12)


def _length(x: Tensor) -> Tensor:
    """Return the L2 norm of each sample, broadcastable to `x`."""
    return x.flatten(1).square().sum(1).sqrt().view(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class InputAttack:
    """How a perturbation is found.

    Args:
        steps: gradient steps; 1 with `size` = radius and no random start is FGSM.
        size: length of a step; None is 2.5 radius / steps.
    """

    steps: int = 1
    size: float | None = None

    def __call__(self, gradient: InputGradient, x: Tensor, ball: InputBall, start: Tensor | None = None) -> Tensor:
        """Return adversarial inputs, detached, shape [B, ...].

        Args:
            gradient: see `InputGradient`.
            x: inputs, shape [B, ...].
            ball: allowed perturbations.
            start: initial perturbations, shape [B, ...], in units of brightness; None starts at x.
        """
        x = x.detach()
        size = 2.5 * ball.radius / self.steps if self.size is None else self.size
        bad = x if start is None else ball.clip(x + ball.unit * ball.project(start))
        for _ in range(self.steps):
            delta = (bad - x) / ball.unit + size * ball.ascent(gradient(bad) * ball.unit)
            bad = ball.clip(x + ball.unit * ball.project(delta))
        return bad.detach()

    @staticmethod
    def fgsm(radius: float) -> InputAttack:
        """Return the fast gradient sign method: one step of the whole radius."""
        return InputAttack(1, radius)


def random_start(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Return perturbations drawn uniformly from the box of a radius, shaped as `x`."""
    drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    return ((2 * drawn - 1) * radius).to(x.device)


@contextmanager
def evaluating(module: nn.Module, when: bool = True) -> Iterator[None]:
    """Put a module in evaluation mode, `when` it is wanted; on exit each part has its own mode again."""
    modes = [(part, part.training) for part in module.modules()] if when else []
    if when:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def input_gradient(outputs: Callable[[Tensor], Any], loss: Callable[[Any, Any], Tensor], y: Any) -> InputGradient:
    """Return the gradient of the loss, summed over the batch, with respect to the inputs.

    The parameters' own gradients are not touched. Use it within `evaluating`.

    Args:
        outputs: the module, or a function that returns its outputs.
        loss: mean loss of (outputs, targets).
        y: targets of the batch.
    """

    def total(x: Tensor) -> Tensor:
        return loss(outputs(x), y) * len(x)

    def gradient(x: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            with torch.no_grad():  # the result is a constant of the training step
                found: Tensor = torch.func.grad(total)(x)
            return found
        with torch.enable_grad():  # the same, three times as fast
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(total(leaf), leaf)
        return found

    return gradient


def attacked(
    model: Resident,
    params: Params,
    data: ClientData,
    loss: Callable[[Any, Any], Tensor],
    attack: InputAttack,
    ball: InputBall,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> ClientData:
    """Return a client's samples with inputs that are adversarial to a model, to evaluate it on.

    Args:
        model: the module.
        params: its parameters.
        data: samples.
        loss: mean loss of (outputs, targets).
        attack, ball: how, and how far.
        generator: stream of random starts; None starts at the inputs.
        batch_size: samples per pass.
    """
    model.load(params)
    xs, ys = [], []
    with evaluating(model.module):
        for x, y in data.batches(batch_size):
            start = None if generator is None else random_start(x, ball.radius, generator)
            xs.append(attack(input_gradient(model.module, loss, y), x, ball, start))
            ys.append(y)
    if not xs:
        return data
    return ClientData(torch.cat(xs), torch.cat(ys), torch.arange(len(data), device=xs[0].device))


def trades(clean: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """Return the loss of TRADES (Zhang et al., ICML 2019): CE(clean, y) + beta KL(softmax(clean) || softmax(adversarial)).

    Args:
        clean, adversarial: scores, shape [B, C].
        y: targets, shape [B].
        beta: weight of the second term.
    """
    apart = F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return F.cross_entropy(clean, y) + beta * apart
