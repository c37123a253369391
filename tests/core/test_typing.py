"""What a type checker says of methods: states and messages are checked, and none of them needs an ignore."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

METHODS = """
from dataclasses import dataclass, replace

from paceline.blocks.local_training import LocalTraining
from paceline.core.client import SGD, Client, Hooks
from paceline.core.federation import Federation, WithOwn
from paceline.core.method import Method, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@node
class Wider(State):
    speed: Params


@node
class Counted:
    count: int


@dataclass(frozen=True)
class Plain(FedAvg):
    def round(self, fed: Federation, state: State) -> State:
        mean = fed.mean(self.train, state.params, over=fed.sample())
        fed.mean(self.train, "model", over=[0])  # error
        return State(params=state.params + mean.delta)


@dataclass(frozen=True)
class Fast(FedAvg[Wider]):
    def init(self, fed: Federation) -> Wider:
        params = fed.init_params()
        return Wider(params=params, speed=params.zeros())

    def round(self, fed: Federation, state: Wider) -> Wider:
        wrong: State = State(params=state.params)
        state.pace  # error
        return replace(super().round(fed, state), speed=state.speed)


@dataclass(frozen=True)
class Wrong(FedAvg[Counted]):  # error
    pass


@dataclass(frozen=True)
class Other(LocalTraining[Counted]):
    def init(self, fed: Federation) -> Counted:
        return Counted(count=0)

    def round(self, fed: Federation, state: Counted) -> Counted:
        seen: int = fed.sum(self.train, (state.count, "a"), over=fed.sample())
        fed.sum(self.train, (state.count, 1), over=[0])  # error
        groups: dict[str, Update] = fed.mean(self.report, 1, over=[0], groups={"fast": [0]})
        fed.mean(self.train, (1, "a"), over=[0])  # error
        each: dict[int, Params] = fed.each(self.own, state.count, over=[0], each_message={0: "a"})
        fed.each(self.own, state.count, over=[0], each_message={0: 1})  # error
        for seconds, client, reply in fed.arrivals(self.train, (1, "a"), over=[0]):
            late: str = reply  # error
        return Counted(count=seen + len(groups) + len(each))

    @on_client
    def train(self, client: Client, message: tuple[int, str]) -> int:
        client.sgd(client.model.snapshot(), optimizer=SGD(0.1, momentum=0.9), hooks=Hooks(after=lambda at: at))
        client.sgd(client.model.snapshot(), optimizer=0.1)  # error
        client.sgd(client.model.snapshot(), hooks=Hooks(correct=lambda grad: grad))  # error
        return message[0]

    @on_client
    def report(self, client: Client, message: int) -> Update:
        return Update(count=message)

    @on_client(each=True)
    def own(self, client: Client, message: WithOwn[int, str]) -> Params:
        return client.model.snapshot() * message["all"]


@dataclass(frozen=True)
class Returns(Method[Counted]):
    def round(self, fed: Federation, state: Counted) -> State:  # error
        return State(params=fed.init_params())
"""


@pytest.mark.slow
def test_a_type_checker_finds_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "own.py"
    place.write_text(METHODS)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(place)]
    environment = os.environ | {"MYPYPATH": str(ROOT / "src")}
    logged = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False).stdout
    found = {int(line) for line in re.findall(r"own\.py:(\d+): error", logged)}
    expected = {number for number, line in enumerate(METHODS.splitlines(), 1) if line.endswith("# error")}
    assert found == expected, logged
    assert re.findall(r"^(?!.*own\.py).*: error.*$", logged, flags=re.MULTILINE) == []


def test_no_method_ignores_the_type_checker() -> None:
    ignored = [path.name for path in (ROOT / "src/paceline/methods").rglob("*.py") if "type: ignore" in path.read_text()]
    assert ignored == []
