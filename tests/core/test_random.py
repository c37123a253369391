import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.random import derive, numpy_rng, torch_rng

paths = st.lists(st.integers(-(10**9), 10**9) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=4)


def test_a_seed_is_the_hash_of_its_path() -> None:
    digest = hashlib.sha256(b"7/sclient/i3/i12").digest()
    assert derive(7, "client", 3, 12) == int.from_bytes(digest[:8], "little") >> 1
    assert 0 <= derive(-1) < 2**63


@settings(max_examples=200, deadline=None, derandomize=True)
@given(paths, paths)
def test_different_paths_have_different_streams(one: list[int | str], two: list[int | str]) -> None:
    assert (derive(0, *one) == derive(0, *two)) == (one == two)


def test_names_and_numbers_do_not_collide() -> None:
    seeds = [
        derive(1, "a", "b"),
        derive(1, "a/sb"),
        derive(1, "a%2Fsb"),
        derive(1, 5),
        derive(1, "5"),
        derive(1, "i5"),
        derive(1, 5, 5),
        derive(1, 55),
        derive(15),
        derive(1),
    ]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_integers_name_the_same_stream(kind: type) -> None:
    assert derive(3, "client", kind(5)) == derive(3, "client", 5)


def test_a_path_has_no_floats() -> None:
    with pytest.raises(TypeError):
        derive(1, 0.5)  # type: ignore[arg-type]


def test_streams_repeat_and_are_independent_of_each_other() -> None:
    assert torch.equal(torch.rand(4, generator=torch_rng(1, "x", 2)), torch.rand(4, generator=torch_rng(1, "x", 2)))
    assert not torch.equal(torch.rand(4, generator=torch_rng(1, "x", 2)), torch.rand(4, generator=torch_rng(1, "x", 3)))
    assert numpy_rng(1, 2).random(4).tolist() == numpy_rng(1, 2).random(4).tolist()
    first = torch.rand(4, generator=torch_rng(9, "a"))
    torch.manual_seed(123)
    torch.rand(10)
    assert torch.equal(first, torch.rand(4, generator=torch_rng(9, "a")))


def test_streams_do_not_touch_the_global_ones() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    torch_rng(1).initial_seed()
    torch.rand(2, generator=torch_rng(1))
    assert torch.equal(torch.rand(3), want)
