"""pFedPG ("Efficient Model Personalization in Federated Learning via Client-Specific Prompt Generation", ICCV 2023, arXiv 2308.15367):
a generator at the server turns a descriptor of each client into prompts for a frozen vision transformer.

    server:  P_n = G_phi(P_base, d_n), a cross-attention (`paceline.blocks.prompts`)
    client:  E epochs of SGD on P (from P_n) and its own head H_n;   Delta_n = P - P_n
    server:  -Delta_n counts as the gradient of client n's loss in P_n:
             phi <- phi - alpha sum_n (dP_n/dphi)^T (-Delta_n),   P_base likewise,   d_n <- d_n - alpha (dP_n/dd_n)^T (-Delta_n)

As published (`PFedPG`) the server sees every client's Delta_n. In `PFedPGSum` a client stores d_n, receives phi and P_base, and returns
its products, of which the server needs the sum alone; the result is the same. The transformer is never sent; a client stores its head
and the prompts that it trained last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from paceline.blocks.architectures import architectures
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.prompts import PromptGenerator
from paceline.core.client import SGD, AdamW, Client, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation, WithOwn
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.optimizers import Optimizer
from paceline.core.params import Params, Resident
from paceline.core.random import torch_rng
from paceline.core.task import Task
from paceline.core.tree import Tree, node
from paceline.core.update import Update
from paceline.methods.personalisation.ownmodels import clipped
from paceline.models.split import head_name, join
from paceline.models.transformer import VisionTransformer
from paceline.models.tuning import Tuning, prompt_reach
from paceline.tasks.tuning import tune


@node
class PromptState:
    """Weights of the generator with P_base, descriptors [N, rows, l] (none in the sum-only form), and the optimizer's tensors."""

    generator: Params
    descriptors: Tensor
    moments: list[Tensor]


@dataclass(frozen=True)
class GeneratedPrompts(LocalTraining[PromptState]):
    """Common part of both forms.

    Args:
        tokens: K, number of prompts.
        server_lr: alpha.
        server_optimizer: of generator and descriptors, ``sgd`` or ``adam``.
        reduce: the generator's gradient is the ``sum`` over clients, or the ``mean`` over those with samples.
        heads: attention heads of the generator.
        descriptor: has K rows (``tokens``), or is one ``vector``, see `PromptGenerator`.
        per_step: divide Delta_n by the learning rate and the number of steps.
        clip: largest norm of a local gradient; 0 for none.
        judge: a client is evaluated with the prompts that it ``tuned`` last, or with those ``generated`` now, and its own head.
    """

    family: ClassVar[str] = "personalisation"
    paper: ClassVar[str] = "arXiv 2308.15367 (ICCV 2023)"
    headline: ClassVar[str] = (
        "96.81 % on Office-Caltech10 where averaged prompts reach 94.29 %, with 7,680 values a client and round"
    )
    has_model: ClassVar[bool] = False
    sends_model: ClassVar[bool] = False

    lr: NonNegative[float] | None = 0.25
    epochs: Positive[int] = 5
    batch_size: Positive[int] | None = 64
    weight_decay: NonNegative[float] = 1e-3
    tokens: Positive[int] = 10
    server_lr: NonNegative[float] = 1e-3
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    reduce: Literal["sum", "mean"] = "sum"
    heads: Positive[int] = 1
    descriptor: Literal["tokens", "vector"] = "tokens"
    per_step: bool = False
    clip: NonNegative[float] = 0.0
    judge: Literal["tuned", "generated"] = "tuned"

    def fit_task(self, task: Task) -> tuple[GeneratedPrompts, Task]:
        """Freeze the transformer, and add prompts before its first block."""
        tuning = Tuning("prompt", tokens=self.tokens, deep=False, with_head=True)
        fitted = tune(task, tuning)
        width = cast(VisionTransformer, fitted.build(0)).width
        if width % self.heads:
            raise ConfigError(f"heads={self.heads} must divide the width {width} of the transformer")
        return self, fitted

    def generate(self, model: Resident) -> PromptGenerator:
        """Return the generator that fits a model."""
        vit = cast(VisionTransformer, model.module)
        return PromptGenerator(self.tokens, vit.width, self.heads, self.descriptor, prompt_reach(vit))

    def rule(self) -> Optimizer:
        """Return the server's optimizer."""
        return AdamW(self.server_lr) if self.server_optimizer == "adam" else SGD(self.server_lr)

    def first(self, fed: Federation, descriptors: Tensor) -> PromptState:
        """Return the state before round 1, with the clients' descriptors."""
        weights = self.generate(architectures(fed).resident()).initial(torch_rng(fed.seed, "prompts"))
        return PromptState(weights, descriptors, self.rule().state(weights.vector) + self.rule().state(descriptors))

    def step(self, number: int, at: Tensor, gradient: Tensor, moments: list[Tensor]) -> Tensor:
        """Return the tensor after a step of the server's optimizer, whose `moments` are updated in place."""
        return at - self.server_lr * self.rule().direction(number, gradient, at, moments)

    def tuned(self, client: Client, prompts: Tensor) -> Tensor:
        """Train prompts and head from generated prompts [K, l]; store both, and return the change of the prompts, [K, l]."""
        start = self.personal_start(client, prompts)
        local = client.sgd(start, **self.local(client), hooks=Hooks(correct=clipped(self.clip)))
        name = head_name(client.model.module)
        client.memory["head"] = {key: value.clone() for key, value in local.params.items() if key.startswith(f"{name}.")}
        client.memory["prompts"] = local.params["prompts.values"][0].clone()
        change: Tensor = client.memory["prompts"] - prompts
        if self.per_step and local.steps:
            lr = client.problem.lr if self.lr is None else self.lr
            change = change / (lr * local.steps)
        return change

    def personal_start(self, client: Client, prompts: Tensor) -> Params:
        """Return the trained parameters of a client's model: prompts [K, l] and its own head, initially the run's."""
        kept = client.memory.get("head")
        whole = architectures(client).initial()
        base = Params(torch.cat([whole[name].flatten() for name in client.model.layout.by_name]), client.model.layout)
        return join(base.to(client.device), (kept or {}) | {"prompts.values": prompts[None]})

    def model(self, state: PromptState) -> Params:
        """Return the generator."""
        return state.generator

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Return the client's head with its tuned or its generated prompts."""
        prompts = self.shown(client, message)
        return self.personal_start(client, client.memory.get("prompts", prompts) if self.judge == "tuned" else prompts)

    def shown(self, client: Client, message: Tree) -> Tensor:
        """Return, on a client, the prompts that are generated for it."""
        raise NotImplementedError


@dataclass(frozen=True)
class PFedPG(GeneratedPrompts):
    """The published form: descriptors are at the server, which sees every client's change of its prompts."""

    reveals: ClassVar[str] = "every client's change of its prompts"
    differs: ClassVar[str] = (
        "the paper leaves the generator's details open: here a descriptor has K rows, and the attention one head and no residual"
    )
    client_state: ClassVar[str] = "its head and its prompts"
    sum_only: ClassVar[str] = "pfedpgsum"

    def init(self, fed: Federation) -> PromptState:
        """Draw the generator and a descriptor for each client."""
        made = self.generate(architectures(fed).resident())
        rows = [made.describe(torch_rng(fed.seed, "descriptor", client)) for client in range(fed.num_clients)]
        return self.first(fed, torch.stack(rows))

    def round(self, fed: Federation, state: PromptState) -> PromptState:
        """Send each client its prompts, and step along their changes."""
        made, cohort = self.generate(architectures(fed).resident()), fed.sample()
        prompts = made(state.generator, state.descriptors[cohort])
        replies = fed.each(self.train, None, over=cohort, each_message=dict(zip(cohort, prompts, strict=True)))
        came = sorted(replies)
        counted = sum(bool(change.any()) for change in replies.values())  # without samples nothing changes
        slope, own = made.pull(state.generator, state.descriptors[came], torch.stack([replies[client] for client in came]))
        if self.reduce == "mean":
            slope = slope / max(counted, 1)
        count = len(state.moments) // 2
        moments = [tensor.clone() for tensor in state.moments]
        vector = self.step(fed.round - 1, state.generator.vector, slope.vector, moments[:count])
        theirs = [tensor[came] for tensor in moments[count:]]
        descriptors = state.descriptors.clone()
        descriptors[came] = self.step(fed.round - 1, descriptors[came], own, theirs)
        for tensor, mine in zip(moments[count:], theirs, strict=True):
            tensor[came] = mine
        return PromptState(Params(vector, slope.layout), descriptors, moments)

    @on_client(each=True)
    def train(self, client: Client, message: WithOwn[None, Tensor]) -> Tensor:
        """Train from the client's own prompts; return their change, [K, l]."""
        return self.tuned(client, message["own"])

    def personal(self, state: PromptState, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Send each client its prompts."""
        vit_rows = state.descriptors[list(clients)]
        made = PromptGenerator(self.tokens, vit_rows.shape[-1], self.heads, self.descriptor)
        return [(prompts, [client]) for client, prompts in zip(clients, made(state.generator, vit_rows), strict=True)]

    def shown(self, client: Client, message: Tensor) -> Tensor:
        """Return the prompts that were sent."""
        return message


@dataclass(frozen=True)
class PFedPGSum(GeneratedPrompts):
    """The sum-only form: descriptors stay with the clients, which receive the generator."""

    reveals: ClassVar[str] = "sums of gradients of the generator"
    client_state: ClassVar[str] = "its head, its prompts and its descriptor"

    def init(self, fed: Federation) -> PromptState:
        """Draw the generator."""
        return self.first(fed, torch.zeros(0))

    def round(self, fed: Federation, state: PromptState) -> PromptState:
        """Send the generator, and step along the sum of its gradients."""
        mean = fed.mean(self.train, state.generator, over=fed.sample())
        slope = mean.slope * (1.0 if self.reduce == "mean" else mean.weight)
        moments = [tensor.clone() for tensor in state.moments]
        vector = self.step(fed.round - 1, state.generator.vector, slope.vector, moments[: len(moments) // 2])
        return replace(state, generator=Params(vector, slope.layout), moments=moments)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train from generated prompts, move the descriptor, and return the gradient of the generator."""
        made, own = self.generate(client.model), self.described(client)
        slope, along = made.pull(message, own, self.tuned(client, made(message, own)))
        moments = [tensor.clone() for tensor in client.memory.get("moments", self.rule().state(own))]
        client.memory["descriptor"] = self.step(client.round - 1, own, along, moments)
        client.memory["moments"] = moments
        return Update(slope=slope, weight=min(client.num_samples, 1))

    def described(self, client: Client) -> Tensor:
        """Return the client's descriptor."""
        kept = client.memory.get("descriptor")
        drawn: Tensor = (
            self.generate(client.model).describe(client.stream("descriptor")).to(client.device) if kept is None else kept
        )
        return drawn

    def personal(self, state: PromptState, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Send the generator to all clients."""
        return [(state.generator, clients)]

    def shown(self, client: Client, message: Params) -> Tensor:
        """Generate the prompts."""
        return self.generate(client.model)(message, self.described(client))
