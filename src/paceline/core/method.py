"""Base of federated methods: a server program that calls client functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast, overload

from typing_extensions import TypeVar

from paceline.core.checked import Checked
from paceline.core.declarations import Bound, ClientFunction, Nesting
from paceline.core.errors import ConfigError
from paceline.core.fields import Finite, Minority, NonNegative, Positive, PositiveShare, Share
from paceline.core.metrics import chosen
from paceline.core.params import Params
from paceline.core.spread import spread
from paceline.core.terms import main_of
from paceline.core.tree import Tree, node
from paceline.core.update import Update

if TYPE_CHECKING:
    from paceline.core.client import Client, ClientData
    from paceline.core.federation import Federation

__all__ = [
    "ClientFunction",
    "Finite",
    "Method",
    "Minority",
    "NonNegative",
    "P",
    "Positive",
    "PositiveShare",
    "S",
    "Share",
    "State",
    "client_functions",
    "on_client",
]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def on_client(fn: F) -> F: ...
@overload
def on_client(
    *,
    each: bool = False,
    peer_record: str | None = None,
    bounds: Mapping[str, Bound] | None = None,
    collects: bool = False,
    nested: Nesting | None = None,
) -> Callable[[F], F]: ...
def on_client(
    fn: F | None = None,
    *,
    each: bool = False,
    peer_record: str | None = None,
    bounds: Mapping[str, Bound] | None = None,
    collects: bool = False,
    nested: Nesting | None = None,
) -> Any:
    """Mark a method of a class as a client function; see `ClientFunction` for the options.

    Example:
        >>> import paceline as pl
        >>> class Watched(pl.methods.FedAvg):
        ...     @pl.on_client(each=True)
        ...     def count(self, client, message):
        ...         return client.num_samples
        >>> from paceline.core.method import client_functions
        >>> client_functions(Watched)["count"].each
        True
    """

    def mark(f: F) -> F:
        f.__client__ = ClientFunction(each, peer_record, dict(bounds or {}), collects, nested)  # type: ignore[attr-defined]
        return f

    return mark if fn is None else mark(fn)


def client_functions(program: object) -> dict[str, ClientFunction]:
    """Return the client functions of a method or protocol (instance or class), by name.

    Example:
        >>> from paceline.methods import FedAvg
        >>> "train" in client_functions(FedAvg)
        True
    """
    found = {}
    cls = program if isinstance(program, type) else type(program)
    for name, value in inspect.getmembers(cls, inspect.isfunction):
        declared = getattr(value, "__client__", None)
        if declared is not None:
            found[name] = declared
    return found


@node
class State:
    """Server state that consists of the model. A method with more state defines its own `node`, which may extend this one.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> run = pl.prepare(pl.RunConfig(clients=4, cohort=4, rounds=1), task=blobs())
        >>> record = run.step()
        >>> isinstance(run.state, pl.State)
        True
        >>> run.close()
    """

    params: Params


S = TypeVar("S", default=State)
"""Server state of a method: any `node`."""

P = TypeVar("P", bound=State, default=State)
"""Server state that includes the model: a `node` that extends `State`."""


@dataclass(frozen=True)
class Method(Generic[S], metaclass=Checked):
    """Base of all methods: a frozen dataclass whose fields are the hyperparameters.

    A field states its range in its annotation, ``mu: NonNegative[float] = 0.01`` (see `paceline.core.fields`). A value of
    another type or outside the range is a `ConfigError`, an unknown field an `UnknownNameError`, in Python, in a file and on
    the command line; text is converted to the fields' types.

    ``Method[MyState]`` has the server state `MyState`, ``Method`` alone has `State`.
    A subclass implements `round`, and `init` if it has its own state; all else has defaults.

    `family` groups methods in listings. `reveals` and `client_state` describe in a few words what the server sees and what a client
    stores, in addition to what `paceline methods` reads from the source. With `records_times`, each client stores the duration
    of its last training (`Client.times`). `vectorizable` states that hooks can be stacked.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Mean(pl.Method):
        ...     lr: float = 0.1
        ...     def round(self, fed, state):
        ...         mean = fed.mean(self.train, state.params, over=fed.sample())
        ...         return pl.State(params=state.params + mean.delta)
        ...     @pl.on_client
        ...     def train(self, client, message):
        ...         return pl.Update(delta=client.sgd(message, optimizer=SGD(self.lr)).params - message, weight=client.num_samples)
        >>> from paceline.core.optimizers import SGD
        >>> pl.run(Mean(lr=0.2), blobs(), clients=4, rounds=2).rounds
        2
    """

    family: ClassVar[str] = "other"
    reveals: ClassVar[str] = "sums of updates"
    client_state: ClassVar[str] = "nothing"
    paper: ClassVar[str] = ""
    records_times: ClassVar[bool] = False
    paced_by: ClassVar[tuple[str, ...]] = ()
    """Keys of a client's memory, beside its times, that decide whether it takes part in a round, and with how much of the model."""
    vectorizable: ClassVar[bool] = True
    headline: ClassVar[str] = ""
    """The paper's main result, in one sentence."""
    differs: ClassVar[str] = ""
    """How the default form differs from the paper's, in one sentence; empty if it does not."""
    width_key: ClassVar[str | None] = None
    """Key of a client's memory with the width of the model that it trained last, where clients differ in it. Simulations put
    clients of equal width into one chunk, so that they train as one; results do not depend on it."""
    has_model: ClassVar[bool] = True
    """Whether there is one global model; otherwise `model` returns the shared values, and clients' own models are evaluated."""
    names_clients: ClassVar[bool] = False
    """Whether a summed function reads its own entry of the common message, by `Client.id`. A malicious server can then give
    all clients but one an effective weight of 0, so real clients refuse it under secure aggregation unless their policy
    allows it (``secure_aggregation.named_clients``)."""
    needs_classes: ClassVar[bool] = False
    """Whether the method reads class labels, so that it refuses tasks without classes, such as regression."""
    needs_labels: ClassVar[bool] = False
    """Whether the method reads the label of every sample, so that it refuses tasks in which some have none (-100, ``ignore_index``)."""
    sends_model: ClassVar[bool] = True
    """Whether the largest message and the largest reply of a round have at least as many values as the model."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Inherited fields without effect; a run in which one of them has another value than its default is refused."""

    fixed_rounds: ClassVar[bool] = False
    """Whether a round depends on the run's total number of rounds, which then cannot be extended when the run is resumed."""

    def init(self, fed: Federation) -> S:
        """Return the server state before the first round.

        Args:
            fed: the federation, for ``fed.init_params()`` and, if needed, calls to clients.
        """
        return cast("S", State(params=fed.init_params()))  # methods with another state override `init`

    def round(self, fed: Federation, state: S) -> S:
        """Run one round and return the next state.

        Args:
            fed: operations on the clients, such as `Federation.sample` and `Federation.mean`.
            state: state after the previous round; not modified.
        """
        raise ConfigError(f"{type(self).__name__} does not define round(self, fed, state); implement it")

    def model(self, state: S) -> Params:
        """Return the parameters to evaluate: `params` of the state by default."""
        params = getattr(state, "params", None)
        if not isinstance(params, Params):
            if state is None:
                raise ConfigError(f"init() or round() of {type(self).__name__} returned None; it must return the new State")
            raise ConfigError(f"{type(state).__name__} has no params; define {type(self).__name__}.model(state), returning Params")
        return params

    def names_each_client(self) -> bool:
        """Return `names_clients`; override it if that depends on the method's fields."""
        return self.names_clients

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Return the method and the task, adapted to each other, on the server and on every client, before a run.

        A method may freeze parts of the task's model or insert modules (adapters), and read properties of the task (such as
        the rounds of each stage of a task sequence).

        Args:
            task: the run's `Task`; not modified.

        Returns:
            the method and the task that the run uses.
        """
        return self, task

    def check(self, fed: Federation) -> list[str]:
        """Return the incompatibilities of the federation with this method, one sentence each; empty if there are none.

        Args:
            fed: the federation before the first round: its engine, aggregation, fleet and cohort size.
        """
        return []

    def personal(self, state: S, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Return how clients form their own models; by default, all clients use the global model.

        Args:
            state: state after the last round.
            clients: clients to evaluate.

        Returns:
            (message, clients) pairs; `personal_model` receives the message on each of the clients.
        """
        return [(self.model(state), clients)]

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Return, on a client, the model that it uses.

        Args:
            client: the client.
            message: its message from `personal`.
        """
        assert isinstance(message, Params)
        return message

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Return, on a client, the sums of `Client.evaluate` for its own model.

        Args:
            client: the client.
            message: its message from `personal`.
            data: samples to evaluate on.
        """
        params = self.personal_model(client, message)
        return client.evaluate(client.statistics(params) if client.problem.buffers == "recompute" else params, data)

    def clustering(self, state: S) -> Sequence[int] | None:
        """Return the cluster of each client, by id; None if the method does not cluster clients.

        Args:
            state: state after the last round.
        """
        return None

    @on_client
    def evaluate_clients(self, client: Client, message: tuple[bool, Tree]) -> Tree:
        """Return the evaluation sums of this client's own model, including its primary figure as a term of the spread.

        The data are the client's own test samples; if it has none, the central ones of its own classes. With True in the
        message, all central test samples.
        """
        everything, own = message
        sums = self.assess(client, own, client.judged_by(everything))
        return spread(sums, chosen(client.problem), main_of(client.problem, client.train.y))

    @on_client
    def evaluate(self, client: Client, message: Tree) -> Tree:
        """Return the sums of loss, correct answers and samples, overall and per class."""
        return client.evaluate(message)

    @on_client(bounds={"statistics": 100.0})
    def recompute(self, client: Client, message: Params) -> Update:
        """Return the running statistics computed on this client's data (policy ``recompute``)."""
        fresh = client.statistics(message)
        return Update(statistics=fresh.vector[fresh.layout.num_params :], weight=client.num_samples)

    @on_client(bounds={"mean": 16.0, "square": 256.0})
    def moments(self, client: Client, message: float) -> Update:
        """Return the mean and the mean square of each input, or channel of pictures, over this client's training samples.

        Args:
            client: the client.
            message: largest magnitude of a value.
        """
        x = client.train.x[client.train.index].double().clamp(-message, message)
        if x.dim() > 2:
            x = x.transpose(0, 1).flatten(1).T
        count = max(len(x), 1)
        return Update(mean=x.sum(0) / count, square=(x**2).sum(0) / count, weight=client.num_samples)

    @classmethod
    def slug(cls) -> str:
        """Return the name used on the command line.

        Example:
            >>> from paceline.methods import FedProx
            >>> FedProx.slug()
            'fedprox'
        """
        return cls.__name__.lower().replace("_", "-")

    @classmethod
    def build(cls, options: Mapping[str, Any] | None = None) -> Self:
        """Build the method with the given fields, as a call of the class does; see `Method` for what is raised.

        Example:
            >>> from paceline.methods import FedProx
            >>> FedProx.build({"mu": "0.1"}).mu
            0.1
        """
        return cls(**(options or {}))
