"""The registry: names without imports, clashes, a user's own things of every kind, and a table in step with the files."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from paceline import registry
from paceline.adversaries.behaviours import Adversary
from paceline.core.errors import ConfigError, NameClashError, PolicyError, UnknownNameError
from paceline.core.importing import imports_from
from paceline.core.method import Method
from paceline.devices import Fleet
from paceline.engines import Pool
from paceline.methods.optimisation.fedprox import FedProx
from paceline.participation.processes import Participation
from paceline.registry import BUILT_IN, KINDS, describe, load, name_of, names, parse
from tests.lab import OWN, distribution


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# -- names without imports -----------------------------------------------------------------------------
@pytest.mark.parametrize("module", ["registry", "core.parsing", "aggregation", "models.build"])
def test_examples(module):
    ended = doctest.testmod(importlib.import_module(f"paceline.{module}"))
    assert ended.attempted
    assert not ended.failed


def test_listing_names_loads_nothing_heavy():
    code = "import sys; from paceline.registry import KINDS, names, describe; [describe(k, n) for k in KINDS for n in names(k)]; "
    heavy = ("torch", "numpy", "pydantic", "typer", "paceline.methods", "paceline.core.method")
    assert python(f"{code} print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_names_take_at_most_half_longer_than_the_import_of_asyncio():
    """Some 50 ms, in processor time, against a part of Python in the same run: a slow or busy machine does not count."""
    timed = "import time; a = time.process_time(); {}; print(time.process_time() - a)"
    pairs = [
        [float(python(timed.format(code))) for code in ("from paceline.registry import names; names('method')", "import asyncio")]
        for _ in range(7)
    ]
    ours, theirs = map(min, zip(*pairs, strict=True))
    assert ours < 1.5 * theirs


@pytest.mark.parametrize(
    "words",
    [
        ["run", "fedprx"],
        ["compare", "fedavg", "fedprx"],
        ["methods", "fedprx"],
        ["run", "--task", "digit"],
        ["run", "--model", "logistc"],
        ["run", "--engine", "locl"],
        ["run", "--aggregation", "secur"],
        ["run", "--fleet", "straglers:share=0.2"],
        ["run", "--participation", "bernouli:0.3"],
        ["run", "--adversary", "signflop:0.2"],
    ],
    ids=" ".join,
)
def test_a_misspelt_name_is_answered_without_torch(words, tmp_path):
    code = f"""
import sys
from typer.testing import CliRunner
from paceline.cli.app import app
ended = CliRunner().invoke(app, {words})
assert ended.exit_code == 2, ended
print("did you mean" in " ".join(ended.stderr.split()), [m for m in ("torch", "numpy") if m in sys.modules])
"""
    assert python(code) == "True []"


def test_a_shell_completes_names_without_torch():
    code = "from paceline.cli.fields import completed; import sys; print(completed('method')('fedpr'), 'torch' in sys.modules)"
    assert python(code) == "['fedprox', 'fedproto'] False" or python(code) == "['fedproto', 'fedprox'] False"


# -- the table is in step with the files ---------------------------------------------------------------
def modules(package: str) -> list:
    root = importlib.import_module(package)
    return [root, *(importlib.import_module(info.name) for info in pkgutil.walk_packages(root.__path__, f"{package}."))]


def classes(package: str, base: type) -> list[type]:
    return [
        cls
        for module in modules(package)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__
    ]


def path(thing) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def test_every_method_file_is_in_the_table_and_nothing_else():
    found = {}
    for cls in classes("paceline.methods", Method):
        complete = not any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls))
        if complete and cls.round is not Method.round:
            assert cls.slug() not in found, f"{path(cls)} has the name of {found[cls.slug()]}"
            found[cls.slug()] = path(cls)
    assert BUILT_IN["method"] == found, "add the missing line to BUILT_IN in paceline/registry.py, or take it out"


@pytest.mark.parametrize(
    ("kind", "package", "base"),
    [("fleet", "paceline.devices", Fleet), ("adversary", "paceline.adversaries", Adversary),
     ("participation", "paceline.participation", Participation)],
)  # fmt: skip
def test_every_class_with_a_name_is_in_the_table_and_nothing_else(kind, package, base):
    found = {cls.name: path(cls) for cls in classes(package, base) if "name" in vars(cls) and cls.name}
    if kind == "participation":  # made from its file
        found["trace"] = "paceline.participation.processes:read_trace"
    if kind == "fleet":
        found["trace"] = "paceline.devices.changing:read_fleet"
    assert BUILT_IN[kind] == found


def test_every_engine_aggregation_model_and_task_is_in_the_table_and_nothing_else():
    from paceline.tasks.recipe import FunctionRecipe, Recipe

    assert set(BUILT_IN["engine"].values()) == {path(cls) for cls in classes("paceline.engines", Pool) if cls is not Pool}
    summing = {path(cls) for cls in classes("paceline.aggregation", object) if hasattr(cls, "sees_each") and hasattr(cls, "sum")}
    assert set(BUILT_IN["aggregation"].values()) == summing
    makers = {
        path(made)
        for module in modules("paceline.models")
        for made in vars(module).values()
        if inspect.isfunction(made) and made.__module__ == module.__name__ and not made.__name__.startswith("_")
        and {"shape", "num_classes"} <= set(inspect.signature(made).parameters)
    }  # fmt: skip
    assert set(BUILT_IN["model"].values()) == makers
    found = {path(v) for m in modules("paceline.tasks") for v in vars(m).values() if hasattr(v, "__card__")}
    found |= {
        f"{m.__name__}:{n}" for m in modules("paceline.tasks") for n, v in vars(m).items()
        if isinstance(v, Recipe) and not isinstance(v, FunctionRecipe)
    }  # fmt: skip
    assert set(BUILT_IN["task"].values()) == found


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in names(k)])
def test_every_name_leads_to_its_thing_and_back(kind, name):
    found = load(kind, name)
    assert describe(kind, name).package == "paceline"
    if hasattr(found, "__qualname__"):
        assert name_of(kind, found) == name


def test_further_spellings_are_not_listed():
    assert load("model", "logreg") is load("model", "logistic")
    assert load("model", "tiny-cnn") is load("model", "tiny_cnn")
    assert not {"logreg", "tiny-cnn"} & set(names("model"))


# -- packages and clashes ------------------------------------------------------------------------------
def test_a_package_registers_things_of_every_kind(lab, site):
    groups = {KINDS[kind].group.partition(".")[2]: {f"my-{kind}": f"{lab}:{attribute}"} for kind, attribute in OWN.items()}
    distribution(site, "labpackage", **groups)
    for kind, attribute in OWN.items():
        assert names(kind)[-1] == f"my-{kind}"
        assert "mylab" not in sys.modules or kind != "method", "listing a name has imported it"
        assert describe(kind, f"my-{kind}").package == "labpackage"
        assert load(kind, f"my-{kind}").__name__ == attribute
        assert name_of(kind, load(kind, f"my-{kind}")) == f"my-{kind}"
    with pytest.raises(UnknownNameError, match="did you mean my-fleet"):
        load("fleet", "my-flet")


def test_two_packages_of_one_name_are_named(lab, site):
    distribution(site, "labone", methods={"mine": "mylab:FedProx", "other": "mylab:FedProx"})
    distribution(site, "labtwo", methods={"mine": "yourlab:Mine"})
    for ask in (lambda: load("method", "mine"), lambda: describe("method", "mine"), lambda: names("method")):
        with pytest.raises(
            NameClashError, match="'mine' is registered 2 times, by mylab:FedProx of labone and yourlab:Mine of labtwo"
        ):
            ask()
    assert load("method", "other").mu == 2.0
    assert load("method", "fedprox") is FedProx


@pytest.mark.parametrize(("kind", "name"), [("method", "fedprox"), ("task", "digits"), ("fleet", "mobile"), ("model", "logreg")])
def test_a_package_cannot_take_a_built_in_name(site, kind, name):
    distribution(site, "labone", **{KINDS[kind].group.partition(".")[2]: {name: "mylab:FedProx"}})
    with pytest.raises(NameClashError, match=r"paceline\..* of paceline and mylab:FedProx of labone"):
        load(kind, name)


def test_a_package_that_came_later_is_seen(lab, site):
    with pytest.raises(UnknownNameError):
        load("method", "late")
    distribution(site, "labpackage", methods={"late": "mylab:FedProx"})
    assert load("method", "late").__module__ == "mylab"


def test_what_is_not_of_its_kind_is_refused(lab, site):
    distribution(site, "labpackage", methods={"net": "mylab:Net"})
    with pytest.raises(ConfigError, match="is no Method"):
        load("method", "net")
    for kind, text, reported in (
        ("fleet", "mylab:Net", "needs num_classes=VALUE|needs shape=VALUE"),
        ("adversary", "mylab:Trams:0.2", "needs num_clients=VALUE"),
    ):
        with pytest.raises(ConfigError, match=reported):
            registry.build(kind, text, {})


# -- a user's own, by import path ----------------------------------------------------------------------
def test_options_of_ones_own_things_are_typed(lab):
    from paceline.adversaries.behaviours import load_adversary
    from paceline.devices import load_fleet, load_participation

    fleet = load_fleet("mylab:Trams:delay=2,churn=0.1", 5, seed=3)
    assert (fleet.delay, fleet.churn, fleet.num_clients, fleet.seed) == (2.0, 0.1, 5, 3)
    assert load_participation("mylab:Weekends:every=3", 4).every == 3
    assert load_participation("mylab:Half:0.3-0.9", 4).rates(0) == 0.3
    assert load_adversary("mylab:Loud:0.2").scale == 3.0
    for make, text, reported in (
        (lambda t: load_fleet(t, 5), "mylab:Trams:delay=long", "delay='long': it must be a number"),
        (lambda t: load_fleet(t, 5), "mylab:Trams:dealy=1", "did you mean delay"),
        (lambda t: load_fleet(t, 5), "mylab:Trams:seed=1", "unknown option"),
        (lambda t: load_participation(t, 4), "mylab:Weekends:0.3", "does not take a value"),
        (load_adversary, "mylab:Loud", "the share of Byzantine"),
        (load_adversary, "mylab:Loud:0.2,scale=inf", "finite"),
    ):
        with pytest.raises(ConfigError, match=reported):
            make(text)


def test_a_model_of_ones_own_is_an_architecture_too(lab):
    from paceline.blocks.architectures import Architectures
    from paceline.tasks import blobs

    made = Architectures(blobs(), 0).build("mylab:Net:width=3")
    assert made.a.out_features == 3


def test_a_name_is_found_again_only_where_it_is_global(lab):
    class Local(FedProx): ...

    assert name_of("method", FedProx(mu=0.3)) == "fedprox"
    assert name_of("method", load("method", "mylab:FedProx")) == "mylab:FedProx"
    with pytest.raises(ConfigError, match="top of a module"):
        name_of("method", Local)


# -- specifications ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "text", "name", "value", "options"),
    [
        ("method", "clip:network=true,lr=0.1", "clip", "", {"network": True, "lr": 0.1}),
        ("fleet", " stragglers: share=0.25, slow=2.0 ", "stragglers", "", {"share": 0.25, "slow": 2.0}),
        ("participation", "markov:0.05-1,step=0.1", "markov", "0.05-1", {"step": 0.1}),
        ("participation", "trace:it's (1).csv,length=4", "trace", "it's (1).csv", {"length": 4}),
        ("participation", "trace:C:/who.csv", "trace", "C:/who.csv", {}),
        ("participation", "bernoulli:labels,mean=0.2", "bernoulli", "labels", {"mean": 0.2}),
        ("adversary", "alie:0.2,z=1.5", "alie", "0.2", {"z": 1.5}),
        ("adversary", "alie:share=0.2,z=1.5", "alie", "", {"share": 0.2, "z": 1.5}),
        ("adversary", "lab.attacks:Loud:0.2,scale=3", "lab.attacks:Loud", "0.2", {"scale": 3}),
        ("model", "mlp:hidden=1024-10-10,end=batch", "mlp", "", {"hidden": "1024-10-10", "end": "batch"}),
        ("aggregation", "secure-arithmetic", "secure-arithmetic", "", {}),
    ],
)  # fmt: skip
def test_all_kinds_are_written_alike(kind, text, name, value, options):
    read = parse(kind, text)
    assert (read.name, read.value, read.options) == (name, value, options)


@pytest.mark.parametrize(
    ("kind", "text", "reported"),
    [
        ("method", "clip:network", "network=VALUE"),
        ("method", "clip:lr=1,lr=2", "each one once"),
        ("fleet", "mobile:churn=0.1,0.2", "each one once"),
        ("fleet", ":churn=0.1", "does not name a fleet"),
    ],
)
def test_a_malformed_specification_says_what_to_write(kind, text, reported):
    with pytest.raises(ConfigError, match=reported):
        parse(kind, text)


def test_a_module_may_have_the_name_of_a_built_in_method(tmp_path, monkeypatch):
    (tmp_path / "clip.py").write_text("from paceline.methods.optimisation.fedprox import FedProx\nclass Mine(FedProx): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("method", parse("method", "clip:Mine:mu=1").name).__module__ == "clip"
    sys.modules.pop("clip", None)


# -- names that a server sends -------------------------------------------------------------------------
def test_a_name_from_outside_imports_no_module_that_is_not_allowed(lab):
    with imports_from(()), pytest.raises(PolicyError, match=r"add its module to client\.modules"):
        load("model", "mylab:Net")
    assert "mylab" not in sys.modules
    with imports_from(["mylab"]):
        assert load("model", "mylab:Net").__name__ == "Net"
        assert load("method", "fedprox") is FedProx
        with pytest.raises(PolicyError, match="is defined in subprocess"):
            load("model", "mylab:Popen")
        with pytest.raises(PolicyError):
            load("model", "subprocess:Popen")
    assert load("model", "mylab:Net")
