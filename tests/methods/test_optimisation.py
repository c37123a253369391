"""The optimisation methods against numpy: full-batch linear regression, where every gradient is known."""

import inspect
import io
import tokenize

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.random import numpy_rng
from paceline.methods.optimisation import fedopt, fedprox, scaffold
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

CLIENTS, SAMPLES, FEATURES, LR, EPOCHS = 4, 6, 3, 0.05, 3


def half_square(out, y):
    return 0.5 * ((out - y) ** 2).mean(0).sum()


@pytest.fixture
def regression():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(CLIENTS * SAMPLES, FEATURES)).astype(np.float32)
    y = (x @ rng.normal(size=(FEATURES, 1)) + 0.3 * rng.normal(size=(len(x), 1))).astype(np.float32)
    data = Arrays(torch.from_numpy(x), torch.from_numpy(y))
    return Task("regression", data, data, lambda: nn.Linear(FEATURES, 1, bias=False), 1, loss=half_square, lr=LR, batch_size=100)


def run_rounds(task, method, rounds, cohort=CLIENTS, **options):
    values = {"method": method, "task": "regression", "clients": CLIENTS, "cohort": cohort, "rounds": rounds}
    config = RunConfig.build(values | {"options": {"epochs": EPOCHS, **options}})
    prepared = prepare(config, task=task)
    state = prepared.method.init(prepared.fed)
    cohorts = []
    for number in range(1, rounds + 1):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        prepared.fed.engine.commit()
        cohorts.append(sorted(prepared.fed.last.arrived))
    split = prepared.fed.engine.setup.split
    clients = []
    for client in range(CLIENTS):
        rows = split(client)[0].numpy()
        clients.append((task.train.x.numpy()[rows].astype(np.float64), task.train.y.numpy()[rows].astype(np.float64)))
    start = prepared.fed.init_params().vector.numpy().astype(np.float64)
    return state, clients, start, cohorts


def gradient(w, x, y):
    return x.T @ (x @ w - y[:, 0]) / len(x)


def oracle(clients, start, cohorts, correct=lambda grad, w, anchor, u, s: grad, server=None):
    """Federated averaging with a hook on the gradient; `s` is the method's state."""
    w, state = start.copy(), {}
    for cohort in cohorts:
        deltas, sizes = [], []
        for u in cohort:
            x, y = clients[u]
            local = w.copy()
            for _ in range(EPOCHS):
                local = local - LR * correct(gradient(local, x, y), local, w, u, state)
            deltas.append(local - w)
            sizes.append(len(x))
            if server is None and "after" in state:
                state["after"](u, w, local)
        mean = np.average(deltas, axis=0, weights=sizes)
        w = w + mean if server is None else server(w, mean, state)
    return w


def test_fedavg(regression):
    state, clients, start, cohorts = run_rounds(regression, "fedavg", 4, cohort=2)
    np.testing.assert_allclose(state.params.vector.numpy(), oracle(clients, start, cohorts), atol=2e-6)


def test_fedprox(regression):
    state, clients, start, cohorts = run_rounds(regression, "fedprox", 4, mu=0.7)
    expected = oracle(clients, start, cohorts, lambda grad, w, anchor, u, s: grad + 0.7 * (w - anchor))
    np.testing.assert_allclose(state.params.vector.numpy(), expected, atol=2e-6)
    assert np.abs(expected - oracle(clients, start, cohorts)).max() > 1e-4


def test_scaffold_averages_controls_over_the_population(regression):
    state, clients, start, cohorts = run_rounds(regression, "scaffold", 5, cohort=2)
    w, c, own = start.copy(), np.zeros_like(start), [np.zeros_like(start) for _ in range(CLIENTS)]
    for cohort in cohorts:
        deltas, changes = [], []
        for u in cohort:
            x, y = clients[u]
            local = w.copy()
            for _ in range(EPOCHS):
                local = local - LR * (gradient(local, x, y) - own[u] + c)
            new = own[u] - c + (w - local) / (EPOCHS * LR)
            deltas.append(local - w)
            changes.append(new - own[u])
            own[u] = new
        w = w + np.mean(deltas, axis=0)
        c = c + len(cohort) / CLIENTS * np.mean(changes, axis=0)
    np.testing.assert_allclose(state.params.vector.numpy(), w, atol=5e-6)
    np.testing.assert_allclose(state.control.vector.numpy(), c, atol=5e-5)


@pytest.mark.parametrize(
    ("optimizer", "b1", "options"),
    [
        ("adam", 0.9, {}),
        ("yogi", 0.9, {}),
        ("adagrad", 0.0, {}),  # as in the paper: without momentum
        ("adagrad", 0.9, {"beta1": 0.9}),
        ("momentum", 0.9, {}),
    ],
)
def test_fedopt(regression, optimizer, b1, options):
    eta, b2, tau = 0.03, 0.99, 1e-3
    state, clients, start, cohorts = run_rounds(regression, "fedopt", 4, optimizer=optimizer, server_lr=eta, **options)

    def server(w, d, s):
        m, v = s.get("m", np.zeros_like(w)), s.get("v", np.full_like(w, tau**2))
        if optimizer == "momentum":
            s["m"] = b1 * m + d
            return w + eta * s["m"]
        s["m"] = b1 * m + (1 - b1) * d
        s["v"] = {
            "adam": b2 * v + (1 - b2) * d**2,
            "yogi": v - (1 - b2) * d**2 * np.sign(v - d**2),
            "adagrad": v + d**2,
        }[optimizer]
        return w + eta * s["m"] / (np.sqrt(s["v"]) + tau)

    np.testing.assert_allclose(state.params.vector.numpy(), oracle(clients, start, cohorts, server=server), atol=1e-5)


def code_lines(module) -> int:
    """Count lines of code beyond imports, docstrings, comments and blank lines."""
    lines, docs = set(), set()
    previous = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(module)).readline):
        span = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.STRING and previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.NL, tokenize.DEDENT):
            docs.update(span)
        elif token.type not in (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        ):
            lines.update(span)
        if token.type != tokenize.COMMENT:
            previous = token.type
    source = inspect.getsource(module).splitlines()
    return sum(1 for n in lines - docs if not source[n - 1].startswith(("import ", "from ")))


def test_methods_stay_small():
    assert code_lines(fedprox) <= 10
    assert code_lines(scaffold) <= 25
    assert code_lines(fedopt) <= 40


def test_cohorts_are_drawn_without_replacement_and_differ():
    draws = [tuple(numpy_rng(0, "cohort", r, 0, 0).permutation(10)[:4]) for r in range(20)]
    assert len(set(draws)) > 15
