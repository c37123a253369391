import math
from pathlib import Path

import pytest
import torch
from torch import nn

from paceline.core.errors import CheckpointError, WireError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.serialization import dumps
from paceline.core.tree import node
from paceline.store import load_checkpoint, save_checkpoint


@node
class State:
    params: Params
    momentum: dict[int, torch.Tensor]
    loss: float


def example() -> State:
    net = nn.Linear(7, 3)
    return State(Params.of(net, Layout.of(net)), {3: torch.arange(5), -1: torch.ones(2, dtype=torch.bool)}, math.nan)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = example()
    save_checkpoint(tmp_path / "c", state)
    back = load_checkpoint(tmp_path / "c")
    assert isinstance(back, State)
    assert dumps(back) == dumps(state)
    back.params.vector.add_(1)
    back.momentum[3].add_(1)
    assert dumps(load_checkpoint(tmp_path / "c")) == dumps(state)


def test_every_damaged_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.arange(3), "b": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0x40
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="delete the run's folder"):
            load_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="instead of"):
        load_checkpoint(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="start the run again"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)
    (tmp_path / "text").write_text("hello " * 50)
    with pytest.raises(CheckpointError, match="is not a Paceline checkpoint"):
        load_checkpoint(tmp_path / "text")


def test_what_cannot_be_saved_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", 1)
    with pytest.raises(WireError, match="64 bits"):
        save_checkpoint(tmp_path / "c", 2**80)
    assert load_checkpoint(tmp_path / "c") == 1


def test_a_checkpoint_has_no_limit_on_tensors(tmp_path: Path) -> None:
    many = [torch.tensor(i) for i in range(3000)]
    save_checkpoint(tmp_path / "c", many)
    assert [int(t) for t in load_checkpoint(tmp_path / "c")] == list(range(3000))
