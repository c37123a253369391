"""Trees of columns: batches, padding, files, and how a module is called with them."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.columns import Mapped, Ragged, call, cast, columns, first, length, place, positional, select, take
from paceline.core.errors import DataError, DataFormatError

LISTS = [torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(0, 1), torch.tensor([[4.0]])]
ROWS = torch.tensor([2, 0])


def test_a_batch_of_a_tree_has_the_rows_of_every_column():
    tree = {"a": torch.arange(6), "b": (torch.eye(6), Ragged.of([torch.arange(k) for k in range(6)], padding=-1))}
    batch = take(tree, ROWS)
    assert batch["a"].tolist() == [2, 0]
    eye, values, mask = batch["b"]
    assert eye.equal(torch.eye(6)[ROWS])
    assert values.tolist() == [[0, 1], [-1, -1]]
    assert mask.tolist() == [[True, True], [False, False]]
    assert length(tree) == 6
    assert [name for name, _ in columns(tree)] == ["['a']", "['b'][0]", "['b'][1]"]


def test_ragged_samples_are_padded_to_the_longest_of_the_batch():
    column = Ragged.of(LISTS, padding=9)
    values, mask = column.take(torch.tensor([0, 1, 2]))
    assert values[..., 0].tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert mask.sum(1).tolist() == [3, 0, 1]
    assert column.take(torch.tensor([2]))[0].shape == (1, 1, 1)
    assert column.take(torch.tensor([1]))[0].shape == (1, 0, 1)
    assert column.take(ROWS[:0])[0].shape == (0, 0, 1)
    part = column.subset(ROWS)
    assert len(part) == 2
    assert part.take(torch.tensor([1]))[0][0, :, 0].tolist() == [1, 2, 3]
    assert cast(column, torch.float64).take(ROWS)[0].dtype == torch.float64


def test_a_mask_has_a_name_of_its_own_or_is_left_out():
    for mask, names in ((True, {"ids", "ids_mask"}), ("attention_mask", {"ids", "attention_mask"}), (False, {"ids"})):
        assert set(take({"ids": Ragged.of(LISTS, mask=mask)}, ROWS)) == names
    assert isinstance(take(Ragged.of(LISTS, mask=False), ROWS), torch.Tensor)


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 3, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(DataFormatError, match="ragged column: offsets must"):
        Ragged(torch.zeros(3), torch.tensor(offsets))
    with pytest.raises(DataError, match="no samples"):
        Ragged.of([])


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16])
def test_a_column_in_a_file_reads_what_it_needs_and_travels_by_name(tmp_path, kind):
    array = (np.arange(20).reshape(10, 2) * 3).astype(kind)
    np.save(tmp_path / "x.npy", array)
    column = Mapped.open(tmp_path / "x.npy")
    assert (len(column), column.shape) == (10, (10, 2))
    part = column.subset(torch.tensor([7, 2, 5])).subset(torch.tensor([2, 0]))
    for copy in (part, pickle.loads(pickle.dumps(part))):
        assert copy.take(torch.tensor([1, 0])).tolist() == array[[7, 5]].tolist()
    assert column.take(ROWS).dtype == {"f8": torch.float32, "f4": torch.float32, "i2": torch.int16}[np.dtype(kind).str[1:]]
    assert cast(column, torch.float64).take(ROWS).is_floating_point() == (kind is not np.int16)
    assert pickle.loads(pickle.dumps(Mapped(array))).take(ROWS).tolist() == array[[2, 0]].tolist()
    other = array.copy()
    other[3, 1] += 1
    np.save(tmp_path / "y.npy", other)
    assert str(Mapped.open(tmp_path / "y.npy").content()) != str(column.content())


def test_a_file_that_is_not_an_array_is_named(tmp_path):
    (tmp_path / "x.npy").write_text("a,b")
    with pytest.raises(DataFormatError, match=r"x\.npy: not an array"):
        Mapped.open(tmp_path / "x.npy")


class Sum(nn.Module):
    def forward(self, a, b, c=0.0):
        return a - 10 * b + c


def test_a_module_is_called_with_one_input_a_tuple_or_by_name():
    a, b = torch.tensor([5.0]), torch.tensor([1.0])
    assert call(nn.Identity(), a) is a
    assert call(Sum(), (a, b)) == call(Sum(), {"b": b, "a": a}) == -5
    assert positional(Sum(), {"b": b, "a": a}) == (a, b)
    assert positional(Sum(), a) == (a,)
    assert call(nn.Identity(), a.bfloat16()).dtype == torch.float32


def test_columns_move_together():
    tree = (torch.arange(4), Ragged.of([torch.arange(k) for k in range(4)]))
    moved = place(tree, "meta")
    assert moved[0].device.type == moved[1].values.device.type == "meta"
    assert first(tree, 3)[0].tolist() == [0, 1, 2]
    assert select(tree, ROWS)[0].tolist() == [2, 0]
    assert len(select(tree, ROWS)[1]) == 2
