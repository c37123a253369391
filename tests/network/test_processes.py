"""The commands themselves: configuration, environment, health pages, logs, SIGTERM, and going on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from paceline.core.errors import ConfigError
from paceline.deploy.server.database import ServerState
from paceline.deploy.settings import ClientConfig, ServerConfig, load_config
from paceline.run import RunConfig, run
from paceline.store import RunFolder
from paceline.store.toml import to_toml

RUN = {"method": "scaffold", "task": "digits", "model": "logreg", "clients": 3, "cohort": 3, "rounds": 40, "aggregation": "secure"}


def test_the_environment_wins_over_the_file(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('[server]\nlisten = "0.0.0.0:1"\nrun = "here"\n[waiting]\nphase = 3\n[run]\nmethod = "fedavg"\n')
    given = {
        "PACELINE_SERVER__LISTEN": "0.0.0.0:2",
        "PACELINE_RUN__ROUNDS": "7",
        "PACELINE_RUN__OPTIONS__LR": "0.5",
        "PACELINE_CA": "x",
    }
    config = load_config(ServerConfig, path, given)
    assert str(config.server.listen) == "0.0.0.0:2"
    assert config.server.run == tmp_path / "here"
    assert config.waiting.phase == 3
    assert config.run == {"method": "fedavg", "rounds": 7, "options": {"lr": 0.5}}


def test_every_fault_of_a_configuration_is_named(tmp_path):
    path = tmp_path / "client.toml"
    path.write_text('[client]\nserver = 3\nfirst = -1\nmots = 3\n[dta]\ntask = "x"\n')
    with pytest.raises(ConfigError) as reported:
        load_config(ClientConfig, path, {})
    for part in ("client.server", "client.first", "'client.mots'; did you mean", "'dta'; did you mean data"):
        assert part in str(reported.value)


def test_configurations_of_the_documentation_are_valid(tmp_path):
    root = Path(__file__).parents[2]
    blocks = re.findall(r"```toml\n(.*?)```", (root / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    texts = [*blocks, *((root / "deploy" / name).read_text() for name in ("server.toml", "client.toml"))]
    kinds = [ServerConfig, ClientConfig, ServerConfig, ClientConfig]
    for number, (kind, text) in enumerate(zip(kinds, texts, strict=True)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        config = load_config(kind, path, {})
        if isinstance(config, ServerConfig):
            assert RunConfig.build(config.run).aggregation == "secure"
        else:
            assert config.client.state.parent.parent in (tmp_path, tmp_path.parent)


def start(role: str, config: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from paceline.cli import main; main()", role, "--config", str(config)]
    return subprocess.Popen(command, stderr=log.open("ab"), stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def page(port: int, path: str) -> tuple[int, str]:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says
        with direct.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def events(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it took too long")
        time.sleep(0.05)


@pytest.mark.slow
def test_server_and_clients_as_commands(keys, tmp_path):
    """SIGTERM ends a server in the middle; started again it goes on, and ends with the bits of a local run."""
    root = tmp_path / "f"
    shutil.copytree(keys, root)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, metrics = one.getsockname()[1], two.getsockname()[1]
    part = {"listen": f"127.0.0.1:{port}", "least": 3, "heartbeat": 1.0}
    (root / "server.toml").write_text(to_toml({"server": part, "run": {**RUN, "on_error": "drop"}, "logging": {"level": "debug"}}))
    (root / "policy.toml").write_text("[cohort]\nleast = 3\n")
    server = start("server", root / "server.toml", root / "server.log", PACELINE_LOGGING__METRICS=f"127.0.0.1:{metrics}")
    clients = []
    for number in range(3):
        mine = {
            "server": f"localhost:{port}",
            "folder": f"client{number}",
            "state": f"state{number}",
            "policy": "policy.toml",
            "most": 1.0,
        }
        mine |= {"private_rounding": False}
        (root / f"c{number}.toml").write_text(to_toml({"client": mine, "data": {"own": False}}))
        clients.append(start("client", root / f"c{number}.toml", root / f"c{number}.log"))
    try:
        wait(
            lambda: (
                (root / "server.log").exists()
                and any(e["event"] == "round" and e["round"] >= 3 for e in events(root / "server.log"))
            )
        )
        assert page(metrics, "/healthz") == (200, "ok\n")
        assert page(metrics, "/readyz")[0] == 200
        assert page(metrics, "/other")[0] == 404
        figures = page(metrics, "/metrics")[1]
        assert "paceline_clients_ready 3.0" in figures
        assert 'paceline_answers_total{phase="secagg.masked/1",status="ok"}' in figures
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        before = len(RunFolder(root / "run").read_metrics())
        assert 3 <= before < 40
        assert "stopped" in [e["event"] for e in events(root / "server.log")]
        assert ServerState(root / "run" / "state.db").runs()[0].status == "stopped"
        time.sleep(0.5)
        clients[1].send_signal(signal.SIGTERM)
        assert clients[1].wait(20) == 0
        clients[1] = start("client", root / "c1.toml", root / "c1.log")
        server = start("server", root / "server.toml", root / "server.log")
        assert server.wait(120) == 0
        assert [c.wait(20) for c in clients] == [0, 0, 0]
    finally:
        for process in (server, *clients):
            process.kill()
            process.wait()
    summary = RunFolder(root / "run").read_summary()
    assert summary["model_sha256"] == run(RunConfig.build({**RUN, "vectorize": "off"})).model_sha256
    assert summary["rounds"] == 40
    state = ServerState(root / "run" / "state.db")
    (row,) = state.runs("done")
    assert state.last_round(row.run) == 40
    steps = ("masked", "consistency", "unmask")  # the first two were part of round 39
    assert {p.phase for p in state.phases(row.run, 40)} == {f"secagg.{step}/1" for step in steps}
    assert set(state.answered(row.run, 40, 0, "secagg.unmask/1")) == {0, 1, 2}
    assert {e["incarnation"] for e in events(root / "server.log") if e["event"] == "listening"} == {1, 2}


@pytest.mark.slow
def test_refused_handshakes_are_logged(keys, tmp_path):
    root = tmp_path / "f"
    shutil.copytree(keys, root)
    run_ = {**RUN, "aggregation": "plain"}
    (root / "server.toml").write_text(to_toml({"server": {"listen": "127.0.0.1:0"}, "run": run_}))
    server = start("server", root / "server.toml", root / "server.log")
    try:
        wait(lambda: (root / "server.log").exists() and any(e["event"] == "listening" for e in events(root / "server.log")))
        port = next(e["port"] for e in events(root / "server.log") if e["event"] == "listening")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port)) as bare, context.wrap_socket(bare) as wrapped:
            wrapped.settimeout(2)
            with contextlib.suppress(OSError):
                assert wrapped.recv(1) == b""
        wait(lambda: any(e["event"] == "refused" and e["reason"] == "handshake" for e in events(root / "server.log")), 10)
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
def test_federate_as_a_command(tmp_path):
    """`paceline federate` takes the options of `run`, reports as it does, and cleans up."""
    common = [
        "--task",
        "digits",
        "--model",
        "logreg",
        "--clients",
        "3",
        "--cohort",
        "3",
        "--rounds",
        "2",
        "--json",
        "--out",
        str(tmp_path),
    ]
    shas = []
    for command in (["federate", "fedavg", "--fault", "delay:client=1,seconds=0.1"], ["run", "fedavg", "--vectorize", "off"]):
        words = [sys.executable, "-c", "from paceline.cli import main; main()", *command, *common]
        ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        shas.append(json.loads(ended.stdout)["model_sha256"])
    assert shas[0] == shas[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fedavg-digits-s0", "federate-fedavg-digits-s0"]
    wrong = subprocess.run(
        [*words[:3], "federate", "--fault", "kil:client=1"], capture_output=True, text=True, check=False, timeout=60
    )
    assert wrong.returncode == 2
    assert "did you mean kill" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "clip"])
def test_the_command_with_ten_clients_ends_with_the_bits_of_run(tmp_path, method):
    """Under TLS and secure aggregation, with the options of `run` as a user types them."""
    common = ["--task", "digits", "--clients", "10", "--cohort", "10", "--rounds", "5", "--aggregation", "secure"]
    common += ["--fleet", "stragglers:share=0.2,slow=3", "--json", "--out", str(tmp_path)]
    reported = []
    for command in (["federate", method], ["run", method, "--vectorize", "off"]):
        words = [sys.executable, "-c", "from paceline.cli import main; main()", *command, *common]
        ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=180)
        reported.append(json.loads(ended.stdout))
    assert reported[0]["model_sha256"] == reported[1]["model_sha256"]
    assert reported[0]["accuracy"] == reported[1]["accuracy"]
    assert reported[0]["rounds"] == 5
