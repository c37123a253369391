"""Tasks with domains: figures of each domain, and corruptions as domains."""

import numpy as np
import pytest

import paceline as pl
from paceline.core.errors import ConfigError
from paceline.data.corruptions import corrupt
from paceline.data.raw import Part, RawData
from paceline.data.sources import find_source
from paceline.tasks import load_task
from paceline.tasks.domains import DomainTask, corrupted
from tests.conftest import fetched

KINDS = ("clean", "fog", "contrast")


def raw(samples=90):
    x = np.random.default_rng(0).integers(0, 256, (samples, 12, 12), dtype=np.uint8)
    part = Part(x, np.arange(samples) % 3)
    return RawData(part, Part(x[:30], np.arange(30) % 3), ("a", "b", "c"))


def test_each_corruption_has_an_equal_share_of_each_class():
    plain = raw()
    made = corrupted(plain, KINDS, 2)
    assert made.owners == KINDS
    assert (np.bincount(made.train.owner * 3 + made.train.y).reshape(3, 3) == 10).all()
    clean = made.train.owner == 0
    assert (made.train.x[clean] == plain.train.x[clean]).all()
    assert (made.train.y == plain.train.y).all()
    dull = made.train.owner == 2
    assert (made.train.x[dull] == corrupt(plain.train.x[dull], "contrast", 2, np.random.default_rng(0))).all()


def test_the_first_kind_does_not_get_what_is_left_of_every_class():
    x = np.zeros((40, 8, 8), dtype=np.uint8)
    part = Part(x, np.repeat(np.arange(10), 4))
    made = corrupted(RawData(part, part, tuple("abcdefghij")), KINDS, 1)
    assert np.ptp(np.bincount(made.train.owner)) <= 1


def test_the_data_do_not_depend_on_the_run():
    a, b = (load_task("corrupted", seed=seed, of="digits", kinds="clean/fog") for seed in (0, 1))
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != load_task("corrupted", of="digits", kinds="clean/fog", severity=4).fingerprint
    assert isinstance(a, DomainTask)
    assert len(a.train) == len(find_source("digits").load().train)


def test_refusals():
    with pytest.raises(ConfigError, match="pictures"):
        load_task("corrupted", of="heart-disease")
    with pytest.raises(ConfigError, match="pictures"):
        load_task("corrupted", of="quadratic")
    with pytest.raises(ConfigError, match="twice"):
        load_task("corrupted", of="digits", kinds="fog/fog")


def test_figures_of_each_domain_add_up():
    result = pl.run("fedavg", "corrupted?of=digits&kinds=clean/darkness", partition="domains", clients=4, rounds=2)
    last, task = result.history[-1], load_task("corrupted", of="digits", kinds="clean/darkness")
    sizes = [len(rows) for rows, _ in task.parts()]
    assert sum(sizes) == len(task.test) == 359
    assert last["accuracy"] == pytest.approx(sum(n * last[f"part_{i}_accuracy"] for i, n in enumerate(sizes)) / 359)


def test_groups_of_clients_are_judged_by_domain():
    options = {"partition": "domains", "clients": 6, "client_test": 0.3, "evaluation": "federated", "by_group": True, "rounds": 2}
    last = pl.run("fedavg", "corrupted?of=digits&kinds=clean/darkness/fog", **options).history[-1]
    assert {name for name in last if name.startswith("group_")} == {f"group_{i}_accuracy" for i in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounds", "least"), [("four-digits", 6, 0.8), ("emoji-vendors", 20, 0.35)])
def test_fedavg_learns_all_domains(name, rounds, least):
    fetched(name)
    last = pl.run("fedavg", name, partition="domains", clients=12, rounds=rounds).history[-1]
    assert min(value for key, value in last.items() if key.startswith("part_") and key.endswith("accuracy")) > 0.25
    assert last["accuracy"] > least
