"""Every numeric field of every method has a range, which a value of it has to be in, wherever it comes from."""

import dataclasses
import inspect
import math
import re
from typing import get_args, get_origin

import pytest

from paceline.assembly import build_method
from paceline.core.checks import idle_fields
from paceline.core.errors import ConfigError, PlanError, UnknownNameError
from paceline.core.fields import fit, hints_of, range_of
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, prepare
from tests.conftest import make_task

NAMES = [name for name in method_names() if find_method(name).__module__.startswith("paceline.")]


def bounds(hint):
    """Yield (kind, limit, whole) of the bounds of an annotation, read from the annotation alone."""
    inner = [hint, *get_args(hint)]
    for part in inner:
        for bound in getattr(part, "__metadata__", ()):
            [(kind, limit)] = dataclasses.asdict(bound).items()
            yield kind, limit, get_args(part)[0] is int


def numeric(hint):
    parts = [get_args(p)[0] if hasattr(p, "__metadata__") else p for p in (hint, *get_args(hint))]
    return any(p in (int, float) for p in parts) and get_origin(hint) is not tuple


def outside(hint):
    """Return values just outside the range, on both sides."""
    found = []
    for kind, limit, whole in bounds(hint):
        gap = 1 if whole else 1e-9
        found.append({"gt": limit, "ge": limit - gap, "lt": limit, "le": limit + gap}[kind])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range_and_stays_in_it(name):
    cls = find_method(name)
    hints, seen = hints_of(cls), 0
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if not numeric(hint):
            continue
        seen += 1
        assert range_of(hint), f"{name}.{field.name} has no range"
        assert fit(field.default, hint, field.name) == field.default
        for value in [*outside(hint), math.nan, "much", True, [1]]:
            with pytest.raises(ConfigError, match=rf"^{cls.__name__} field {field.name}=.*: it must be a .*number"):
                cls(**{field.name: value})
    assert seen


@pytest.mark.parametrize("name", NAMES)
def test_only_fields_are_arguments(name):
    cls = find_method(name)
    with pytest.raises(UnknownNameError, match=f"unknown {cls.__name__} field 'no_such_field'"):
        cls(no_such_field=1)
    with pytest.raises(ConfigError, match=rf"{cls.__name__} has \d+ fields, not 99: .*"):
        cls(*range(99))


def test_a_null_step_is_a_step():
    """Methods that do not divide by a learning rate take one of 0."""
    assert find_method("fedavg")(lr=0, server_lr=0.0).lr == 0.0
    with pytest.raises(ConfigError, match="lr=0"):
        find_method("scaffold")(lr=0)


def test_names_and_objects_are_checked_alike():
    told = "FedProx field mu=-1: it must be a number of at least 0"
    with pytest.raises(ConfigError, match=told):
        find_method("fedprox")(mu=-1)
    with pytest.raises(ConfigError, match=told):
        build_method(RunConfig(method="fedprox", options={"mu": -1}))


def test_a_share_of_stragglers_says_why_it_ends_at_half():
    with pytest.raises(ConfigError, match=r"above 0 and at most 0.5 \(phi, .* a sum would expose"):
        find_method("clip")(straggler_share=0.6)


IGNORED = {"fedasync": {"period", "unit", "least"}, "fedbuff": {"period", "unit", "least"}}
"""Fields that the docstring of a method says are ignored, as it shares options with its rivals in a comparison."""

PROGRAM = ("fit_task", "check", "init", "round", "model", "personal", "personal_model", "assess", "evaluate")


def sources(cls, name):
    """Yield the source of a method of a class, and of those of its bases that it calls by super()."""
    for base in cls.__mro__:
        found = vars(base).get(name)
        code = getattr(found, "fget", None) or getattr(found, "__func__", found)
        if inspect.isfunction(code):
            text = inspect.getsource(code)
            yield text
            if "super()" not in text:
                return


def read(cls):
    """Return the attributes that a method's program reads, through all methods that it calls."""
    seen, todo = set(), list(PROGRAM)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            for text in sources(cls, name):
                todo += re.findall(r"(?:self|super\(\))\.(\w+)", text)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_an_effect_or_is_refused(name):
    cls = find_method(name)
    idle = {field.name for field in dataclasses.fields(cls)} - read(cls)
    assert idle == set(cls.unused) | IGNORED.get(name, set())


def test_a_field_without_effect_is_refused():
    with pytest.raises(PlanError, match=r"method 'fedka' does not use epochs=3; leave it at 1\n.*momentum=0.9; leave it at 0.0"):
        prepare(RunConfig(method="fedka", options={"epochs": 3, "momentum": 0.9}), task=make_task())
    assert not idle_fields(find_method("fedka")(epochs=1, steps=3))
