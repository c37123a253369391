"""A reply that does not come: whoever reads the error learns how many, why, and where in whose code."""

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from paceline.core.client import Hooks
from paceline.core.errors import AggregationError, ClientError, NonFiniteError, PlanError, QuorumError
from paceline.core.failures import account, class_in, class_of, kind_of, place_of, reason_of, reasons
from paceline.core.method import Method, on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import prepare
from paceline.runner import RoundWarning
from paceline.store import RunFolder


class NoSums(AggregationError):
    """A user's own error, below one of ours."""


class PolicyError(Exception):
    """A user's own error that has the name of one of ours."""


@dataclass(frozen=True)
class Fails(FedAvg):
    """Fails on the first `many` clients in the way that is asked for."""

    names_clients: ClassVar[bool] = True

    how: str = "key"
    many: int = 99

    @on_client
    def train(self, client, message):
        if client.id < self.many:
            self.fail(client, message)
        return super().train(client, message)

    def fail(self, client, message):
        match self.how:
            case "key":
                {}["temperature"]  # here: key
            case "torch":
                torch.nn.functional.linear(torch.zeros(3), torch.zeros(2, 2))  # here: torch
            case "hook":
                client.sgd(message, hooks=Hooks(correct=lambda grad, at: grad.no_such))  # here: hook
            case "standard":
                json.loads("{")  # here: standard
            case "ours":
                raise NoSums("it cannot be summed")  # here: ours
            case "plan":
                raise PlanError(["one thing", "another"])  # here: plan
            case "name":
                raise PolicyError("ours only by name")  # here: name


@dataclass(frozen=True)
class Everywhere(FedAvg):
    """Fails alike on all clients, before anything of one of them is asked for."""

    @on_client
    def train(self, client, message):
        return {}["temperature"]  # here: everywhere


@dataclass(frozen=True)
class Looks(Method):
    """Asks for single replies, none of which comes."""

    arrivals: bool = False

    def round(self, fed, state):
        (fed.arrivals if self.arrivals else fed.each)(self.look, None, over=range(4))
        return state

    @on_client(each=True)
    def look(self, client, message):
        raise ValueError(f"client {client.id} has nothing to show")


FAILS, LOOKS = f"{__name__}:Fails", f"{__name__}:Looks"


def line_of(mark):
    with open(__file__) as file:
        [number] = [i for i, line in enumerate(file, 1) if line.rstrip().endswith(f"# here: {mark}")]
    return f"tests/core/test_failures.py:{number}"


# -- one function words it ---------------------------------------------------------------------
def test_an_account_counts_kinds_and_puts_the_most_frequent_reasons_first():
    dropped = {0: "late", 1: "gone", 2: "refused: no", 3: "KeyError: 'x'", 4: "ValueError: 1", 5: "KeyError: 'x'"}
    assert account(dropped, 9) == (
        "6 of 9 clients gave no reply: 1 late, 1 gone, 1 refused (no, such as client 2), "
        "3 failed (2 times KeyError: 'x', such as client 3; ValueError: 1, such as client 4)"
    )
    assert [kind_of(why) for why in dropped.values()] == ["late", "gone", "refused", "failed", "failed", "failed"]


def test_reasons_that_differ_in_numbers_alone_are_one():
    assert reasons({c: f"ValueError: client {c} has {c} rows" for c in range(3)}) == (
        "3 failed (3 times ValueError: client 0 has 0 rows, such as client 0)"
    )


def test_an_account_stays_short_however_many_and_long_the_reasons():
    dropped = {c: f"Error{'abcdefgh'[c]}: " + "long\n" * 1000 for c in range(8)}
    reported = account(dropped, 8)
    assert len(reported) < 1000
    assert "5 other reasons" in reported
    assert "\n" not in reported


# -- wherever replies lack ---------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["plain", "secure", "secure-arithmetic"])
def test_a_sum_without_replies_names_the_cause(federate, aggregation):
    with pytest.raises(
        QuorumError, match=r"5 failed \(5 times KeyError: 'temperature' \(tests/core/test_\w+.py:\d+\), such as client \d\)"
    ):
        federate(method=FAILS, on_error="drop", aggregation=aggregation)


def test_a_quorum_that_is_missed_names_the_causes_and_the_attempts(federate):
    with pytest.raises(QuorumError, match=r"2 clients .* the quorum of 3; 4 of 6 .* 4 failed .*the round failed 3 times"):
        federate(method=FAILS, options={"many": 4}, on_error="drop", quorum=3, cohort=6)


def test_lost_and_late_clients_are_told_apart(federate):
    with pytest.raises(QuorumError, match=r"5 of 5 clients gave no reply: 5 gone"):
        federate(drop=lambda round, client, function: True)
    with pytest.raises(QuorumError, match=r"5 of 5 clients gave no reply: 5 late"):
        federate(deadline=1e-9)


@pytest.mark.parametrize("arrivals", [False, True])
def test_single_replies_of_which_none_comes_name_the_cause(federate, arrivals):
    with pytest.raises(QuorumError, match=r"'look'; 4 of 4 .* 4 failed \(4 times ValueError: client 0 has nothing to show"):
        federate(method=LOOKS, options={"arrivals": arrivals}, on_error="drop")


def test_what_is_dropped_is_in_the_round_s_record_and_told_once(federate, tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    with pytest.warns(RoundWarning, match=f"client 0 gave no reply: KeyError.*{line_of('key')}") as reported:
        federate(method=FAILS, options={"many": 1}, on_error="drop", cohort=6, folder=folder)
    assert len(reported) == 1
    assert [r["lost"] for r in folder.read_metrics()] == [
        f"1 failed (KeyError: 'temperature' ({line_of('key')}), such as client 0)"
    ] * 3


def test_an_evaluation_that_is_lost_says_why(task, config):
    run = prepare(config(evaluation="federated", on_error="drop", rounds=1), task=task)

    def evaluate(client, message):
        raise KeyError("no test set")

    evaluate.__client__, evaluate.__name__ = type(run.method).evaluate.__client__, "evaluate"
    object.__setattr__(run.method, "evaluate", evaluate)
    with pytest.warns(RoundWarning, match=r"round 1 was not evaluated: .*6 failed \(6 times KeyError: 'no test set'"):
        summary = run.go()
    assert summary.history[0]["unevaluated"] == 1


def test_a_round_that_is_tried_again_or_skipped_says_why(federate):
    lost = iter([True] * 5 + [False] * 99)
    with pytest.warns(RoundWarning, match=r"round 1 is repeated.*5 of 5 clients gave no reply: 5 gone"):
        summary = federate(drop=lambda round, client, function: next(lost))
    assert [r["attempts"] for r in summary.history] == [2, 1, 1]
    with pytest.warns(RoundWarning, match=r"round \d is skipped \(reported once\): .*(no client is available|the quorum of)"):
        federate(participation="bernoulli:0.05", rounds=5)


# -- whose code it was -------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["key", "torch", "hook", "standard"])
@pytest.mark.parametrize("engine", ["local", "debug"])
def test_a_clients_own_error_names_the_users_line(federate, how, engine):
    with pytest.raises(ClientError, match=re.escape(line_of(how))) as caught:
        federate(method=FAILS, options={"how": how}, engine=engine)
    assert caught.value.exit_code == 9
    kind = {"key": "KeyError", "torch": "RuntimeError", "hook": "AttributeError", "standard": "JSONDecodeError"}[how]
    assert f"round 1{', step 0' if 'step' in str(caught.value) else ''}: {kind}: " in str(caught.value)


@pytest.mark.parametrize("how", ["key", "hook", "everywhere"])
def test_stacked_clients_fail_as_they_do_alone(federate, how):
    method = {"method": FAILS, "options": {"how": how, "many": 2}} if how != "everywhere" else {"method": f"{__name__}:Everywhere"}
    stacked = {"vectorize": "on", "chunk": 3, "cohort": 6, **method}
    with pytest.raises(ClientError, match=f"client 0.*{re.escape(line_of(how))}"):
        federate(**stacked)
    if how == "everywhere":
        with pytest.raises(QuorumError, match=r"6 of 6 .* 6 failed"):
            federate(**stacked, on_error="drop")
    else:
        assert [r["dropped"] for r in federate(**stacked, on_error="drop").history] == [2, 2, 2]


def test_workers_name_the_users_line_too(federate):
    with pytest.raises(ClientError, match=re.escape(line_of("torch"))):
        federate(method=FAILS, options={"how": "torch"}, workers=2)


def test_own_errors_keep_their_class_and_strangers_do_not_get_one(federate):
    with pytest.raises(AggregationError, match=r"round 1: NoSums: it cannot be summed \(tests"):
        federate(method=FAILS, options={"how": "ours"})
    with pytest.raises(PlanError, match=r"one thing; another \(tests") as caught:
        federate(method=FAILS, options={"how": "plan"})
    assert str(caught.value).count("this run cannot start") == 1
    with pytest.raises(ClientError, match="PolicyError: ours only by name"):
        federate(method=FAILS, options={"how": "name"})


def test_classes_are_those_of_the_tree():
    assert class_of(NoSums("x")) == "AggregationError"
    assert class_of(KeyError("x")) == class_of(PolicyError("x")) == ""
    assert class_in("NonFiniteError: x") == "NonFiniteError"
    assert class_in("KeyError: x") == class_in("nearest: x") == class_in("NonFiniteError") == class_in("refused: x") == ""


def test_an_error_that_was_never_raised_has_no_place():
    assert place_of(ValueError("x")) == ""
    assert reason_of(NonFiniteError("x")) == "NonFiniteError: x"


def test_code_of_paceline_is_named_where_no_other_was_on_the_way(federate):
    with pytest.raises(NonFiniteError, match=r"\((…/)?src/paceline/[\w/]+\.py:\d+\)"):
        federate(method="fedavg", options={"lr": float("inf")})
