"""Dataset distillation: a few synthetic samples of each class, found by matching the features of real ones, or a gradient.

    features:  sum_c |mean_{x in B_c} psi(A(x)) - mean_{s in S_c} psi(A(s))|^2       (distribution matching, Zhao and Bilen, WACV 2023)
    gradient:  sum over output rows of 1 - cos(g[o], grad_theta CE(f_theta(S), y)[o])   (gradient matching, Zhao et al., ICLR 2021)

Both are minimised over the samples by SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.augmentations import Augmentation, alike, crop, cutout, flip, jitter, one_of, resized_crop, tilt
from paceline.blocks.matching import gradient_distance
from paceline.core.generators import drawing
from paceline.core.params import Resident
from paceline.core.random import torch_rng

__all__ = ["at_most", "chosen", "class_statistics", "drawn", "match_features", "match_gradient", "redrawn", "siamese"]


def class_statistics(x: Tensor, y: Tensor, classes: int, by_total: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation of each class and channel, shape [C, channels] both, and the numbers of samples, [C].

    Args:
        x: samples [N, channels, ...].
        y: classes [N].
        classes: C.
        by_total: divide sums by the number of all samples, as the released code of FedLGD does.
    """
    pixels, counts = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2), torch.bincount(y, minlength=classes)
    of = torch.full_like(counts, len(y)) if by_total else counts
    share = (of.clamp(min=1) * pixels.shape[2]).unsqueeze(1).to(x.dtype)
    zero = x.new_zeros(classes, x.shape[1])
    mean = zero.index_add(0, y, pixels.sum(2)) / share
    square = zero.index_add(0, y, (pixels - mean[y].unsqueeze(2)).square().sum(2)) / share
    return mean, square.sqrt(), counts


def drawn(mean: Tensor, deviation: Tensor, each: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return `each` normal samples of each class, by class, shape [C each, *shape].

    Args:
        mean, deviation: of each class and channel, [C, channels].
        each: samples of a class.
        shape: of a sample, [channels, ...].
        generator: stream on the CPU.
    """
    noise = torch.randn(len(mean) * each, *shape, generator=generator).to(mean)
    m, s = (v.repeat_interleave(each, 0).view(-1, shape[0], *[1] * (len(shape) - 1)) for v in (mean, deviation))
    return m + s * noise


def chosen(x: Tensor, y: Tensor, classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Return `each` random real samples of each class, by class, repeated where there are fewer; zeros for absent classes."""
    images = x.new_zeros(classes * each, *x.shape[1:])
    for c in torch.bincount(y, minlength=classes).nonzero().flatten().tolist():
        rows = (y == c).nonzero().flatten().cpu()
        picked = torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-each // len(rows)))])[:each]
        images[c * each : (c + 1) * each] = x[picked.to(x.device)]
    return images


def redrawn(model: Resident, seed: int) -> nn.Module:
    """Return a resident module with random weights, as its layers draw them when they are built."""
    with drawing(seed, model.device), torch.no_grad():
        for part in model.module.modules():
            reset: Any = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return model.module


def at_most(y: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return positions of at most `most` random samples of each class, in order, on the CPU."""
    y = y.cpu()
    if int(torch.bincount(y).max()) <= most:
        return torch.arange(len(y))
    order = torch.randperm(len(y), generator=generator)
    by_class = order[y[order].sort(stable=True).indices]
    own = y[by_class]
    rank = torch.arange(len(own)) - torch.searchsorted(own, own)
    return by_class[rank < most].sort().values


def siamese(side: int) -> Augmentation:
    """Return one random change of colour, place, size or angle, a cut-out or a mirroring, the same for all pictures."""
    parts = (jitter(0.5, 0.5), crop(max(1, side // 8)), cutout(0.5), flip(0.5), resized_crop(0.69), tilt(15.0))
    return alike(one_of(*parts))


def _descend(
    images: Tensor, loss: Callable[[Tensor, int], Tensor], steps: int, lr: float, momentum: float
) -> tuple[Tensor, list[Tensor]]:
    """Return the samples after steps of SGD, and the losses before each step."""
    losses, velocity = [], torch.zeros_like(images)
    for step in range(steps):
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(leaf, step)
            (gradient,) = torch.autograd.grad(value, leaf)
        velocity = momentum * velocity + gradient
        images = leaf.detach() - lr * velocity
        losses.append(value.detach())
    return images, losses


def _means(h: Tensor, y: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(y, minlength=classes).clamp(min=1).to(h.dtype)
    return h.new_zeros(classes, h.shape[1]).index_add(0, y, h) / counts.unsqueeze(1)


def match_features(
    images: Tensor,
    labels: Tensor,
    real: tuple[Tensor, Tensor],
    embed: Callable[[int], Callable[[Tensor], Tensor]],
    *,
    steps: int,
    lr: float,
    momentum: float,
    seed: int,
    augment: Augmentation | None = None,
    most: int = 256,
) -> tuple[Tensor, list[Tensor]]:
    """Return samples whose features have the class means of the real ones', and the losses on the way.

    Args:
        images, labels: synthetic samples [S, ...] and their classes [S]; classes without real samples do not change.
        real: real samples [N, ...] and their classes [N].
        embed: returns the embedding psi of a step: features [B, d] of samples [B, ...].
        steps, lr, momentum: of SGD on the samples.
        seed: of the random choices.
        augment: A, which draws equally for both batches from equal streams.
        most: most real samples of a class in a step.
    """
    x, y = real
    classes = int(torch.cat([y, labels]).max()) + 1
    here = (torch.bincount(y, minlength=classes) > 0).unsqueeze(1)

    def loss(synthetic: Tensor, step: int) -> Tensor:
        rows = at_most(y, most, torch_rng(seed, "real", step)).to(x.device)
        psi, batch = embed(step), x[rows]
        if augment is not None:
            batch, synthetic = (augment(part, torch_rng(seed, "augment", step)) for part in (batch, synthetic))
        with torch.no_grad():
            wanted = _means(psi(batch), y[rows], classes)
        return ((_means(psi(synthetic), labels, classes) - wanted).square() * here).sum()

    return _descend(images, loss, steps, lr, momentum)


def match_gradient(
    images: Tensor, labels: Tensor, module: nn.Module, gradient: Mapping[str, Tensor], *, steps: int, lr: float, momentum: float
) -> tuple[Tensor, list[Tensor]]:
    """Return samples on which the gradient of the cross-entropy has the directions of a given one, and the distances on the way.

    Args:
        images, labels: samples [S, ...] and their classes [S].
        module: the model, with its parameters and mode.
        gradient: by parameter; those of one dimension do not count.
        steps, lr, momentum: of SGD on the samples.
    """
    tensors = dict(module.named_parameters())
    names = [name for name, value in gradient.items() if value.dim() >= 2]

    def loss(synthetic: Tensor, step: int) -> Tensor:
        value = F.cross_entropy(module(synthetic).float(), labels)
        found = torch.autograd.grad(value, [tensors[name] for name in names], create_graph=True)
        return gradient_distance([gradient[name] for name in names], found)

    return _descend(images, loss, steps, lr, momentum)
