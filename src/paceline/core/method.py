"""What a federated method is: a server program that asks clients to run client functions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast, overload

from typing_extensions import TypeVar

from paceline.core.engine import ClientFunction
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.metrics import spread
from paceline.core.params import Params
from paceline.core.tree import Tree, node
from paceline.core.update import Update

if TYPE_CHECKING:
    from paceline.core.client import Client, ClientData
    from paceline.core.federation import Federation

__all__ = ["ClientFunction", "Method", "P", "S", "State", "client_functions", "on_client"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def on_client(fn: F) -> F: ...
@overload
def on_client(
    *, each: bool = False, tells: str | None = None, bounds: Mapping[str, float] | None = None, held: bool = False
) -> Callable[[F], F]: ...
def on_client(
    fn: F | None = None,
    *,
    each: bool = False,
    tells: str | None = None,
    bounds: Mapping[str, float] | None = None,
    held: bool = False,
) -> Any:
    """Mark a method's function as one that may run on a client; see `ClientFunction` for the options."""

    def mark(f: F) -> F:
        f.__client__ = ClientFunction(each, tells, dict(bounds or {}), held)  # type: ignore[attr-defined]
        return f

    return mark if fn is None else mark(fn)


def client_functions(program: object) -> dict[str, ClientFunction]:
    """Return the client functions of a method (or protocol), or of its class, by name."""
    found = {}
    cls = program if isinstance(program, type) else type(program)
    for name, value in inspect.getmembers(cls, inspect.isfunction):
        declared = getattr(value, "__client__", None)
        if declared is not None:
            found[name] = declared
    return found


@node
class State:
    """Server state of methods that keep only the model. A method with more defines its own `node`, which may extend this one."""

    params: Params


S = TypeVar("S", default=State)
"""The state of a method: any `node`."""

P = TypeVar("P", bound=State, default=State)
"""The state of a method that needs the model in it: a `node` that extends `State`."""


@dataclass(frozen=True)
class Method(Generic[S]):
    """Base of all methods: a frozen dataclass whose fields are the hyperparameters.

    ``Method[MyState]`` has the server state `MyState`, ``Method`` alone has `State`.
    A subclass gives `round`, and with a state of its own `init`; the rest has defaults. `family` groups methods in listings and `reveals`
    says in a few words what the server sees, `keeps` what a client keeps: words on what `paceline methods` reads from
    the source by itself; `keeps_times` lets each client remember how long its last
    training took (`Client.times`). `vectorizable` says that its hooks can be stacked.
    """

    family: ClassVar[str] = "other"
    reveals: ClassVar[str] = "sums of updates"
    keeps: ClassVar[str] = "nothing"
    paper: ClassVar[str] = ""
    keeps_times: ClassVar[bool] = False
    vectorizable: ClassVar[bool] = True
    headline: ClassVar[str] = ""
    """The paper's main result, in a sentence."""
    has_model: ClassVar[bool] = True
    """Whether there is one model for everybody; without one, `model` holds what is shared and clients are judged."""
    names_clients: ClassVar[bool] = False
    """Whether a summed function reads a line of its own from the common message, by `Client.id`. A server that lies can
    then make all clients but one count for nothing, so real clients refuse it under secure aggregation unless their policy
    allows it (``secure_aggregation.named_clients``)."""
    sends_model: ClassVar[bool] = True
    """Whether a round's largest message, and its largest reply, hold as many values as the model."""

    def init(self, fed: Federation) -> S:
        """Return the state before the first round."""
        return cast("S", State(params=fed.init_params()))  # a method with another state has its own `init`

    def round(self, fed: Federation, state: S) -> S:
        """Run one round and return the next state."""
        raise ConfigError(f"{type(self).__name__} has no round()")

    def model(self, state: S) -> Params:
        """Return the parameters that an evaluation uses: `params` of the state, unless a method says otherwise."""
        params = getattr(state, "params", None)
        if not isinstance(params, Params):
            raise ConfigError(
                f"{type(state).__name__} has no params; give {type(self).__name__} a model(state) that returns Params"
            )
        return params

    def fit_task(self, task: Any) -> tuple[Method[Any], Any]:
        """Return the method and the task made for each other, on the server and on every client alike, before a run.

        A method may freeze parts of the task's model or put parts in (adapters), and take what it needs to know of
        the task (such as when one task follows another).
        """
        return self, task

    def check(self, fed: Federation) -> list[str]:
        """Return what of the federation does not suit this method, one sentence each."""
        return []

    def personal(self, state: S, clients: Sequence[int]) -> list[tuple[Tree, Sequence[int]]]:
        """Return what clients form their own models from, and who gets which; by default all get the model."""
        return [(self.model(state), clients)]

    def personal_model(self, client: Client, message: Tree) -> Params:
        """Return, on a client, the model that it uses itself, from what `personal` sent."""
        assert isinstance(message, Params)
        return message

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Return, on a client, the sums of `Client.evaluate` for its own model on `data`."""
        params = self.personal_model(client, message)
        return client.evaluate(client.statistics(params) if client.problem.buffers == "recompute" else params, data)

    def clustering(self, state: S) -> Sequence[int] | None:
        """Return the cluster of each client, or None where there are none."""
        return None

    @on_client
    def evaluate_clients(self, client: Client, message: tuple[bool, Tree]) -> Tree:
        """Return the sums for this client's own model, and its accuracy as a term of their spread.

        It is judged by its own test samples; where it has none, by the central ones of its own classes. With
        True in the message, by all central ones.
        """
        everything, own = message
        return spread(self.assess(client, own, client.judged_by(everything)))

    @on_client
    def evaluate(self, client: Client, message: Tree) -> Tree:
        """Return the sums of loss, correct answers and samples, overall and for each class."""
        return client.evaluate(message)

    @on_client(bounds={"statistics": 100.0})
    def recompute(self, client: Client, message: Params) -> Update:
        """Return the running statistics over this client's data (the policy ``recompute``)."""
        fresh = client.statistics(message)
        return Update(statistics=fresh.vector[fresh.layout.num_params :], weight=client.num_samples)

    @classmethod
    def slug(cls) -> str:
        """Return the name used on the command line."""
        return cls.__name__.lower().replace("_", "-")

    @classmethod
    def build(cls, options: Mapping[str, Any] | None = None) -> Self:
        """Make the method with the given fields, converting texts to the fields' types.

        Raises `UnknownNameError` for a field it does not have, `ConfigError` for a value that does not fit.
        """
        from paceline.core.config import RunConfig

        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = {}
        for name, value in (options or {}).items():
            if name not in fields and name in RunConfig.model_fields:
                raise ConfigError(
                    f"{name} is no field of {cls.__name__} but an option of the run: --{name.replace('_', '-')} {value}"
                )
            if name not in fields:
                raise UnknownNameError(f"{cls.__name__} field", name, fields)
            values[name] = _convert(cls, fields[name], value)
        return cls(**values)


def _convert(cls: type, spec: dataclasses.Field[Any], value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    hints = _hints(cls)
    try:
        return TypeAdapter(hints[spec.name]).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"{cls.__name__} field {spec.name}={value!r}: {reason}") from None


def _hints(cls: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls)
