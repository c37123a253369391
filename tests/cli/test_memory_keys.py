"""What `paceline methods` says that a client keeps is what its memory holds after a run, no more and no less."""

import linecache
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from torch import nn

from paceline.cli.memory_keys import COMPUTED, memory_keys, seen, stored
from paceline.core.client import Client
from paceline.core.method import Method, client_functions, on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.registry import find_method
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.small import LATE
from tests.methods.test_every_method import NAMES, values

ADAPTIVE = {"adaptive": True}
BOTH = ADAPTIVE | {"segmented": True}
OTHERWISE = {
    "autoflip": {"mask_update": "round"},
    "clip": BOTH,
    "fjord": BOTH,
    "heterofl": BOTH | {"own_rows": False},
    "randomdropout": BOTH | {"merge": "unbiased"},
    "saliency": ADAPTIVE,
    "fedzo": {"correction": "scaf"},
    "franca": {"heads": "local"},
    "madaug": {"policy": "local"},
    "ocfl": {"sketch": 8},
    "scaffoldm": {"start": "gradients"},
}
"""Options with which a method keeps what it does not by default."""

NEVER = {"saliency": {"heard", "share"}}
"""Keys of its base class that a method does not use: it has no segments."""


def observed(method, task, **options):
    """Run until everything was stored; return the keys of all memories, and the largest reply and message in models."""
    config = values(method)
    config |= {
        "task": "blobs",
        "vectorize": "off",
        "rounds": 3 if options or method in LATE else 2,
        "options": {**config["options"], **options},
    }
    run = prepare(RunConfig.build(config), task=task)
    engine, keys, up, down = run.fed.engine, set(), 0, 0
    commit, ask = engine.commit, engine.run

    def committed():
        changed = commit()
        keys.update(key for memory in changed.values() for key in memory)
        return changed

    def asked(call):
        nonlocal up, down
        for item in ask(call):
            if not isinstance(item, tuple):
                up, down = max(up, item.bytes_up), max(down, item.bytes_down)
            yield item

    engine.commit, engine.run = committed, asked
    size = 4 * engine.init_params().layout.size
    run.go()
    return keys, up / size, down / size


@pytest.mark.parametrize("name", NAMES)
def test_the_keys_are_those_of_the_memories_after_a_run(task, name):
    keys, up, down = observed(name, task)
    if name in OTHERWISE:
        keys |= observed(name, task, **OTHERWISE[name])[0] - {"_tier"}  # the protocol's
    assert keys == set(memory_keys(find_method(name))) - {"_buffers"} - NEVER.get(name, set())
    assert not find_method(name).sends_model or min(up, down) >= 1.0, (
        "its messages are smaller than the model: say so in sends_model"
    )


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "clip", "fedprox"])
def test_running_statistics_that_stay_local_are_stated(name):
    made = make_task(model=lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)))
    task = replace(made, buffers="local")
    keys, _, _ = observed(name, task)
    assert "_buffers" in keys
    assert keys <= set(memory_keys(find_method(name)))


def test_words_stand_beside_what_was_read_and_never_in_its_place():
    for name in NAMES:
        cls = find_method(name)
        keys = set(memory_keys(cls)) - {"_buffers"}
        assert (stored(cls) == "nothing") == (not keys) == (cls.client_state == "nothing"), name
        assert all(key in stored(cls) for key in keys), name
        singles = [n for n, declared in client_functions(cls).items() if declared.each]
        assert all(n in seen(cls) for n in singles), name
        assert not singles or cls.reveals != Method.reveals, f"{name} says that the server sees sums only"


# -- methods of a user's -----------------------------------------------------------------------
def put(memory, key):
    memory[key] = 1


class Notebook:
    """Keeps a value under the name that it was made with."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    def write(self, value):
        self._client.memory[self._name] = value


@dataclass(frozen=True)
class Ways(FedAvg):
    """Writes in every way there is, and says nothing of it."""

    client_state: ClassVar[str] = "nothing"

    @on_client
    def train(self, client, message):
        memory = client.memory
        memory["alias"], (client.memory["tuple"], _) = 1, (2, 3)
        p = client.memory["chain"] = 4
        client.memory["added"] = 0
        client.memory.update({"dict": p}, word=5)
        client.memory.setdefault("default", 6)
        put(memory, "handed")
        Notebook(client, name="named").write(7)
        self.more(client)
        return super().train(client, message)

    def more(self, client):
        def inner():
            client.memory["nested"] = 8

        inner()
        client.memory.get("only read")


@dataclass(frozen=True)
class Computes(FedAvg):
    """Writes under a key that no source tells."""

    @on_client
    def train(self, client, message):
        client.memory[f"round {client.round}"] = 1
        return super().train(client, message)


@dataclass(frozen=True)
class Looks(FedAvg):
    """Asks singly, and leaves the line on that as it was."""

    @on_client(each=True)
    def look(self, client, message):
        return 1


def test_every_way_to_write_is_found():
    found = {"alias", "tuple", "chain", "added", "dict", "word", "default", "handed", "named", "nested"}
    assert set(memory_keys(Ways)) - {"_buffers"} == found
    assert stored(Ways).startswith("[added, alias")


def test_what_ways_keeps_is_what_a_run_finds(task):
    run = prepare(
        RunConfig.build({"method": f"{__name__}:Ways", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 1}), task=task
    )
    run.go()
    assert set(run.store[0]) == set(memory_keys(Ways)) - {"_buffers"}


def test_what_the_source_does_not_tell_is_told_as_such():
    assert COMPUTED in memory_keys(Computes)
    assert stored(Computes) == "[?]"


def test_code_without_source_is_told_as_such(monkeypatch):
    spots = {"on_client": on_client}
    exec("@on_client\ndef train(self, client, message):\n    client.memory['x'] = 1\n", spots)
    linecache.clearcache()
    assert COMPUTED in memory_keys(type("Made", (FedAvg,), {"train": spots["train"]}))


def test_single_replies_are_told_whatever_the_words_say():
    assert seen(Looks) == "[each reply of look]"
    assert seen(FedAvg) == "sums of updates"
