"""What a session's hash covers, and what a client remembers of its work."""

import os
import subprocess
import sys

import pytest
import torch

from paceline.aggregation.secure.task_hash import Agreement, Work, halves
from paceline.core.engine import ClientFunction
from paceline.core.errors import PlanError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.serialization import digest, dumps, loads
from paceline.core.update import Update
from paceline.registry import find_method
from paceline.run import RunConfig

AGREED = Agreement(b"r" * 32, b"m" * 32)
MESSAGE = {"params": torch.arange(6.0), "step": 3}


def work(agreed=AGREED, function="train", bounds=None, peer_record=None, message=MESSAGE):
    return Work.of(agreed, function, ClientFunction(peer_record=peer_record, bounds=bounds or {}), message)


def changed(message=MESSAGE, **changes):
    return {**message, **changes}


OTHERS = {
    "function": {"function": "evaluate"},
    "bounds": {"bounds": {"delta": 2.0}},
    "another bound": {"bounds": {"loss": 1.0}},
    "the bound of weights": {"bounds": {"weight": 1.0}},
    "a record for peers": {"peer_record": "report"},
    "a value": {"message": changed(step=4)},
    "a kind of number": {"message": changed(step=3.0)},
    "a tensor": {"message": changed(params=torch.arange(6.0) + 1e-6)},
    "a shape": {"message": changed(params=torch.arange(6.0).reshape(2, 3))},
    "a dtype": {"message": changed(params=torch.arange(6.0).double())},
    "a name": {"message": {"parameters": MESSAGE["params"], "step": 3}},
    "a tuple": {"message": (MESSAGE["params"], 3)},
    "the run": {"agreed": Agreement(b"R" * 32, b"m" * 32)},
    "the method": {"agreed": Agreement(b"r" * 32, b"M" * 32)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_that_shapes_an_answer_is_in_the_task(name):
    assert work(**OTHERS[name]).task(1, 0, 1) != work().task(1, 0, 1)


def test_so_is_a_bound_that_follows_the_model():
    """Each side computes it from its own model; a task is hashed only with numbers."""
    declared = ClientFunction(bounds={"votes": lambda layout: layout.size - 1})
    with pytest.raises(PlanError, match=r"bounds of \['votes'\] depend"):
        Work.of(AGREED, "train", declared, MESSAGE).task(1, 0, 1)
    layouts = [Layout.build([("a", (n,), "param")]) for n in (6, 6, 7)]
    hashes = [Work.of(AGREED, "train", declared.fitted(lambda layout=layout: layout), MESSAGE).task(1, 0, 1) for layout in layouts]
    assert hashes[0] == hashes[1] == work(bounds={"votes": 5.0}).task(1, 0, 1)
    assert hashes[0] != hashes[2]


def test_so_is_its_place_in_the_run():
    places = {(1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 0, 2), (1, 1, 2), (11, 0, 1), (1, 10, 1)}
    assert len({work().task(*place) for place in places}) == len(places)


@pytest.mark.parametrize("name", ["function", "a value", "a tensor", "the method"])
def test_work_is_other_work_where_the_answer_is(name):
    assert work(**OTHERS[name]).common != work().common


def test_work_is_the_same_whatever_names_the_run():
    """Else the same update could be summed twice, over one client less."""
    assert work(**OTHERS["the run"]).common == work().common
    assert work(**OTHERS["the run"]).own({}) == work().own({})


def test_memory_is_part_of_a_client_s_own_work():
    one, other = work().own({"control": torch.zeros(3)}), work().own({"control": torch.ones(3)})
    assert one.common == other.common
    assert one.work != other.work
    assert one.version == other.version  # a server can have a client note something in between
    bare = work(message={"step": 3})
    assert bare.own({"held": torch.zeros(3)}).version != bare.own({"held": torch.ones(3)}).version  # there it is all that differs
    assert work().own({"_secagg": [1, 2], "_times": [0.1, 0.2]}) == work().own({})  # what the protocol itself writes is not
    assert work().own({"a": 1, "b": 2}) == work().own({"b": 2, "a": 1})


def test_versions_are_equal_where_tensors_are():
    """Options and plain values can differ by nothing that matters; D clients must then."""
    assert work(**OTHERS["a value"]).own({}).version == work().own({}).version
    assert work(**OTHERS["the method"]).own({}).version == work().own({}).version
    assert work(**OTHERS["a tensor"]).own({}).version != work().own({}).version
    assert work(**OTHERS["function"]).own({}).version != work().own({}).version


@pytest.mark.parametrize(
    "tree",
    [
        None,
        3,
        0.1,
        "text",
        b"bytes",
        {"b": 1, "a": [1, (2, None)], 7: True},
        torch.tensor([float("nan"), -0.0, 1e-40]),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.bfloat16),
        torch.arange(12.0).reshape(3, 4).T,
        Update(delta=torch.ones(3), loss=0.5, weight=torch.ones(3)),
    ],
    ids=str,
)
def test_both_ends_of_a_wire_find_the_same_digest(tree):
    assert digest(loads(dumps(tree))) == digest(tree)


def test_digests_of_params_and_of_shared_layouts():
    module = torch.nn.Linear(3, 2)
    params = Params.of(module, Layout.of(module, None, "average"))
    for tree in (params, (params, params.zeros()), {"a": params, "b": [params]}):
        assert digest(loads(dumps(tree))) == digest(tree)
    assert digest(params) != digest(params.vector)


def test_an_agreement_covers_configuration_options_and_source():
    fedavg, fedprox = find_method("fedavg"), find_method("fedprox")
    base = RunConfig.build({"method": "fedavg", "task": "digits", "rounds": 5})
    agreed = Agreement.of(base, fedavg)
    assert Agreement.of(RunConfig.build(base.model_dump(exclude_none=True)), fedavg) == agreed
    longer = Agreement.of(base.model_copy(update={"rounds": 6, "seed": 1}), fedavg)
    assert longer.run != agreed.run
    assert longer.method == agreed.method
    assert Agreement.of(base.model_copy(update={"options": {"lr": 0.1}}), fedavg).method != agreed.method
    assert Agreement.of(base, fedprox).method != agreed.method  # another source under the same name


def test_hashes_do_not_depend_on_the_process():
    code = (
        "import torch; from tests.aggregation.secure.test_task_hash import work; from paceline.aggregation.secure.task_hash import halves;"
        "print(work().task(1, 0, 1).hex(), work().common.hex(), halves(work().common, range(9), 3))"
    )
    other = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"}
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=other).stdout
    here = f"{work().task(1, 0, 1).hex()} {work().common.hex()} {halves(work().common, range(9), 3)}\n"
    assert reported == here


@pytest.mark.parametrize(("size", "least"), [(6, 3), (7, 3), (10, 5), (100, 13)])
def test_halves_are_a_partition_that_nobody_chooses(size, least):
    clients = list(range(5, 5 + size))
    one, other = halves(work().common, clients, least)
    assert sorted(one + other) == clients
    assert min(len(one), len(other)) >= least
    assert halves(work().common, clients[::-1], least) == [one, other]
    assert halves(work(function="evaluate").common, clients, least) != [one, other]


@pytest.mark.parametrize(("size", "least"), [(5, 3), (5, 1), (2, 1), (9, 5), (0, 0)])
def test_small_cohorts_have_no_halves(size, least):
    assert halves(work().common, range(size), least) == []
