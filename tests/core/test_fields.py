"""Ranges in annotations, and classes whose arguments are checked against them."""

import copy
import dataclasses
import doctest
import inspect
import pickle
from abc import ABC
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Lt

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.fields import Finite, NonNegative, Positive, Share, fit, hints_of, plain_type, range_of
from paceline.core.method import Method
from paceline.core.parsing import fitted


@pytest.mark.parametrize("module", ["fields", "wording", "checked"])
def test_doctests(module):
    assert doctest.testmod(import_module(f"paceline.core.{module}")).failed == 0


@dataclass(frozen=True)
class Walk(Method):
    """Walks.

    Args:
        pace: steps in a minute.
    """

    pace: Positive[int]
    slope: Share = 0.0
    names: tuple[str, ...] = ()
    kind: Literal["slow", "fast"] = "slow"
    back: bool = False
    made: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.made.append(self.pace)


def test_arguments_are_converted_to_the_types_of_their_fields():
    walk = Walk("3", slope=np.float32(0.5), names=["a"], back="true")
    assert (walk.pace, walk.slope, walk.names, walk.back, walk.made) == (3, 0.5, ("a",), True, [3])
    assert [type(v) for v in (walk.pace, walk.slope, Walk(torch.tensor(2)).pace)] == [int, float, int]


@pytest.mark.parametrize(
    ("args", "given", "told"),
    [
        ((0,), {}, r"^Walk field pace=0: it must be a whole number above 0 \(steps in a minute\)$"),
        ((1,), {"slope": 1.1}, r"^Walk field slope=1.1: it must be a number from 0 to 1$"),
        ((1,), {"kind": "quick"}, "it must be 'slow' or 'fast'"),
        ((1,), {"back": "perhaps"}, "it must be true or false"),
        ((1,), {"names": 3}, "Walk field names=3: .*tuple"),
        ((1.5,), {}, "pace=1.5: it must be a whole number"),
        ((), {}, "^Walk needs pace=VALUE$"),
        ((1,), {"pace": 2}, "pace is given by position and by name"),
        ((1, 0.1, (), "slow", False, [], 7), {}, "^Walk has 5 fields, not 7: pace, slope, names, kind, back;"),
        ((1,), {"made": [1]}, "unknown Walk field 'made'"),
        ((1,), {"cohort": 5}, "cohort is no field of Walk but an option of the run: cohort=5"),
    ],
)
def test_wrong_arguments(args, given, told):
    with pytest.raises(ConfigError, match=told):
        Walk(*args, **given)


def test_an_unknown_field_is_an_unknown_name():
    with pytest.raises(UnknownNameError, match="unknown Walk field 'slop'; did you mean slope"):
        Walk(1, slop=0.1)


def test_a_changed_copy_is_checked_and_a_plain_one_is_the_same():
    walk = Walk(2)
    with pytest.raises(ConfigError, match="pace=-1"):
        dataclasses.replace(walk, pace=-1)
    assert pickle.loads(pickle.dumps(walk)) == copy.deepcopy(walk) == walk


def test_subclasses_are_checked_by_their_own_ranges():
    @dataclass(frozen=True)
    class Run(Walk, ABC):
        pace: Annotated[int, Ge(10), Lt(20)] = 12

        def __post_init__(self) -> None:
            pass

    assert Run(10).pace == 10
    for wrong in (9, 20):
        with pytest.raises(ConfigError, match="a whole number of at least 10 and below 20"):
            Run(wrong)


def test_the_signature_is_that_of_the_fields():
    assert list(inspect.signature(Walk).parameters) == ["pace", "slope", "names", "kind", "back"]


def test_annotations_that_cannot_be_checked_are_left_alone():
    class Odd:
        pass

    odd = Odd()
    assert fit(odd, Odd, "x") is odd
    assert fit(odd, Any, "x") is odd


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(value):
    with pytest.raises(ConfigError, match="it must be a finite number"):
        fit(value, Finite, "x")


def test_no_limit_is_a_number_above_0():
    assert fit(float("inf"), Positive[float], "clip") == float("inf")


def test_whatever_is_built_from_a_specification_has_ranges_too():
    def make(share: Share = 0.1, pause: NonNegative[float] | None = None) -> None: ...

    assert fitted(make, {"pause": "2"}, "fleet 'x'", ["share", "pause"]) == {"pause": 2.0}
    with pytest.raises(ConfigError, match="fleet 'x': share=2: it must be a number from 0 to 1"):
        fitted(make, {"share": 2}, "fleet 'x'", ["share", "pause"])
    assert [(range_of(h), plain_type(h)) for n, h in hints_of(make).items() if n != "return"] == [
        ("from 0 to 1", "float"), ("at least 0", "float | None"),
    ]  # fmt: skip


def test_bounds_around_a_union_and_in_it_both_hold():
    hint = Annotated[Positive[int] | None, Lt(5)]
    assert range_of(hint) == "below 5 and above 0"
    assert (fit(None, hint, "x"), fit(4, hint, "x")) == (None, 4)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match="a whole number below 5 and above 0 or None"):
            fit(wrong, hint, "x")
