"""FedLGD ("Federated Learning on Virtual Heterogeneous Data with Local-Global Dataset Distillation", TMLR 2024, arXiv 2303.02278): clients
train on a few synthetic samples of each class, together with a global set that the server distils from the averaged update.

    before round 1:  client i draws S_i from the mean and deviation of each of its classes and channels, and matches features of its
                     data by random networks; the server draws S_g from the means of these statistics
    client:  in rounds t = 0, gap, 2 gap, ...: S_i matches features of the global model (t > 0);  L = CE on S_i and S_g
             in other rounds:  L = CE + lambda L_con, the supervised contrastive loss of features of the batch and of S_g
    server:  theta' = mean_i theta_i
             in rounds 0, gap, ...: S_g matches the directions of g = (theta - theta') / eta by its gradient at theta

The server sees sums of updates and of class statistics. A client stores its synthetic samples; no real sample is used in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.blocks.architectures import architectures
from paceline.blocks.contrastive import contrast_with
from paceline.blocks.distilled import chosen, class_statistics, drawn, match_features, match_gradient, redrawn, siamese
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.prototypes import apart, class_sums
from paceline.core.client import Client, ClientData, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.random import derive, torch_rng
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.models.split import features, head, join


@node
class LGDState(State):
    """The model; S_g, by class, shape [C ipc_g, ...]; and the classes that some client has, [C]."""

    images: Tensor
    known: Tensor


@dataclass(frozen=True)
class FedLGD(LocalTraining[LGDState]):
    """Train on distilled samples of clients and server. Clients train one at a time, as each has samples of its own.

    Args:
        per_class: ipc, synthetic samples of each class at a client.
        global_per_class: ipc_g, those of the server; 0 leaves S_g out.
        start: of S_i: ``statistics`` of each class, ``real`` samples, or ``noise``.
        warm_up: N_w, steps of feature matching before round 1.
        refine: N_c, steps of feature matching by the global model.
        global_steps: N_s, steps of gradient matching at the server.
        gap: rounds between two updates of the synthetic samples.
        updates: U, number of these updates after the first.
        image_lr, image_momentum: of SGD on the samples.
        strength: lambda.
        temperature: of the contrastive loss.
        augment: change pictures at random in feature matching.
        official_stats: divide the sums of a class by the number of all samples, as the released code does.
        watch: report how far the clients' class means of features lie apart (0: they agree in direction; 1: they cancel), from sums.
    """

    paper: ClassVar[str] = "arXiv 2303.02278 (TMLR 2024)"
    headline: ClassVar[str] = (
        "above FedAvg, FedProx and FedBN under shifted features, with very few synthetic samples of each class"
    )
    differs: ClassVar[str] = (
        "classes that a client does not have are left out, and statistics of a class are divided by its own number"
    )
    needs_classes: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    vectorizable: ClassVar[bool] = False
    reveals: ClassVar[str] = "sums of updates and of class statistics"
    client_state: ClassVar[str] = "its synthetic samples"

    lr: NonNegative[float] | None = 0.01
    batch_size: Positive[int] | None = 32
    per_class: Positive[int] = 50
    global_per_class: NonNegative[int] = 10
    start: Literal["statistics", "real", "noise"] = "statistics"
    warm_up: NonNegative[int] = 10_000
    refine: NonNegative[int] = 100
    global_steps: NonNegative[int] = 500
    gap: Positive[int] = 5
    updates: NonNegative[int] = 10
    image_lr: NonNegative[float] = 1.0
    image_momentum: Share = 0.5
    strength: NonNegative[float] = 10.0
    temperature: Positive[float] = 0.07
    augment: bool = True
    official_stats: bool = False
    watch: bool = False

    def check(self, fed: Federation) -> list[str]:
        """Require inputs of floats, and a model with a head."""
        try:
            head(architectures(fed).resident().module)
        except ConfigError as error:
            return [str(error)]
        x = architectures(fed).task.train.example
        fits = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1
        return [] if fits else ["fedlgd optimises synthetic samples, so it requires samples of one tensor of floats"]

    def due(self, after: int) -> bool:
        """Return whether synthetic samples are updated after `after` completed rounds."""
        return after % self.gap == 0 and after < self.gap * self.updates + 1

    def init(self, fed: Federation) -> LGDState:
        """Start with an empty S_g; synthetic samples precede the first round."""
        zoo = architectures(fed)
        classes, example = head(zoo.resident().module).out_features, zoo.task.train.example
        images = example.new_zeros(classes * self.global_per_class, *example.shape[1:])
        return LGDState(params=fed.init_params(), images=images, known=torch.zeros(classes, dtype=torch.bool))

    def round(self, fed: Federation, state: LGDState) -> LGDState:
        """Make synthetic samples before the first round; train on them, and update S_g where it is due."""
        cohort, due, notes = fed.sample(), self.due(fed.round - 1), {}
        if fed.round == 1:
            first = fed.mean(self.prepare, None, over=fed.available())
            notes = {"matching_before": float(first.before), "matching_after": float(first.after)}
            stream, shape = torch_rng(fed.seed, "virtual"), state.images.shape[1:]
            images = drawn(first.mean, first.deviation, self.global_per_class, shape, stream)
            known = first.weight["mean"].view(first.mean.shape)[:, 0] > 0
            state = replace(state, images=images.to(state.images.dtype), known=known)
        mean = fed.mean(self.train, (state, due and fed.round > 1, due), over=cohort)
        if due and self.global_per_class and bool(state.known.any()):
            images, distances = self.distil(fed, state, mean.delta)
            notes |= {"distance_before": distances[0], "distance_after": distances[-1]} if distances else {}
            state = replace(state, images=images)
        if self.watch:
            notes["feature_spread"] = apart(mean.directions, mean.weight["directions"].view(mean.directions.shape)[:, 0])
        fed.last.notes.update(notes)
        return replace(state, params=state.params + mean.delta)

    def distil(self, fed: Federation, state: LGDState, delta: Params) -> tuple[Tensor, list[float]]:
        """Return S_g after gradient matching at the old model, and the distances on the way."""
        zoo = architectures(fed)
        model = zoo.resident()
        rate = zoo.task.lr if self.lr is None else self.lr
        model.load(join(zoo.initial(), state.params))
        model.module.eval()
        g = (-1 / rate) * delta if rate else delta
        wanted = {e.name: g[e.name].to(model.device) for e in delta.layout.entries if e.kind == "param"}
        rows = state.known.repeat_interleave(self.global_per_class)
        labels, options = self.labels(state.known, self.global_per_class)[rows], self.pixels(self.global_steps)
        found, distances = match_gradient(
            state.images[rows].to(model.device), labels.to(model.device), model.module, wanted, **options
        )
        images = state.images.clone()
        images[rows] = found.cpu()
        return images, [float(d) for d in distances]

    def labels(self, known: Tensor, each: int) -> Tensor:
        """Return the fixed labels of `each` synthetic samples of each class."""
        return torch.arange(len(known), device=known.device).repeat_interleave(each)

    def pixels(self, steps: int) -> dict[str, Any]:
        """Return the options of SGD on samples."""
        return {"steps": steps, "lr": self.image_lr, "momentum": self.image_momentum}

    # -- clients -------------------------------------------------------------------------------
    def real(self, client: Client) -> tuple[Tensor, Tensor]:
        """Return the client's own samples."""
        x, y = client.train.rows(torch.arange(client.num_samples, device=client.device))
        assert isinstance(x, Tensor)
        assert isinstance(y, Tensor)
        return x, y

    def matched(self, client: Client, images: Tensor, start: Params | None, steps: int) -> tuple[Tensor, list[Tensor]]:
        """Return S_i after feature matching by a model, or by a random network for each step."""
        model = architectures(client).resident()
        if start is not None:
            model.load(join(architectures(client).initial().to(client.device), start))
        model.module.eval()

        def embed(step: int) -> Any:
            module = model.module if start is not None else redrawn(model, derive(client.seed, "network", step))
            return partial(features, module)

        real = self.real(client)
        augment = siamese(images.shape[-1]) if self.augment and images.dim() == 4 else None
        labels = self.labels(images.new_zeros(client.problem.num_classes), self.per_class)
        client.flops += steps * model.flops * (len(real[1]) + 3.0 * len(labels))
        return match_features(images, labels, real, embed, seed=client.seed, augment=augment, **self.pixels(steps))

    def virtual(self, client: Client) -> tuple[Tensor, list[Tensor]]:
        """Return the client's first synthetic samples, and the losses of their matching."""
        (x, y), classes, stream = self.real(client), client.problem.num_classes, client.stream("virtual")
        mean, deviation, _ = class_statistics(x, y, classes, self.official_stats)
        if self.start == "noise":
            mean, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
        if self.start == "real":
            images = chosen(x, y, classes, self.per_class, stream)
        else:
            images = drawn(mean, deviation, self.per_class, x.shape[1:], stream)
        return self.matched(client, images, None, self.warm_up) if len(y) else (images, [])

    @on_client(bounds={"mean": math.inf, "deviation": math.inf})
    def prepare(self, client: Client, message: None) -> Update:
        """Make and store synthetic samples; return the statistics of the client's classes, and the loss before and after matching."""
        x, y = self.real(client)
        mean, deviation, counts = class_statistics(x, y, client.problem.num_classes, self.official_stats)
        client.memory["images"], losses = self.virtual(client)
        tenth, some = max(1, len(losses) // 10), min(client.num_samples, 1)
        before, after = (float(torch.stack(part).mean()) if part else 0.0 for part in (losses[:tenth], losses[-tenth:]))
        here = (counts > 0).float().unsqueeze(1).expand_as(mean)
        weight = {"mean": here, "deviation": here, "before": some, "after": some}
        return Update(mean=mean, deviation=deviation, before=before, after=after, weight=weight)

    @on_client
    def train(self, client: Client, message: tuple[LGDState, bool, bool]) -> Update:
        """Train on S_i and S_g; return the change. All clients with samples have equal weight."""
        state, refine, plain = message
        some = min(client.num_samples, 1)
        params, loss = self.learn(client, state, refine, plain) if some else (state.params, 0.0)
        fields: dict[str, Any] = {"delta": params - state.params, "loss": loss}
        weight: dict[str, Any] = dict.fromkeys(fields, some)
        if self.watch:
            sums = class_sums(client.model, params, client.train, client.problem)
            fields["directions"] = F.normalize(sums.sums)
            weight["directions"] = sums.present.float().unsqueeze(1).expand_as(sums.sums)
        return Update(**fields, weight=weight)

    def learn(self, client: Client, state: LGDState, refine: bool, plain: bool) -> tuple[Params, float]:
        """Update S_i where it is due, and train on S_i and S_g; return the parameters and the loss."""
        images = client.memory.get("images")
        images = self.virtual(client)[0] if images is None else images
        if refine:
            images = self.matched(client, images, state.params, self.refine)[0]
        client.memory["images"] = images
        (_, y), known = self.real(client), state.known
        own = (torch.bincount(y, minlength=len(known)) > 0).repeat_interleave(self.per_class)
        shared = known.repeat_interleave(self.global_per_class)
        anchors, classes = state.images[shared], self.labels(known, self.global_per_class)[shared]
        x, labels = torch.cat([images[own], anchors]), torch.cat([self.labels(known, self.per_class)[own], classes])
        data = ClientData(x, labels, torch.arange(len(x)), client.device)
        hooks = self.hooks(client, state.params)
        if not plain and self.strength and len(anchors):
            hooks = Hooks(objective=contrast_with(client.problem.loss, anchors, classes, self.strength, self.temperature))
        params, _, _, loss = client.sgd(state.params, data=data, hooks=hooks, **self.local(client))
        return params, loss
