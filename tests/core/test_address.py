"""One way to write host and port, whoever asks for them."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.address import Address, proxy_url
from paceline.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:9100", "localhost", 9100),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:9100", "fe80::1%eth0", 9100),
        ("fed_1.example.org.:9100", "fed_1.example.org.", 9100),
        ("unix:9100", "unix", 9100),
    ],
)
def test_addresses_are_read_and_written_again(text, host, port):
    found = Address.parse(text)
    assert (found.host, found.port) == (host, port)
    assert str(found) == text
    assert found.target == f"dns:///{text}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("localhost", "the port is missing"),
        ("", "the port is missing"),
        ("[::1]", "the port is missing"),
        (":9100", "the host is missing"),
        ("localhost:", "not a valid port"),
        ("localhost:99999", "not a valid port"),
        ("localhost:-1", "not a valid port"),
        ("localhost:0", "number from 1 to 65535"),
        ("localhost:http", "not a valid port"),
        ("localhost:٣", "not a valid port"),
        ("localhost: 9100", "not a valid port"),
        ("::1:9100", "in brackets"),
        ("fe80::1", "in brackets"),
        ("[::1:9100", "closing bracket"),
        ("[localhost]:9100", "not a valid IPv6 address"),
        ("[]:9100", "not a valid IPv6 address"),
        ("300.1.1.1:9100", "neither a DNS name nor an IP address"),
        ("a b:9100", "neither"),
        ("a/b:9100", "neither"),
        ("-a:9100", "neither"),
        ("http://a:9100", "URL"),
        (9100, "expected text"),
        (None, "expected text"),
    ],
)
def test_what_is_none_is_refused_with_field_and_value(text, why):
    with pytest.raises(ConfigError, match=why) as reported:
        Address.parse(text, "server.listen")
    assert str(reported.value).startswith(f"server.listen = {text!r}: ")


def test_port_0_is_for_those_who_listen():
    assert Address.parse("[::]:0", listen=True) == Address("::", 0)
    assert Address.parse(Address("0.0.0.0", 0), listen=True).port == 0
    with pytest.raises(ConfigError, match=r"a\.b:0"):
        Address.parse(Address("a.b", 0))


@given(st.text(alphabet=st.sampled_from("abc:[].0129%/@- \0é"), max_size=14) | st.text(max_size=20))
def test_any_text_is_an_address_or_a_named_error(text):
    try:
        found = Address.parse(text, "field")
    except ConfigError:
        return
    else:
        assert Address.parse(str(found)) == found
        assert 0 < found.port < 65536


def test_proxies():
    assert proxy_url("") == ""
    assert proxy_url("environment") == "environment"
    assert proxy_url("http://proxy:3128/") == "http://proxy:3128"
    assert proxy_url("http://me:p%40ss@[::1]:3128") == "http://me:p%40ss@[::1]:3128"
    bads = (
        "proxy:3128",
        "https://proxy:3128",
        "http://proxy",
        "http://[::1:3128",
        "http://proxy:3128/path",
        "http://me:se cret@p:1",
        3,
    )
    for bad in bads:
        with pytest.raises(ConfigError, match=r"client\.proxy") as reported:
            proxy_url(bad, "client.proxy")
        assert "cret" not in str(reported.value)


@given(st.text(max_size=30) | st.text(alphabet="htp:/@[]1a%", max_size=16).map(lambda t: f"http://{t}"))
def test_any_text_is_a_proxy_or_a_named_error(text):
    try:
        found = proxy_url(text)
    except ConfigError:
        return
    assert proxy_url(found) == found


def test_a_port_that_somebody_holds_is_told_apart_from_a_free_one():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        held = Address("127.0.0.1", other.getsockname()[1])
        assert held.taken() == os.strerror(errno.EADDRINUSE)
    assert held.taken() == ""
    assert Address("127.0.0.1", 0).taken() == ""
