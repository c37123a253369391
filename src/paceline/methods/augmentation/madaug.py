"""MADAug ("When to Learn What: Model-Adaptive Data Augmentation Curriculum", ICCV 2023, arXiv 2309.04747): a policy head on the
classifier's own features says how to augment each picture; it learns to lower a validation loss.

    policy:       (u, v) = h_theta(f(x)),   levels m = sigmoid(u),   probabilities p = softmax(v / T)
    curriculum:   the first floor(rho B) pictures of a batch are augmented,   rho = min(tanh(e / tau) + 0.01, 1)
    exploitation: k operations without replacement from p at levels m +- U(0, delta);   w <- w - eta * gradient of CE
    exploration, each s-th step:   x' = sum_j p_j A_j(x; m_j),   w' = w - eta * gradient of CE_w(x', y)
                                   theta <- Adam(gradient in theta of CE_w'(x_v, y_v))

(x_v, y_v) are of a tenth of the client's samples, others in each round. A_j counts as m_j plus a constant (straight-through). The clock
e counts local passes of the rounds before. Federated placement is ours: w and theta are averaged.

The server sees sums of updates of w and theta. With policy=local a client stores theta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.adversarial import evaluating
from paceline.blocks.augmentations import compose, crop, cutout, flip
from paceline.blocks.brightness import Brightness
from paceline.blocks.operations import OPERATIONS, Operation, chosen_operation, every_operation
from paceline.blocks.policies import curriculum, explored, mixed, remapped, without_replacement
from paceline.core.client import SGD, AdamW, Client, ClientData, Hooks
from paceline.core.columns import call
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.hooks import StepStream
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.optimizers import OptimizerPart, Parts
from paceline.core.params import Params
from paceline.core.task import Task
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.models.policy import WithPolicy, with_policy
from paceline.models.split import features, head, join, take

LEAST = 20
"""Samples that a client needs to hold some out; with fewer it trains w alone."""


@dataclass(frozen=True)
class MADAug(FedAvg):
    """Augmentation that is learnt with the model.

    Args:
        operations: to choose from; all 17 by default, see `paceline.blocks.operations`.
        scale: tau, in local passes; 0 augments all pictures from the start.
        per_picture: k, operations of a picture.
        temperature: T; exploration has 1.
        spread: delta.
        period: s, steps from one exploration to the next.
        start: local passes before the first exploration.
        policy: theta is ``global``, stays with each client (``local``), or is not trained (``frozen``).
        policy_lr, policy_decay: of Adam for theta.
        layers: hidden layers of 128 units of the policy head.
        order: ``second`` differentiates through the inner step, ``first`` by a finite difference of gradients (as DARTS).
        margin, mirror, erase: the default transform, applied to every picture: shift by up to `margin` pixels, flip left to right,
            and a square of `erase` of the side filled with the mean.
        smoothing: of labels.
        clip: largest norm of a gradient of w; 0 for none.
    """

    client_state: ClassVar[str] = "its policy, with policy=local"
    family: ClassVar[str] = "augmentation"
    paper: ClassVar[str] = "arXiv 2309.04747 (ICCV 2023)"
    headline: ClassVar[str] = "on par with or better than other automatic augmentation, most for the hardest classes"
    differs: ClassVar[str] = (
        "exploration begins at once, its inner step has neither momentum nor decay, and decay of theta is decoupled"
    )
    reveals: ClassVar[str] = "sums of updates of the model and of the policy"
    needs_classes: ClassVar[bool] = True

    lr: NonNegative[float] | None = 0.1
    batch_size: Positive[int] | None = 128
    weight_decay: NonNegative[float] = 5e-4
    operations: tuple[Operation, ...] = cast("tuple[Operation, ...]", tuple(OPERATIONS))
    scale: NonNegative[float] = 40.0
    per_picture: Positive[int] = 2
    temperature: Positive[float] = 3.0
    spread: Share = 0.3
    period: Positive[int] = 3
    start: NonNegative[int] = 0
    policy: Literal["global", "local", "frozen"] = "global"
    policy_lr: NonNegative[float] = 1e-3
    policy_decay: NonNegative[float] = 1e-3
    layers: NonNegative[int] = 0
    order: Literal["second", "first"] = "second"
    margin: NonNegative[int] = 4
    mirror: bool = True
    erase: Share = 0.5
    smoothing: Share = 0.1
    clip: NonNegative[float] = 5.0

    def fit_task(self, task: Task) -> tuple[MADAug, Task]:
        """Add the policy head to the model of pictures with a class each."""
        x, y = task.train.example, task.train.y
        if not (isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() and isinstance(y, Tensor) and y.dim() == 1):
            raise ConfigError(
                f"madaug augments pictures, one tensor [N, C, H, W] of floats with a class each; those of {task.name} are other samples"
            )
        if self.per_picture > len(self.operations) or len(set(self.operations)) < len(self.operations):
            raise ConfigError(f"operations must be distinct, at least per_picture={self.per_picture}, not {self.operations}")
        head(task.build(0))
        return self, replace(task, model=partial(with_policy, task.model, len(self.operations), self.layers))

    def round(self, fed: Federation, state: State) -> State:
        """Average w and theta, and step along the means."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        new = join(state.params, take(state.params, mean.delta.layout) + self.server_lr * mean.delta)
        if self.policy == "global":
            new = join(new, take(new, mean.policy.layout) + self.server_lr * mean.policy)
        return State(params=new)

    @on_client(bounds={"policy": math.inf, "statistics": 100.0})  # Adam moves theta by policy_lr in each exploration
    def train(self, client: Client, message: Params) -> Update:
        """Train w and theta; return the change of both."""
        trained = message.layout.part(lambda e: e.kind == "param")
        theta = trained.part(lambda e: e.name.startswith("policy."))
        body = trained.part(lambda e: e.name not in theta.by_name)
        start = join(message, client.memory.get("policy", {}))
        held, rest = self.held_out(client)
        options = self.local(client)
        lr = client.problem.lr if self.lr is None else self.lr
        tail = SGD(0.0) if held is None else AdamW(self.policy_lr, weight_decay=self.policy_decay)
        parts = OptimizerPart(body.size, self.local_optimizer()), OptimizerPart(theta.size, tail, self.period)
        options["optimizer"] = Parts(lr, parts=parts)
        local = client.sgd(start, **options, data=rest, hooks=self.augmenting(client, held, lr, body.size))
        delta = {"delta": take(local.params, body) - take(message, body)}
        weight, learnt = {"delta": client.num_samples}, take(local.params, theta)
        if self.policy == "local":
            client.memory["policy"] = learnt
        elif self.policy == "global":
            delta["policy"], weight["policy"] = learnt - take(message, theta), client.num_samples if held is not None else 0
        if message.layout.size > message.layout.num_params:
            count = message.layout.num_params
            return Update(**delta, statistics=local.params.vector[count:], weight=weight | {"statistics": client.num_samples})
        return Update(**delta, weight=weight)

    def held_out(self, client: Client) -> tuple[ClientData | None, ClientData]:
        """Return a tenth of the client's samples, equally many of each class where possible, and the others."""
        data, count = client.train, len(client.train)
        if self.policy == "frozen" or count < LEAST or (client.round - 1) * self.epochs < self.start:
            return None, data
        order = torch.randperm(count, generator=client.stream("held-out"))
        y = data.y[data.index].cpu()[order]
        same = torch.nn.functional.one_hot(y.long(), client.problem.num_classes).cumsum(0)
        turn = same.gather(1, y.long()[:, None]).flatten()  # its number among those of its class
        order = order[turn.argsort(stable=True)]
        held = count // 10
        return data.part(order[:held]), data.part(order[held:].sort().values)

    def augmenting(self, client: Client, held: ClientData | None, lr: float, count: int) -> Hooks:
        """Return the hooks of both kinds of steps.

        Args:
            client: the client.
            held: samples for exploration; None never explores.
            lr: eta.
            count: number of values of w.
        """
        rho = curriculum((client.round - 1) * self.epochs, self.scale) if self.scale else 1.0
        light, period, names = Brightness.of(client.problem, client.device), self.period, self.operations
        mean, deviation, smoothing, temperature = light.mean, light.deviation, self.smoothing, self.temperature
        k, spread, clip, first, choices = self.per_picture, self.spread, self.clip, self.order == "first", len(names)
        transform = compose(crop(self.margin), *[flip()] * self.mirror, cutout(self.erase, -1.0))

        def augment(x: Tensor, y: Tensor, stream: StepStream) -> tuple[Any, Tensor]:
            n, pixels = len(x), torch.arange(x[0, 0].numel(), dtype=torch.float32).view(1, 1, *x.shape[2:])
            source = transform(pixels.expand(len(x), -1, -1, -1), stream)  # pixel that comes to each place; -1 is erased
            noise, jitter, sign = (torch.rand(n, choices, generator=stream) for _ in range(3))
            draws = (
                source,
                torch.arange(n) < math.floor(rho * n),
                noise,
                spread * (2 * jitter - 1),
                torch.where(sign < 0.5, -1.0, 1.0),
            )
            given = (x, *(d.to(x.device) for d in (*draws, torch.rand(n, 2, generator=stream))))
            return given, y

        def exploring(x: Tensor, y: Tensor, stream: StepStream) -> tuple[Any, Tensor]:
            given, _ = augment(x, y, stream)
            if stream.step % period:
                return given, y
            assert held is not None
            rows = torch.randint(len(held), (len(x),), generator=stream)
            return (*given, *held.rows(rows.to(held.device))), y

        def objective(module: nn.Module, given: Any, y: Tensor) -> Tensor:
            (x, source, chosen, noise, jitter, sign, place), held = given[:7], given[7:]
            picture, model = x * deviation + mean, cast("WithPolicy", module)
            with torch.no_grad():
                with evaluating(module):
                    seen = features(model.model, x)
                levels, logs = model.levels(seen, temperature)
                out = picture
                for i in without_replacement(logs, noise, k).unbind(1):
                    level, side = ((t.gather(1, i[:, None])[:, 0]) for t in ((levels + jitter).clamp(0, 1), sign))
                    out = chosen_operation(out, names, i, level, side, place)
                out = remapped(torch.where(chosen[:, None, None, None], (out - mean) / deviation, x), source)
            value = F.cross_entropy(call(module, out), y, label_smoothing=smoothing)
            if held:
                levels, logs = model.levels(seen)
                versions = (every_operation(picture, names, levels.detach(), sign[:, 0], place) - mean) / deviation
                outer = explored(model.model, mixed(x, versions, levels, logs), y, held, lr, first)
                value = value + outer - outer.detach()
            return value

        def correct(gradient: Params, _: Params) -> Params:
            scale = clip / gradient.vector[:count].norm().clamp(min=clip)
            return Params(torch.cat([gradient.vector[:count] * scale, gradient.vector[count:]]), gradient.layout)

        change = augment if held is None else exploring
        return Hooks(objective=objective, augment=change, correct=correct if clip else None)
