"""A table of mistakes: each command line ends with its exit code, and a message that says what to write."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.lab import distribution

FILES = {
    "x.csv": "a,target\n1,0\n",
    "leaf.json": "{}",
    "mnist/t10k-images-idx3-ubyte": "",
    "pics/cat/a.png": "",
    "pics/dog/b.png": "",
    "cifar/data_batch_1": "",
    "own_method.py": """
from paceline.core.method import Method
from paceline.methods.optimisation.fedavg import FedAvg
raise RuntimeError("a file whose classes are listed must not be run")
class Plain: ...
class Mine(FedAvg): ...
class Other(Method): ...
class Further(Mine): ...
""",
    "own_syntax.py": "x = 1\n\ndef train(:\n",
    "own_raises.py": "import os\nos.environ['NO_SUCH_KEY_HERE']\n",
    "own_lacks.py": "import no_such_package_here\n",
    "own_exits.py": "import sys\n\n\nsys.exit('not today')\n",
    "own_fine.py": "class Trainer: ...\n",
    "run.toml": "method = 'fedprox'\nmu = 0.1\n",
    "fleet.toml": "fleet = 'stragglers'\nslow = 2.0\n",
    "server.toml": "[run]\nmethod = 'fedavg'\nlr = 0.1\n",
    "wrong.toml": "[run]\nrounds = 'abc'\n",
    "unknown.toml": "[run]\nroundz = 3\n",
    "taskless.toml": "[run]\ntask = 'x.csv'\n",
    "client.toml": "[data]\ntask = 'x.csv'\n",
}

LINES = [
    # options that belong to a part of the run
    ("run fedavg --lr 0.1", 2, "lr is a field of fedavg: write -o lr=0.1"),
    ("run fedavg --lr=0.1", 2, "write -o lr=0.1"),
    ("run --lr 0.1", 2, "lr is a field of fedavg: write -o lr=0.1"),
    ("run --config run.toml --mu 1", 2, "mu is a field of fedprox: write -o mu=1"),
    ("federate fedavg --lr 0.1", 2, "write -o lr=0.1"),
    ("run fedavg --lr 0.1 --json", 2, "write -o lr=0.1"),
    ("run fedopt --server-lr 0.1", 2, "write -o server_lr=0.1"),
    ("compare fedavg fedprox --lr 0.1", 2, "write -o lr=0.1"),
    ("compare fedavg fedprox --mu 0.1", 2, "mu is a field of fedprox: write fedprox:mu=0.1"),
    ("run fedavg --limit 100", 2, "limit is an option of task mnist-5k: write --task-option limit=100"),
    ("run fedavg --task shakespeare --stride 3", 2, "write --task-option stride=3"),
    ("run fedavg --task csv:x.csv --target label", 2, "write --task-option target=label"),
    ("run fedavg --slow 3", 2, "slow is an option of fleet stragglers: write --fleet stragglers:slow=3"),
    ("run fedavg --fleet stragglers:share=0.5 --slow 3", 2, "write --fleet stragglers:share=0.5,slow=3"),
    ("run fedavg --period 24", 2, "write --participation diurnal:RATE,period=24"),
    ("run fedavg --bits 8", 2, "bits is an option of secure aggregation: write --secure-option bits=8"),
    ("run fedavg --roundss 8", 2, "--rounds"),
    ("run fedprox:mu=-1", 2, "FedProx field mu=-1: it must be a number of at least 0"),
    ("run fedprox -o epochs=0", 2, "FedProx field epochs=0: it must be a whole number above 0 (local passes over"),
    ("run fedavg:mu=0.1 --task digits", 2, "server_lr, weight_decay; mu is a field of fednova, fedprox and moon"),
    ("run fedavg:beta1=1 -o nested=true --task digits", 2, "; beta1 is a field of fedopt"),
    ("run fedavg --mu 1", 2, "mu is a field of fednova, fedprox and moon: write METHOD:mu=1"),
    ("run fedka -o epochs=2 --task digits", 3, "method 'fedka' does not use -o epochs=2; leave it at 1"),
    (
        "compare fedavg fedka:steps=3 -o epochs=2 --task digits",
        3,
        "1. fedka: method 'fedka' does not use -o epochs=2; leave it at 1",
    ),
    ("run fedavg --nested true", 2, "nested is a field of fjord: write fjord:nested=true"),
    ("run fedavg --beta 1", 2, "write METHOD:beta=1"),
    ("run fedavg --predict head", 2, "predict is a field of fedproto and fedsa: write METHOD:predict=head"),
    ("run fedavg -o rounds=8", 2, "an option of the run: --rounds 8"),
    ("run --config run.toml", 2, "run.toml: mu is a field of fedprox: write it in the table [options]"),
    ("run --config fleet.toml", 2, 'write it as fleet = "stragglers:slow=VALUE"'),
    ("server --config server.toml", 2, "server.toml, table [run]: lr is a field of fedavg: write it in the table [options]"),
    ("server --config wrong.toml", 2, "wrong.toml, table [run]: rounds='abc': "),
    ("server --config unknown.toml", 2, "unknown.toml, table [run]: unknown option 'roundz'; did you mean rounds"),
    # files in place of names
    ("run fedavg --task x.csv", 2, "write csv:x.csv"),
    ("run fedavg --task x.csv?target=target", 2, "write csv:x.csv?target=target"),
    ("run fedavg --task tab:x.csv", 2, "write csv:x.csv"),
    ("run fedavg --task gone.csv", 2, "write csv:gone.csv (gone.csv does not exist yet)"),
    ("run fedavg --task leaf.json", 2, "write leaf-femnist:leaf.json or leaf-shakespeare:leaf.json"),
    ("run fedavg --task mnist", 2, "write idx:mnist"),
    ("run fedavg --task mnist/t10k-images-idx3-ubyte", 2, "write idx:mnist"),
    ("run fedavg --task mnist/train-images.gz", 2, "write idx:mnist"),
    ("run fedavg --task pics", 2, "write imagefolder:pics"),
    ("run fedavg --task pics/cat/a.png", 2, "write imagefolder:pics"),
    ("run fedavg --task cifar", 2, "write cifar-10-batches-py:cifar"),
    ("run fedavg --task notes.doc", 2, "kind:path, with one of the kinds idx"),
    ("partition --task x.csv", 2, "write csv:x.csv"),
    ("compare fedavg --task x.csv", 2, "write csv:x.csv"),
    ("server --config taskless.toml", 2, "write csv:x.csv"),
    ("client --config client.toml", 2, "write csv:x.csv"),
    ("run fedavg --task digit", 2, "did you mean digits"),
    # methods of one's own
    ("run own_method.py", 2, "write own_method:Mine or own_method:Other or own_method:Further"),
    ("run own_method.py:Mine", 2, "write own_method:Mine or"),
    ("methods own_method.py", 2, "write own_method:Mine or"),
    ("run own_fine.py", 2, "write own_fine:Class; own_fine.py contains no suitable class"),
    ("run gone.py", 2, "write gone:Class, a module and one of its classes; the file gone.py does not exist"),
    ("run own_syntax:Mine", 2, "own_syntax.py:3: SyntaxError: "),
    ("run own_raises:Mine", 2, "own_raises.py:2: KeyError: 'NO_SUCH_KEY_HERE'"),
    ("run own_lacks:Mine", 2, "own_lacks.py:1: ModuleNotFoundError: No module named 'no_such_package_here'"),
    ("run own_exits:Mine", 2, "own_exits.py:4: SystemExit: not today"),
    ("run own_gone:Mine", 2, "run from the folder that contains own_gone.py, or set PYTHONPATH to that folder"),
    ("run own_fine:Trainr", 2, "own_fine.py has no 'Trainr'; did you mean Trainer?"),
    ("run own_fine:Trainer", 2, "is no Method: a method is a class below paceline.Method"),
    # devices
    ("run fedavg --device gpu", 2, "--device: 'gpu' is not a torch device; write cpu, cuda, cuda:N or mps"),
    ("run fedavg --task digits --device meta", 2, "use cpu, cuda"),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [n for n in sys.modules if n.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize(("line", "code", "reported"), LINES, ids=[line for line, _, _ in LINES])
def test_a_mistake_says_what_to_write(call, files, line, code, reported):
    ended = call(*shlex.split(line), code=code)
    plain = ended.stderr if "--json" in line else " ".join(ended.stderr.replace("│", " ").split())
    assert reported in plain
    assert "Traceback" not in ended.stderr
    assert not any(Path("runs").rglob("*"))


def test_a_variable_that_sets_part_of_a_run_is_named(call, files, monkeypatch):
    monkeypatch.setenv("PACELINE_RUN__ROUNDS", "abc")
    monkeypatch.setenv("PACELINE_CA", "elsewhere")
    Path("fine.toml").write_text("[run]\ntask = 'digits'\n")
    reported = call("server", "--config", "fine.toml", code=2).stderr
    assert "fine.toml, table [run] with PACELINE_RUN__ROUNDS: rounds='abc'" in reported


def test_a_name_that_nothing_has_gets_no_advice(call):
    reported = call("run", "fedavg", "--zzz", "1", code=2).stderr
    assert "No such option: --zzz" in reported
    assert "write" not in reported


def test_what_is_told_to_write_is_then_taken(call, files):
    """Follow the advice of one line of each kind: none ends with the code of a malformed line."""
    quick = ("--task", "digits", "--model", "logreg", "--clients", "4", "--cohort", "4", "--rounds", "1", "--quiet")
    for advice in ("-o lr=0.1", "--task-option limit=100", "--fleet stragglers:slow=3", "--participation diurnal:0.9,period=24"):
        call("run", "fedavg", *quick, *advice.split(), code=0)


def test_a_broken_entry_point_is_named(call, tmp_path, monkeypatch):
    distribution(tmp_path / "site", "brokenlab", methods={"mine": "no_such_package_here:Mine"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    for line in (("methods", "mine"), ("run", "mine", "--task", "digits")):
        told = " ".join(call(*line, code=2).stderr.split())
        assert "entry point mine = no_such_package_here:Mine of brokenlab" in told
        assert "fix or uninstall the package" in told
    listed = call("methods")
    assert "entry point mine = no_such_package_here:Mine of brokenlab" in " ".join(listed.stderr.split())
    assert "fedprox" in listed.stdout
    assert [c["name"] for c in json.loads(call("methods", "--json").stdout) if c["name"] == "mine"] == []


def test_a_method_of_our_own_that_cannot_be_imported_is_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "paceline.methods.robust.flag", None)
    told = " ".join(call("run", "flag", "--task", "digits", code=2).stderr.split())
    assert "method 'flag' (paceline.methods.robust.flag:Flag) cannot be imported: " in told
    assert "ModuleNotFoundError: import of paceline.methods.robust.flag halted" in told
    assert "`paceline doctor` checks the installation" in told
