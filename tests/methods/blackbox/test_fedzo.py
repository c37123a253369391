"""FedZO's runs have a loss and no accuracy."""

import math

from paceline.run import RunConfig, prepare


def test_an_objective_without_classes_has_a_loss_and_no_accuracy():
    result = prepare(RunConfig.build({"method": "fedzo", "task": "quadratic", "clients": 5, "cohort": 5, "rounds": 2})).go()
    assert not any("accuracy" in key for record in result.history for key in record)
    assert math.isnan(result.accuracy)
    assert result.loss == result.history[-1]["loss"]
