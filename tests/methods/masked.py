"""A run under real secure aggregation in which a client is lost, beside the same run with the arithmetic alone."""

from paceline.run import RunConfig, prepare


def assert_masks_change_nothing(task, name, client=3, functions=("train",), **values):
    """Assert that both runs end with the same bits, that the client was lost in round 2, and return the secure outcome.

    Args:
        functions: all summed functions of a round, so that the client is lost in each of them without masks too.
    """
    common = {"method": name, "task": "own", "clients": 8, "cohort": 8, "rounds": 3}
    common |= {"secure": {"threshold": 5, "gamma": 0.05, "bits": 20, "clip": 8.0}}

    def drop(round, lost, function):
        return round == 2 and lost == client and function in ("secagg.masked", *functions)

    ends = [
        prepare(RunConfig.build(common | values | {"aggregation": aggregation}), task=task, drop=drop).go()
        for aggregation in ("secure", "secure-arithmetic")
    ]
    assert ends[0].model_sha256 == ends[1].model_sha256
    assert ends[0].history[1]["dropped"] == 1
    return ends[0]
