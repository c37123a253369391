"""What a server or a client writes to stderr: lines of the journal and nothing else."""

import json
import logging
import sys
import warnings
from types import SimpleNamespace

import pytest

from paceline.deploy import processes
from paceline.deploy.logs import Journal, logged_warnings
from paceline.deploy.settings import ClientConfig, ServerConfig
from paceline.runner import RoundWarning


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_warning_is_a_line_of_the_journal(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always", RoundWarning)
        before = warnings.showwarning
        with logged_warnings(Journal("server")):
            warnings.warn("round 3 is tried again", RoundWarning, stacklevel=1)
        assert warnings.showwarning is before
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["kind"], line["why"]) == (
        "warning",
        "warning",
        "RoundWarning",
        "round 3 is tried again",
    )


class Talks:
    """A server, or a client, that warns of something."""

    number = 0

    def __init__(self, *parts, **more):
        warnings.warn("something is odd", RoundWarning, stacklevel=1)
        self.runner = self

    def go(self):
        warnings.warn("something is odd", RoundWarning, stacklevel=1)
        return SimpleNamespace(as_dict=dict)

    def stop(self):
        """Do nothing."""


async def nothing(node):
    return "done"


@pytest.mark.parametrize("role", ["server", "client"])
def test_processes_write_their_warnings_as_lines(role, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(processes, "FederationServer", Talks)
    monkeypatch.setattr(processes, "make_node", Talks)
    monkeypatch.setattr(processes, "participate", nothing)
    monkeypatch.setattr(processes, "on_stop", lambda act: None)
    with warnings.catch_warnings():
        warnings.simplefilter("always", RoundWarning)
        if role == "server":
            processes.run_server(ServerConfig.model_validate({"server": {"run": tmp_path}}))
        else:
            processes.run_client(ClientConfig())
    sys.stderr.flush()
    reported = lines(capfd)
    assert [line["why"] for line in reported if line["event"] == "warning"] == ["something is odd"] * (2 if role == "server" else 1)


def test_a_record_of_the_package_is_a_line_of_the_journal(capsys):
    package = logging.getLogger("paceline")
    with logged_warnings(Journal("server")):
        logging.getLogger("paceline.some.module").info("round %d is long", 3)
        logging.getLogger("paceline.some.module").debug("round 4 is short")
        logging.getLogger("another").info("of another package")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["kind"], line["why"]) == ("note", "info", "module", "round 3 is long")
    assert not package.handlers
    assert package.level == logging.NOTSET
