"""The sparse frame: its zeros, its lengths, and that classes move apart."""

import torch

from paceline.blocks.etf import frame, sparse_frame


def cosines(m):
    unit = m / m.norm(dim=0)
    return (unit.T @ unit - 2 * torch.eye(m.shape[1])).amax(1)


def test_zeros_stay_and_their_number_is_exact():
    m = sparse_frame(16, 5, 0, steps=200, lr=1e-3)
    assert int((m == 0).sum()) == int(0.6 * 16 * 5)
    assert torch.equal(m == 0, sparse_frame(16, 5, 0, steps=1) == 0)
    assert not torch.equal(m == 0, sparse_frame(16, 5, 1, steps=1) == 0)


def test_lengths_reach_their_goal_and_classes_move_apart():
    start, end = (sparse_frame(16, 5, 3, steps=steps, lr=5e-3, length=1.0) for steps in (1, 800))
    assert float((end.norm(dim=0) - 1).abs().max()) < 0.2 < float((start.norm(dim=0) - 1).abs().max())
    assert float(cosines(end).mean()) < float(cosines(start).mean()) - 0.05


def test_without_zeros_and_steps_it_is_the_dense_frame():
    assert torch.allclose(sparse_frame(8, 3, 2, zeros=0.0, steps=0), frame(8, 3, 2))
