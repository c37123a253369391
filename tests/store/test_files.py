import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from paceline.core.errors import DiskFullError, StoreError
from paceline.store import atomic_write


def test_parts_become_one_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    atomic_write(path, b"one", memoryview(b"two"))
    assert path.read_bytes() == b"onetwo"
    atomic_write(path, b"three", durable=False)
    assert path.read_bytes() == b"three"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(DiskFullError, match="free some space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_is_named(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        atomic_write(tmp_path / "file", b"x" * 10)
    assert os.listdir(tmp_path) == []


def test_other_failures_are_store_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "below", b"x")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(StoreError, match="folder cannot be written"):
        atomic_write(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_system_that_opens_no_folders_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def windows(path: Any, *args: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *args, **named)

    monkeypatch.setattr(os, "open", windows)
    with pytest.raises(StoreError):
        atomic_write(tmp_path / "file", b"on Linux this is a fault")
    monkeypatch.setattr(sys, "platform", "win32")
    atomic_write(tmp_path / "file", b"one", mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"one"
