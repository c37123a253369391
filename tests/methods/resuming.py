"""Runs round by round: stopped and gone on with, compared with what clients keep, or state by state."""

import random

import numpy as np
import torch

from paceline.run import RunConfig, prepare, resume
from paceline.store import RunFolder


def assert_resumes(tmp_path, task, **changes):
    """Assert that a run that was stopped after round 2 ends with the bits of one that was not.

    The generators of the process are in another state for each, as nothing may draw from them.
    """
    values = {"task": "blobs", "clients": 6, "cohort": 5, "rounds": 4, "vectorize": "off", **changes}
    config = RunConfig.build(values)
    disturb(1)
    whole = prepare(config, task=task).go()
    disturb(2)
    folder = RunFolder.create(tmp_path, "stopped")
    folder.write_config(config.model_dump(exclude_none=True))

    def stop(record, total):
        if record["round"] == 2:
            raise KeyboardInterrupt

    try:
        prepare(config, task=task, folder=folder, observer=stop).go()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not stopped")
    disturb(3)
    again = resume(folder.path, task=task)
    assert again.model_sha256 == whole.model_sha256
    kept = [[{k: v for k, v in r.items() if k != "wall_seconds"} for r in s.history] for s in (again, whole)]
    assert kept[0] == kept[1]


def disturb(seed):
    """Set the generators of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def states_of(task, rounds, each=None, split=None, **values):
    """Run round by round; return the run and the states after each, from the first one on."""
    values = {"task": "blobs", "rounds": max(rounds, 1), "vectorize": "off", **values}
    prepared = prepare(RunConfig.build(values), task=task, split=split)
    states = [prepared.method.init(prepared.fed)]
    for number in range(1, rounds + 1):
        prepared.fed.start_round(number)
        states.append(prepared.method.round(prepared.fed, states[-1]))
        prepared.fed.engine.commit()
        if each:
            each(prepared, states[-1])
    return prepared, states


def assert_server_sums_what_clients_keep(prepared, rounds, key, held, within):
    """Assert that after every round `held(state)` is the sum of the clients' `key`, although some replies are too late.

    Returns the last sum.
    """
    state, late = prepared.method.init(prepared.fed), 0
    for number in range(1, rounds + 1):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        late += sum(why == "late" for why in prepared.fed.last.dropped.values())
        prepared.fed.engine.commit()
        total = torch.zeros_like(held(state))
        for client in prepared.fed.engine.memories:
            memory = prepared.fed.engine.memories[client]
            total += memory[key].vector if key in memory else 0.0
        assert (held(state) - total).abs().max() < within
    assert late > 3
    return total
