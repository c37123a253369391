"""A run that is extended has the bits of a longer run; what depends on the number of rounds is refused."""

from dataclasses import dataclass

import pytest

import paceline as pl
from paceline.core.errors import ConfigError
from tests.conftest import make_task

FIELDS = {"clients": 6, "cohort": 4, "fleet": "stragglers:churn=0.1", "client_test": 0.2, "partition": "dirichlet:0.5"}
KEYS = ("round", "virtual_seconds", "bytes_up", "bytes_down", "accuracy", "loss")


def rows(result):
    return [[r.get(k) for k in KEYS] for r in result.history]


@pytest.mark.parametrize(("method", "evaluation"), [("scaffold", "central"), ("fedopt", "federated"), ("fedper", "clients")])
@pytest.mark.parametrize("every", [1, 2])
def test_an_extended_run_has_the_bits_of_a_longer_one(tmp_path, method, evaluation, every):
    fields = FIELDS | {"evaluation": evaluation, "eval_every": every}
    pl.run(method, make_task(), rounds=3, folder=tmp_path / "run", **fields)
    longer = pl.resume(tmp_path / "run", rounds=5, task=make_task())
    whole = pl.run(method, make_task(), rounds=5, **fields)
    assert longer.model_sha256 == whole.model_sha256
    assert rows(longer) == rows(whole)
    assert (longer.bytes, longer.seconds) == (whole.bytes, whole.seconds)
    assert rows(pl.load(tmp_path / "run")) == rows(whole)
    assert pl.load(tmp_path / "run").config.rounds == 5


def test_a_run_that_has_not_ended_is_extended_too(tmp_path):
    made = pl.RunConfig(clients=4, cohort=4, rounds=2)
    run = pl.prepare(made, task=make_task(), folder=(folder := pl_folder(tmp_path, made)))
    run.step()
    run.close()
    longer = pl.resume(folder.path, rounds=4, task=make_task())
    assert longer.model_sha256 == pl.run("fedavg", make_task(), clients=4, rounds=4).model_sha256
    assert pl.resume(folder.path, rounds=4, task=make_task()).rounds == 4  # again: nothing is left to do


def pl_folder(tmp_path, config):
    from paceline.store import RunFolder

    folder = RunFolder.create(tmp_path, "run")
    folder.write_config(config.model_dump(exclude_none=True))
    return folder


def test_an_extension_that_was_killed_goes_on(tmp_path):
    pl.run("fedavg", make_task(), clients=4, rounds=2, folder=tmp_path / "run")

    def stop(record, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pl.resume(tmp_path / "run", stop, rounds=5, task=make_task())
    with pytest.raises(pl.errors.StoreError, match="has not ended"):
        pl.load(tmp_path / "run")
    assert pl.resume(tmp_path / "run", task=make_task()).rounds == 5


@dataclass(frozen=True)
class Annealed(pl.methods.FedAvg):
    fixed_rounds = True


def test_what_cannot_be_extended_is_refused(tmp_path):
    pl.run("fedavg", make_task(), clients=4, rounds=2, folder=tmp_path / "run")
    with pytest.raises(ConfigError, match="has 2 rounds"):
        pl.resume(tmp_path / "run", rounds=1, task=make_task())
    pl.run(Annealed(), make_task(), clients=4, rounds=2, folder=tmp_path / "fixed")
    with pytest.raises(ConfigError, match="depend on their total number"):
        pl.resume(tmp_path / "fixed", rounds=4, task=make_task(), method=Annealed())
    assert pl.load(tmp_path / "fixed").rounds == 2  # a refusal changes nothing
