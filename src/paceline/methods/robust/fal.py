"""FAL ("Federated Adversarial Learning: A Framework with Convergence Analysis", arXiv 2208.03635, ICML 2023): FedAvg on adversarial
examples that each client makes itself.

    x' = A(f_w, x, y),  |x' - x| <= rho      at the current local weights w, in evaluation mode; x' is a constant
    w  <- w - eta_loc * gradient of the mean of l(f_w(x'), y)                                 (K local steps)
    U  <- U + eta_glob * (1/N) sum_c (w_c - U)

A is FGSM, or PGD with a random start (`paceline.blocks.adversarial`). Without an adversary this is FedAvg.

The server sees the same as in FedAvg. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from paceline.blocks.adversarial import InputAttack, InputBall, Norm, attacked, evaluating, input_gradient, random_start
from paceline.core.client import Client, ClientData, Hooks, LocalOptions
from paceline.core.columns import call
from paceline.core.errors import ConfigError
from paceline.core.hooks import NO_HOOKS
from paceline.core.method import NonNegative, Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.task import Task
from paceline.core.tree import Tree
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class FAL(FedAvg):
    """Adversarial training at the clients.

    Args:
        steps: K, local steps; None trains for `epochs`.
        adversary: ``pgd``, ``fgsm``, or ``none``, which is FedAvg.
        radius: rho, in units of brightness from 0 to 1 for pictures of a named task or of files, otherwise in units of the inputs.
        attack_steps: steps of PGD.
        attack_size: length of a step of PGD; None is 2.5 rho / attack_steps.
        norm: of the perturbation, ``inf`` or ``2``.
        start: of PGD: ``random`` in the box of size rho, or ``zero``.
        attack_on: weights that are attacked: the current ``local`` ones, or the ``global`` ones of the round.
        clean: weight of the loss on the clean samples; 1 - clean is that of the adversarial ones.
        importance: clients count equally (``uniform``) or by their ``samples``.
        judge: clients evaluate on their ``clean`` samples, or on samples that PGD attacks with 20 steps (``robust``); this affects
            evaluation=federated and evaluation=clients.
    """

    family: ClassVar[str] = "robust"
    paper: ClassVar[str] = "arXiv 2208.03635 (ICML 2023)"
    headline: ClassVar[str] = (
        "the robust training loss of over-parameterised ReLU networks falls below any bound in polynomial time"
    )
    differs: ClassVar[str] = (
        "defaults of radius, attack and local steps are customary values, as those of the paper's experiments are not known"
    )

    steps: Positive[int] | None = 10
    batch_size: Positive[int] | None = 32
    adversary: Literal["pgd", "fgsm", "none"] = "pgd"
    radius: NonNegative[float] = 0.1
    attack_steps: Positive[int] = 7
    attack_size: Positive[float] | None = None
    norm: Norm = "inf"
    start: Literal["random", "zero"] = "random"
    attack_on: Literal["local", "global"] = "local"
    clean: Share = 0.0
    importance: Literal["uniform", "samples"] = "uniform"
    judge: Literal["clean", "robust"] = "clean"

    def fit_task(self, task: Task) -> tuple[FAL, Task]:
        """Require inputs that can be changed a little: one tensor of floats."""
        x = task.train.example
        if self.adversary != "none" and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ConfigError(
                f"fal perturbs inputs, which must be one tensor of floats; those of {task.name} are codes, or several"
            )
        return self, task

    def local(self, client: Client) -> LocalOptions:
        """Return the options of `Client.sgd`."""
        return {**super().local(client), "steps": self.steps}

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train on adversarial examples; return the change."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        weight = client.num_samples if self.importance == "samples" else min(client.num_samples, 1)
        return Update(delta=local.params - message, loss=local.loss, weight=weight)

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Replace each batch by adversarial examples; a random start is drawn from the stream of the step."""
        if self.adversary == "none" or self.radius == 0:
            return NO_HOOKS
        ball, loss, attack, clean = self.ball(client), client.problem.loss, self.attack(), self.clean
        radius, unit, low, high, norm = ball.radius, ball.unit, ball.low, ball.high, ball.norm  # tensors of clients are stacked
        random, anchor = self.adversary == "pgd" and self.start == "random", start if self.attack_on == "global" else None

        def augment(x: Tensor, y: Any, stream: torch.Generator) -> tuple[Any, Any]:
            return (x, random_start(x, radius, stream)), y

        def objective(module: nn.Module, given: Any, y: Any) -> Tensor:
            x, begin = given if random else (given, None)
            shown = module if anchor is None else partial(_at, module, dict(anchor.items()))
            with evaluating(module):
                bad = attack(input_gradient(shown, loss, y), x, InputBall(radius, unit, low, high, norm), begin)
            value = loss(call(module, bad), y)
            return value if not clean else (1 - clean) * value + clean * loss(call(module, x), y)

        return Hooks(objective=objective, augment=augment if random else None)

    def ball(self, client: Client) -> InputBall:
        """Return the perturbations of the adversary for this task."""
        return InputBall.of(client.problem, self.radius, self.norm, client.device)

    def attack(self) -> InputAttack:
        """Return the adversary of training."""
        return InputAttack.fgsm(self.radius) if self.adversary == "fgsm" else InputAttack(self.attack_steps, self.attack_size)

    def judged(self, client: Client, params: Params, data: ClientData) -> dict[str, Any]:
        """Return the sums of an evaluation on clean or on attacked samples."""
        if self.judge == "clean":
            return client.evaluate(params, data)
        stream = client.stream("judge")
        bad = attacked(client.model, params, data, client.problem.loss, InputAttack(20), self.ball(client), stream)
        return client.evaluate(params, bad)

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Evaluate the global model."""
        return self.judged(client, self.personal_model(client, message), data)

    @on_client
    def evaluate(self, client: Client, message: Params) -> Tree:
        """Evaluate the global model on this client's test samples, or its training samples if it has none."""
        return self.judged(client, message, client.test if len(client.test) else client.train)


def _at(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Any:
    """Return a module's outputs at other weights."""
    return torch.func.functional_call(module, weights, (x,))
