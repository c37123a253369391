"""Ports that somebody else holds."""

import errno
import os
import socket

import pytest

from paceline.core.errors import EngineError


@pytest.mark.parametrize("port", ["listen", "enrol"])
def test_a_port_that_another_holds_is_named_with_the_systems_reason(loopback, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EngineError) as reported:
            loopback.serve({}, {"ca": loopback.root / "ca", port: taken})
    assert str(reported.value) == f"cannot listen on {taken}: {os.strerror(errno.EADDRINUSE)}"
