"""What the network costs: rounds without work, a large model, and the server's memory against the number of clients.

Server and clients are separate processes on this machine and talk over mutual TLS. Clients of one process
share a loop and a worker, and do no work: they answer with what they were sent.

    python benchmarks/federation.py [empty] [latency] [model] [memory] [clip] [links]

- ``empty``: seconds of a round of 10 clients with a model of 100 numbers (bars: 50 ms plain, 250 ms secure).
- ``latency``: empty secure rounds with 50 ms of latency each way, in round trips (bar: 3.5).
- ``model``: 7 MB to each client and back, against the same bytes over bare TLS sockets (bar: 3 times).
- ``memory``: the server's peak memory with 10 to 200 clients and a model of 7 MB (bar: flat).
- ``clip``: wall time of measured rounds, FedAvg against CLIP, with two of eight clients held back.
- ``links``: the same for secure rounds with two of eight clients on links of 1.5 Mbit/s, CLIP with parts of the model (bar: 0.6).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import shutil
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from paceline.aggregation import load_aggregation
from paceline.core.address import Address
from paceline.core.allocator import keep_freed
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.layout import Layout
from paceline.core.method import Method, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.tasks import Arrays, Task

CONTEXT = multiprocessing.get_context("fork")
SECURE = {"gamma": 0.0}


@dataclass(frozen=True)
class Echo(Method):
    """Sends the model out and gets it back."""

    family: ClassVar[str] = "benchmark"

    def round(self, fed: Federation, state: Any) -> Any:
        return fed.mean(self.train, state, over=range(fed.num_clients)).delta

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        return Update(delta=message, weight=1)


class Numbers(nn.Module):
    """A model of `size` numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight[:2].reshape(1, 2)


def make_task(size: int) -> Task:
    data = Arrays(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    return Task("numbers", data, data, lambda: Numbers(size), 2)


def keys(clients: int) -> Path:
    from paceline.deploy.identity.authority import Authority

    root = Path(tempfile.mkdtemp(prefix="paceline-bench-"))
    ca = Authority.create(root / "ca", "bench")
    ca.issue_server(["localhost", "127.0.0.1"]).write(root / "server")
    issued = [ca.issue_client(f"client{n}") for n in range(clients)]
    for number, one in enumerate(issued):
        one.write(root / f"client{number}")
        shutil.copy(root / "ca" / "directory", root / f"client{number}" / "directory")
    for name in ("directory", "crl.pem"):
        shutil.copy(root / "ca" / name, root / "server" / name)
    return root


# -- the server's process ------------------------------------------------------------------------
def serve(pipe: Connection, root: Path, clients: int, size: int, aggregation: str, rounds: int) -> None:
    """Carry out rounds; send (seconds of each, peak memory before and after, in MiB)."""
    from paceline.aggregation.secure.program import SecureAggregation, secure_config
    from paceline.deploy.identity.admission import Gate
    from paceline.deploy.identity.keys import PinnedDirectory
    from paceline.deploy.identity.trust import Trust
    from paceline.devices import VirtualClock, load_fleet
    from paceline.engines.setup import Setup
    from paceline.engines.worker import Worker
    from paceline.network import Credentials, GrpcEngine, Hub, LoopThread, Progress, Server

    torch.set_num_threads(1)
    keep_freed()
    folder, task = root / "server", make_task(size)
    trust = Trust.load(folder / "trust.pem")
    directory = PinnedDirectory(folder / "directory", trust)
    hub = Hub(Gate(trust, folder / "directory", folder / "crl.pem"), Progress("bench", 1), {"secure": SECURE})
    loop = LoopThread()
    server = Server(hub, Credentials.read(folder / "server.key", folder / "server.pem", trust.roots), Address("127.0.0.1", 0))
    pipe.send(loop.wait(server.start()))
    module = task.build(0)
    state = Params.of(module, Layout.of(module, None, "average"))
    none, fleet = torch.arange(0), load_fleet("homogeneous", clients, 0)
    engine = GrpcEngine(hub, loop, Worker(Setup({"method": Echo()}, task, lambda _: (none, none), clients, fleet, 0)), clients)
    how = (
        SecureAggregation(secure_config(SECURE), directory)
        if aggregation == "secure"
        else load_aggregation(aggregation, {}, 2.0**20)
    )
    fed = Federation(engine, how, fleet, VirtualClock(), cohort=clients, on_error="drop", quorum=clients)
    engine.wait_ready(clients, 300)
    before, seconds = peak(), []
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        fed.start_round(number)
        state = Echo().round(fed, state)
        engine.commit()
        seconds.append(time.perf_counter() - started)
    pipe.send((seconds, before, peak()))
    loop.wait(server.stop("the end", True))
    loop.stop()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- the clients' processes ----------------------------------------------------------------------
def participate(root: Path, port: int, numbers: range, clients: int, size: int, secure: bool) -> None:
    torch.set_num_threads(1)
    keep_freed()
    asyncio.run(_take_part(root, port, numbers, clients, size, secure))


async def _take_part(root: Path, port: int, numbers: range, clients: int, size: int, secure: bool) -> None:
    from paceline.aggregation.secure.client_functions import SecAggClient
    from paceline.aggregation.secure.client_openings import Openings
    from paceline.deploy.identity.keys import PinnedDirectory
    from paceline.devices import load_fleet
    from paceline.engines.setup import Setup
    from paceline.engines.worker import Worker
    from paceline.network import Credentials, Node, NodeSettings, Runner, Welcome

    task, fleet, pool = make_task(size), load_fleet("homogeneous", clients, 0), ThreadPoolExecutor(1)
    shared: list[Worker] = []

    def work_of(directory: PinnedDirectory, book: Openings) -> Any:
        def work(_: Welcome) -> Worker:
            if shared and not secure:
                return shared[0]
            programs = {"method": Echo(), "secagg": SecAggClient(directory, openings=book)}
            none = torch.arange(0)
            shared.append(Worker(Setup(programs, task, lambda _: (none, none), clients, fleet, 0)))
            return shared[-1]

        return work

    nodes = []
    for number in numbers:
        folder = root / f"client{number}"
        directory = PinnedDirectory.of(folder)
        book = Openings(folder / "openings.db", 3, 24, durable=False)
        runner = Runner(number, folder / "state", work_of(directory, book), durable=False)
        credentials = Credentials.read(folder / "client.key", folder / "client.pem", directory.trust.roots)
        nodes.append(Node(NodeSettings(Address("localhost", port), name="localhost"), credentials, runner, pool=pool))
    await asyncio.gather(*(node.run() for node in nodes))


def relay(pipe: Connection, port: int, delay: float) -> None:
    """Pass connections on to a port, every byte `delay` seconds later; send the own port."""
    asyncio.run(_relay(pipe, port, delay))


async def _relay(pipe: Connection, port: int, delay: float) -> None:
    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.close)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(later(reader, back), later(there, writer), return_exceptions=True)

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def federation(
    clients: int, size: int, aggregation: str, rounds: int, processes: int = 1, delay: float = 0.0
) -> tuple[list[float], float, float]:
    """Run a federation; return seconds of its rounds and the server's peak memory before and after, in MiB.

    Args:
        clients: how many; their nodes share `processes` processes.
        size: numbers in the model.
        aggregation: `plain` or `secure`.
        rounds: how many.
        processes: of the clients.
        delay: seconds by which the link delays every byte in each direction.
    """
    root = keys(clients)
    here, there = CONTEXT.Pipe()
    parties = [CONTEXT.Process(target=serve, args=(there, root, clients, size, aggregation, rounds))]
    parties[0].start()
    try:
        port = here.recv()
        if delay:
            ours, theirs = CONTEXT.Pipe()
            parties.append(CONTEXT.Process(target=relay, args=(theirs, port, delay), daemon=True))
            parties[-1].start()
            port = ours.recv()
        share = -(-clients // processes)
        for first in range(0, clients, share):
            numbers = range(first, min(first + share, clients))
            parties.append(CONTEXT.Process(target=participate, args=(root, port, numbers, clients, size, aggregation == "secure")))
            parties[-1].start()
        while not here.poll(0.2):
            if not parties[0].is_alive():
                raise SystemExit("the server's process died")
        told: tuple[list[float], float, float] = here.recv()
        for party in parties:
            if not party.daemon:
                party.join(10)
        return told
    finally:
        for party in parties:
            party.kill()
        shutil.rmtree(root)


# -- bare sockets --------------------------------------------------------------------------------
def bare(root: Path, pipe: Connection, size: int, rounds: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(root / "server" / "server.pem", root / "server" / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        plain, _ = listening.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) as stream:
            data, seconds = bytes(size), []
            for _ in range(rounds):
                started = time.perf_counter()
                stream.sendall(data)
                receive(stream, size)
                seconds.append(time.perf_counter() - started)
    pipe.send(seconds)


def receive(stream: ssl.SSLSocket, size: int) -> None:
    view = memoryview(bytearray(1 << 20))
    while size:
        size -= stream.recv_into(view, min(size, len(view)))


def bare_seconds(size: int, rounds: int) -> list[float]:
    """Return the seconds that `size` bytes take to a client and back over a bare TLS socket."""
    root = keys(0)
    here, there = CONTEXT.Pipe()
    party = CONTEXT.Process(target=bare, args=(root, there, size, rounds))
    party.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    data = bytes(size)
    plain = socket.create_connection(("127.0.0.1", here.recv()))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain) as stream:
        for _ in range(rounds):
            receive(stream, size)
            stream.sendall(data)
    seconds: list[float] = here.recv()
    party.join()
    shutil.rmtree(root)
    return seconds


# -- what is printed -----------------------------------------------------------------------------
def empty(rounds: int) -> None:
    print(f"\nempty rounds: 10 clients, a model of 100 numbers, {rounds} rounds, in ms")
    for aggregation, bar in (("plain", 50), ("secure", 250)):
        seconds = [1000 * s for s in federation(10, 100, aggregation, rounds + 3)[0][3:]]
        low, high = min(seconds), statistics.quantiles(seconds, n=10)[-1]
        print(
            f"{aggregation:8} median {statistics.median(seconds):7.1f}   least {low:7.1f}   90 % below {high:7.1f}   (bar: {bar})"
        )


def latency(rounds: int, delay: float = 0.05) -> None:
    print(f"\nempty secure rounds: 10 clients, {1000 * delay:.0f} ms of latency each way, {rounds} rounds, in round trips")
    trips = sorted(s / (2 * delay) for s in federation(10, 100, "secure", rounds + 3, processes=2, delay=delay)[0][3:])
    print(f"median {statistics.median(trips):5.2f}   least {trips[0]:5.2f}   most {trips[-1]:5.2f}   (bar: 3.5)")


def model(rounds: int) -> None:
    size = 7_000_000
    print(f"\na model of {size / 1e6:.0f} MB to each client and back, median of {rounds} rounds")
    for clients in (1, 10):
        raw = statistics.median(bare_seconds(size, rounds + 2)[2:])
        print(f"bare TLS sockets, 1 client   {raw:.3f} s")
        seconds = statistics.median(federation(clients, size // 4, "plain", rounds + 2)[0][2:])
        print(f"paceline, {clients:2} client(s)      {seconds:.3f} s   {seconds / clients / raw:.2f} times the bare bytes (bar: 3)")


def memory() -> None:
    print("\nthe server's peak memory, a model of 7 MB, 3 rounds")
    print("clients   before MiB   after MiB   more")
    for clients in (10, 50, 100, 200):
        _, before, after = federation(clients, 1_750_000, "plain", 3, processes=2)
        print(f"{clients:7}   {before:10.0f}   {after:9.0f}   {after - before:4.0f}", flush=True)


def measured(method: str, rounds: int, faults: Sequence[str], **changes: Any) -> list[dict[str, Any]]:
    """Return the records of a measured run of 8 clients, each in a process of its own."""
    from paceline.deploy.loopback import federate
    from paceline.run import RunConfig

    common = {"task": "mnist-5k", "model": "cnn", "clients": 8, "cohort": 8, "measured": True, "engine": "grpc"}
    options = {"epochs": 1, **changes.pop("options", {})}
    config = RunConfig.build({"method": method, "rounds": rounds, "options": options, **common, **changes})
    with tempfile.TemporaryDirectory() as folder:
        return federate(config, Path(folder) / "run", faults=faults).history


def clip(rounds: int) -> None:
    rounds //= 2  # these are long
    print(f"\nmeasured rounds of 8 clients, numbers 6 and 7 held to a quarter of the speed, {rounds} rounds, wall time")
    faults = [f"slow:client={c},factor=4,phase=train" for c in (6, 7)]
    for method, options in (("fedavg", {}), ("clip", {"straggler_share": 0.25})):
        history = measured(method, rounds, faults, options=options)
        seconds = [r["round_seconds"] for r in history[4:]]
        print(f"{method:8} median round {statistics.median(seconds):6.2f} s   accuracy {history[-1]['accuracy']:.3f}", flush=True)


def links(rounds: int) -> None:
    rounds //= 2
    print(f"\nmeasured secure rounds of 8 clients, numbers 6 and 7 on links of 1.5 Mbit/s, {rounds} rounds, wall time")
    faults = [f"bandwidth:client={c},rate=187500" for c in (6, 7)]
    parts = {"straggler_share": 0.25, "segmented": True, "warmup": 1}
    for method, options, count, first in (("fedavg", {}, rounds // 2, 1), ("clip", parts, rounds, 4)):  # tiers change in round 4
        history = measured(method, count, faults, options=options, aggregation="secure")
        median = {k: statistics.median(r[k] for r in history[first:]) for k in ("round_seconds", "bytes_up", "bytes_down")}
        # three of the eight clients have a part of the model: the two slow ones, and one that fills their tier
        part = {way: 1 - 8 / 3 * (1 - median[f"bytes_{way}"] / history[0][f"bytes_{way}"]) for way in ("up", "down")}
        shares = (
            "" if method == "fedavg" else "   bytes of a client with a part: " + ", ".join(f"{p:.1%} {w}" for w, p in part.items())
        )
        print(f"{method:8} median round {median['round_seconds']:6.2f} s{shares}", flush=True)
        print("         seconds of each:", *(f"{r['round_seconds']:.1f}" for r in history), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["empty", "latency", "model", "memory", "clip", "links"])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    for part in args.parts:
        {"empty": empty, "latency": latency, "model": model, "clip": clip, "links": links}[part](
            args.rounds
        ) if part != "memory" else memory()


if __name__ == "__main__":
    main()
