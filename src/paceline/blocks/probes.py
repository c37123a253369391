"""Linear probes of features from moments, which are sums over clients: ridge regression of targets on frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.client import Client
from paceline.core.params import Params
from paceline.core.samples import labelled
from paceline.core.update import Update
from paceline.models.split import features

__all__ = ["feature_moments", "ridge"]

_RIDGE, _BATCH = 1e-3, 500


@torch.no_grad()
def feature_moments(client: Client, params: Params, outputs: int) -> Update:
    """Return the means over a client's samples of ``gram`` = z'z, [D + 1, D + 1], and ``cross`` = z'y, [D + 1, outputs].

    Args:
        client: the client.
        params: its model; z are the features in evaluation mode (`paceline.models.split`), with a 1 appended.
        outputs: width of the targets y: one-hot classes, or numbers.
    """
    client.load(params)
    module, count = client.model.module.eval(), max(client.num_samples, 1)
    example = client.train.at(torch.zeros(1, dtype=torch.int64, device=client.train.device))[0]
    width = features(module, example).shape[1] + 1
    gram, cross = torch.zeros(width, width), torch.zeros(width, outputs)
    for x, y in client.train.batches(_BATCH):
        z = F.pad(features(module, x), (0, 1), value=1.0)
        if client.problem.num_classes:
            known = labelled(client.problem, y)
            z, target = z[known], F.one_hot(y[known], outputs).to(z)
        else:
            target = y.to(z).reshape(len(z), outputs)
        gram += (z.T @ z).cpu() / count
        cross += (z.T @ target).cpu() / count
    client.flops += client.model.flops * client.num_samples
    return Update(gram=gram, cross=cross, weight=client.num_samples)


def ridge(gram: Tensor, cross: Tensor, dims: int | None = None) -> tuple[Tensor, Tensor]:
    """Return weight [outputs, D] and bias [outputs] of the regression of targets on features.

    Args:
        gram, cross: moments over all clients.
        dims: use the first features only; the weights of others are 0.
    """
    used = torch.ones(len(gram), dtype=torch.bool)
    used[dims or len(gram) : -1] = False
    kept, fitted = gram.double()[used][:, used], torch.zeros(cross.shape, dtype=torch.float64)
    load = _RIDGE * kept.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
    fitted[used] = torch.linalg.solve(kept + load, cross.double()[used])
    return fitted[:-1].T.float(), fitted[-1].float()
