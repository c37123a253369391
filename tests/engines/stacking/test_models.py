"""Models of every kind train stacked as they train alone: weights, losses, running statistics and random masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paceline.core.client import Hooks
from paceline.core.generators import nested
from paceline.core.layout import Buffers, Layout
from paceline.core.optimizers import SGD, AdamW
from paceline.core.params import Params, Resident
from paceline.core.samples import ClientData
from paceline.core.training import Job, train
from paceline.engines.stacking import Solver

SIZES = (10, 1, 23, 10, 24, 0, 21, 30)
"""Samples of the clients: batches are of 10, so that there are ragged ones and, after 10 and 20 samples, single ones."""

GENERATOR = torch.Generator().manual_seed(1)
VECTORS = torch.randn(120, 12, generator=GENERATOR)
TEXTS = torch.randint(0, 9, (120, 7), generator=GENERATOR)
LABELS = torch.randint(0, 4, (120,), generator=GENERATOR)


def dense(*layers: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), *(layer() for layer in layers), nn.ReLU(), nn.Linear(16, 4))


def picture(*layers: Callable[[int], nn.Module]) -> nn.Module:
    first, second = nn.Conv2d(1, 6, 2, padding=1), nn.Conv2d(6, 4, 2)
    inner = [layer(6) for layer in layers]
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        first,
        *inner,
        nn.ReLU(),
        second,
        *(layer(4) for layer in layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Text(nn.Module):
    """An embedding, a layer on [N, T, 6], and a mean over T."""

    def __init__(self, layer: nn.Module, width: int = 6, call: Callable[..., Any] = lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.embed, self.layer, self.call = nn.Embedding(9, 6, padding_idx=2), layer, call
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.call(self.layer, self.embed(x))
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


def by_cell(cell: nn.Module, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
    return (state[0] if isinstance(state, tuple) else state).unsqueeze(1)


def time_first(layer: nn.Module, x: Tensor) -> Tensor:
    out = layer(x.transpose(0, 1))
    return (out[0] if isinstance(out, tuple) else out).transpose(0, 1)


def attends(layer: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return layer(x, x, x, **options)[0]


def decodes(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), tgt_is_causal=True)


def fused(layer: nn.Module, x: Tensor, **options: Any) -> Tensor:
    heads = layer(x).unflatten(-1, (2, 3)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, **options).transpose(1, 2).flatten(2)


def fused_by_words(layer: nn.Module, x: Tensor) -> Tensor:
    return fused(layer, x, attn_mask=(x.sum(-1)[:, None, :, None] - x.sum(-1)[:, None, None]).tanh())


class Aliased(nn.Module):
    """Reads a tensor that its dropout has changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        F.dropout(h, 0.4, self.training, inplace=True)
        return self.two(h.relu())


class Bags(nn.Module):
    def __init__(self, mode: str, offsets: bool = False, weighted: bool = False, **options: Any) -> None:
        super().__init__()
        self.bags, self.head, self.offsets, self.weighted = (
            nn.EmbeddingBag(9, 6, mode=mode, **options),
            nn.Linear(6, 4),
            offsets,
            weighted,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.offsets:
            return self.head(self.bags(x.flatten(), torch.arange(0, x.numel(), x.shape[1])))
        return self.head(self.bags(x, per_sample_weights=x.float() if self.weighted else None))


class Draws(nn.Module):
    """Random numbers in a module's own code."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, dense()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.net(x)
        noise = {
            "like": lambda: torch.randn_like(x),
            "size": lambda: torch.rand(x.shape),
            "bernoulli": lambda: torch.bernoulli(torch.full_like(x, 0.5)),
            "filled": lambda: x.new_empty(len(x), 1).bernoulli_(0.7),
            "torch": lambda: torch.dropout(torch.ones_like(x), 0.3, True),
        }[self.kind]()
        return self.net(x * noise)


class Statistics(nn.Module):
    """A buffer that the module changes in place, and BatchNorm by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense()
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.mean(0).detach(), alpha=0.1)
        return self.net(x - self.mean)


class Rare(nn.Module):
    """Words whose gradient depends on how often they occur in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6, scale_grad_by_freq=True, padding_idx=-2), nn.Linear(42, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).flatten(1))


class Shared(nn.Module):
    """One BatchNorm that is passed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(12, 12), nn.BatchNorm1d(12, momentum=0.3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(self.norm(x))).relu())


def frozen(build: Callable[[], nn.Module], *parts: str) -> nn.Module:
    module = build()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(parts))
    return module


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batchnorm": partial(dense, lambda: nn.BatchNorm1d(16)),
    "batchnorm averages": partial(dense, lambda: nn.BatchNorm1d(16, momentum=None)),
    "batchnorm twice": Shared,
    "batchnorm2d": partial(picture, nn.BatchNorm2d),
    "instancenorm2d": partial(picture, lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)),
    "groupnorm": partial(picture, lambda c: nn.GroupNorm(2, c)),
    "rmsnorm": partial(dense, lambda: nn.RMSNorm(16)),
    "own statistics": Statistics,
    "dropout": partial(dense, lambda: nn.Dropout(0.3)),
    "dropout in place": partial(dense, lambda: nn.Dropout(0.3, inplace=True)),
    "dropout aliased": Aliased,
    "alpha": partial(dense, lambda: nn.AlphaDropout(0.3)),
    "dropout1d": lambda: Text(nn.Dropout1d(0.3)),
    "dropout2d": partial(picture, lambda c: nn.Dropout2d(0.3)),
    "feature alpha": partial(picture, lambda c: nn.FeatureAlphaDropout(0.3)),
    "dropout and batchnorm": partial(picture, lambda c: nn.Dropout(0.3), nn.BatchNorm2d),
    "rrelu": partial(dense, nn.RReLU),
    **{f"draws {kind}": partial(Draws, kind) for kind in ("like", "size", "bernoulli", "filled", "torch")},
    "lstm": lambda: Text(nn.LSTM(6, 5, 2, dropout=0.3, bidirectional=True, batch_first=True), 10),
    "lstm time first": lambda: Text(nn.LSTM(6, 6, 2, dropout=0.3), call=time_first),
    "lstm projected": lambda: Text(nn.LSTM(6, 5, 2, proj_size=3, batch_first=True, bias=False), 3),
    "gru": lambda: Text(nn.GRU(6, 5, 2, dropout=0.3, bidirectional=True, batch_first=True), 10),
    "rnn relu": lambda: Text(nn.RNN(6, 5, 2, nonlinearity="relu", batch_first=True), 5),
    "rnn tanh": lambda: Text(nn.RNN(6, 5, dropout=0.0, batch_first=True, bias=False), 5),
    "lstm cell": lambda: Text(nn.LSTMCell(6, 5), 5, by_cell),
    "gru cell": lambda: Text(nn.GRUCell(6, 5), 5, by_cell),
    "rnn cell": lambda: Text(nn.RNNCell(6, 5), 5, by_cell),
    "attention": lambda: Text(nn.MultiheadAttention(6, 2, 0.2, batch_first=True), call=attends),
    "attention fused": lambda: Text(nn.MultiheadAttention(6, 2, 0.2, batch_first=True), call=partial(attends, need_weights=False)),
    "attention biased": lambda: Text(nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True), call=attends),
    "dot products": lambda: Text(nn.Linear(6, 6), call=partial(fused, is_causal=True)),
    "dot products masked": lambda: Text(nn.Linear(6, 6), call=partial(fused, attn_mask=torch.ones(7, 7).tril().bool(), dropout_p=0.2)),
    "dot products with a mask": lambda: Text(nn.Linear(6, 6), call=partial(fused, attn_mask=torch.ones(7, 7).triu().bool())),
    "dot products with own masks": lambda: Text(nn.Linear(6, 6), call=fused_by_words),
    "encoder": lambda: Text(nn.TransformerEncoderLayer(6, 2, 8, 0.2, batch_first=True)),
    "encoder time first": lambda: Text(nn.TransformerEncoderLayer(6, 2, 8, 0.2), call=time_first),
    "decoder": lambda: Text(nn.TransformerDecoderLayer(6, 2, 8, 0.1, batch_first=True), call=decodes),
    "bags mean": lambda: Bags("mean", padding_idx=3),
    "bags sum": lambda: Bags("sum", weighted=True),
    "bags max": lambda: Bags("max", padding_idx=3),
    "bags offsets": lambda: Bags("mean", offsets=True),
    "rare words": Rare,
    "frozen lstm": partial(frozen, lambda: Text(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), 10), "embed", "layer"),
    "frozen gru": partial(frozen, lambda: Text(nn.GRU(6, 5, 2, dropout=0.3), 5, time_first), "layer"),
    "frozen encoder": partial(frozen, lambda: Text(nn.TransformerEncoderLayer(6, 2, 8, 0.2, batch_first=True)), "layer.linear"),
}  # fmt: skip

HOOKED = (
    "batchnorm2d", "batchnorm averages", "dropout and batchnorm", "own statistics", "alpha", "draws like", "lstm", "gru",
    "encoder", "bags max",
)  # fmt: skip
"""Models for the combinations with hooks and optimizers."""

WAYS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": SGD(momentum=0.9, weight_decay=0.01)},
    "adam": {"optimizer": AdamW(eps=0.1)},
    "correct": {"hooks": Hooks(correct=lambda grad, at: grad / (1.0 + grad.norm()))},
    "direction": {"hooks": Hooks(direction=lambda gradient, at: 0.5 * (gradient(at) + gradient(at + 0.05 * at)))},
    "objective": {"hooks": Hooks(objective=lambda m, x, y: F.cross_entropy(2 * m(x), y) + 0.1 * m(x).square().mean())},
    "loss": {"loss": lambda outputs, y: F.cross_entropy(1.1 * outputs, y)},
    "augment": {"hooks": Hooks(augment=lambda x, y, stream: (x.roll(int(torch.randint(3, (), generator=stream)), 1), y))},
    "local": {"buffers": "local"},
    "local direction": {
        "buffers": "local",
        "hooks": Hooks(direction=lambda gradient, at: 0.5 * (gradient(at) + gradient(at + 0.05 * at))),
    },
}


def seeded(seed: int) -> torch.Generator:
    """Return a new generator."""
    return torch.Generator().manual_seed(seed)


def both(
    build: Callable[[], nn.Module],
    x: Tensor,
    sizes: tuple[int, ...] = SIZES,
    buffers: Buffers = "average",
    epochs: int = 2,
    **options: Any,
) -> tuple[Resident, list[tuple[Job, Any]], list[tuple[Job, Any]], Solver]:
    """Train clients alone and stacked; return both with their jobs."""
    torch.manual_seed(0)
    module = build()
    model = Resident(module, Layout.of(module, None, buffers))
    start = model.snapshot()
    loss = options.pop("loss", F.cross_entropy)

    def jobs() -> list[Job]:
        made, first = [], 0
        for client, size in enumerate(sizes):
            data = ClientData(x, LABELS, torch.arange(first, first + size) % len(x))
            order = partial(seeded, 100 + client)
            job = Job(model, data, start, loss, 0.1, epochs * -(-size // 10), 10, order, **options)
            job.buffers = {name: value + 0.1 * client for name, value in model.initial_buffers.items()} or None
            made.append(job)
            first += size
        return made

    with nested(0):
        alone = [(job, train(job)) for job in jobs()]
        solver, together = Solver(), jobs()
        return model, alone, list(zip(together, solver(together), strict=True)), solver


def agree(build: Callable[[], nn.Module], x: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Assert that all clients are stacked, and end as they do alone."""
    lonely = "paceline.engines.stacking.solver._train_one"
    monkeypatch.setattr(lonely, lambda job: pytest.fail(f"alone: {job}") if job.steps else job.run())
    model, alone, together, solver = both(build, x, **options)
    assert solver.notes == {}
    start = model.params.zeros()
    least = 0.1 * float(alone[0][0].start.norm())
    for (one, trained), (many, stacked) in zip(alone, together, strict=True):
        for name in start:
            expected, found = ((t.params - one.start)[name] for t in (trained, stacked))
            assert float((expected - found).norm()) <= 1e-5 * max(float(expected.norm()), least), name
        assert stacked.loss == pytest.approx(trained.loss, rel=1e-5)
        assert (one.buffers or {}).keys() == (many.buffers or {}).keys()
        for name, value in (one.buffers or {}).items():
            torch.testing.assert_close((many.buffers or {})[name], value, rtol=1e-5, atol=1e-6)


def inputs(name: str) -> Tensor:
    module = MODELS[name]()
    return TEXTS if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in module.modules()) else VECTORS


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_stacked_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(MODELS[name], inputs(name), monkeypatch)


def combined(name: str, way: str) -> Any:
    """Return one case; a GRU goes through an LSTM's code, so one way of it is enough by default."""
    return pytest.param(name, way, marks=[pytest.mark.slow] if name == "gru" and way != "direction" else [])


@pytest.mark.parametrize(("name", "way"), [combined(name, way) for name in HOOKED for way in WAYS])
def test_a_model_trains_stacked_as_alone_with_hooks_and_optimizers(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(MODELS[name], inputs(name), monkeypatch, **WAYS[way])


@pytest.mark.parametrize("name", ["batchnorm", "dropout", "lstm"])
def test_clients_of_one_step_are_not_one_batch_where_their_samples_must_stay_apart(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(MODELS[name], inputs(name), monkeypatch, sizes=(7, 4, 10, 10), epochs=1)


def test_what_is_drawn_alone_is_drawn_in_no_other_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of a client depend neither on the others nor on its place."""
    _, _, many, _ = both(MODELS["dropout"], VECTORS, sizes=(23, 24, 30))
    _, _, few, _ = both(MODELS["dropout"], VECTORS, sizes=(23, 24))
    for (_, one), (_, other) in zip(few, many, strict=False):
        torch.testing.assert_close(one.params.vector, other.params.vector, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Scaled:
    """Context in which a module's outputs are multiplied."""

    factor: float

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[None]:
        handle = module.register_forward_hook(lambda module, inputs, out: out * self.factor)
        try:
            yield
        finally:
            handle.remove()


def test_clients_whose_modules_are_prepared_alike_train_as_one_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Resident(module := dense(), Layout.of(module))
    start, sizes, whole = model.snapshot(), [], Solver._whole
    factors = (1.0, 3.0, 1.0, 3.0, 3.0)

    def jobs() -> list[Job]:
        rows = torch.split(torch.arange(100), 20)
        made = [Job(model, ClientData(VECTORS, LABELS, r), start, F.cross_entropy, 0.1, 4, 10, torch.Generator) for r in rows]
        return [replace(job, prepare=Scaled(factor)) for job, factor in zip(made, factors, strict=True)]

    def counted(self: Solver, key: Any, jobs: Any, watch: Any) -> Any:
        sizes.append(len(jobs))
        return whole(self, key, jobs, watch)

    monkeypatch.setattr(Solver, "_whole", counted)
    with nested(0):
        alone, together = [train(job) for job in jobs()], Solver()(jobs())
    assert sorted(sizes) == [2, 3]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.params.vector, one.params.vector, rtol=1e-5, atol=1e-6)


class Products(TorchDispatchMode):
    """Records the shapes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = [a for a in args if isinstance(a, Tensor)][-2:]
            self.shapes.append((name, tuple(left.shape), tuple(right.shape)))
        return func(*args, **(kwargs or {}))


class Adapted(nn.Module):
    """A frozen layer with a low-rank addition."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.lora_a, self.lora_b = nn.Linear(12, 11), nn.Linear(12, 2, bias=False), nn.Linear(2, 11, bias=False)
        self.head = nn.Linear(11, 4)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            torch._C._functorch.get_unwrapped(self.base.weight).data_ptr() if self.wrapped else self.base.weight.data_ptr()
        )
        return self.head((self.base(x) + self.lora_b(self.lora_a(x))).relu())

    @property
    def wrapped(self) -> bool:
        return torch._C._functorch.is_batchedtensor(self.base.weight)


def test_frozen_weights_are_shared_and_run_as_one_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    build = partial(frozen, Adapted, "base")
    agree(build, VECTORS, monkeypatch)
    watch = Products()
    with watch:
        model, _, _, _ = both(build, VECTORS, sizes=(10,) * 8, epochs=1)
    base = model.module.base  # type: ignore[union-attr]
    assert set(model.module.seen) == {base.weight.data_ptr()}  # type: ignore[union-attr,arg-type]
    assert model.layout.size == 2 * 12 + 2 * 11 + 11 * 4 + 4
    large = [shapes for shapes in watch.shapes if shapes[1] == (80, 12) and shapes[2] == (12, 11)]
    assert len(large) == 1
    assert not [shapes for shapes in watch.shapes if shapes[0] in ("bmm", "baddbmm") and 11 in shapes[1] and 12 in shapes[2]]
    assert base.weight.grad is None  # type: ignore[union-attr]


def test_counters_of_batches_begin_anew_with_each_client() -> None:
    model, alone, _, _ = both(MODELS["batchnorm averages"], VECTORS, sizes=(23, 23))
    (_, first), (_, again) = alone
    assert model.module[1].num_batches_tracked == 6  # type: ignore[index]
    fresh, (other, *_), _, _ = both(MODELS["batchnorm averages"], VECTORS, sizes=(23,))
    assert other[1].params.vector.equal(first.params.vector)
    assert Params.of(fresh.module, fresh.layout).vector.shape == again.params.vector.shape


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "max_norm": (lambda: nn.Sequential(nn.Embedding(9, 6, max_norm=1.0), nn.Flatten(), nn.Linear(42, 4)), "max_norm", {}),
    "bags max offsets": (lambda: Bags("max", offsets=True), "bag with offsets", {}),
    "rrelu": (MODELS["rrelu"], "within a hook", {"hooks": WAYS["direction"]["hooks"]}),
    "rare": (Rare, "scale_grad_by_freq", {"hooks": WAYS["direction"]["hooks"]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stacked_trains_alone_and_gives_its_reason(name: str) -> None:
    build, reason, options = REFUSED[name]
    x = TEXTS if name != "rrelu" else VECTORS
    _, alone, together, solver = both(build, x, sizes=(10, 23), epochs=1, **options)
    assert reason in "".join(solver.notes.values())
    for (_, one), (_, other) in zip(alone, together, strict=True):
        assert one.params.vector.equal(other.params.vector)
