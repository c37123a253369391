"""Franca ("Nested Matryoshka Clustering for Scalable Visual Representation Learning", arXiv 2507.14137, 2025), federated: clients
without labels learn features by self-distillation with nested heads.

    student, teacher      the same network; the teacher follows by theta_t <- m theta_t + (1 - m) theta_s after each step
    heads l = 1..5        of m_l = D/16 .. D values and K_l = K m_l / D prototypes
    loss                  sum_l  global views + local views + hidden patches (`paceline.blocks.nested_heads`), + 0.1 KoLeo
    server                weighted mean of students, and of teachers (or teacher <- m_r teacher + (1 - m_r) student)
    probe                 ridge regression of labels on features, from the sums Z'Z and Z'Y: only for evaluation
    RASA                  removal of position from patches, from the sums Z'Z and Z'y of patches

With one client this is central training, in which Adam begins anew in each round. Targets are balanced over a client's batch, not over
all clients'; so are the centres of balance=centering, which the paper averages over steps. The paper's patch embedding has a fifth of
the learning rate, and its prototypes do not move in the first epoch. The server sees sums. A client stores nothing, or its heads with
heads=local.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from paceline.blocks.global_views import multi_crop
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.nested_heads import Balance, NestedHead, SelfDistilled, followed, following, level_sizes, self_distillation
from paceline.blocks.probes import feature_moments, ridge
from paceline.blocks.rasa import explained, patch_moments, remove_positions
from paceline.core.client import AdamW, Client, Hooks, LocalOptions
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.layout import Entry, Layout
from paceline.core.method import NonNegative, Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.task import Task
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.models.split import join, take

_WARM, _WARM_TEACHER = 128 / 800, 30 / 800
"""Shares of the schedule in which the learning rate and the teacher's temperature rise."""


@node
class FrancaState(State):
    """Student and teacher, and the matrix that removes position from patches, shape [D, D]; empty without it."""

    removal: Tensor


@dataclass(frozen=True)
class Franca(LocalTraining[FrancaState]):
    """Self-supervised features by nested clusters.

    Args:
        lr: for a batch of 1024; steps use lr sqrt(batch / 1024), after a warm-up over 16 % of the schedule.
        steps: local steps of a round; None trains for `epochs`.
        weight_decay: at the beginning of the schedule; it rises to five times that.
        prototypes: K, of the finest level.
        levels: number of levels; 1 is a single head.
        hidden, bottleneck: of the heads.
        nest: levels read projections of the features (``project``, as the released code) or their first values (``slice``).
        balance: of targets: ``sinkhorn``, or ``centering``, which does not force classes of equal size.
        crops: local views.
        mirrored: views may be mirrored.
        momentum: m at the beginning; it rises to 1.
        schedule_rounds: rounds after which schedules end.
        clip: maximum gradient norm.
        teacher: is the ``mean`` of the clients' teachers, or follows the student on the ``server``, which halves uploads.
        server_momentum: m_r of teacher=server.
        heads: are ``shared``, or each client's own (``local``) and never sent.
        probe: train the teacher's last layer on features after each round, from the clients' labels, so that a run has an accuracy;
            False leaves it as it is.
        probe_dims: features that the probe may use, from the first; None for all.
        rasa: iterations of the removal of position; 0 is none, the published number 9.
        rasa_ridge: ridge of its regression, see `remove_positions`; with 10 one iteration is enough.
    """

    family: ClassVar[str] = "representation"
    paper: ClassVar[str] = "arXiv 2507.14137"
    headline: ClassVar[str] = "matches or beats DINOv2, CLIP and SigLIPv2 with open data and code"
    differs: ClassVar[str] = (
        "smaller heads; views without greyscale, blur and solarisation; one rate for all layers; no drop path; Adam anew in each round"
    )
    reveals: ClassVar[str] = "sums of updates, and moments of features and labels"
    client_state: ClassVar[str] = "its heads, with heads=local"
    sends_model: ClassVar[bool] = False

    lr: NonNegative[float] | None = 7e-4
    steps: Positive[int] | None = None
    batch_size: Positive[int] | None = 64
    momentum: Share = 0.994
    weight_decay: NonNegative[float] = 0.04
    prototypes: Positive[int] = 512
    levels: Positive[int] = 5
    hidden: Positive[int] = 256
    bottleneck: Positive[int] = 64
    nest: Literal["project", "slice"] = "project"
    balance: Balance = "sinkhorn"
    crops: Positive[int] = 8
    mirrored: bool = True
    schedule_rounds: Positive[int] = 100
    clip: NonNegative[float] = 3.0
    teacher: Literal["mean", "server"] = "mean"
    server_momentum: Share = 0.99
    heads: Literal["shared", "local"] = "shared"
    probe: bool = True
    probe_dims: Positive[int] | None = None
    rasa: NonNegative[int] = 0
    rasa_ridge: NonNegative[float] = 0.0

    def fit_task(self, task: Task) -> tuple[Franca, Task]:
        """Replace the model by a student and a teacher of it."""
        x = task.train.example
        if task.trainable is not None or not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ConfigError(
                f"franca trains a whole model on inputs that are one tensor of floats, which task {task.name!r} does not have"
            )
        fitted = replace(task, model=partial(SelfDistilled, task.model, self.make_head))
        if self.rasa and not hasattr(cast("SelfDistilled", fitted.build(0)).student.net, "tokens"):
            raise ConfigError("franca with rasa needs a model with patches, such as vit")
        return self, fitted

    def make_head(self, width: int) -> NestedHead:
        """Return the heads of embeddings of a width."""
        return NestedHead(width, level_sizes(width, self.prototypes, self.levels), self.hidden, self.bottleneck, self.nest)

    def init(self, fed: Federation) -> FrancaState:
        """Start with a teacher equal to the student."""
        return FrancaState(params=fed.init_params(), removal=torch.zeros(0, 0))

    def round(self, fed: Federation, state: FrancaState) -> FrancaState:
        """Average students and teachers; fit the probe, and find the directions of position."""
        cohort = fed.sample()
        mean = fed.mean(self.train, state.params, over=cohort)
        params, last = join(state.params, take(state.params, mean.delta.layout) + mean.delta), fed.last
        if self.teacher == "server":
            params = followed(params, self.server_momentum, buffers=True)
        if self.probe:
            sums = fed.mean(self.moments_of_features, params, over=sorted(last.arrived))
            if sums.weight:
                weight, bias = ridge(sums.gram, sums.cross, self.probe_dims)
                params = join(params, {"probe.weight": weight, "probe.bias": bias})
        removal = state.removal
        if self.rasa:
            patches = fed.mean(self.moments_of_patches, params, over=sorted(last.arrived))
            if patches.weight:
                removal = remove_positions(patches.gram, patches.cross, self.rasa, self.rasa_ridge).float()
                left = removal.T @ patches.gram @ removal, removal.T @ patches.cross
                last.notes["position_r2"] = explained(patches.gram, patches.cross, patches.square)
                last.notes["position_r2_left"] = explained(*left, patches.square)
        fed.last = last
        return FrancaState(params=params, removal=removal)

    def sent(self, layout: Layout) -> Layout:
        """Return the layout of what clients send: the student, and the teacher where it is averaged."""
        sides = ("student.", "teacher.") if self.teacher == "mean" else ("student.",)
        return layout.part(lambda e: e.name.startswith(sides) and not self.own(e))

    def own(self, entry: Entry) -> bool:
        """Return whether a tensor belongs to a client's own heads."""
        return self.heads == "local" and entry.name.split(".")[1] in ("cls", "patch")

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the student, with a teacher that follows it; return the change of both."""
        start = join(message, client.memory.get("heads", {})) if self.heads == "local" else message
        local = client.sgd(start, **self.local(client), hooks=self.hooks(client, start))
        if self.heads == "local":
            client.memory["heads"] = {e.name: local.params[e.name].clone() for e in start.layout.entries if self.own(e)}
        part = self.sent(message.layout)
        return Update(delta=take(local.params, part) - take(message, part), loss=local.loss, weight=client.num_samples)

    def progress(self, round: int) -> float:
        """Return the share of the schedules that is over when a round begins."""
        return min((round - 1) / self.schedule_rounds, 1.0)

    def rate(self, client: Client) -> tuple[float, int]:
        """Return the learning rate for the size of a batch, and that size."""
        size = self.batch_size or client.problem.batch_size
        return (client.problem.lr if self.lr is None else self.lr) * math.sqrt(size / 1024), size

    def local(self, client: Client) -> LocalOptions:
        """Return the options of `Client.sgd`; the learning rate follows the clock of all rounds."""
        (lr, size), done, length = self.rate(client), self.progress(client.round), self.schedule_rounds
        schedule = partial(_scheduled, done, length)
        return {"optimizer": AdamW(lr, schedule=schedule), "steps": self.steps, "epochs": self.epochs, "batch_size": size}

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Return views, loss, clipping, and the teacher's step."""
        done, net = self.progress(client.round), distilled(client.model.module).student.net
        half = (1 + math.cos(math.pi * done)) / 2  # falls from 1 to 0
        temperature = 0.04 + 0.03 * min(done / _WARM_TEACHER, 1.0)
        decay = self.weight_decay * (5 - 4 * half) * self.rate(client)[0] * factor(done)
        clip, balance = self.clip, self.balance

        def objective(module: nn.Module, given: Any, y: Any) -> Tensor:
            hidden = given[2] if len(given) == 3 else None
            return self_distillation(cast(SelfDistilled, module), given[0], given[1], hidden, temperature, balance)

        def correct(gradient: Params, at: Params) -> Params:
            return gradient * (clip / gradient.norm().clamp(min=clip)) if clip else gradient

        return Hooks(
            objective=objective,
            augment=multi_crop(tuple(client.train.x.shape[1:]), self.crops, getattr(net, "patch", None), self.mirrored),
            correct=correct,
            after=following(start.layout, client.device, 1 - (1 - self.momentum) * half, 1 - decay),
        )

    @on_client(bounds={"gram": math.inf, "cross": math.inf})
    def moments_of_features(self, client: Client, message: Params) -> Update:
        """Return the moments of the teacher's features and the targets."""
        return feature_moments(client, message, distilled(client.model.module).probe.out_features)

    @on_client(bounds={"gram": math.inf, "cross": math.inf})
    def moments_of_patches(self, client: Client, message: Params) -> Update:
        """Return the means of z'z, z'y and |y|^2, z the teacher's features of a patch, y its coordinates."""
        net = cast(Any, distilled(client.model.module).teacher.net)
        return patch_moments(client, message, net)


def distilled(module: nn.Module) -> SelfDistilled:
    """Return a client's module as what `Franca.fit_task` made of it."""
    assert isinstance(module, SelfDistilled)
    return module


def factor(now: float) -> float:
    """Return the factor on the learning rate at a share of the schedule: a linear warm-up, then half a cosine."""
    return now / _WARM if now < _WARM else 0.5 * (1 + math.cos(math.pi * (now - _WARM) / (1 - _WARM)))


def _scheduled(done: float, length: int, step: int, steps: int) -> float:
    return factor(min(done + step / max(steps, 1) / length, 1.0))
