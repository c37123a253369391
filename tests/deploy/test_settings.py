"""Configurations from files and from the environment: what is wrong is named, with the variable that set it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.core.address import Address
from paceline.core.errors import ConfigError
from paceline.deploy.settings import ClientConfig, ServerConfig, load_config


def refused(environment: dict[str, str], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as reported:
        load_config(ServerConfig, path, environment)
    return str(reported.value)


@pytest.mark.parametrize(
    ("variable", "parts"),
    [
        (
            "SERVER__LISTEN__X",
            ["sets 'x' within server.listen", "which is '0.0.0.0:9100', not a table", "set PACELINE_SERVER__LISTEN "],
        ),
        ("SERVER__LISTN", ["unknown key 'server.listn'; did you mean listen"]),
        ("SERVR__LISTEN", ["unknown table 'servr'; did you mean server"]),
        ("SERVER__", ["empty part"]),
        ("__LISTEN", ["empty part"]),
        ("SERVER____LISTEN", ["empty part"]),
        ("SERVER", ["sets the whole table [server]", "PACELINE_SERVER__KEY"]),
        ("SERVER__LEAST", ["server.least = 'x'", "integer"]),
        ("SERVER__ENROL", ["server.enrol = 'x'", "port is missing"]),
        ("WAITING__PHASES__TRAIN", ["waiting.phases.train = 'x'"]),
        ("WAITING__PHASES", ["waiting.phases = 'x'"]),
    ],
)
def test_a_variable_that_is_wrong_is_named(tmp_path: Path, variable: str, parts: list[str]) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[server]\nlisten = "0.0.0.0:9100"\n')
    reported = refused({f"PACELINE_{variable}": "x"}, path)
    for part in (f"PACELINE_{variable}", *parts):
        assert part in reported


def test_two_variables_of_which_one_lies_in_the_other_are_refused_in_any_order() -> None:
    both = {"PACELINE_SERVER__LISTEN__X": "1", "PACELINE_SERVER__LISTEN": "0.0.0.0:1"}
    assert "PACELINE_SERVER__LISTEN__X" in refused(both)
    assert refused(both) == refused(dict(reversed(both.items())))
    options = {"PACELINE_RUN__OPTIONS__LR": "2", "PACELINE_RUN__OPTIONS": "{lr = 1, x = 3}"}
    assert load_config(ServerConfig, None, options).run == {"options": {"lr": 2, "x": 3}}


def test_variables_of_the_other_role_and_of_no_table_are_left_alone() -> None:
    others = {
        "PACELINE_CLIENT__NONE": "1",
        "PACELINE_CA": "x",
        "PACELINE_CACHE": "y",
        "PACELINE_CA_PASSPHRASE": "z",
        "OTHER__X": "1",
    }
    assert load_config(ServerConfig, None, others) == load_config(ServerConfig, None, {})


def test_what_should_be_a_table_in_the_file_and_is_none(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("server = 3\nwaiting = 'x'\n")
    reported = refused({}, path)
    assert "server = 3: this must be a table" in reported
    assert "waiting = 'x': this must be a table" in reported
    assert "PACELINE_SERVER__LISTEN" in refused({"PACELINE_SERVER__LISTEN": "0.0.0.0:1"}, path)


@pytest.mark.parametrize("key", ["listen", "enrol", "renew"])
@pytest.mark.parametrize("value", ["localhost", "localhost:99999", ":1", "::1:9100", "http://a:1"])
def test_every_address_of_a_server_names_field_and_value(key: str, value: str) -> None:
    assert f"server.{key} = {value!r}: " in refused({f"PACELINE_SERVER__{key.upper()}": f'"{value}"'})
    assert f"logging.metrics = {value!r}: " in refused({"PACELINE_LOGGING__METRICS": f'"{value}"'})


def test_addresses_of_configurations() -> None:
    given = {"PACELINE_SERVER__LISTEN": "[::]:0", "PACELINE_SERVER__ENROL": "", "PACELINE_LOGGING__METRICS": "127.0.0.1:9105"}
    made = load_config(ServerConfig, None, given)
    assert (made.server.listen, made.server.enrol, made.logging.metrics) == (Address("::", 0), None, Address("127.0.0.1", 9105))
    with pytest.raises(ConfigError, match=r"PACELINE_CLIENT__SERVER: client.server = 'localhost:0'"):
        load_config(ClientConfig, None, {"PACELINE_CLIENT__SERVER": "localhost:0"})


NAMES = st.sampled_from(
    ["server", "client", "run", "data", "logging", "waiting", "listen", "phases", "x", "", "__init__", "self", "é"]
)
PLACES = st.lists(NAMES, max_size=4).map(lambda parts: "PACELINE_" + "__".join(parts).upper())
TEXTS = st.text(max_size=20) | st.sampled_from(["{x = {y = 1}}", "[" * 5000, "0x" + "f" * 5000, "9" * 5000, "1979-99-99", "nan"])
ENVIRONMENTS = st.dictionaries(PLACES | st.text(max_size=12).map(lambda t: "PACELINE_" + t), TEXTS, max_size=5)
LINES = [
    "[server]",
    "[client]",
    "[run]",
    "[waiting.phases]",
    "server = 3",
    "listen = 1",
    "x.y = 1",
    "a = 0x" + "f" * 5000,
    "x = [[1]]",
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    ENVIRONMENTS, st.binary(max_size=30) | st.lists(st.sampled_from(LINES), max_size=4).map(lambda lines: "\n".join(lines).encode())
)
def test_a_configuration_is_read_or_refused_by_a_config_error(tmp_path: Path, environment: dict[str, str], text: bytes) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(text)
    for kind in (ServerConfig, ClientConfig):
        try:
            load_config(kind, path, environment)
        except ConfigError:
            continue


def test_files_that_are_none(tmp_path: Path) -> None:
    for number, data in enumerate((b"\xff\xfe", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000, b"x = 1979-99-99")):
        path = tmp_path / f"{number}.toml"
        path.write_bytes(data)
        assert str(path) in refused({}, path)
    assert "cannot be read" in refused({}, tmp_path)
    assert "cannot be read" in refused({}, Path("a\0b"))
