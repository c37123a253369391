"""The cache: whole or not at all, and never a pickle."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from paceline.core.errors import DataError, DataFormatError
from paceline.data import cache
from paceline.data.cache import cache_folder, load_arrays, save_arrays


def test_round_trip(tmp_path):
    arrays = {"x": np.arange(12, dtype=np.uint8).reshape(3, 4), "names": np.array(["a", "ö"])}
    save_arrays(tmp_path / "new" / "a.npz", arrays)
    again = load_arrays(tmp_path / "new" / "a.npz")
    assert again.keys() == arrays.keys()
    for name, value in arrays.items():
        assert again[name].dtype == value.dtype
        assert np.array_equal(again[name], value)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"]


def test_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_half_a_file_is_told(tmp_path, cut):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(100)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataFormatError, match=r"a\.npz is not a complete npz file.*fetch it again"):
        load_arrays(path)


def test_changed_byte_is_told(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataFormatError):
        load_arrays(path)


def test_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataFormatError):
        load_arrays(path)


def test_full_disk_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(3)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.np, "savez_compressed", full)
    with pytest.raises(DataError, match="No space left"):
        save_arrays(path, {"x": np.arange(4)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert list(load_arrays(path)["x"]) == [0, 1, 2]


def test_interrupted_save_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(3)})

    def stop(file, **arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        save_arrays(path, {"x": np.arange(4)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
