"""What can be written by hand for one model: the limits that Paceline is compared with.

All forms train the clients of a cohort from one model on the same batches, and average. Data are on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from gpu_study.workloads import Workload
from paceline.tasks import Task

__all__ = ["FORMS", "Loop", "Stacked"]

FORMS = ("vmap", "vmap + graph", "baddbmm", "baddbmm + graph", "baddbmm + compile + graph")
"""Forms of `Stacked`."""


class Loop:
    """A plain loop: one client after the other, one model."""

    def __init__(self, work: Workload, task: Task, device: str, precision: str) -> None:
        self.work, self.device, self.mixed = work, device, precision == "bf16"
        self.model = task.build(0).to(device).train()
        self.x, self.y = task.train.x.to(device), task.train.y.to(device)
        self.parameters = [p.detach().clone() for p in self.model.parameters()]

    def round(self) -> None:
        """Train a cohort and average."""
        work, total = self.work, [torch.zeros_like(p) for p in self.parameters]
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        for client in torch.randperm(work.clients)[: work.cohort].tolist():
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), self.parameters)
            order = torch.randperm(work.samples).to(self.device) + client * work.samples
            for rows in order.split(work.batch):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.mixed):
                    out = self.model(self.x.index_select(0, rows))
                F.cross_entropy(out.float(), self.y.index_select(0, rows)).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, list(self.model.parameters()))
        self.parameters = list(torch._foreach_div(total, work.cohort))


class Stacked:
    """All clients of a cohort as one computation.

    Args:
        work, task: the workload `CIFAR`, whose network the form ``baddbmm`` spells out.
        device: where to compute.
        precision: float32, tf32 (set by the caller) or bf16.
        form: one of `FORMS`.
    """

    def __init__(self, work: Workload, task: Task, device: str, precision: str, form: str) -> None:
        self.work, self.device, self.mixed, self.form = work, torch.device(device), precision == "bf16", form
        self.model = task.build(0).to(device).train()
        self.x, self.y = task.train.x.to(device), task.train.y.to(device)
        if "baddbmm" in form:
            self.x = self.x.permute(0, 2, 3, 1).contiguous()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.start = [p.detach().clone() for p in self.model.parameters()]
        self.at = [p.expand(work.cohort, *p.shape).clone().requires_grad_() for p in self.start]
        self.rows = torch.zeros(work.steps, work.cohort, work.batch, dtype=torch.int64, device=device)
        self.losses: Callable[..., Tensor] = self._vmap if form.startswith("vmap") else self._baddbmm
        if "compile" in form:
            self.losses = torch.compile(self.losses)
        self._replay: Any = None
        if "graph" in form:
            self._capture()

    def round(self) -> None:
        """Train a cohort and average."""
        work = self.work
        clients = torch.randperm(work.clients)[: work.cohort, None] * work.samples
        order = torch.stack([torch.randperm(work.samples) for _ in range(work.cohort)]) + clients
        rows = order.view(work.cohort, work.steps, work.batch).transpose(0, 1).contiguous()
        self.rows.copy_(rows.pin_memory() if self.device.type == "cuda" else rows, non_blocking=True)
        if self._replay is None:
            self._local()
        else:
            self._replay.replay()

    def _local(self) -> None:
        with torch.no_grad():
            for at, start in zip(self.at, self.start, strict=True):
                at.copy_(start.expand_as(at))
        for rows in self.rows:
            x = self.x.index_select(0, rows.reshape(-1)).view(*rows.shape, *self.x.shape[1:])
            y = self.y.index_select(0, rows.reshape(-1))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                out = self.losses(self.at, x)
            loss = F.cross_entropy(out.float().flatten(0, 1), y, reduction="none").view(rows.shape).mean(1).sum()
            gradients = torch.autograd.grad(loss, self.at)
            with torch.no_grad():
                torch._foreach_add_(self.at, gradients, alpha=-0.05)
        with torch.no_grad():
            for start, at in zip(self.start, self.at, strict=True):
                start.copy_(at.mean(0))

    def _capture(self) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._local()
        torch.cuda.current_stream().wait_stream(side)
        self._replay = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._replay):
            self._local()

    def _vmap(self, at: list[Tensor], x: Tensor) -> Tensor:
        def one(tensors: list[Tensor], x: Tensor) -> Any:
            return functional_call(self.model, dict(zip(self.names, tensors, strict=True)), (x,))

        out: Tensor = vmap(one)(at, x)
        return out

    def _baddbmm(self, at: list[Tensor], x: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3, w4, b4 = at
        h = _shifted(_shifted(x, w1, b1).relu(), w2, b2).relu()
        clients, batch, side, _, channels = h.shape
        h = h.view(clients, batch, side // 2, 2, side // 2, 2, channels).amax((3, 5))
        h = h.permute(0, 1, 4, 2, 3).reshape(clients, batch, -1)
        h = torch.baddbmm(b3[:, None], h, w3.transpose(1, 2)).relu()
        return torch.baddbmm(b4[:, None], h, w4.transpose(1, 2))


def _shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a 3 x 3 convolution of each client: shifted views beside each other, and one batched product.

    Shapes: x [K, B, H, W, C], weight [K, O, C, 3, 3], bias [K, O].
    """
    clients, batch, height, width, _ = x.shape
    views = [x[:, :, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    columns = torch.cat(views, -1).reshape(clients, batch * (height - 2) * (width - 2), -1)
    factors = weight.permute(0, 3, 4, 2, 1).reshape(clients, columns.shape[2], -1)
    return torch.baddbmm(bias[:, None], columns, factors).view(clients, batch, height - 2, width - 2, -1)
