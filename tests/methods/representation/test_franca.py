"""Franca: the sheet's numbers, the loss written out sample by sample, central training by one client, and masks and position."""

import copy
import dataclasses
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.blocks.contrastive import koleo, sinkhorn
from paceline.blocks.global_views import multi_crop
from paceline.blocks.masking import cyclic_mask, cyclic_masks
from paceline.blocks.nested_heads import NestedHead, SelfDistilled, followed, level_sizes, self_distillation
from paceline.blocks.probes import ridge
from paceline.blocks.rasa import explained, position_targets, removal, remove_positions
from paceline.core.errors import ConfigError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.models.transformer import vit
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size

TINY = {"prototypes": 16, "hidden": 8, "bottleneck": 4, "crops": 2, "batch_size": 16}


def net():
    return vit((1, 8, 8), 3, dim=16, depth=1, heads=2, patch=2)


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def head_of(width, nest="project"):
    return NestedHead(width, level_sizes(width, 16), 8, 4, nest)


def module(seed=0):
    torch.manual_seed(seed)
    made = SelfDistilled(net, head_of)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def pictures(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.rand(samples, 1, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) * (torch.arange(8) < 4)
    return pl.Task.from_tensors(x, y, net, test=0.25, batch_size=16)


def finished(method, task=None, split=None, **values):
    config = {"method": "franca", "task": "own", "clients": 3, "cohort": 3, "rounds": 2, "vectorize": "off", **values}
    run = prepare(RunConfig.build(config), task=task or pictures(), method=method, split=split)
    return run, run.go()


def final_module(run):
    """Return a run's student and teacher at its end."""
    made = copy.deepcopy(run.task.build(0)).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name in run.state.params:
                value.copy_(run.state.params[name])
    return made


def softened(scores, temperature):
    """Return the targets without prototypes of equal mass."""
    return ((scores - scores.mean(0)) / temperature).softmax(1)


class Recorded(pl.methods.Franca):
    """Franca that records each client's start and what it stores and returns."""

    starts: ClassVar[dict] = {}
    ends: ClassVar[dict] = {}

    def hooks(self, client, start):
        self.starts[client.id, client.round] = start.clone()
        return super().hooks(client, start)

    @pl.on_client
    def train(self, client, message):
        update = super().train(client, message)
        heads = {name: value.clone() for name, value in client.memory.get("heads", {}).items()}
        self.ends[client.id, client.round] = (update.delta.clone(), client.num_samples, heads)
        return update


def test_sizes_of_the_levels():
    assert level_sizes(768, 131072) == [(48, 8192), (96, 16384), (192, 32768), (384, 65536), (768, 131072)]
    assert level_sizes(384, 4096) == [(24, 256), (48, 512), (96, 1024), (192, 2048), (384, 4096)]
    assert level_sizes(8, 16) == [(1, 2), (1, 2), (2, 4), (4, 8), (8, 16)]
    assert level_sizes(64, 512, 1) == [(64, 512)]


@pytest.mark.parametrize("nest", ["project", "slice"])
def test_scores_grow_with_the_heads_outputs_and_not_with_the_prototypes(nest):
    head, z = head_of(16, nest), torch.randn(5, 16)
    scores = head(z)
    with torch.no_grad():
        for level, (layers, prototypes) in enumerate(zip(head.layers, head.prototypes, strict=True)):
            given = head.project[level](z) if nest == "project" else z[:, : head.dims[level]]
            unit = prototypes / prototypes.square().sum(1, keepdim=True).sqrt()
            linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
            for linear in linears:
                given = F.gelu(linear(given))
            assert len(linears) == 3
            np.testing.assert_allclose(scores[level].detach(), given @ unit.T, rtol=1e-5, atol=1e-6)
            prototypes.mul_(3.0)
    for before, after in zip(scores, head(z), strict=True):
        np.testing.assert_allclose(before.detach(), after.detach(), rtol=1e-5, atol=1e-6)


def test_balanced_targets_and_their_restriction_to_some_samples():
    scores = torch.tensor([[1.0, 0.0], [0.5, 0.2], [0.0, 1.0]])
    wanted = [[0.846549, 0.153451], [0.576345, 0.423655], [0.09177, 0.90823]]
    q = sinkhorn(scores, 0.5)
    np.testing.assert_allclose(q, wanted, atol=1e-6)
    np.testing.assert_allclose(q.sum(0), [1.514664, 1.485336], atol=1e-6)
    kept = torch.tensor([True, False, True, True])
    more = torch.cat([scores[:1], torch.tensor([[9.0, -9.0]]), scores[1:]])
    found = sinkhorn(more, 0.5, kept=kept)
    np.testing.assert_allclose(found[kept], wanted, atol=1e-6)
    assert found[1].tolist() == [0, 0]
    assert torch.isfinite(sinkhorn(more, 0.5, kept=torch.zeros(4, dtype=torch.bool))).all()
    for length in (1.0, 3.0):
        assert float(koleo(torch.tensor([[1.0, 0.0], [0.0, length], [0.6, 0.8]]))) == pytest.approx(0.342621, abs=1e-6)
    same = torch.ones(3, 4, requires_grad=True)
    koleo(same).backward()
    assert same.grad.isfinite().all()


def test_masks_have_the_wanted_size_and_hide_every_patch_equally_often():
    stream = torch_rng(0, "masks")
    for grid in ((4, 4), (3, 5), (1, 6)):
        cells = grid[0] * grid[1]
        assert [int(cyclic_mask(grid, count, stream).sum()) for count in range(cells + 1)] == list(range(cells + 1))
    means = [torch.stack([cyclic_mask((4, 4), 8, stream, roll) for _ in range(4000)]).float().mean(0) for roll in (True, False)]
    assert float(means[0].max() - means[0].min()) < 0.06  # 0.008 is the deviation of a mean
    rolled, plain = means[0].view(4, 4), means[1].view(4, 4)
    assert plain[1:3, 1:3].mean() < plain[[0, 0, 3, 3], [0, 3, 0, 3]].mean() - 0.2
    assert abs(float(rolled[1:3, 1:3].mean() - rolled[[0, 0, 3, 3], [0, 3, 0, 3]].mean())) < 0.05
    hidden = cyclic_masks(20, (5, 5), stream).sum(1)
    counts, edges = sorted(hidden[hidden > 0].tolist()), np.linspace(0.1, 0.65, 11) * 25
    assert len(counts) == 10
    assert all(int(low) <= count <= int(high) for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True))
    assert hidden[:10].tolist() != counts
    widths = [int((~cyclic_mask((8, 8), 48, stream, roll=False)).view(8, 8).any(0).sum()) for _ in range(200)]
    assert (min(widths), max(widths)) == (3, 8)  # the least is sqrt(16 * 0.3) = 2.2
    assert abs(np.mean([width <= 4 for width in widths]) - 0.5) < 0.1  # as often upright as lying


def test_views_show_the_published_shares_of_a_picture(monkeypatch):
    monkeypatch.setattr("paceline.blocks.global_views.jitter", lambda: lambda x, stream: x)
    ramp = torch.linspace(0, 1, 16).expand(64, 1, 16, 16)
    (views, crops, _), _ = multi_crop((1, 16, 16), 3, 2)(ramp, None, torch_rng(0, "v"))
    for found, low, high in ((views, 0.32, 1.0), (crops, 0.05, 0.32)):
        side = found.shape[-1]
        slope = (found[..., side // 2] - found[..., side // 2 - 1]).mean((2, 3))
        shares = (slope * 15 * side / 16).square()
        near = 0.1 * (high - low)
        assert low - 1e-3 <= float(shares.min()) < low + near
        assert high - near < float(shares.max()) <= high + 1e-3
        assert 0.3 < float((slope < 0).float().mean()) < 0.7
    assert crops.shape == (64, 3, 1, 8, 8)
    assert not torch.equal(views[:, 0], views[:, 1])


def test_position_is_removed_along_the_two_directions():
    w = torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    p, z = removal(w), torch.tensor([1.0, 2.0, 3.0]).double()
    np.testing.assert_allclose(z @ p, [0, 0, 3], atol=1e-12)
    np.testing.assert_allclose(p @ p, p, atol=1e-12)
    assert int(torch.linalg.matrix_rank(removal(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])))) == 2
    assert torch.equal(removal(torch.zeros(2, 3)), torch.eye(3).double())


def test_position_is_no_longer_predicted_from_moments():
    rng, y = np.random.default_rng(0), position_targets((4, 5)).double()
    assert y.mean(0).abs().max() < 1e-9
    z = torch.from_numpy(rng.normal(size=(300, 20, 12))) + torch.tanh(y @ torch.from_numpy(rng.normal(size=(2, 12))))
    flat, target = z.reshape(-1, 12), y.repeat(300, 1)

    def fitted(points):
        w = np.linalg.lstsq(points.numpy(), target.numpy(), rcond=None)[0]
        return 1 - ((target.numpy() - points.numpy() @ w) ** 2).sum() / float(target.square().sum())

    gram, cross, square = flat.T @ flat / len(flat), flat.T @ target / len(flat), float(target.square().sum(1).mean())
    assert explained(gram, cross, square) == pytest.approx(fitted(flat), abs=1e-6)
    matrix = remove_positions(gram, cross, 3)
    left = matrix.T @ gram @ matrix, matrix.T @ cross
    assert explained(*left, square) == pytest.approx(fitted(flat @ matrix), abs=1e-6)
    assert fitted(flat) > 0.3
    assert fitted(flat @ matrix) < 0.02
    assert int(torch.linalg.matrix_rank(matrix, rtol=1e-6)) == 6


@pytest.mark.parametrize(("ridge", "iterations"), [(0.0, 2), (0.3, 2), (1e8, 1)])
def test_a_ridge_turns_removed_directions_towards_the_moment_of_position(ridge, iterations):
    rng, y = np.random.default_rng(1), position_targets((4, 5)).double().repeat(300, 1)
    z = torch.from_numpy(rng.normal(size=(6000, 8)) * np.linspace(0.2, 3.0, 8)) + torch.tanh(
        y @ torch.from_numpy(rng.normal(size=(2, 8)))
    )
    gram, cross, square = z.T @ z / len(z), z.T @ y / len(z), float(y.square().sum(1).mean())
    matrix, points = remove_positions(gram, cross, iterations, ridge), z.numpy()
    for _ in range(iterations):
        added = ridge * float(gram.trace()) / 8 * np.eye(8)
        moments = points.T @ points / len(points) + added, points.T @ y.numpy() / len(points)
        w = np.linalg.solve(*moments) if ridge else np.linalg.pinv(points) @ y.numpy()
        points = points - points @ np.linalg.pinv(w.T) @ w.T
    np.testing.assert_allclose((z @ matrix).numpy(), points, atol=1e-7)
    once = remove_positions(gram, cross, 1, ridge)
    left = explained(once.T @ gram @ once, once.T @ cross, square)
    assert left < 1e-9 if ridge > 1 else left > 0.01  # without the moment itself, nothing is predicted
    rank = int(torch.linalg.matrix_rank(remove_positions(gram, cross, 3, ridge), rtol=1e-6))
    assert rank == (6 if ridge > 1 else 2)  # nothing is removed where nothing is left to remove


def by_hand(made, views, crops, hidden, temperature, balanced=sinkhorn):
    """Return the loss, crop by crop and sample by sample."""
    batch, count, total = len(views), crops.shape[1], 0.0
    teacher, student = made.teacher, made.student
    t = [teacher.net.tokens(views[:, a]) for a in range(2)]
    s = [student.net.tokens(views[:, a], hidden[:, a], student.mask) for a in range(2)]
    small = [student.net.tokens(crops[:, c])[:, 0] for c in range(count)]

    def ce(q, z):
        return float(-(q * F.log_softmax(z / 0.1, -1)).sum())

    for level in range(5):
        both = balanced(torch.cat([teacher.cls(t[a][:, 0])[level] for a in range(2)]), temperature)
        q = [both[:batch], both[batch:]]
        terms = [ce(q[1 - a][i], student.cls(s[a][:, 0])[level][i]) for a in range(2) for i in range(batch)]
        total += 2 / (2 + 2 * count) * np.mean(terms)
        for c in range(count):
            for a in range(2):
                total += np.mean([ce(q[a][i], student.cls(small[c])[level][i]) for i in range(batch)]) / (2 + 2 * count)
        seen = torch.cat([t[a][:, 1:][hidden[:, a]] for a in range(2)])
        own = torch.cat([s[a][:, 1:][hidden[:, a]] for a in range(2)])
        counts = torch.cat([hidden[:, a].sum(1, keepdim=True).expand_as(hidden[:, a])[hidden[:, a]] for a in range(2)])
        targets = balanced(teacher.patch(seen)[level], temperature)
        guesses = student.patch(own)[level]
        total += sum(ce(targets[i], guesses[i]) / int(counts[i]) for i in range(len(seen))) / (2 * batch)
    return total + 0.1 * sum(float(koleo(s[a][:, 0])) for a in range(2))


def test_the_loss_is_that_of_all_pairs_of_views():
    made, g = module(), torch.Generator().manual_seed(1)
    views, crops = torch.rand(6, 2, 1, 8, 8, generator=g), torch.rand(6, 3, 1, 4, 4, generator=g)
    hidden = cyclic_masks(12, (4, 4), torch_rng(0, "h")).unflatten(0, (6, 2))
    with torch.no_grad():
        ours = float(self_distillation(made, views, crops, hidden, 0.05))
        assert ours == pytest.approx(by_hand(made, views, crops, hidden, 0.05), rel=1e-4)
        other = float(self_distillation(made, views, crops, hidden, 0.05, "centering"))
        assert other == pytest.approx(by_hand(made, views, crops, hidden, 0.05, softened), rel=1e-4)
        assert abs(other - ours) > 1e-3
        one = self_distillation(made, views[:1], crops[:1], torch.zeros(1, 2, 16, dtype=torch.bool), 0.05)
        assert torch.isfinite(one)


@pytest.mark.parametrize("balance", ["sinkhorn", "centering"])
def test_the_teacher_follows_and_only_the_student_gets_gradients(balance):
    made, stream = module(), torch_rng(0, "v")
    hook = multi_crop((1, 8, 8), 2, 2)
    (views, crops, hidden), _ = hook(torch.rand(5, 1, 8, 8), None, stream)
    assert (views.shape, crops.shape, hidden.shape) == ((5, 2, 1, 8, 8), (5, 2, 1, 4, 4), (5, 2, 16))
    self_distillation(made, views, crops, hidden, 0.05, balance).backward()
    for name, parameter in made.named_parameters():
        unused = name.startswith("teacher") or "probe" in name or ".net.head" in name
        assert (parameter.grad is None or not parameter.grad.any()) == unused, name
    layout = Layout.of(made)
    params, moved = Params.of(made, layout), followed(Params.of(made, layout), 0.9, shrink=0.5)
    for name, value in params.items():
        if name.startswith("teacher."):
            torch.testing.assert_close(moved[name], 0.9 * value + 0.05 * params[name.replace("teacher", "student", 1)])
        else:
            torch.testing.assert_close(moved[name], value * (0.5 if name.startswith("student.") else 1.0))


def test_one_client_is_central_training():
    """Views, loss, Adam, clipping, decay and the teacher's step, written out; Adam begins anew in each round."""
    rounds, task = 2, pictures()
    franca = pl.methods.Franca(**TINY, steps=3, lr=0.05, weight_decay=0.5, schedule_rounds=4, probe=False, clip=0.5, momentum=0.9)
    run, _ = finished(franca, task, clients=1, cohort=1, rounds=rounds)
    ends, seen = run.state.params, []
    start = prepare(RunConfig.build({"method": "franca", "clients": 1, "cohort": 1, "task": "own"}), task=task, method=franca)
    made, first = start.task.build(0), start.fed.init_params()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in first:
                parameter.copy_(first[name])

    def spy(x, y, stream):
        seen.append(multi_crop((1, 8, 8), 2, 2)(x, y, stream)[0])
        return seen[-1], y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paceline.methods.representation.franca.multi_crop", lambda *a: spy)
        finished(franca, task, clients=1, cohort=1, rounds=rounds)
    student = [p for n, p in made.student.named_parameters() if "net.head" not in n]
    teacher = [p for n, p in made.teacher.named_parameters() if "net.head" not in n]
    for number in range(rounds):
        done = number / 4
        half = (1 + math.cos(math.pi * done)) / 2
        adam = torch.optim.Adam(student, lr=1.0)
        for step in range(3):
            now = done + step / 3 / 4
            factors = [n / 0.16 if n < 0.16 else (1 + math.cos(math.pi * (n - 0.16) / 0.84)) / 2 for n in (now, done)]
            lr = [0.05 * math.sqrt(16 / 1024) * factor for factor in factors]
            adam.param_groups[0]["lr"] = lr[0]
            adam.zero_grad()
            views, crops, hidden = seen[3 * number + step]
            self_distillation(made, views, crops, hidden, 0.04 + 0.03 * min(done / 0.0375, 1)).backward()
            torch.nn.utils.clip_grad_norm_(student, 0.5)
            adam.step()
            with torch.no_grad():
                for s, t in zip(student, teacher, strict=True):
                    s.mul_(1 - lr[1] * 0.5 * (5 - 4 * half))
                    m = 1 - 0.1 * half
                    t.mul_(m).add_(s, alpha=1 - m)
    wanted = {name: parameter.detach() for name, parameter in made.named_parameters() if name in ends}
    for branch in ("student.", "teacher."):  # not single values, as Adam enlarges gradients near 0
        names = [name for name in wanted if name.startswith(branch)]
        off, moved = (torch.cat([(ends[n] - at[n]).flatten() for n in names]).norm() for at in (wanted, first))
        assert off < 0.004 * moved
    assert not torch.allclose(ends.vector, first.vector, atol=1e-3)


def test_the_server_s_teacher_follows_the_mean_student():
    franca = pl.methods.Franca(**TINY, steps=2, lr=0.1, teacher="server", server_momentum=0.75, schedule_rounds=1, probe=False)
    run, _ = finished(franca, make_task(model=normed), rounds=1)
    start, ends = run.fed.init_params(), run.state.params
    moved = 0.0
    for name, value in start.items():
        if name.startswith("teacher."):
            twin = ends[name.replace("teacher", "student", 1)]
            torch.testing.assert_close(ends[name], 0.75 * value + 0.25 * twin)
            moved += float((twin - value).abs().sum())
    assert moved > 0.01
    assert any(name.startswith("teacher.") and "running_mean" in name for name in start)


def test_heads_of_its_own_stay_with_the_client():
    split = by_size([5, 10, 15])
    franca = Recorded(**TINY, steps=2, lr=0.1, heads="local", schedule_rounds=2, probe=False)
    run, result = finished(franca, split=split)
    start, ends = run.fed.init_params(), run.state.params
    own = [name for name in start if name.split(".")[1] in ("cls", "patch")]
    assert own
    assert all(torch.equal(ends[name], start[name]) for name in own)
    heads = [run.store[client]["heads"] for client in range(3)]
    assert set(heads[0]) == set(own)
    assert not torch.equal(heads[0][own[0]], heads[1][own[0]])
    for client in range(3):
        kept, again = Recorded.ends[client, 1][2], Recorded.starts[client, 2]
        assert all(torch.equal(again[name], kept[name]) and not torch.equal(again[name], start[name]) for name in own)
    total = sum(count * delta.vector for delta, count, _ in Recorded.ends.values()) / 30
    sent = Recorded.ends[0, 1][0]
    moved = torch.cat([(ends[name] - start[name]).flatten() for name in sent])
    torch.testing.assert_close(moved, total, atol=1e-6, rtol=1e-4)
    _, shared = finished(pl.methods.Franca(**TINY, steps=2, lr=0.1, schedule_rounds=2, probe=False), split=split)
    assert result.bytes_up < 0.7 * shared.bytes_up


def test_the_probe_is_ridge_regression_on_the_teacher_s_features():
    franca = pl.methods.Franca(**TINY, steps=2, lr=0.5, momentum=0.0, schedule_rounds=1)
    run, result = finished(franca, rounds=1, split=by_size([5, 10, 15]))
    task, params, made = run.task, run.state.params, final_module(run)
    with torch.no_grad():
        z = made.features(task.train.x).double().numpy()
        z, y = np.c_[z, np.ones(len(z))], np.eye(3)[task.train.y]
        gram = z.T @ z / len(z)
        w = np.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * np.eye(17), z.T @ y / len(z))
        np.testing.assert_allclose(params["probe.weight"], w[:-1].T, atol=1e-3)
        scores = made(task.test.x).argmax(1)
    assert result.accuracy == pytest.approx(float((scores == task.test.y).float().mean()))
    weight, bias = ridge(torch.from_numpy(gram), torch.from_numpy(z.T @ y / len(z)), 4)
    assert not weight[:, 4:].any()
    short = np.r_[0:4, 16]
    inner = gram[np.ix_(short, short)]
    w = np.linalg.solve(inner + 1e-3 * inner.diagonal().mean() * np.eye(5), (z.T @ y / len(z))[short])
    np.testing.assert_allclose(np.c_[weight[:, :4], bias], w.T, atol=1e-5)


def test_slices_read_the_first_values_only():
    made, z = head_of(16, "slice"), torch.randn(3, 16)
    far = torch.cat([z[:, :4], torch.randn(3, 12)], 1)
    same = [torch.equal(a, b) for a, b in zip(made(z), made(far), strict=True)]
    assert same == [True, True, True, False, False]
    assert not any(torch.equal(a, b) for a, b in zip(head_of(16)(z), head_of(16)(far), strict=True))
    assert [scores.shape[1] for scores in made(z)] == [2, 2, 4, 8, 16]


def test_smaller_pictures_use_interpolated_positions_and_hidden_patches_the_mask():
    made, x = net().eval(), torch.rand(2, 1, 8, 8)
    assert torch.equal(made.features(x), made.tokens(x)[:, 0])
    assert made.tokens(x[:, :, :4, :4]).shape == (2, 5, 16)
    grid = made.position[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    wanted = F.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made._positions((2, 2))[:, 1:], wanted, atol=1e-5, rtol=1e-4)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 3] = True
    changed = x.clone()
    changed[:, :, :2, 6:] = 9.0  # the fourth patch
    torch.testing.assert_close(made.tokens(x, hidden, torch.ones(16)), made.tokens(changed, hidden, torch.ones(16)))
    assert not torch.equal(made.tokens(x, hidden, torch.ones(16)), made.tokens(x))


def test_position_is_measured_and_removed_in_a_run():
    franca = pl.methods.Franca(**TINY, steps=2, lr=0.5, momentum=0.5, schedule_rounds=1, rasa=2, probe_dims=4)
    run, result = finished(franca, rounds=1, split=by_size([5, 10, 15]))
    ridged = finished(dataclasses.replace(franca, rasa=1, rasa_ridge=1e6), rounds=1, split=by_size([5, 10, 15]))[1].history[-1]
    assert ridged["note_position_r2_left"] < 1e-6 < result.history[-1]["note_position_r2_left"]
    matrix, last = run.state.removal, result.history[-1]
    with torch.no_grad():
        z = final_module(run).teacher.net.tokens(run.task.train.x)[:, 1:].flatten(0, 1).double()
    y = position_targets((4, 4)).repeat(30, 1).double()
    for name, points in (("position_r2", z), ("position_r2_left", z @ matrix.double())):
        w = np.linalg.lstsq(points.numpy(), y.numpy(), rcond=1e-3)[0]  # as the block: 1e-6 of the moments
        wanted = 1 - ((y.numpy() - points.numpy() @ w) ** 2).sum() / float(y.square().sum())
        assert last[f"note_{name}"] == pytest.approx(wanted, abs=1e-4)
    assert 0 <= last["note_position_r2_left"] < 0.5 * last["note_position_r2"] <= 0.5
    assert int(torch.linalg.matrix_rank(matrix)) == 12
    probe = run.state.params["probe.weight"]
    assert bool(probe[:, :4].any())
    assert not probe[:, 4:].any()
    with pytest.raises(ConfigError, match="patches"):
        finished(pl.methods.Franca(**TINY, rasa=4), make_task())


def test_rounds_of_clients_without_samples_leave_probe_and_removal_as_they_were():
    franca = pl.methods.Franca(**TINY, steps=1, rasa=2)
    run, result = finished(franca, split=by_size([0, 30]), clients=2, cohort=1, rounds=3, seed=8)
    assert ["note_position_r2" in record for record in result.history] == [False, True, False]
    assert int(torch.linalg.matrix_rank(run.state.removal)) == 12
    assert run.state.params["probe.weight"].any()


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "franca", options=TINY | {"steps": 1})
