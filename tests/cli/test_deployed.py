"""`paceline doctor --config`: what the start of a server or client would refuse is found before."""

import json
import socket
from pathlib import Path

import pytest

from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import begin, finish


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An authority, a server's keys and one client, in the current folder."""
    monkeypatch.chdir(tmp_path)
    ca = Authority.create(tmp_path / "ca", "hospitals")
    ca.issue_server(["localhost"]).write(tmp_path / "server")
    token = ca.token("ann")
    ask = begin(tmp_path / "ann", token)
    finish(tmp_path / "ann", token, ca.redeem(ask.token, ask.request, ask.identity, ask.proof))
    Path("x.csv").write_text("a,b,y\n" + "".join(f"{n},{n % 7},{n % 2}\n" for n in range(40)))


def found(call, text, code=0):
    Path("c.toml").write_text(text)
    return {f["what"]: f for f in json.loads(call("doctor", "--json", "--config", "c.toml", code=code).stdout)["findings"]}


SERVER = '[server]\nlisten = "127.0.0.1:0"\nca = "ca"\nexpected = ["ann"]\nrun = "runs/first"\n[run]\nmethod = "fedavg"\ntask = "digits"\n'
CLIENT = '[client]\nserver = "127.0.0.1:{port}"\nfolder = "ann"\nstate = "ann/state"\n[data]\ntask = "csv:x.csv?target=y"\n'


def test_a_server_that_would_start(call, site):
    seen = found(call, SERVER)
    assert [seen[what]["state"] for what in ("run", "keys of the server", "clients", "folder of the run")] == ["ok"] * 4
    assert seen["authority"]["state"] == "warning"
    assert "1 clients in the directory" in seen["clients"]["found"]
    assert sorted(f.name for f in Path("server").iterdir()) == ["server.key", "server.pem", "trust.pem"]  # nothing is written
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "what", "reported"),
    [
        ('"ann"]', '"zoe"]', "clients", "'zoe' is neither in the directory nor invited"),
        ('"fedavg"', '"fedavgg"', "run", "did you mean fedavg"),
        ('"digits"', '"digitz"', "run", "did you mean digits"),
        ('"digits"', '"digits"\nlr = 3', "run", "write it in the table [options]"),
        ('"digits"', '"digits"\n[run.options]\nmu = 3', "run", "unknown FedAvg field 'mu'"),
        ('ca = "ca"', 'folder = "gone"', "keys of the server", "gone/trust.pem does not exist"),
    ],
)
def test_what_a_server_would_refuse(call, site, old, new, what, reported):
    seen = found(call, SERVER.replace(old, new), code=1)
    assert seen[what]["state"] == "missing"
    assert reported in seen[what]["found"].replace(str(Path.cwd()) + "/", "")


def test_a_port_that_somebody_holds(call, site):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        seen = found(call, SERVER.replace("127.0.0.1:0", address))
    assert seen["port of server.listen"]["state"] == "warning"
    assert address in seen["port of server.listen"]["found"]


def test_a_client_that_would_start(call, site):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        seen = found(call, CLIENT.format(port=server.getsockname()[1]))
    assert [seen[what]["state"] for what in ("keys of the client", "policy", "data", "state of the client", "server")] == ["ok"] * 5
    assert "of shape (2,)" in seen["data"]["found"]
    assert "authority" not in seen


@pytest.mark.parametrize(
    ("old", "new", "what", "reported"),
    [
        ("csv:x.csv", "csv:gone.csv", "data", "gone.csv does not exist"),
        ("csv:x.csv?target=y", "x.csv", "data", "write csv:x.csv"),
        ('folder = "ann"', 'folder = "bob"', "keys of the client", "bob/trust.pem does not exist"),
        ("[data]", 'policy = "p.toml"\n[data]', "policy", "unknown key 'secure_aggregation.gama'"),
    ],
)
def test_what_a_client_would_refuse(call, site, old, new, what, reported):
    Path("p.toml").write_text("[secure_aggregation]\ngama = 0.4\n")
    seen = found(call, CLIENT.format(port=9).replace(old, new), code=1)
    assert seen[what]["state"] == "missing"
    assert reported in seen[what]["found"]
    assert seen["server"]["state"] == "warning"
