"""Momentum (Cheng et al., "Momentum Benefits Non-IID Federated Learning Simply and Provably", ICLR 2024).

Every local step mixes in the server's last direction g; F is the batch loss of the step, xi the same batch in both terms:

    y <- y - lr d;   g <- mean (x - y) / (lr K);   x <- x - gamma g
    FedAvg-M       d = beta F'(y) + (1 - beta) g
    FedAvg-M-VR    d = F'(y; xi) + (1 - beta) (g - F'(x_prev; xi))
    SCAFFOLD-M     d = beta (F'(y) - c_u + c) + (1 - beta) g
    SCAFFOLD-M-VR  d = F'(y; xi) - beta (c_u - c) + (1 - beta) (g - F'(x_prev; xi))
    c_u <- mean of the F'(y) of all steps;   c <- c + 1/N sum (change of c_u)

The server sees sums of directions and, with controls, sums of control changes. A client of the SCAFFOLD forms stores its
control c_u. Plain gradients are those of the loss and of the weight decay. All directions except FedAvg-M's (which is
that of FedCM) were reconstructed from memory, not checked against the paper. The mean is weighted by samples in the FedAvg
forms and uniform in the SCAFFOLD forms, as in FedAvg and SCAFFOLD. Where all clients take equally many steps, these are the
cases beta = 1 with the default gamma, the mean of lr K. Otherwise they differ: the mean of (x - y) / (lr K) gives a client
that takes more steps less weight than the mean of x - y does, and gamma g is not the mean of the local changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import SGD, Client, Hooks, Trained
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, PositiveShare, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update


@node
class MomentumState:
    """The model, the last direction g, the step length gamma along it, and the controls if the method has any.

    `empty` is the number of clients that reported before the first round that they have no samples, and so have no control.
    """

    params: Params
    direction: Params
    rate: float | None = None
    control: Params | None = None
    empty: int = 0


@dataclass(frozen=True)
class FedAvgM(Method[MomentumState]):
    """FedAvg-M: server momentum in every local step; clients store no state. The mean is weighted by samples.

    Args:
        beta: share of a client's own gradient; 1 is FedAvg if all clients take equally many steps.
        lr: client learning rate; None uses the task's.
        epochs: local passes over a client's data.
        steps: K, local steps instead of passes; None trains for `epochs`.
        batch_size: local batch size; None uses the task's.
        weight_decay: added to the gradient.
        server_lr: gamma; None uses the mean of lr K, which moves to the mean of the local models if all take equally many steps.
    """

    family: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "Cheng et al., ICLR 2024"
    differs: ClassVar[str] = (
        "directions are per step, so beta = 1 is FedAvg or SCAFFOLD only where all clients take equally many steps"
    )
    headline: ClassVar[str] = "FedAvg converges with a constant local rate and no heterogeneity bound, at FedAvg's upload"
    reveals: ClassVar[str] = "sums of directions"

    beta: PositiveShare = 0.1
    lr: Positive[float] | None = None
    epochs: Positive[int] = 1
    steps: Positive[int] | None = None
    batch_size: Positive[int] | None = None
    weight_decay: NonNegative[float] = 0.0
    server_lr: NonNegative[float] | None = None

    def init(self, fed: Federation) -> MomentumState:
        """Start with a zero direction."""
        params = fed.init_params()
        return MomentumState(params=params, direction=params.zeros())

    def round(self, fed: Federation, state: MomentumState) -> MomentumState:
        """Average the cohort's directions and step along the mean."""
        cohort = fed.sample()
        if state.rate is None:
            state = replace(self.warm(fed, state), rate=0.0)
        mean = fed.mean(self.train, state, over=cohort)
        rate = mean.way if self.server_lr is None else self.server_lr
        params = averaged(state.params - rate * mean.direction, mean)
        return self.settle(fed, replace(state, params=params, direction=mean.direction, rate=rate), mean)

    def warm(self, fed: Federation, state: MomentumState) -> MomentumState:
        """Return the state before the first round."""
        return state

    def settle(self, fed: Federation, state: MomentumState, mean: Update) -> MomentumState:
        """Return the state updated with the other fields of the replies."""
        return state

    @on_client(bounds={"direction": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: MomentumState) -> Update:
        """Train with momentum; return the mean direction of all steps."""
        beta, g, decay = self.beta, message.direction, self.weight_decay
        hooks = Hooks(correct=lambda grad, at: beta * (grad + decay * at) + (1 - beta) * g)
        local = self.sgd(client, message.params, hooks)
        return Update(**self.along(client, message, local), weight=client.num_samples)

    def sgd(self, client: Client, start: Params, hooks: Hooks, lr: float | None = None, batches: str | None = None) -> Trained:
        """Train with this method's hyperparameters; `lr` overrides the learning rate."""
        optimizer, steps, size = SGD(self.lr if lr is None else lr), self.steps, self.batch_size
        return client.sgd(
            start, optimizer=optimizer, hooks=hooks, epochs=self.epochs, steps=steps, batch_size=size, batches=batches
        )

    def along(self, client: Client, message: MomentumState, local: Trained) -> dict[str, Any]:
        """Return a reply's fields: mean direction, path length lr K, loss and running statistics."""
        way = (client.problem.lr if self.lr is None else self.lr) * local.steps
        direction = weights(message.params - local.params) / (way or 1.0)
        return {"direction": direction, "way": way, "loss": local.loss, **statistics(local)}


@dataclass(frozen=True)
class FedAvgMVR(FedAvgM):
    """FedAvg-M-VR: momentum with variance reduction (STORM), at twice the gradients. Needs small local learning rates."""

    headline: ClassVar[str] = "gradient noise costs (noise / (N K R))^(2/3) instead of its square root, at FedAvg's upload"

    def warm(self, fed: Federation, state: MomentumState) -> MomentumState:
        """Start with the mean gradient of all available clients."""
        return replace(state, direction=fed.mean(self.full, state.params, over=fed.available()).direction)

    @on_client(bounds={"direction": 4.0})
    def full(self, client: Client, message: Params) -> Update:
        """Return the gradient over all samples."""
        return Update(direction=weights(client.gradient(message) + self.weight_decay * message), weight=client.num_samples)

    @on_client(bounds={"direction": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: MomentumState) -> Update:
        """Train with the corrected momentum; return the mean direction of all steps."""
        beta, g, decay = self.beta, message.direction, self.weight_decay
        before = message.params + (message.rate or 0.0) * g
        hooks = Hooks(
            direction=lambda gradient, at: gradient(at) + decay * at + (1 - beta) * (g - gradient(before) - decay * before)
        )
        local = self.sgd(client, message.params, hooks)
        client.flops *= 2  # two gradients in each step
        return Update(**self.along(client, message, local), weight=client.num_samples)


@dataclass(frozen=True)
class ScaffoldM(FedAvgM):
    """SCAFFOLD-M: momentum and controls, for small cohorts of a large population; clients are weighted equally.

    Args:
        start: initial controls: zeros, or every client's gradient at the initial model.
    """

    headline: ClassVar[str] = "SCAFFOLD's rate under partial participation with N^(2/3) / S instead of N / S"
    reveals: ClassVar[str] = "sums of directions and of control changes"
    client_state: ClassVar[str] = "control variate (model size)"

    start: Literal["zeros", "gradients"] = "zeros"

    def warm(self, fed: Federation, state: MomentumState) -> MomentumState:
        """Start with zero controls, or request the initial controls of all available clients."""
        if self.start == "zeros":
            return replace(state, control=state.params.zeros())
        mean = fed.mean(self.first, state.params, over=fed.available())
        empty = round(mean.weight["empty"] * mean.empty)
        control = (mean.weight["control"] / max(fed.num_clients - empty, 1)) * mean.control
        return replace(state, direction=self.toward(mean.control), control=control, empty=empty)

    def toward(self, gradient: Params) -> Params:
        """Return the initial direction, given the mean gradient."""
        return gradient.zeros()

    def settle(self, fed: Federation, state: MomentumState, mean: Update) -> MomentumState:
        """Add the control changes, averaged over the clients that have a control."""
        assert state.control is not None
        share = mean.weight["control"] / max(fed.num_clients - state.empty, 1)
        return replace(state, control=state.control + share * mean.control)

    @on_client(bounds={"control": 4.0})
    def first(self, client: Client, message: Params) -> Update:
        """Store the gradient over all samples as the control, and return it; without samples there is no control."""
        some, control = min(client.num_samples, 1), weights(client.gradient(message) + self.weight_decay * message)
        client.memory.stage("control", control)
        client.memory.stage("empty", 1 - some)
        return Update(control=control, empty=1 - some, weight={"control": some, "empty": 1})

    @on_client(bounds={"direction": 4.0, "control": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: MomentumState) -> Update:
        """Train with momentum and controls; return the mean direction and the change of the control."""
        beta, g, decay, c = self.beta, message.direction, self.weight_decay, message.control
        assert c is not None
        own = client.memory.get("control", c.zeros())
        shift = (1 - beta) * g - beta * (own - c)
        local = self.sgd(client, message.params, Hooks(correct=lambda grad, at: beta * (grad + decay * at) + shift))
        along = self.along(client, message, local)
        return self.controlled(client, c, along, (along["direction"] - shift) / beta, local.steps)

    def controlled(self, client: Client, control: Params, along: dict[str, Any], plain: Params, steps: int) -> Update:
        """Store the mean plain gradient as the control; without samples, store c unless there is none, and count for nothing else."""
        own, new = client.memory.get("control", control.zeros()), plain if steps else control
        client.memory.stage("control", new)
        counts = 1 - client.memory.get("empty", 0)
        return Update(**along, control=new - own, weight={**dict.fromkeys(along, min(steps, 1)), "control": counts})


@dataclass(frozen=True)
class ScaffoldMVR(ScaffoldM):
    """SCAFFOLD-M-VR: controls and momentum with variance reduction. Needs small local learning rates.

    The control is the mean of plain gradients, which here does not follow from the local model. So a client runs the
    same batches again, at the last model: three gradients in each step.
    """

    headline: ClassVar[str] = "gradient noise costs (noise / (S sqrt(K) R))^(2/3) under partial participation"

    start: Literal["gradients"] = "gradients"

    def toward(self, gradient: Params) -> Params:
        """Start along the mean gradient."""
        return gradient

    @on_client(bounds={"direction": 4.0, "control": 4.0, "statistics": 100.0})
    def train(self, client: Client, message: MomentumState) -> Update:
        """Train with controls and the corrected momentum; return the mean direction and the change of the control."""
        beta, g, decay, c = self.beta, message.direction, self.weight_decay, message.control
        assert c is not None
        own, before = client.memory.get("control", c.zeros()), message.params + (message.rate or 0.0) * g
        shift = (1 - beta) * (g - decay * before) - beta * (own - c)
        hooks = Hooks(direction=lambda gradient, at: gradient(at) + decay * at + shift - (1 - beta) * gradient(before))
        local = self.sgd(client, message.params, hooks, batches="both")
        client.flops *= 2  # two gradients in each step, and a third one now
        again = self.sgd(client, before, Hooks(direction=lambda gradient, at: gradient(before)), lr=1.0, batches="both")
        past = weights(before - again.params) / max(local.steps, 1)
        along = self.along(client, message, local)
        return self.controlled(client, c, along, along["direction"] - shift + (1 - beta) * past, local.steps)
