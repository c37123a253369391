"""Prometheus metrics and health endpoints of a server or client: /metrics, /healthz and /readyz.

A process is healthy if it answers. A server is ready with enough clients, a client once it has been welcomed.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from paceline.core.address import Address
from paceline.core.errors import EngineError

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Metrics of one process, in a separate registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.events = Counter("paceline_events", "Stream events by kind.", ["event", "reason"], registry=registry)
        self.clients = Gauge("paceline_clients_ready", "Connected and ready clients.", registry=registry)
        self.round = Gauge("paceline_round", "Last completed round.", registry=registry)
        self.accuracy = Gauge("paceline_accuracy", "Accuracy at the last evaluation.", registry=registry)
        self.score = Gauge("paceline_score", "Primary metric at the last evaluation.", ["metric"], registry=registry)
        self.rounds = Histogram("paceline_round_seconds", "Duration of a round.", buckets=_SECONDS, registry=registry)
        self.phases = Histogram("paceline_phase_seconds", "Duration of a phase.", ["phase"], buckets=_SECONDS, registry=registry)
        self.answers = Counter("paceline_answers", "Replies by outcome.", ["phase", "status"], registry=registry)
        self.work = Histogram("paceline_work_seconds", "Work time of this client per call.", buckets=_SECONDS, registry=registry)
        self.bytes = Counter("paceline_bytes", "Bytes of replies and calls.", ["way"], registry=registry)
        self.ready: Callable[[], bool] = lambda: False
        self._server: WSGIServer | None = None

    def serve(self, address: Address) -> int:
        """Start the HTTP server in a thread; return its port.

        Raises:
            EngineError: the address is in use or not available.
        """
        kind = _Threads6 if ":" in address.host else _Threads
        try:
            self._server = make_server(address.host, address.port, self._page, kind, _Quiet)
        except OSError as error:
            raise EngineError(f"cannot serve metrics on {address}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop the HTTP server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _page(self, environ: dict[str, Any], start: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return make_wsgi_app(self.registry)(environ, start)
        known = {"/healthz": True, "/readyz": self.ready()}.get(path)
        status = "404 Not Found" if known is None else "200 OK" if known else "503 Service Unavailable"
        start(status, [("Content-Type", "text/plain")])
        return [b"ok\n" if known else b"not ready\n" if known is False else b"there are /metrics, /healthz and /readyz\n"]


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect or time out."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Threads6(_Threads):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10.0
    """Seconds after which an idle connection and its thread end."""

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the request log."""
