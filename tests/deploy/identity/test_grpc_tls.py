"""The authority's certificates in gRPC, whose TLS is not Python's, and the gate on what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from paceline.core.errors import IdentityError
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import Authority
from paceline.network.tls import through
from tests.deploy.conftest import enrol

Whoami = Callable[[Path | None], str]


@pytest.fixture
def whoami(ca: Authority, tmp_path: Path) -> Iterator[Whoami]:
    """Return a function that asks a server who the client of a folder is."""
    gate = Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem", every=0)
    files = ca.issue_server(["localhost"]).write(tmp_path / "server")

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return gate.member(context.auth_context()["x509_pem_cert"][0]).name.encode()
        except IdentityError as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Who", handlers),))
    pair = ((files / "server.key").read_bytes(), (files / "server.pem").read_bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair], ca.trust.roots, require_client_auth=True))
    server.start()

    def ask(folder: Path | None) -> str:
        mine = (None, None) if folder is None else ((folder / "client.key").read_bytes(), (folder / "client.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca.trust.roots, *mine), through()) as channel:
            return bytes(channel.unary_unary("/Who/Ask")(b"", timeout=5)).decode()

    yield ask
    server.stop(None).wait()


def test_who_is_there(ca: Authority, whoami: Whoami, tmp_path: Path) -> None:
    enrol(ca, "st-mary", tmp_path / "a")
    assert whoami(tmp_path / "a") == "st-mary"
    ca.revoke("st-mary")
    with pytest.raises(grpc.RpcError, match="no longer"):
        whoami(tmp_path / "a")


def test_strangers_do_not_get_through(ca: Authority, whoami: Whoami, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "hospitals")
    enrol(other, "st-mary", tmp_path / "b")
    for folder in (None, tmp_path / "b"):
        with pytest.raises(grpc.RpcError) as caught:
            whoami(folder)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
