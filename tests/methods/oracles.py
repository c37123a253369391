"""What several methods compute, written out once more: a linear classifier and its exploration by numpy, and the discrepancy."""

import numpy as np
import torch


def classifier(run, clients):
    """Return weight and bias of a linear model at the start of a run, and the (inputs, targets) of its clients, as numpy."""
    start, data = run.fed.init_params(), run.task.train
    shards = [run.fed.engine.setup.split(client)[0] for client in range(clients)]
    weight, bias = (start[name].numpy().astype(float) for name in ("weight", "bias"))
    return weight, bias, [(data.x[rows].numpy().astype(float), data.y[rows].numpy()) for rows in shards]


def gradient(w, b, x, y):
    """Return the gradient of the mean cross-entropy of a linear model, by numpy."""
    z = x @ w.T + b
    p = np.exp(z - z.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y), p.mean(0)


def displaced(w, b, x, y, steps, lr):
    """Return the squared displacements of weight and bias after steps of plain gradient descent on the whole data."""
    u, c = w.copy(), b.copy()
    for _ in range(steps):
        gu, gc = gradient(u, c, x, y)
        u, c = u - lr * gu, c - lr * gc
    return (u - w) ** 2, (c - b) ** 2


def gauss(x, y):
    """Return the maximum mean discrepancy, written out."""
    both, n = torch.cat([x, y]), len(x)
    square = (both[:, None] - both[None, :]).pow(2).sum(2)
    width = square.detach().sum() / (4 * n * n - 2 * n) / 4
    kernel = sum(torch.exp(-square / (width * 2**k)) for k in range(5))
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()
