"""FedAMD (Wu et al., "Anchor Sampling for Federated Learning with Partial Client Participation", ICML 2023).

Each participant is an anchor with probability p, otherwise a miner; xi_k is a batch of the miner's, the same in both terms:

    anchor: v_u <- gradient of f_u at x (large batch);   v <- mean of all v_u, used from the next round on
    miner:  y_0 = x;   g_0 = v;   g_k = g_{k-1} + F'(y_k; xi_k) - F'(y_{k-1}; xi_k);   y_{k+1} = y_k - lr g_k
    server: x <- x - eta * mean over miners of (x - y_K)

In the first round every available client is asked for v_u; v is the mean over the clients that replied. The published
server stores every v_u. Here each client stores its own and sends changes: the same values from sums only.

The server sees the sum of the miners' updates and that of the anchors' changes, and each client's role. If the
aggregation hides replies, every client sends both fields, with weight 0 for the missing one, so that each sum covers the
whole cohort. A client stores its v_u.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import SGD, Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.random import numpy_rng
from paceline.core.tree import node
from paceline.core.update import Update


@node
class AnchorState:
    """The model, the sum of all v_u, and the clients whose v_u is in it."""

    params: Params
    total: Params
    members: list[int] = field(default_factory=list)

    @property
    def mean(self) -> Params:
        """Return the mean of all v_u."""
        return self.total / max(len(self.members), 1)


@node
class Roles:
    """Message to participants: the model, v, the miners and the anchors."""

    params: Params
    mean: Params
    miners: list[int]
    anchors: list[int]


@dataclass(frozen=True)
class FedAmd(Method[AnchorState]):
    """Anchors refresh large-batch gradients; miners take variance-reduced steps along their mean. Equal client weights.

    Args:
        anchor: p, probability of being an anchor; with 1 all clients are anchors and the model does not change.
        period: every `period` rounds, starting with the first, all participants are anchors, otherwise all miners; 0 draws.
        steps: K, local steps of a miner.
        lr: client learning rate; None uses the task's.
        batch_size: a miner's batch size; None uses the task's.
        large_batch: an anchor's batch size; 0 uses all its samples.
        server_lr: eta, the step along the mean update.
        per_step: divide updates by K.
    """

    family: ClassVar[str] = "participation"
    paper: ClassVar[str] = "Wu et al., ICML 2023"
    headline: ClassVar[str] = "up to O(1/eps) fewer rounds than earlier first-order methods, under partial participation"
    reveals: ClassVar[str] = "sums of updates and of gradient changes, each client's role"
    client_state: ClassVar[str] = "its gradient (model size)"
    names_clients: ClassVar[bool] = True

    anchor: Share = 0.2
    period: NonNegative[int] = 0
    steps: Positive[int] = 10
    lr: NonNegative[float] | None = 0.01
    batch_size: Positive[int] | None = 64
    large_batch: NonNegative[int] = 0
    server_lr: NonNegative[float] = 1.0
    per_step: bool = False

    def init(self, fed: Federation) -> AnchorState:
        """Start with no gradients."""
        params = fed.init_params()
        return AnchorState(params=params, total=params.zeros())

    def round(self, fed: Federation, state: AnchorState) -> AnchorState:
        """Train the miners along the mean gradient; renew the anchors' gradients."""
        cohort, everybody = fed.sample(), fed.available()
        anchors = [c for c in cohort if self.is_anchor(fed, c)]
        miners = [c for c in cohort if c not in anchors]
        if not state.members:  # anchors of this round have a gradient at this model: nothing to renew
            state, anchors = self.renew(fed, state, self.anchored, self.roles(state, [], everybody), everybody), []
        roles = self.roles(state, miners, anchors)
        if not fed.aggregation.sees_each:
            return self.renew(fed, state, self.both, roles, cohort)
        if miners:
            state = self.move(state, fed.mean(self.mined, roles, over=miners))
        return self.renew(fed, state, self.anchored, roles, anchors) if anchors else state

    def is_anchor(self, fed: Federation, client: int) -> bool:
        """Return whether a participant is an anchor in this round."""
        if self.period:
            return (fed.round - 1) % self.period == 0
        return bool(numpy_rng(fed.seed, "anchor", fed.round, client).random() < self.anchor)

    def roles(self, state: AnchorState, miners: list[int], anchors: list[int]) -> Roles:
        """Return the message to participants."""
        return Roles(params=state.params, mean=state.mean, miners=miners, anchors=anchors)

    def renew(self, fed: Federation, state: AnchorState, fn: Any, roles: Roles, over: list[int]) -> AnchorState:
        """Collect gradient changes (and updates, if `fn` returns both) and return the next state."""
        mean = fed.mean(fn, roles, over=over)
        state = self.move(state, mean)
        came = [c for c in roles.anchors if c in fed.last.arrived and c not in state.members]
        total = state.total + mean.weight["change"] * mean.change
        return replace(state, total=total, members=state.members + came)

    def move(self, state: AnchorState, mean: Update) -> AnchorState:
        """Step along the miners' mean update, if there were any miners."""
        if not mean.weight.get("delta"):
            return state
        return replace(state, params=averaged(state.params - self.server_lr * mean.delta, mean))

    @on_client(bounds={"change": 8.0})
    def anchored(self, client: Client, message: Roles) -> Update:
        """Return the change of this client's gradient."""
        change = self.change(client, message)
        return Update(change=change, weight={"change": 1})

    @on_client(bounds={"statistics": 100.0})
    def mined(self, client: Client, message: Roles) -> Update:
        """Return a miner's update."""
        fields = self.mine(client, message)
        return Update(**fields, weight=dict.fromkeys(fields, min(client.num_samples, 1)))

    @on_client(bounds={"change": 8.0, "statistics": 100.0})
    def both(self, client: Client, message: Roles) -> Update:
        """Return the field of this client's role, and zeros of weight 0 for the other one."""
        none = message.params.zeros()
        if client.id in message.anchors:
            fields, counts = {"delta": none, **statistics(none), "change": self.change(client, message)}, (0, 1)
        elif client.id in message.miners:
            fields, counts = {**self.mine(client, message), "change": none}, (min(client.num_samples, 1), 0)
        else:
            fields, counts = {"delta": none, **statistics(none), "change": none}, (0, 0)
        return Update(**fields, weight={name: counts[name == "change"] for name in fields})

    def change(self, client: Client, message: Roles) -> Params:
        """Renew this client's gradient and return its change."""
        x, own = message.params, client.memory.get("gradient", message.params.zeros())
        large = self.large_batch
        new = weights(x - client.sgd(x, optimizer=SGD(1.0), steps=1, batch_size=large).params if large else client.gradient(x))
        client.memory.stage("gradient", new)
        change: Params = new - own
        return change

    def mine(self, client: Client, message: Roles) -> dict[str, Any]:
        """Run K variance-reduced steps; the first needs no data, because its two gradients cancel."""
        lr = client.problem.lr if self.lr is None else self.lr
        x, g, before = message.params, message.mean, message.params
        y = x - lr * g
        for _ in range(self.steps - 1):
            g, before, y = self.step(client, g, before, y, lr)
        client.flops *= 2  # two gradients in each step
        delta = weights(x - y) / (self.steps if self.per_step else 1)
        return {"delta": delta, **statistics(y)}

    def step(self, client: Client, g: Params, before: Params, y: Params, lr: float) -> tuple[Params, Params, Params]:
        """Return the next direction, y and the point after it. With a learning rate of 1 the local step reveals the direction."""
        hooks = Hooks(direction=lambda gradient, at: g + gradient(at) - gradient(before))
        ahead = client.sgd(y, optimizer=SGD(1.0), hooks=hooks, steps=1, batch_size=self.batch_size)
        along = weights(y - ahead.params)
        return along, y, ahead.params + (1.0 - lr) * along
