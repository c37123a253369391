"""Figures of sums that clients sent: whatever these hold, a run goes on."""

import math
from dataclasses import dataclass

import pytest
import torch

from paceline.core.digits import digits
from paceline.engines.worker import Worker
from paceline.metrics import RMSE, Metric
from paceline.run import RunConfig, prepare
from paceline.runner import RoundWarning
from tests.conftest import make_task


@dataclass(frozen=True)
class Roots(Metric):
    """The root of a sum of squares, which no honest client makes negative."""

    @property
    def figure(self):
        return "roots"

    def terms(self, outputs, targets):
        return {"squares": outputs.double().square().sum()}

    def figures(self, total):
        return {"roots": math.sqrt(float(total["squares"]))}


def test_a_round_whose_sums_give_no_figures_is_not_evaluated(monkeypatch):
    invoke = Worker.invoke

    def lying(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "evaluate" and me.id == 3 and me.round == 2:
            reply["metrics"]["roots"]["values"]["squares"] = digits(torch.tensor(-1e9, dtype=torch.float64))
        return reply

    monkeypatch.setattr(Worker, "invoke", lying)
    task = make_task()
    object.__setattr__(task, "metrics", (Roots(),))
    made = RunConfig(clients=5, cohort=5, rounds=3, evaluation="federated", client_test=0.2, vectorize="off")
    with pytest.warns(RoundWarning, match=r"round 2 was not evaluated: the sums of the clients give no figures.*math domain"):
        history = prepare(made, task=task).go().history
    assert [record.get("unevaluated") for record in history] == [None, 1, None]
    assert "roots" in history[2]
    assert "roots" not in history[1]


def test_a_mean_square_that_rounding_leaves_below_zero_has_the_root_zero():
    assert RMSE().figures({"error": torch.tensor(-1e-9), "count": torch.tensor(3)})["rmse"] == 0.0
