"""FRAug (Chen et al., "FRAug: Tackling Federated Learning with Non-IID Features via Representation Augmentation", ICCV 2023,
arXiv 2205.14900): clients share a generator of features, transform its features to their own style, and train their heads on them.

    f = F(x),  M <- moving means of f by class,  y~ = cyclic labels,  a = alpha_r,  b = min(1/2, alpha_r)

    f~ = T(G(z, y~), M_y~, y~),  f^ = T(G(z, y), f, y);   mixed:  a f~ + (1 - a) M_y~  and  a f^ + (1 - a) f
    (F, H):  b/2 (CE(H(f~), y~) + CE(H(f^), y)) + (1 - b) CE(H(f), y);   synthetic features are constants, so they train H alone
    G:       CE(H(G(z, y~)), y~) - lambda_G D_G(G(z, y~), f or M_y~)
    T:       mean over u in (f~, f^) of  -entropy(softmax H(u)) + lambda_T D_T(u, M_y~ or f)

    F, H, G <- sum_i n_i (F_i, H_i, G_i) / sum_i n_i, without running statistics

The server sees sums of updates. A client stores T, M and its running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.adversarial import evaluating
from paceline.blocks.banks import moving_means
from paceline.blocks.companions import accompanied, held_scores
from paceline.blocks.generators import FeatureGenerator, FeatureTransform
from paceline.blocks.matching import mean_covariance_distance, mmd
from paceline.blocks.shared_part import SharedPart
from paceline.core.client import Client, Hooks, LocalOptions, Trained
from paceline.core.hooks import StepStream
from paceline.core.method import NonNegative, Positive, Share
from paceline.core.optimizers import SGD, OptimizerPart, Parts
from paceline.core.params import Params
from paceline.core.task import Task
from paceline.core.training import norms_in
from paceline.models.split import features, head, scored

Distance = Literal["l1", "l2", "moments", "mmd"]
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "moments": mean_covariance_distance,
    "mmd": mmd,
}


class ClassMeans(nn.Module):
    """The moving means M of a client's features by class, shape [C, d]; 0 for classes that it has not seen."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(classes, width))


def networks(classes: int, noise: int | None, model: nn.Module) -> dict[str, nn.Module]:
    """Return G, T and M for a model."""
    width = head(model).in_features
    size = noise or max(width // 2, 1)
    made = (FeatureGenerator(classes, size, width), FeatureTransform(classes, size, width), ClassMeans(classes, width))
    return dict(zip(("generator", "transform", "means"), made, strict=True))


def cyclic_labels(count: int, shift: Tensor, seen: Tensor) -> Tensor:
    """Return labels that repeat the classes that were seen, from the position `shift`, shape [count].

    Args:
        count: number of labels.
        shift: whole number, shape [].
        seen: bool [C].
    """
    order = torch.argsort((~seen).long(), stable=True)
    return order.gather(0, (torch.arange(count, device=seen.device) + shift) % seen.sum().clamp(min=1))


def less_sure(scores: Tensor, y: Tensor) -> Tensor:
    """Return -mean log(1 - p_y), with label smoothing of 0.1."""
    smooth = 0.9 * F.one_hot(y, scores.shape[1]) + 0.1 / scores.shape[1]
    return -(smooth * (1 - scores.softmax(1) + 1e-12).log()).sum(1).mean()


@dataclass(frozen=True)
class FRAug(SharedPart):
    """Representation augmentation for clients whose inputs look different.

    Args:
        lr: learning rate of the model.
        momentum: of the model, G and T.
        generator_lr, transform_lr: learning rates of G and T.
        steps: tau, local steps of a round; None trains for `epochs`.
        ramp: alpha_r is exp(gamma (r - R)) (``exp``), 1/2 (``half``), 1 - 1 / (gamma r + 1) (``inverse``), or 0 (``off``).
        gamma: see `ramp`.
        horizon: R, the round at which ``exp`` reaches 1.
        interpolate: mix synthetic features with real ones.
        ema: share of a batch in the moving means.
        apart, near: lambda_G and lambda_T.
        generator_distance, transform_distance: D_G and D_T. G is compared with f by ``moments`` and ``mmd``, otherwise with M.
        harden: T maximises the ``entropy``, or lowers the probability of the label (``label``).
        noise: distribution of z.
        noise_size: length of z; None is half the width of the features.
        shared_statistics: average running statistics too.
        generator_norms: normalisation layers of G are averaged (``shared``), or each client's own.
    """

    paper: ClassVar[str] = "Chen et al., ICCV 2023 (arXiv 2205.14900)"
    headline: ClassVar[str] = "more accurate than FedBN, PartialFed and FedAvg on three sets of domains and a medical one"
    differs: ClassVar[str] = "all three networks step at once, from the same weights, and momenta begin anew in each round"
    client_state: ClassVar[str] = "its transformer, its class means and its running statistics"
    reveals: ClassVar[str] = "sums of updates of the model and of the generator"
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    lr: NonNegative[float] | None = 0.01
    batch_size: Positive[int] | None = 64
    momentum: Share = 0.5
    steps: Positive[int] | None = 20
    generator_lr: NonNegative[float] = 0.05
    transform_lr: NonNegative[float] = 0.05
    ramp: Literal["exp", "half", "inverse", "off"] = "exp"
    gamma: NonNegative[float] = 0.002
    horizon: Positive[int] = 300
    interpolate: bool = False
    ema: Share = 0.3
    apart: NonNegative[float] = 1.0
    near: NonNegative[float] = 1.0
    generator_distance: Distance = "l2"
    transform_distance: Distance = "mmd"
    harden: Literal["entropy", "label"] = "entropy"
    noise: Literal["uniform", "normal"] = "uniform"
    noise_size: Positive[int] | None = None
    shared_statistics: bool = False
    generator_norms: Literal["shared", "local"] = "shared"

    def fit_task(self, task: Task) -> tuple[FRAug, Task]:
        """Add G, T and M to the model."""
        return self, accompanied(task, partial(networks, task.num_classes, self.noise_size))

    def own(self, module: nn.Module) -> Callable[[str], bool]:
        """Select T, M, and the classifier's running statistics."""
        modules = list(module.named_modules())
        norms = [name for name, part in modules if part in set(norms_in(module))]
        kept = ["transform.", "means."]
        if not self.shared_statistics:
            kept += [f"{n}.running_{which}" for n in norms if n.startswith("model.") for which in ("mean", "var")]
        if self.generator_norms == "local":
            kept += [f"{name}." for name in norms if name.startswith("generator.")]
        return lambda name: name.startswith(tuple(kept))

    def alpha(self, round: int) -> float:
        """Return alpha_r of a round, from 1."""
        r = round - 1
        return {
            "exp": min(math.exp(self.gamma * (r - self.horizon)), 1.0),
            "half": 0.5,
            "inverse": 1 - 1 / (self.gamma * r + 1),
            "off": 0.0,
        }[self.ramp]

    def fit(self, client: Client, start: Params) -> Trained:
        """Train the model, G, T and M together."""
        options: LocalOptions = {**self.local(client), "optimizer": self.rule(client, start), "steps": self.steps}
        local = client.sgd(start, **options, hooks=self.hooks(client, start))
        client.flops += client.model.flops * local.samples  # features in evaluation mode
        return local

    def rule(self, client: Client, start: Params) -> Parts:
        """Return SGD with the rate of each network."""
        rates = {"model": None, "generator": self.generator_lr, "transform": self.transform_lr}
        sizes = [(e.name.partition(".")[0], e.size) for e in start.layout.entries if e.kind == "param"]
        parts = []
        for of, entries in groupby(sizes, itemgetter(0)):
            sgd = SGD(rates[of], self.momentum, weight_decay=self.weight_decay) if of != "means" else SGD(1.0)
            parts.append(OptimizerPart(sum(size for _, size in entries), sgd))
        return Parts(client.problem.lr if self.lr is None else self.lr, parts=tuple(parts))

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return the sum of all losses, each of which reaches its own network alone."""
        a, before, ema, steps = self.alpha(client.round), client.round - 1, self.ema, self.steps or 0
        b, size = min(0.5, a), self.noise_size or max(start["means.values"].shape[1] // 2, 1)
        draw = torch.rand if self.noise == "uniform" else torch.randn

        def augment(x: Any, y: Tensor, stream: StepStream) -> tuple[Any, Tensor]:
            shift = (before * steps + stream.step) * len(y)
            z = draw(len(y), 5, size, generator=stream).to(y.device)
            return (x, z, torch.full_like(y, shift)), y

        def objective(net: Any, given: Any, y: Tensor) -> Tensor:
            x, z, shift = given
            f = features(net.model, x)
            real = F.cross_entropy(scored(net.model, f), y)
            if len(y) < 2:
                return real
            means = moving_means(net.means.values.detach(), f, y, ema)
            y_all = cyclic_labels(len(y), shift[0], means.abs().sum(1) > 0)
            m = means[y_all]
            with evaluating(net), torch.no_grad():
                seen = features(net.model, x)
                made = [net.generator(z[:, k], label) for k, label in enumerate((y_all, y, y_all, y))]
                fake = [net.transform(made[0], m, y_all), net.transform(made[1], f, y)]
                if self.interpolate:
                    fake = [a * fake[0] + (1 - a) * m, a * fake[1] + (1 - a) * f]
            made, fake, seen = [v.detach() for v in made], [v.detach() for v in fake], seen.detach()
            synthetic = F.cross_entropy(scored(net.model, fake[0]), y_all) + F.cross_entropy(scored(net.model, fake[1]), y)

            v = net.generator(z[:, 4], y_all)
            generator = F.cross_entropy(held_scores(net.model, v), y_all) - self.apart * self.push(v, m, seen)

            transform = torch.zeros_like(real)
            for drawn, reference, label in ((made[2], m, y_all), (made[3], seen, y)):
                u = net.transform(drawn, reference, label)
                transform = transform + self.hard(held_scores(net.model, u), label) / 2
                transform = transform + self.near * DISTANCES[self.transform_distance](u, reference) / 2
            moved = (net.means.values - means).square().sum() / 2  # a step of rate 1 sets M to the new means
            total: Tensor = b * synthetic / 2 + (1 - b) * real + generator + transform + moved
            return total

        return Hooks(objective=objective, augment=augment)

    def push(self, v: Tensor, means: Tensor, seen: Tensor) -> Tensor:
        """Return D_G of generated features; G maximises it, so ``l1`` and ``l2`` end at ten times the size of real features."""
        distance = DISTANCES[self.generator_distance]
        if self.generator_distance in ("moments", "mmd"):
            return distance(v, seen)
        return torch.minimum(distance(v, means), 10 * distance(seen, torch.zeros_like(seen)))

    def hard(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the loss that makes transformed features hard to classify."""
        if self.harden == "label":
            return less_sure(scores, y)
        negative_entropy: Tensor = (scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()
        return negative_entropy
