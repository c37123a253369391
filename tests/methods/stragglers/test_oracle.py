"""Whole rounds of every straggler method against float64, on an MLP, a convolution model, an LSTM and one with norms.

Client 4 of five is slow. The oracle starts from the first model alone and never looks at a later one of the run.
"""

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

from tests.methods.stragglers.nets import CLASSES, MLP, NETS
from tests.methods.stragglers.rounds import OWN, SIZES, SLOW, close, full, made, merged, run, scores, trained

ALL = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
HALF = {net: {g: n // 2 for g, n in NETS[net].units.items()} for net in NETS}
ROUNDS = 6


def counts(net, p, up=False):
    return {g: max(1, int(np.ceil(p * n - 1e-9)) if up else int(p * n + 1e-9)) for g, n in net.units.items()}


def first(net, p, up=False):
    return {g: list(range(k)) for g, k in counts(net, p, up).items()}


@cache
def chances(name, tensor):
    """Return the share of all choices of half of the units that contain each coordinate of a tensor, one by one."""
    net = NETS[name]
    groups = sorted({axis[0] for axis in net.axes[tensor] if axis is not None})
    shape = net.build().get_parameter(tensor).shape
    choices = [combinations(range(net.units[g]), k) for g, k in ((g, HALF[name][g]) for g in groups)]
    seen, number = np.zeros(shape), 0
    for chosen in product(*choices):
        seen[np.ix_(*net.indices(tensor, dict(zip(groups, chosen, strict=True)), shape))] += 1
        number += 1
    return seen / number


def step(net, theta, kept, samples, masked, scale=1.0, unbiased=None, last=None):
    """Return the next model where all clients but the slow one train all of it, weighted by samples."""
    changes, weights = [], []
    for u, own in enumerate(samples):
        change, mask = trained(net, theta, kept if u == SLOW else None, own, scale if u == SLOW and kept else 1.0)
        if unbiased and kept and u == SLOW:
            change = {n: t / chances(unbiased, n) for n, t in change.items()}
        if last and kept and u == SLOW:
            change = {n: np.where(mask[n] > 0, t, last[n]) for n, t in change.items()}
        changes.append(change)
        weights.append({n: SIZES[u] * m for n, m in mask.items()} if masked else full(theta, SIZES[u]))
    return merged(theta, changes, weights), changes


@ALL
@pytest.mark.parametrize("masked", [False, True], ids=["zero", "masked"])
def test_clip(monkeypatch, net, masked):
    """The slow client keeps the units that change most, by an average of its own scores and the model's public change."""
    samples, theta, own, average, seen_before = made(net)[2], None, None, None, None
    options = {"explore": 0, "network": False, **({"merge": "masked"} if masked else {})}
    dropped = []
    for number, seen in enumerate(run(monkeypatch, net, "clip", ROUNDS, **options), 1):
        theta = seen.before if theta is None else theta
        kept = None
        if number > 2:
            assert seen.fraction == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 0.5}
            public = {g: np.full(n, np.nan) for g, n in net.units.items()}
            if seen_before is not None:
                public = scores(net, {n: theta[n] - seen_before[n] for n in theta}, seen_before)
            new = {g: np.where(np.isnan(own[g]), public[g], own[g]) for g in own}
            average = (
                new if average is None else {g: np.where(np.isnan(new[g]), average[g], (new[g] + average[g]) / 2) for g in new}
            )
            kept = {g: sorted(np.argsort(-average[g])[:k].tolist()) for g, k in counts(net, 0.5).items()}
            assert seen.kept == {SLOW: [kept]}
            for g, score in average.items():
                np.testing.assert_allclose(seen.memory[SLOW]["scores"][g], score, rtol=2e-3, atol=1e-5)
            seen_before = theta
            dropped.append(kept)
        else:
            assert not seen.kept
        before = theta
        theta, changes = step(net, theta, kept, samples, masked)
        close(seen.after, theta)
        own = scores(net, changes[SLOW], before, trained(net, before, kept, samples[SLOW], steps=1)[1])
    assert len(dropped) == ROUNDS - 2


MERGES = {merge: {"merge": merge} for merge in ("zero", "masked", "unbiased", "stale")} | {"rescaled": {"rescale": True}}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", MERGES.values(), ids=MERGES)
def test_random_dropout(monkeypatch, name, options):
    """Any half of the units, another one in each round; unbiased: divided by the share of the halves that have a coordinate.

    Stale: where the slow client trained nothing its last change is merged once more.
    """
    net, merge = NETS[name], options.get("merge")
    samples, theta, drawn, last = made(net)[2], None, [], None
    for number, seen in enumerate(run(monkeypatch, net, "randomdropout", 5, network=False, **options), 1):
        theta = seen.before if theta is None else theta
        kept = None
        if number > 2:
            (kept,) = seen.kept[SLOW]
            assert {g: len(set(units)) for g, units in kept.items()} == counts(net, 0.5)
            drawn.append(kept)
        scale, unbiased = 2.0 if "rescale" in options else 1.0, name if merge == "unbiased" else None
        theta, changes = step(net, theta, kept, samples, merge == "masked", scale, unbiased, last)
        last = changes[SLOW] if merge == "stale" else None
        close(seen.after, theta)
    assert any(kept != drawn[0] for kept in drawn)


@ALL
@pytest.mark.parametrize("masked", [False, True], ids=["zero", "masked"])
def test_ordered_dropout(monkeypatch, net, masked):
    """The first floor(n / 2) units of each layer, in every round."""
    samples, theta = made(net)[2], None
    options = {"network": False, **({"merge": "masked"} if masked else {})}
    for number, seen in enumerate(run(monkeypatch, net, "fjord", 5, **options), 1):
        theta = seen.before if theta is None else theta
        kept = first(net, 0.5) if number > 2 else None
        assert seen.kept == ({SLOW: [kept]} if kept else {})
        theta, _ = step(net, theta, kept, samples, masked)
        close(seen.after, theta)


TIERS = [1.0, 0.95, 0.85, 0.75, 0.65, 0.5]


@pytest.mark.parametrize("net", [NETS["mlp"], NETS["conv"], NETS["lstm"]], ids=["mlp", "conv", "lstm"])
@pytest.mark.parametrize("merge", [None, "zero"])
def test_nested_fjord(monkeypatch, net, merge):
    """Every client draws a width for each step, up to its own, and the mean of a coordinate is over the widths that reach it."""
    samples, theta, options, seen_widths, several = made(net)[2], None, {"merge": merge} if merge else {}, set(), 0
    for seen in run(monkeypatch, net, "fjord", 5, network=False, nested=True, **options):
        theta = seen.before if theta is None else theta
        changes, weights = [], []
        for u, own in enumerate(samples):
            p = seen.fraction[u]
            allowed = [first(net, t) for t in TIERS if t <= p]
            at = theta
            for kept in seen.kept[u]:
                assert kept in allowed
                seen_widths.add((u, str(kept)))
                change, _ = trained(net, at, kept, own, steps=1)
                at = {n: at[n] + change[n] for n in at}
            changes.append({n: at[n] - theta[n] for n in at})
            reach = trained(net, theta, first(net, p), own, steps=0)[1]
            weights.append(full(theta, SIZES[u]) if merge else {n: SIZES[u] * m for n, m in reach.items()})
            assert len(seen.kept[u]) == 2
            several += seen.kept[u][0] != seen.kept[u][1]
        theta = merged(theta, changes, weights)
        close(seen.after, theta)
    assert seen.fraction == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 0.5}
    assert len(seen_widths) > 8
    assert several > 8  # steps of one training have different widths


HETERO = [
    {},
    {"rescale": False},
    {"importance": "samples"},
    {"own_rows": False},
    {"masked_loss": False},
    {"merge": "zero"},
]


@pytest.mark.parametrize(
    ("net", "options"),
    [*((net, {}) for net in NETS.values()), *((MLP, options) for options in HETERO[1:])],
    ids=[*NETS, *(str(options) for options in HETERO[1:])],
)
def test_heterofl(monkeypatch, net, options):
    """Width ceil(n / 2) with activations times 2; uniform counts; only the output rows of a client's own classes are merged."""
    samples, theta, outputs, start = made(net)[2], None, list(net.axes)[-2:], None
    for number, seen in enumerate(run(monkeypatch, net, "heterofl", 5, network=False, **options), 1):
        theta = seen.before if theta is None else theta
        start = seen.buffers if start is None else start
        slow = first(net, 0.5, up=True) if number > 2 else None
        assert seen.kept == ({SLOW: [slow]} if slow else {})
        changes, weights = [], []
        for u, own in enumerate(samples):
            absent = [c for c in range(CLASSES) if c not in OWN[u]]
            kept = slow if u == SLOW else None
            scale = 2.0 if kept and options.get("rescale", True) else 1.0
            change, mask = trained(net, theta, kept, own, scale, absent if options.get("masked_loss", True) else None)
            by = SIZES[u] if options.get("importance") == "samples" or options.get("merge") else 1.0
            weight = full(theta, by) if options.get("merge") else {n: by * m for n, m in mask.items()}
            if options.get("own_rows", True) and not options.get("merge"):
                for n in outputs:
                    weight[n][absent] = 0.0
            changes.append(change)
            weights.append(weight)
        theta = merged(theta, changes, weights)
        close(seen.after, theta)
        for n, value in seen.buffers.items():  # running statistics are not trained
            np.testing.assert_array_equal(value, start[n])
    assert not np.array_equal(theta[outputs[0]], seen.before[outputs[0]])


def test_heterofl_widths_stay(monkeypatch):
    """Links that change move CLIP's width from round to round; HeteroFL's is chosen once."""
    fleet, widths = "mobile:compute=1e5,link=3e4,least=1.0,most=1.0", {}
    for method in ("clip", "heterofl"):
        seen = [s.fraction for s in run(monkeypatch, MLP, method, 8, fleet=fleet)][2:]
        widths[method] = [len({fractions[u] for fractions in seen}) for u in range(5)]
    assert max(widths["clip"]) > 1
    assert widths["heterofl"] == [1] * 5


@ALL
@pytest.mark.parametrize("warmup", [3, 2])
def test_fluid(monkeypatch, net, warmup):
    """The slow client trains without invariant units: those of which all weights hardly change for most of the others.

    A layer's threshold is the least score of its units, averaged over rounds 2 and 3; a unit's score is the largest of all
    clients. It grows while fewer units are invariant than a half-size model drops.
    """
    samples, theta, th, invariant, before, cases = made(net)[2], None, {}, None, None, set()
    shapes, options = None, {"warmup": warmup, "every": 2, "step": 0.6}
    for number, seen in enumerate(run(monkeypatch, net, "fluid", 8, **options), 1):
        theta = seen.before if theta is None else theta
        shapes = {n: t.shape for n, t in theta.items()}
        kept = None
        if number > warmup:
            kept = {g: u.tolist() for g, u in seen.sent[SLOW]["kept"].items()}
            assert set(seen.sent) == {SLOW}
            for g, n in net.units.items():
                assert len(kept[g]) == n // 2
                dropped, still = set(range(n)) - set(kept[g]), set(np.flatnonzero(invariant[g]).tolist())
                again = still & (set(range(n)) - set(before[g])) if before else set()
                number_dropped = n - n // 2
                if len(again) >= number_dropped:
                    assert dropped <= again
                elif len(still) >= number_dropped:
                    assert again <= dropped <= still
                else:
                    assert still <= dropped
                cases.add((bool(still), bool(again), len(still) >= number_dropped))
            before = kept
        changes, weights, others = [], [], []
        for u, own in enumerate(samples):
            change, mask = trained(net, theta, kept if u == SLOW else None, own)
            changes.append(change)
            weights.append({n: SIZES[u] * m for n, m in mask.items()})
            others += [change] if u != SLOW or kept is None else []
        invariant = {}
        for g, n in net.units.items():
            invariant[g] = np.ones(n, bool)
            for j in range(n):
                bundle = net.bundle(g, j, shapes)
                for name in theta:
                    limit = threshold_of(net, name, th) * np.abs(theta[name])
                    votes = sum((np.abs(c[name]) <= limit).astype(float) for c in others)
                    invariant[g][j] &= bool((votes >= 0.75 * len(others))[bundle[name]].all())
        for g, score in seen.state.scores.items():
            np.testing.assert_array_equal(score.numpy() == 0.0, invariant[g])
        worst = [scores(net, c, theta, eps=0.0) for c in others]
        start = {g: max_over(worst, g).min() for g in net.units}
        if number == 2 and warmup > 1:
            th = start
        elif number == 3 and warmup > 2:
            th = {g: (th[g] + start[g]) / 2 for g in th}
        elif number > max(warmup, 1) and (number - 1) % 2 == 0:
            th = {g: t + (0.6 if invariant[g].sum() < n_dropped(net, g) else 0.0) for g, t in th.items()}
        assert seen.state.thresholds == pytest.approx(th, rel=1e-3)
        theta = merged(theta, changes, weights)
        close(seen.after, theta)
    assert any(still for still, _, _ in cases)


def n_dropped(net, group):
    return net.units[group] - net.units[group] // 2


def max_over(found, group):
    return np.max([score[group] for score in found], axis=0)


def threshold_of(net, name, th):
    """A tensor has the threshold of the layer that it feeds; the last layer's weights that of the layer they read."""
    groups = [axis[0] for axis in net.axes[name] if axis is not None]
    return th.get(groups[0], 0.0) if groups else 0.0


@ALL
def test_drop_stragglers(monkeypatch, net):
    """After the warm-up the slow client's update is missing, and the others' weights are what is divided by."""
    samples, theta = made(net)[2], None
    for number, seen in enumerate(run(monkeypatch, net, "dropstragglers", 4), 1):
        theta = seen.before if theta is None else theta
        there = range(5) if number < 3 else range(4)
        changes = [trained(net, theta, None, samples[u])[0] for u in there]
        theta = merged(theta, changes, [full(theta, SIZES[u]) for u in there])
        close(seen.after, theta)
